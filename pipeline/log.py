"""Logs: stdlib logging, one line an event with its facts, never a secret.

`event(log, "request.retried", wait=1.5, status=429)` writes `request.retried wait=1.5 status=429`. Secrets are
registered with `hide` the moment they are read, and are replaced in whatever is logged or shown after that, as a
second net under the rule that no call site passes one. What this module does not know: progress bars and the
plain words for the user, which are `commands/console.py`.
"""

from __future__ import annotations

import logging
import sys

ROOT = "namesake"
_SHORTEST = 8
_secrets: set[str] = set()


def hide(secret: str) -> None:
    """From now on, show `[hidden]` wherever this secret would appear. A word such as `none`, given where no key is
    needed, is no secret: hiding it would garble whatever else is shown."""
    if len(secret) >= _SHORTEST:
        _secrets.add(secret)


def without_secrets(text: str) -> str:
    """The text with each registered secret replaced."""
    for secret in _secrets:
        text = text.replace(secret, "[hidden]")
    return text


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
