"""Ctrl-C and SIGTERM, held back while state changes and let through where a run only waits.

An interrupt between the intent in the ledger and the request that it announces would leave an intent that nobody can
settle. A second one is never held back twice: it comes through at the next wait, or at once where nothing is waited for.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Knows whether one came; used by the main thread, and without effect in any other."""

    def __init__(self, *, only_the_first: bool = False) -> None:
        self._only_the_first = only_the_first
        self._came = False
        self._may_raise = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Inside, an interrupt raises only within `let_through`, or where it ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._came:  # also when what was done in here failed: a run that was told to end goes on with nothing
                self._came = False
                raise KeyboardInterrupt

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """KeyboardInterrupt here, for one that came before or comes now."""
        self._may_raise = True
        try:
            if self._came:
                self._came = False
                raise KeyboardInterrupt
            yield
        finally:
            self._may_raise = False

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._may_raise or (self._came and self._only_the_first):
            raise KeyboardInterrupt
        self._came = True
