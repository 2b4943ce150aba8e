"""A clock that tests move: sleeping costs nothing and is remembered, and it can be set as a clock on a wall."""

from __future__ import annotations

import threading


class FakeClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self, start: float = 1_790_000_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self.slept = 0.0

    def now(self) -> float:
        with self._lock:
            return self._now

    def elapsed(self) -> float:
        with self._lock:
            return self.slept

    def set(self, by: float) -> None:
        """Somebody sets the clock, forward or back; no time passes."""
        with self._lock:
            self._now += by

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds
            self.slept += seconds
