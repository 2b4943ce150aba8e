"""The one policy for what may be repeated: bounded, jittered waits, and what a `Retry-After` means."""

from __future__ import annotations

import email.utils
import itertools

import backoff
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.retry import NO_WAITS, POLICY, RetryPolicy, SystemClock, retry_after

UNHURRIED = settings(deadline=None)  # the machine may be busy
NOW = 1_790_000_000.0


@UNHURRIED
@given(st.integers(1, 12), st.floats(0.01, 10), st.floats(0.01, 100))
def test_each_wait_is_below_a_ceiling_that_doubles_up_to_the_longest(attempts: int, first: float, longest: float) -> None:
    """One wait fewer than attempts, each between nothing and its own ceiling."""
    waits = list(RetryPolicy(attempts=attempts, first_wait=first, longest_wait=longest).waits())
    assert len(waits) == attempts - 1
    for number, wait in enumerate(waits):
        assert 0 <= wait <= min(longest, first * 2**number)


def test_the_ceilings_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the luck of the highest jitter the waits are 1, 2, 4, … and then the longest."""
    monkeypatch.setattr(backoff, "full_jitter", lambda ceiling: ceiling)
    assert list(RetryPolicy(attempts=9).waits()) == [1, 2, 4, 8, 16, 32, 60, 60]


def test_waits_are_jittered() -> None:
    """Many runs that failed together do not come back together."""
    waits = {round(next(POLICY.waits()), 6) for _ in range(50)}
    assert len(waits) > 40


def test_the_policy_ends() -> None:
    """Nothing is repeated for ever, and tests can switch it off."""
    assert len(list(itertools.islice(POLICY.waits(), 100))) == POLICY.attempts - 1
    assert not list(NO_WAITS.waits())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1", 1.0), ("7", 7.0), ("130", 130.0), ("0", 0.0), ("0.25", 0.25), (" 3 ", 3.0), ("-5", 0.0), ("1e2", 100.0)],
)
def test_a_number_is_seconds(value: str, seconds: float) -> None:
    """A wait that lies in the past is no wait."""
    assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value", [None, "", "soon", "nan", "inf", "-inf", "1,5", "1 minute", "\0", "Wed, 99 Oct 2026 07:28:00 GMT"]
)
def test_what_says_nothing_is_nothing(value: str | None) -> None:
    """Then our own waits hold."""
    assert retry_after(value, NOW) is None


@UNHURRIED
@given(st.integers(0, 7200))
def test_a_date_is_so_many_seconds_from_now(ahead: int) -> None:
    """Written as HTTP writes dates."""
    assert retry_after(email.utils.formatdate(NOW + ahead, usegmt=True), NOW) == ahead


def test_a_date_in_the_past_is_no_wait() -> None:
    """A service whose clock is behind does not make us wait a negative time."""
    assert retry_after(email.utils.formatdate(NOW - 90, usegmt=True), NOW) == 0.0


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/New_York"])
def test_a_date_without_a_zone_is_gmt(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HTTP says; where the machine stands does not matter."""
    import time

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert retry_after(email.utils.formatdate(NOW + 60, usegmt=True).removesuffix(" GMT"), NOW) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


@UNHURRIED
@given(st.text())
@example("Wed, 21 Oct 0000 07:28:00 GMT")
@example("Wed, 21 Oct 9999999999 07:28:00 GMT")
@example("Wed, 21 Oct 2026 07:28:00 +999999")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
def test_no_header_breaks_a_run(value: str) -> None:
    """Whatever a service or a proxy writes there: a wait, or nothing."""
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0


def test_the_clock_of_the_machine_tells_seconds_since_1970(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it sleeps as long as it is told to."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("time.time", lambda: NOW)
    clock = SystemClock()
    clock.sleep(0.5)
    assert (clock.now(), slept) == (NOW, [0.5])
