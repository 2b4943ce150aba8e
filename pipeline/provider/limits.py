"""Keeping within what a service allows per minute: its rate-limit headers and its `Retry-After`, for all workers at once.

One `Pace` is shared by the workers of a run. It never guesses a limit: it only remembers what the service said.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.retry import Clock

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_COUNT = re.compile(r"[0-9]{1,18}")
_LONGEST_RESET = 3600.0  # beyond an hour the service is asked again: its Retry-After then says whether to stop
_LONGEST_SLEEP = 0.5  # so that a run that is told to stop does not sleep on


@dataclass(slots=True)
class _Allowance:
    """What is left of something until it is filled up again."""

    left: int
    full_at: float


def parse_duration(words: str) -> float | None:
    """The seconds in OpenAI's way of writing them: `1s`, `6m0s`, `20ms`, `1h2m3s`."""
    found = _DURATION.fullmatch(words.strip())
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds, millis = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000


class Pace:
    """When the next request may go."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held_until = 0.0
        self._allowances: dict[str, _Allowance] = {}
        self.stopped = threading.Event()

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock.elapsed() + seconds)

    def note(self, headers: Mapping[str, str]) -> None:
        """Remember what an answer says is left."""
        for name in ("requests", "tokens"):
            left = headers.get(f"x-ratelimit-remaining-{name}", "")
            reset = parse_duration(headers.get(f"x-ratelimit-reset-{name}", ""))
            if _COUNT.fullmatch(left) and reset is not None and math.isfinite(reset):
                with self._lock:
                    self._allowances[name] = _Allowance(int(left), self._clock.elapsed() + min(reset, _LONGEST_RESET))

    def admit(self, tokens: int) -> bool:
        """Wait until a request of so many tokens may go; False when the run was stopped meanwhile."""
        while not self.stopped.is_set():
            wait = self._wait(tokens)
            if wait <= 0:
                return True
            self._clock.sleep(min(wait, _LONGEST_SLEEP))
        return False

    def _wait(self, tokens: int) -> float:
        """The seconds still to wait; 0 takes what the request needs from the allowances."""
        now = self._clock.elapsed()
        with self._lock:
            if now < self._held_until:
                return self._held_until - now
            needs = {"requests": 1, "tokens": tokens}
            for name, allowance in list(self._allowances.items()):
                if now >= allowance.full_at:
                    del self._allowances[name]
                elif allowance.left < needs[name]:
                    return allowance.full_at - now
            for name, allowance in self._allowances.items():
                allowance.left -= needs[name]
        return 0.0
