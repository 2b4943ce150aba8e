"""What the sections of the page are put together from: paragraphs, tables that scroll inside themselves, moments."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from pipeline.reporting.markup import Markup, tag

Column = tuple[str, str]  # its class in the style, and its head


def words(head: str) -> Column:
    """A column of short words, which stay on one line."""
    return ("s", head)


def numbers(*heads: str) -> tuple[Column, ...]:
    """Columns of numbers, one below the other by their last digit."""
    return tuple(("n", head) for head in heads)


def names(head: str) -> Column:
    """A column of names, which are short as a rule, and may be anything."""
    return ("m", head)


def texts(head: str) -> Column:
    """A column of texts of any length."""
    return ("t", head)


def paragraph(*content: str, soft: bool = False) -> Markup:
    """A paragraph; a soft one stands back."""
    return tag("p", *content, class_="soft") if soft else tag("p", *content)


def table(
    label: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], total: Sequence[str] = (), *, tall: bool = False
) -> Markup:
    """A table in a box of its own, that can be scrolled by keys too. A tall one shows some rows at a time."""
    head = tag("thead", tag("tr", *(tag("th", title, class_=kind, scope="col") for kind, title in columns)))
    body = tag("tbody", *(_row(columns, row) for row in rows))
    foot = tag("tfoot", _row(columns, total)) if total else ""
    return tag(
        "div",
        tag("table", head, body, foot),
        class_="scroll tall" if tall else "scroll",
        tabindex=0,
        role="region",
        aria_label=label,
    )


def _row(columns: Sequence[Column], row: Sequence[str]) -> Markup:
    return tag("tr", *(tag("td", cell, class_=kind) for (kind, _), cell in zip(columns, row, strict=True)))


def moment(seconds: float | None, form: str = "%Y-%m-%d %H:%M UTC") -> str:
    """A moment as one reads it; of what a service said that is none, a question mark."""
    if seconds is None:
        return "-"
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime(form)
    except (OverflowError, ValueError, OSError):
        return "?"


def share(count: int, of: int) -> str:
    """A share in percent; never 100 % of what is not all."""
    if not of:
        return "-"
    return "100 %" if count == of else f"{min(99.9, 100 * count / of):.1f} %"
