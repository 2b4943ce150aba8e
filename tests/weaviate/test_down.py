"""A server that is down, slow or read-only: nothing is paid for in vain, what is finished comes home, a later run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from pipeline.local_service.settings import Pace as ServicePace
from tests.batch.world import Maker
from tests.batch.world import World as Batches
from tests.weaviate.conftest import Calls, Pace
from tests.weaviate.world import World, connected, meanwhile, wait_until

TITLES = ["Fugue", "Mass", "Suite", "Toccata"]
MANY = [f"Sonata {number}" for number in range(1200)]
TEN_MINUTES = ServicePace(validating=60, working=480, finalizing=60, cancelling=60)


# Down at the start


def test_nothing_is_sent_to_be_embedded_while_the_server_is_down(mortal_world: World, asked: list[str]) -> None:
    world = mortal_world
    world.server.kill()
    world.write(TITLES)
    world.configure()
    ran = world.run()
    assert ran.code == 1
    assert f"The Weaviate server at {world.server.url} does not answer" in ran.err
    assert "Nothing was sent to be embedded. To embed now and index later: index_later: true" in ran.err
    assert asked == []
    world.configure(index_later=True)
    ran = world.run()
    assert ran.code == 0, ran.err
    assert "index_later is true; 4 strings wait" in ran.out
    assert sorted(asked) == TITLES
    world.configure(index_later=False)
    ran = world.run()
    assert ran.code == 1
    assert "does not answer" in ran.err
    world.server.start()
    done = world.done()
    assert (done["embedded"], done["indexed"]) == (0, 4)
    assert world.held() == world.wanted()
    assert sorted(asked) == TITLES


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    maker = Maker(tmp_path, monkeypatch)
    yield maker
    for state in maker.states:
        state.close()


def by_batch(make: Maker, world: World, **keys: object) -> Batches:
    """The same catalogue in batch mode, at a service whose jobs take ten minutes."""
    world.configure(**keys)
    return make(titles=TITLES, pace=TEN_MINUTES, **world.keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["--advance", "--download"])
def test_a_finished_job_is_collected_while_the_server_is_down_and_nothing_new_is_submitted(
    make: Maker, mortal_world: World, command: str
) -> None:
    world = mortal_world
    batches = by_batch(make, world)
    assert batches.run("--create").code == 0
    world.server.kill()
    world.write([*TITLES, "Vespers"])
    batches.clock.sleep(3600)
    ran = batches.run(command)
    assert ran.code == 1
    assert "collected 1 jobs (4 strings), submitted 0" in ran.out
    assert "does not answer" in ran.err
    assert len(batches.batches()) == 1
    assert batches.embedded() == TITLES
    assert world.confirmed() == 0
    world.server.start()
    ran = batches.advance(2)
    assert ran.code == 0, ran.err
    assert len(batches.batches()) == 2
    assert len(world.wanted()) == 5
    assert world.held() == world.wanted()
    assert batches.twice() == 0
    assert {text: batches.times(text) for text in [*TITLES, "Vespers"]} == dict.fromkeys([*TITLES, "Vespers"], 1)


class Day:
    """Things that happen at the n-th sleep of a command."""

    def __init__(self, batches: Batches, monkeypatch: pytest.MonkeyPatch, **happenings: Callable[[], None]) -> None:
        self.sleeps = 0
        sleep = batches.clock.sleep

        def slept(seconds: float) -> None:
            self.sleeps += 1
            happenings.get(f"at_{self.sleeps}", lambda: None)()
            sleep(seconds)

        monkeypatch.setattr(batches.clock, "sleep", slept)


def test_a_server_that_goes_down_in_automatic_mode_stops_submitting_and_not_collecting(
    make: Maker, mortal_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = mortal_world
    batches = by_batch(make, world, batch_embedding_size=2, max_active_batches=1)
    Day(batches, monkeypatch, at_2=world.server.kill)
    ran = batches.run("--wait")
    assert ran.code == 1
    assert "collected 1 jobs (2 strings), submitted 1, 0 at the service, 2 wait" in ran.out
    assert "does not answer" in ran.err
    assert len(batches.batches()) == 1
    assert len(batches.embedded()) == 2
    world.server.start()
    ran = batches.run("--wait")
    assert ran.code == 0, ran.err
    assert len(batches.batches()) == 2
    assert len(world.held()) == 4
    assert world.held() == world.wanted()
    assert batches.twice() == 0


def test_a_server_that_comes_back_in_automatic_mode_is_gone_on_with(
    make: Maker, mortal_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = mortal_world
    batches = by_batch(make, world, batch_embedding_size=2, max_active_batches=1)
    submitted_meanwhile: list[int] = []

    def comes_back() -> None:
        submitted_meanwhile.append(len(batches.batches()))
        world.server.restart()

    Day(batches, monkeypatch, at_2=world.server.kill, at_5=comes_back)
    ran = batches.run("--wait")
    assert ran.code == 0, ran.err
    assert submitted_meanwhile == [1]
    assert len(batches.batches()) == 2
    assert len(world.held()) == 4
    assert world.held() == world.wanted()
    assert batches.twice() == 0


# Read-only


def shards(world: World, status: Literal["READY", "READONLY"]) -> set[str]:
    """Set the state of its shards; what they say it is."""
    with connected(world.server) as client:
        found = client.collections.use(world.name).config
        found.update_shards(status)
        return {shard.status for shard in found.get_shards()}


def test_a_read_only_server_stops_a_run_before_anything_is_paid(world: World, asked: list[str]) -> None:
    world.write(TITLES)
    world.configure()
    assert world.done()["indexed"] == 4
    before = world.held()
    assert shards(world, "READONLY") == {"READONLY"}
    world.write([*TITLES, "Vespers"])
    ran = world.run()
    assert ran.code == 1
    assert f"is read-only for {world.name}: its disk is nearly full, most often" in ran.err
    assert "Nothing was sent to be embedded" in ran.err
    assert sorted(asked) == TITLES
    assert world.held() == before
    shards(world, "READY")
    assert world.done()["indexed"] == 1
    assert world.held() == world.wanted()


def test_a_server_that_turns_read_only_in_the_middle_stops_the_run_and_marks_nothing_that_it_does_not_hold(
    world: World, asked: list[str]
) -> None:
    world.write(MANY)
    world.configure(weaviate_chunk=50, index_later=True)
    world.done()
    world.configure(index_later=False)

    def turn() -> None:
        wait_until(lambda: world.confirmed() >= 200)
        shards(world, "READONLY")

    with meanwhile(turn):
        ran = world.run()
    assert ran.code == 1
    assert "set its shards to READY, and run the same command again" in ran.err
    held, confirmed = world.held(), world.confirmed_keys()
    assert 200 <= len(confirmed) < len(MANY)
    assert confirmed <= held.keys()
    assert not (world.catalogue.checkpoint / "failures.csv").exists(), "no string is to blame"
    shards(world, "READY")
    assert world.done()["indexed"] == len(MANY) - len(confirmed)
    assert world.held() == world.wanted()
    assert len(asked) == len(MANY)


# Slow


@contextlib.contextmanager
def stopped(world: World, seconds: float | None) -> Iterator[None]:
    """The server stands still from some hundred confirmed strings on, for so long or until the block ends."""
    pid, ended = world.server.pid, threading.Event()

    def stand_still() -> None:
        wait_until(lambda: world.confirmed() >= 200)
        os.kill(pid, signal.SIGSTOP)
        ended.wait(seconds)
        os.kill(pid, signal.SIGCONT)

    with meanwhile(stand_still):
        yield
        if seconds is None:
            ended.set()


def import_with_little_patience(world: World) -> None:
    """All is embedded; a request without an answer for a second counts as lost."""
    world.write(MANY)
    world.configure(weaviate_chunk=50, weaviate_timeout_seconds=1, index_later=True)
    world.done()
    world.configure(index_later=False)


def test_a_server_that_stands_still_for_longer_than_the_timeout_is_waited_for_and_what_is_in_doubt_written_again(
    mortal_world: World, asked: list[str], calls: Calls, pace: Pace
) -> None:
    world, pace.ours = mortal_world, 0.1
    import_with_little_patience(world)
    with stopped(world, 2.5):
        assert world.done()["indexed"] == len(MANY)
    assert calls.in_doubt
    assert calls.rewritten()
    assert world.held() == world.wanted()
    assert world.not_found(world.wanted()) <= len(MANY) * 0.01
    assert len(asked) == len(MANY)


def test_a_server_that_stands_still_for_good_is_given_up_after_a_bounded_time(mortal_world: World, asked: list[str]) -> None:
    world = mortal_world
    import_with_little_patience(world)
    with stopped(world, None):
        began = time.monotonic()
        ran = world.run()
    assert ran.code == 1
    assert "did not confirm 50 of 50 strings of title" in ran.err
    assert "The embeddings are safe; run the same command again" in ran.err
    assert time.monotonic() - began < 60
    confirmed = world.confirmed()
    assert 200 <= confirmed < len(MANY)
    assert world.done()["indexed"] == len(MANY) - confirmed
    assert world.held() == world.wanted()
    assert world.not_found(world.wanted()) <= len(MANY) * 0.01
    assert len(asked) == len(MANY)
