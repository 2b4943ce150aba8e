"""Pace: what the service said of its limits holds for all workers at once. The clock is ours, so nothing really waits."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.provider.limits import Pace, parse_duration
from tests.clock import FakeClock

UNHURRIED = settings(deadline=None)  # the machine may be busy


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def pace(clock: FakeClock) -> Pace:
    return Pace(clock)


def said(requests: int | str | None = None, tokens: int | str | None = None, reset: str = "10s") -> dict[str, str]:
    """The headers of an answer."""
    headers: dict[str, str] = {}
    for name, left in (("requests", requests), ("tokens", tokens)):
        if left is not None:
            headers |= {f"x-ratelimit-remaining-{name}": str(left), f"x-ratelimit-reset-{name}": reset}
    return headers


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3s", 3723), ("1h0m0s", 3600), ("17.5s", 17.5), ("1m0.5s", 60.5), ("0s", 0),
     ("2m", 120), ("8.64s", 8.64), (" 1s ", 1), ("1s20ms", 1.02), ("1h", 3600), ("0.5ms", 0.0005)],
)  # fmt: skip
def test_durations_are_read_as_openai_writes_them(words: str, seconds: float) -> None:
    """Minutes and milliseconds are not mistaken for each other."""
    assert parse_duration(words) == pytest.approx(seconds)


@pytest.mark.parametrize("words", ["", " ", "soon", "1", "s", "-1s", "1s1h", "1d", "1.5m", "1s garbage", "ms"])
def test_what_is_no_duration_is_nothing(words: str) -> None:
    """Nothing is guessed."""
    assert parse_duration(words) is None


def test_nothing_said_means_no_waiting(pace: Pace, clock: FakeClock) -> None:
    """A limit is never guessed."""
    assert all(pace.admit(1_000_000) for _ in range(100))
    assert clock.slept == 0


def test_a_hold_holds_everybody_until_it_is_over(pace: Pace, clock: FakeClock) -> None:
    """A `Retry-After` of 7 seconds is 7 seconds, neither less nor much more."""
    pace.hold(7)
    assert pace.admit(1)
    assert clock.now() == pytest.approx(1007)
    assert pace.admit(1)
    assert clock.now() == pytest.approx(1007)


def test_a_shorter_hold_does_not_shorten_a_longer_one(pace: Pace, clock: FakeClock) -> None:
    """Two workers are refused one after the other: the later end counts."""
    pace.hold(9)
    pace.hold(2)
    pace.admit(1)
    assert clock.now() == pytest.approx(1009)


def test_requests_go_until_none_is_left_and_then_wait_for_the_reset(pace: Pace, clock: FakeClock) -> None:
    """Two are left: two go at once, the third when the service has filled up."""
    pace.note(said(requests=2))
    assert pace.admit(1)
    assert pace.admit(1)
    assert clock.slept == 0
    assert pace.admit(1)
    assert clock.now() == pytest.approx(1010)


def test_tokens_are_counted_down_by_what_each_request_needs(pace: Pace, clock: FakeClock) -> None:
    """A small request still goes where a large one has to wait."""
    pace.note(said(tokens=1000))
    assert pace.admit(700)
    assert pace.admit(300)
    assert clock.slept == 0
    assert pace.admit(1)
    assert clock.now() == pytest.approx(1010)


def test_a_request_that_must_wait_takes_nothing_meanwhile(pace: Pace, clock: FakeClock) -> None:
    """Requests are left, tokens are not: the request that waits for tokens has not used up a request."""
    pace.note({**said(requests=1, reset="60s"), **said(tokens=10, reset="5s")})
    assert pace.admit(11)
    assert clock.now() == pytest.approx(1005)
    assert pace.admit(1)
    assert clock.now() == pytest.approx(1060)


def test_a_request_larger_than_the_whole_limit_goes_after_the_reset(pace: Pace, clock: FakeClock) -> None:
    """It would wait for ever otherwise; the service itself then says no."""
    pace.note(said(tokens=10, reset="1s"))
    assert pace.admit(1_000_000)
    assert clock.now() == pytest.approx(1001)


def test_the_latest_word_counts(pace: Pace, clock: FakeClock) -> None:
    """Each answer says anew what is left."""
    pace.note(said(requests=0, reset="1h"))
    pace.note(said(requests=5, reset="1s"))
    assert pace.admit(1)
    assert clock.slept == 0


@pytest.mark.parametrize("left", ["", "many", "-1", "1.5", "\u00b2", "\u0e51\u00b2", "9" * 5000])
def test_odd_headers_are_passed_over(left: str, pace: Pace, clock: FakeClock) -> None:
    """A proxy may write anything: no header breaks a run or stops it."""
    pace.note(said(requests=left, tokens=left))
    pace.note({"x-ratelimit-remaining-requests": "0"})
    pace.note({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"})
    pace.note({})
    assert pace.admit(100)
    assert clock.slept == 0


@UNHURRIED
@given(st.dictionaries(st.sampled_from(sorted(said(1, 1))), st.text(), max_size=4))
@example(said("0", "0", "9" * 400 + "s"))
@example(said("0", "0", "20ms"))
def test_a_run_never_waits_without_end(headers: dict[str, str]) -> None:
    """Whatever the headers say, they break nothing, and the wait that follows has an end."""
    pace = Pace(FakeClock(1000.0))
    pace.note(headers)
    assert 0 <= pace._wait(10**9) < math.inf


def test_a_stop_ends_the_waiting(clock: FakeClock, pace: Pace) -> None:
    """Ctrl-C in an hour of `Retry-After`: the worker is free at its next look, within half a second."""
    pace.hold(3600)

    class Stopping(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.slept >= 2:
                pace.stopped.set()

    pace._clock = Stopping(1000.0)
    assert not pace.admit(1)
    assert pace._clock.slept < 3


def test_a_stopped_pace_lets_nobody_go(pace: Pace) -> None:
    """Also one who comes later, and where nothing is held."""
    pace.stopped.set()
    assert not pace.admit(1)


def test_workers_share_what_is_left() -> None:
    """Eight workers, five requests left: exactly five go, however the threads fall; the others find that they must wait."""

    class StopsWhoWaits(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            shared.stopped.set()

    shared = Pace(StopsWhoWaits(1000.0))
    shared.note(said(requests=5, reset="3s"))
    gate = threading.Barrier(8)

    def work(_: int) -> bool:
        gate.wait()
        return shared.admit(1)

    with ThreadPoolExecutor(8) as workers:
        assert sum(workers.map(work, range(8))) == 5
