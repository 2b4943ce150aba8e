"""Collecting comes first: an input that can't be read stops what would be submitted, and nothing that comes home."""

from __future__ import annotations

import pytest

from tests.batch.world import Maker


@pytest.mark.parametrize("arguments", [("--advance",), ("--create",), ("--wait",)], ids=lambda arguments: arguments[0])
def test_a_finished_job_comes_home_though_the_input_is_broken(make: Maker, arguments: tuple[str, ...]) -> None:
    world = make()
    assert world.run("--create").code == 0
    world.clock.sleep(3600)
    (world.catalogue.folder / "records.csv").write_bytes(b"")
    ran = world.run(*arguments)
    assert ran.code == 2
    assert "the file is empty" in ran.err
    assert "Job 1 collected" in ran.out
    assert [job.state for job in world.jobs()] == ["collected"]
    assert world.embedded() == ["Fugue", "Mass", "Suite", "Toccata"]
    assert (len(world.batches()), world.twice()) == (1, 0)


def test_automatic_mode_collects_as_well(make: Maker) -> None:
    world = make(use_batch_embeddings=True)
    assert world.run("--create").code == 0
    (world.catalogue.folder / "records.csv").write_bytes(b"id,nothing\n1,x\n")
    ran = world.main()
    assert ran.code == 2
    assert "there is no column" in ran.err
    assert world.embedded() == ["Fugue", "Mass", "Suite", "Toccata"]
