"""How fast strings come home, from the times in the ledger: pure arithmetic, and None where nobody can know.

Measured is the stretch of work that lasts until now: back to the first pause that no job explains, three days at most.
A batch may take a day, so only longer than that is a pause. The time since the last string came counts as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PAUSE = 26 * 3600.0
LOOK_BACK = 3 * 86_400.0
_LEAST = 60.0  # seconds: of less, nothing can be told


@dataclass(frozen=True, slots=True)
class Arrival:
    """Embeddings that came into the tables at a moment."""

    at: float
    strings: int


@dataclass(frozen=True, slots=True)
class Pace:
    """So many strings since a moment."""

    since: float
    until: float
    strings: int

    @property
    def per_hour(self) -> float:
        return self.strings / (self.until - self.since) * 3600

    def end(self, left: int) -> float:
        """When so many more will have come."""
        return self.until + left / self.per_hour * 3600


def pace_of(arrivals: Iterable[Arrival], asked_at: Sequence[float], now: float) -> Pace | None:
    """The pace of the work that is going on. `asked_at`: when the jobs that have ended were created."""
    stretch = _stretch(sorted(arrivals, key=lambda one: one.at), now)
    if not stretch:
        return None
    first = stretch[0].at
    # What came first was asked for some time before: for a job that is known; else its strings don't count, and its time begins.
    since = min((at for at in asked_at if first - PAUSE <= at < first), default=first)
    since = max(since, now - LOOK_BACK)
    strings = sum(arrival.strings for arrival in stretch if arrival.at > since)
    return Pace(since, now, strings) if strings and now - since >= _LEAST else None


def _stretch(arrivals: Sequence[Arrival], now: float) -> list[Arrival]:
    """The last arrivals without a pause between them, or between the last of them and now. A clock was set: none."""
    found: list[Arrival] = []
    after = now
    for arrival in reversed(arrivals):
        if not 0 <= after - arrival.at <= PAUSE:
            break
        found.insert(0, arrival)
        after = arrival.at
    return found
