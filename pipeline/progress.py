"""How a long step tells that it moves. What is drawn on a terminal is `commands/console.py`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    """One step under way."""

    def advance(self, count: int) -> None:
        """So many more are done."""


class Progress(Protocol):
    """Opens a bar for each step."""

    def bar(self, words: str, total: int) -> AbstractContextManager[Bar]:
        """A step of `total` strings."""
