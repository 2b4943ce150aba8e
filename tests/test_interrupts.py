"""An interrupt is held back while state changes, and comes through where a run only waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.interrupts import Interrupts


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """A shell starts what it puts into the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # where Python looks for signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_comes_while_state_changes_is_raised_at_the_next_wait(number: int) -> None:
    interrupts, changed = Interrupts(), False
    with interrupts.held_back():
        interrupt(number)
        changed = True
        with pytest.raises(KeyboardInterrupt), interrupts.let_through():
            raise AssertionError("it was not let through")
        with interrupts.let_through():
            pass  # it came once, and is told once
    assert changed


def test_one_that_comes_during_a_wait_is_raised_there() -> None:
    interrupts = Interrupts()
    with interrupts.held_back(), interrupts.let_through(), pytest.raises(KeyboardInterrupt):
        interrupt()


def test_one_that_no_wait_came_after_is_raised_at_the_end_when_all_is_done() -> None:
    done = []

    def change() -> None:
        with Interrupts().held_back():
            interrupt()
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        change()
    assert done == [True]


def test_one_is_not_forgotten_when_what_was_done_failed() -> None:
    """A run that was told to end must not go on because its last request broke off."""

    def fail() -> None:
        with Interrupts().held_back():
            interrupt()
            raise OSError("it broke off")

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_a_second_one_comes_through_where_only_the_first_is_held_back() -> None:
    done = []

    def hang() -> None:
        with Interrupts(only_the_first=True).held_back():
            interrupt()
            done.append("went on")
            interrupt()
            done.append("hung")

    with pytest.raises(KeyboardInterrupt):
        hang()
    assert done == ["went on"]


def test_afterwards_interrupts_are_as_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts().held_back():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_in_another_thread_it_changes_nothing() -> None:
    said = []

    def run() -> None:
        with Interrupts().held_back():
            said.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert said == [signal.getsignal(signal.SIGINT)]
