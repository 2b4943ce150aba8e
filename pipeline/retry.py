"""The one policy for what may be repeated: capped exponential waits with full jitter, and a clock that tests replace.

Whether a thing may be repeated is decided where it is called; this module only knows how often and how long to wait.
A `Retry-After` is obeyed up to an hour; beyond, the run stops resumably and says until when.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import backoff


class Clock(Protocol):
    """Time as this program sees it."""

    def now(self) -> float:
        """Seconds since 1970."""

    def elapsed(self) -> float:
        """Seconds since some moment, which nobody sets: for how long a thing takes, or may take."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often something is tried in all, and how long the waits may get."""

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_obeyed: float = 3600.0

    def waits(self) -> Iterator[float]:
        """The waits between the attempts: random below a ceiling that doubles."""
        ceilings = backoff.expo(base=2, factor=self.first_wait, max_value=self.longest_wait)
        next(ceilings)  # backoff's generators answer nothing to their first call: they wait for a `send`
        for _ in range(self.attempts - 1):
            yield backoff.full_jitter(next(ceilings))


POLICY = RetryPolicy()
NO_WAITS = RetryPolicy(attempts=1)


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds that a `Retry-After` header asks for: a number, or a date; None when it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=dt.UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
