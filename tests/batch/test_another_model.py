"""Another model in batch mode: jobs know their model and service, whatever the config says by the time they come home."""

from __future__ import annotations

from typing import Any

from pipeline.local_service import State
from pipeline.local_service.settings import Pace
from tests.batch.world import Maker, World

SLOW = Pace(working=7200.0)
TITLES = ("Fugue", "Mass", "Suite", "Toccata")
SHORT = ("--set", "embedding_dimensions=64")


def generations(world: World) -> dict[str, dict[str, Any]]:
    return {one["words"]: one for one in world.main("--status", "--json").document["generations"]}


def test_it_is_priced_built_by_jobs_and_read_when_the_last_is_in_and_open_jobs_are_not_dropped(make: Maker) -> None:
    world = make(pace=SLOW, price=1000.0, batch_embedding_size=2, max_active_batches=1)
    world.advance()
    world.clock.sleep(7200)
    world.advance()
    world.clock.sleep(7200)
    assert world.run("--advance").code == 0
    first, second = "local local-lexical-384", "local local-lexical-384 (64 dimensions)"
    assert generations(world)[first]["in_use"]
    world.catalogue.write([(str(number), "", title) for number, title in enumerate((*TITLES, "Mass in b"))])
    world.advance()  # an open job of the first
    begun = world.run("--advance", *SHORT)
    assert f"Another model: 5 strings to embed with {second}, for at most $0.0300." in begun.out
    for flags in ((), SHORT):  # one job at once: that of the first comes home, and one of the second goes
        world.clock.sleep(7200)
        world.run("--advance", *flags)
    assert "Another model" not in world.run("--advance", *SHORT).out, "once"
    ids = {name: one["id"] for name, one in generations(world).items()}
    ran = world.main("--drop-embeddings", ids[second], "--yes")
    assert (ran.code, f"jobs of {second} are not collected yet" in ran.err) == (2, True), ran.err
    assert world.main("--search", "Suite", *SHORT, "--json").document["generation"] == ids[first]
    while generations(world)[second]["in_jobs"]:
        world.clock.sleep(7200)
        last = world.run("--advance", *SHORT)
    assert f"Verified: 5 strings in the index, 5 vectors compared, all equal. From now on {second} is in use." in last.out
    assert world.main("--drop-embeddings", ids[first], "--yes").code == 0
    assert list(generations(world)) == [second]
    assert [world.times(title) for title in (*TITLES, "Mass in b")] == [2] * 5, "once by each model"


def test_jobs_at_a_service_that_the_config_no_longer_names_wait_for_it(make: Maker) -> None:
    """The new one knows none of them: asked for, they would count as lost, and be paid again."""
    world = make(pace=SLOW, embedding_service="http://127.0.0.1:9/v1", service_name="old", embedding_model="local-lexical-384")
    new = ("--set", "service_name=new")
    world.run("--create")
    (job,) = world.jobs()
    theirs, other = world.state, State(record=True)
    make.states.append(other)
    world.mount(other)
    for _ in range(3):
        ran = world.run("--advance", *new)
        assert ran.code == 0, ran.err
        world.clock.sleep(3600)
    assert "Left alone: job 1 of old local-lexical-384: with a config that names it, python batch_manager.py" in ran.out
    assert not [path for _, path in world.wire.requests if job.batch and job.batch in path]
    assert world.run("--status", *new).code == 0
    assert world.run("--wait", *new).code == 0, "it waits for its own alone"
    assert [one.state for one in world.jobs()] == ["open", "collected"]
    assert generations(world)["new local-lexical-384"]["in_use"]
    world.mount(theirs)
    assert world.run("--advance").code == 0
    assert [one.state for one in world.jobs()] == ["collected", "collected"]
    assert [world.times(title) for title in TITLES] == [1] * 4
