"""How fast strings come home: what is measured, what is not, and when nobody can know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.pace import LOOK_BACK, PAUSE, Arrival, pace_of

HOUR = 3600.0
NOW = 1_790_000_000.0


def test_jobs_count_from_their_creation_so_that_a_first_round_has_a_length() -> None:
    """Twenty jobs asked for two hours ago, home an hour ago: half of the pace that the hour alone would tell."""
    pace = pace_of([Arrival(NOW - HOUR, 50_000)] * 20, [NOW - 2 * HOUR] * 20, NOW)
    assert pace is not None
    assert pace.per_hour == pytest.approx(500_000)
    assert pace.end(1_000_000) == pytest.approx(NOW + 2 * HOUR)


def test_in_real_time_the_first_strings_begin_the_count() -> None:
    pace = pace_of([Arrival(NOW - 2 * HOUR, 7), Arrival(NOW - HOUR, 100), Arrival(NOW, 100)], [], NOW)
    assert pace is not None
    assert (pace.since, pace.per_hour) == (NOW - 2 * HOUR, 100)


def test_last_months_work_is_not_this_months_pace() -> None:
    month_ago = NOW - 30 * 86_400
    lately = [Arrival(NOW - 2 * HOUR, 10), Arrival(NOW - HOUR, 20)]
    before = [Arrival(month_ago, 1_000_000), Arrival(month_ago + HOUR, 1_000_000)]
    assert pace_of(before + lately, [month_ago - HOUR], NOW) == pace_of(lately, [], NOW)


def test_only_the_last_three_days_count() -> None:
    """A hundred an hour for a week, then ten."""
    week = [Arrival(NOW - LOOK_BACK - hour * HOUR, 100) for hour in range(100)]
    days = [Arrival(NOW - hour * HOUR, 10) for hour in range(72)]
    pace = pace_of(week + days, [], NOW)
    assert pace is not None
    assert pace.per_hour == pytest.approx(10)


def test_waiting_slows_it_down() -> None:
    arrivals = [Arrival(NOW, 0), Arrival(NOW + HOUR, 100)]
    now, later = pace_of(arrivals, [], NOW + HOUR), pace_of(arrivals, [], NOW + 4 * HOUR)
    assert now is not None
    assert later is not None
    assert (now.per_hour, later.per_hour) == (100, 25)


@pytest.mark.parametrize(
    ("arrivals", "asked_at", "now"),
    [
        ([], [NOW - HOUR], NOW),
        ([Arrival(NOW, 100)], [], NOW),
        ([Arrival(NOW - PAUSE - 1, 100)], [NOW - PAUSE - HOUR], NOW),
        ([Arrival(NOW - 30, 5), Arrival(NOW, 5)], [], NOW),
        ([Arrival(NOW + HOUR, 5)], [NOW], NOW),
        ([Arrival(NOW - HOUR, 0)], [NOW - 2 * HOUR], NOW),
    ],
    ids=["nothing yet", "the first strings just now", "long ago", "half a minute", "a clock that was set back", "no string"],
)
def test_nobody_can_know(arrivals: list[Arrival], asked_at: list[float], now: float) -> None:
    assert pace_of(arrivals, asked_at, now) is None


TIMES = st.floats(NOW - 10 * LOOK_BACK, NOW + LOOK_BACK)


@given(st.lists(st.builds(Arrival, TIMES, st.integers(0, 50_000)), max_size=20), st.lists(TIMES, max_size=5), st.integers(1, 10**9))
def test_whatever_the_times_it_is_none_or_an_end_that_lies_ahead(arrivals: list[Arrival], asked_at: list[float], left: int) -> None:
    pace = pace_of(arrivals, asked_at, NOW)
    assert pace == pace_of(arrivals[::-1], asked_at[::-1], NOW)
    if pace is not None:
        assert 0 < pace.strings <= sum(arrival.strings for arrival in arrivals)
        assert pace.end(left) > NOW
        assert NOW - pace.since <= LOOK_BACK
