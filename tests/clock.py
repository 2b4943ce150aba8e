"""A clock that tests move: sleeping costs nothing and is remembered."""

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

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds
            self.slept += seconds
