"""One job that can't be looked at holds up no other; a service that is down is said so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.batch.poll import LOOKS_AGAIN, poll
from pipeline.context import Context
from pipeline.errors import ServiceError
from pipeline.ledger import Job, open_for_writing
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.provider.batch_client import BatchClient, RemoteBatch
from tests.batch.world import Maker


class Service:
    """Says that every batch is completed, but for some, which it can't show."""

    def __init__(self, broken: set[str]) -> None:
        self.broken = broken
        self.asked: list[str] = []

    def now(self) -> float:
        return 100.0

    def retrieve(self, batch: str) -> RemoteBatch:
        self.asked.append(batch)
        if batch in self.broken:
            raise ServiceError("500: something broke")
        return RemoteBatch(batch, "completed", "file", "out", None, 1.0, 200.0, 1, 1, 0, {}, ())


@pytest.mark.parametrize(("broken", "asked", "ended"), [({1}, 5, 4), ({1, 2}, 5, 3), ({1, 2, 3}, 3, 0)])
def test_the_other_jobs_are_looked_at_and_the_trouble_is_raised(tmp_path: Path, broken: set[int], asked: int, ended: int) -> None:
    ledger = open_for_writing(tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite")
    for number in range(1, 6):
        ledger.jobs.add(
            Job(number, "g", "open", 1, 1, 1, 0.0, "", 1.0, batch=f"batch_{number}", created_at=1.0),
            {"person": [(number, number + 1)]},
        )
    service = Service({f"batch_{number}" for number in broken})
    context = cast(
        "Context", SimpleNamespace(ledger=ledger, jobs_here=ledger.jobs.all, config=SimpleNamespace(create_grace_seconds=600.0))
    )
    with pytest.raises(ServiceError, match="something broke"):
        poll(context, cast("BatchClient", service))
    assert len(service.asked) == asked
    assert len(ledger.jobs.all(("ended",))) == ended
    ledger.close()


def test_a_batch_that_is_not_shown_for_a_moment_is_looked_for_again_in_the_same_command(make: Maker) -> None:
    world = make(Misbehaviour(kind="vanish", create=1, seconds=100), create_grace_seconds=60)
    world.run("--create")
    world.clock.sleep(75)
    before = world.clock.now()
    assert world.run("--advance").code == 0
    assert world.clock.now() - before == sum(LOOKS_AGAIN)
    assert world.embedded() == ["Fugue", "Mass", "Suite", "Toccata"]
    assert len(world.batches()) == 1


def test_a_lost_job_that_is_shown_again_comes_home_by_itself(make: Maker) -> None:
    """One look in each command, without further waits."""
    world = make(Misbehaviour(kind="vanish", create=1, seconds=7200), create_grace_seconds=60)
    world.run("--create")
    world.clock.sleep(3600)
    assert world.run("--advance").code == 1
    assert [job.state for job in world.jobs()] == ["lost"]
    before = world.clock.now()
    assert world.run("--advance").code == 1
    assert world.clock.now() == before
    world.clock.sleep(3600)
    assert world.run("--advance").code == 0
    assert world.embedded() == ["Fugue", "Mass", "Suite", "Toccata"]
    assert (len(world.batches()), world.twice(), world.doubts()) == (1, 0, 0)
