"""Logs: stdlib logging, one line an event with its facts, never a secret.

`event(log, "request.retried", wait=1.5, status=429)` writes `request.retried wait=1.5 status=429`. Secrets are
registered with `hide` the moment they are read, and are replaced in whatever is logged or shown after that, as a
second net under the rule that no call site passes one. What this module does not know: progress bars and the
plain words for the user, which are `commands/console.py`.
"""

from __future__ import annotations

import base64
import logging
import sys
import traceback
import urllib.parse
from collections.abc import Mapping
from types import TracebackType

ROOT = "namesake"
KEY_NAMES = ("OPENAI_API_KEY", "SERVICE_API_KEY", "WEAVIATE_API_KEY")  # in the environment
_SHORTEST = 8
_secrets: set[str] = set()


def hide(secret: str) -> None:
    """From now on, show `[hidden]` wherever this secret would appear. A word such as `none`, given where no key is
    needed, is no secret: hiding it would garble whatever else is shown."""
    if len(secret) >= _SHORTEST:
        _secrets.update(_forms(secret))


def _forms(secret: str) -> set[str]:
    """A secret as an answer may give it back: as it is, in a URL, and in base64 behind any other bytes (`Basic` headers)."""
    forms = {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
    content = secret.encode("utf-8", "replace")
    for before in range(3):  # of each three bytes four letters are made: what stands before shifts them
        letters = base64.b64encode(bytes(before) + content).decode()
        whole = letters[-(-before * 8 // 6) : (before + len(content)) * 8 // 6]  # letters that are of the secret alone
        forms |= {whole, whole.replace("+", "-").replace("/", "_")}
    return forms


def without_secrets(text: str) -> str:
    """The text with each registered secret replaced."""
    for secret in sorted(_secrets, key=len, reverse=True):  # one form may stand within another
        text = text.replace(secret, "[hidden]")
    return text


class _Record(logging.LogRecord):
    """A record of any library: the SDK at `OPENAI_LOG=debug` logs what a service answers."""

    def getMessage(self) -> str:  # noqa: N802  the name is logging's
        return without_secrets(super().getMessage())


def hide_everywhere(environment: Mapping[str, str]) -> None:
    """Hide secrets also where others write: in the logs of libraries, and in the traceback of a bug that nobody caught,
    whose last line may quote whatever the bug was about, and which may come before any key was read."""
    for name in KEY_NAMES:
        hide(environment.get(name, "").strip())
    sys.excepthook = _show
    logging.setLogRecordFactory(_Record)
    if logging.lastResort is not None:  # warnings of libraries
        logging.lastResort.setFormatter(_Formatter("%(message)s"))


def _show(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
    print(without_secrets("".join(traceback.format_exception(kind, problem, trace))), end="", file=sys.stderr)


def logger(name: str) -> logging.Logger:
    """The logger of a module, below the product's own root."""
    return logging.getLogger(f"{ROOT}.{name.removeprefix('pipeline.')}")


def event(log: logging.Logger, name: str, *, level: int = logging.INFO, **facts: object) -> None:
    """Log an event and its facts; a text with a space in it is quoted."""
    if not log.isEnabledFor(level):
        return
    words = [name]
    for key, value in facts.items():
        text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        words.append(f"{key}={text!r}" if " " in text or "\n" in text else f"{key}={text}")
    log.log(level, "%s", " ".join(words))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def configure(level: str) -> None:
    """Send our events to standard error; other libraries stay silent below WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
