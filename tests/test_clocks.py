"""Somebody sets this machine's clock, back or forward, between runs or in the middle of one: nothing hangs, nothing goes twice.

The service keeps its own time. How long a thing takes is measured by a clock that nobody sets (`Clock.elapsed`); what
depends on the life of a job goes by the service's time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.local_service import State
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import Pace
from tests.batch.world import DAY, Maker, World, error, never_arrives, once
from tests.clock import FakeClock
from tests.test_realtime import NAMES, Trial, whole
from tests.test_realtime import error as says
from tests.tools import Ran
from tests.wire import FaultyService

HOUR = 3600
TITLES = ["Fugue", "Mass", "Suite", "Toccata"]
BY = pytest.mark.parametrize("by", [-HOUR, -DAY, DAY], ids=["an hour back", "a day back", "a day forward"])
NEGATIVE = re.compile(r"(?<![\w.-])-\d+(\.\d+)? ?(s|sec|seconds?|m|minutes?|h|hours?|days?)\b")


class Set(FakeClock):
    """It is set once, while somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.by = 0.0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        by, self.by = self.by, 0.0
        self.set(by)


def assert_told_well(*ran: Ran) -> None:
    for one in ran:
        assert not NEGATIVE.search(one.out + one.err), one.out + one.err


# Real time


@BY
@pytest.mark.parametrize(
    "headers", [{"retry-after": "130"}, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "130s"}]
)
def test_a_wait_that_the_service_asks_for_is_no_longer_and_no_shorter(quick_path: Path, by: float, headers: dict[str, str]) -> None:
    trial = Trial(quick_path, NAMES)
    clock = trial.clock = Set()
    clock.by = by
    with FaultyService([says(429, headers, code="rate_limit_exceeded")]) as service:
        assert trial.run(service) == 0
        whole(trial, service)
    assert 130 <= clock.slept < 150
    assert service.requests == 2


@BY
def test_limits_a_minute_are_kept_to_whatever_the_clock_says(quick_path: Path, by: float) -> None:
    trial = Trial(quick_path, NAMES, max_inputs_per_request=100)
    clock = trial.clock = Set()
    clock.by = by
    with State(requests_per_minute=2) as state, FaultyService(state=state, clock=lambda: clock.elapsed() + 1e9) as service:
        assert trial.run(service) == 0
        whole(trial, service)
        assert service.requests == 3, "one that was refused came too early"
    assert clock.slept < 120


@BY
def test_between_two_runs_in_real_time(quick_path: Path, by: float) -> None:
    trial = Trial(quick_path, NAMES[:200])
    with FaultyService() as service:
        assert trial.run(service) == 0
        trial.clock.set(by)
        trial.give(NAMES)
        assert trial.run(service) == 0
        whole(trial, service)
        assert set(service.embedded.values()) == {1}
        assert trial.run(service) == 0
        assert service.requests == 2


# Batch mode


@pytest.fixture
def make(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    maker = Maker(quick_path, monkeypatch)
    yield maker
    for state in maker.states:
        state.close()


class Machine:
    """A world in which our clock can be set, and the service's goes on as it was."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = world.clock
        self._began = world.clock.now()
        world.wire.now = lambda: self._began + self.clock.elapsed()  # type: ignore[method-assign]
        world.wire.mount(world.state)

    def assert_done(self, batches: int = 1) -> None:
        assert self.world.embedded() == sorted(TITLES)
        assert len(self.world.batches()) == batches
        assert self.world.twice() == 0
        asked = len(self.world.wire.requests)
        assert_told_well(ran := self.world.run("--advance"))
        assert ran.code == 0
        assert len(self.world.wire.requests) == asked


@BY
def test_between_the_commands_of_batch_mode(make: Maker, by: float) -> None:
    world = make(pace=Pace(validating=60, working=HOUR, finalizing=60), batch_embedding_size=2, max_active_batches=1)
    machine = Machine(world)
    world.run("--create")
    for _ in range(2):
        machine.clock.set(by)
        world.clock.sleep(HOUR / 2)
        ran = [world.run("--advance"), world.run("--status"), world.main("--status")]
        assert_told_well(*ran)
        assert [one.code for one in ran] == [0, 0, 0]
        world.clock.sleep(HOUR)
        assert world.run("--advance").code == 0
    world.run("--advance")
    machine.assert_done(2)


@BY
def test_in_the_middle_of_automatic_mode(make: Maker, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    monkeypatch.setattr("tests.batch.world.FakeClock", Set)
    world = make(pace=Pace(working=HOUR), use_batch_embeddings=True, batch_poll_interval=600)
    machine = Machine(world)
    assert isinstance(world.clock, Set)
    world.clock.by = by
    ran = world.main()
    assert ran.code == 0, ran.err
    assert world.clock.slept <= HOUR + 1200
    machine.assert_done()


@BY
@pytest.mark.parametrize("is_made", [True, False])
def test_in_the_middle_of_a_doubt(make: Maker, by: float, is_made: bool) -> None:
    """The grace period goes by the service's time: the batch that shows late is waited for, one that never was is made once."""
    wrongs = [Misbehaviour(kind="lose_reply", create=1), Misbehaviour(kind="hide", create=1, seconds=30)] if is_made else []
    world = make(*wrongs, create_grace_seconds=60)
    machine = Machine(world)
    if not is_made:
        world.wire.faults.append(once("POST", "/v1/batches", never_arrives))
    world.run("--create")
    machine.clock.set(by)
    world.clock.sleep(20)
    assert "in doubt" in world.run("--advance").out
    assert len(world.batches()) == is_made
    world.clock.sleep(45)
    for _ in range(2):
        assert world.run("--advance").code == 0
    machine.assert_done()


@BY
def test_the_longest_wait_for_a_job_is_by_the_services_time(make: Maker, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    monkeypatch.setattr("tests.batch.world.FakeClock", Set)
    world = make(pace=Pace(working=10 * HOUR), use_batch_embeddings=True, batch_poll_interval=600, batch_max_wait_time=2 * HOUR)
    machine = Machine(world)
    assert isinstance(world.clock, Set)
    world.clock.by = by
    assert world.main().code == 0
    assert 2 * HOUR <= world.clock.slept <= 2 * HOUR + 1200
    world.clock.sleep(9 * HOUR)
    assert world.main().code == 0
    machine.assert_done()


@BY
def test_the_deadline_is_by_the_services_time(make: Maker, by: float) -> None:
    world = make(pace=Pace(working=20 * HOUR), batch_deadline_hours=6)
    machine = Machine(world)
    world.run("--create")
    machine.clock.set(by)
    world.clock.sleep(5 * HOUR)
    world.run("--advance")
    assert [batch["status"] for batch in world.batches()] == ["in_progress"], "given up before its time"
    world.clock.sleep(2 * HOUR)
    world.run("--advance")
    world.run("--advance")
    machine.assert_done()
    assert [batch["status"] for batch in world.batches()] == ["cancelled"]


@BY
def test_a_job_is_stuck_by_the_services_time(make: Maker, by: float) -> None:
    world = make(Misbehaviour(kind="stuck", create=1))
    machine = Machine(world)
    world.run("--create")
    machine.clock.set(by)
    world.clock.sleep(HOUR)
    world.run("--advance")
    assert "stuck: two hours" not in world.run("--status").out
    world.clock.sleep(DAY + 2 * HOUR)
    world.run("--advance")
    assert "stuck: two hours" in world.run("--status").out
    assert len(world.batches()) == 1


@BY
def test_a_status_that_can_not_ask_tells_no_time_before_now(make: Maker, by: float) -> None:
    world = make(pace=Pace(working=HOUR))
    machine = Machine(world)
    world.run("--create")
    machine.clock.set(by)
    world.wire.faults.append(error(503, "server_error", "Overloaded"))
    ran: list[Any] = [world.run("--status"), world.run("--status", "--json"), world.main("--status")]
    assert_told_well(*ran)
    assert "could not be asked" in ran[0].out
    assert not re.search(r"-\d+ hours", ran[0].out)
