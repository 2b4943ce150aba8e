"""HTML put together so that no text can become markup: whatever is not `Markup` already is escaped, and shown harmlessly.

Characters that would not be seen, or would turn around what stands beside them (controls, NUL, bidirectional overrides),
are shown by a sign or by their number. What the page says is not known here.
"""

from __future__ import annotations

import html
import re

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\ufffe\uffff\ud800-\udfff]")
_VOID = frozenset(("meta", "br"))


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def safe(text: str) -> Markup:
    """A text as HTML that shows it, whatever it holds."""
    return Markup(html.escape(_UNSEEN.sub(_seen, text), quote=True))


def _seen(found: re.Match[str]) -> str:
    point = ord(found[0])
    if point < 0x20:
        return chr(0x2400 + point)
    return "\u2421" if point == 0x7F else f"\u27e8U+{point:04X}\u27e9"


def join(*parts: str) -> Markup:
    """Parts side by side, each escaped unless it is markup."""
    return Markup("".join(part if isinstance(part, Markup) else safe(part) for part in parts))


def tag(name: str, /, *content: str, **attributes: str | float) -> Markup:
    """An element. `class_` is class, `aria_label` aria-label."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{safe(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(*content)}</{name}>")


def foreign(text: str, most: int = 240) -> Markup:
    """A text of the user's or the service's: set apart, so that its direction is its own, and cut where it gets long."""
    return tag("bdi", text if len(text) <= most else text[: most - 1] + "…")
