"""What somebody else does to the index: a run notices a loss, `--verify` everything; both mend it at no cost."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from pipeline.identity import uuid_of
from tests.weaviate.conftest import Calls, Pace
from tests.weaviate.world import World, add, connected, meanwhile, wait_until
from tests.weaviate_server import WeaviateServer

TITLES = [f"Sonata {number}" for number in range(1200)]


@pytest.fixture
def few(world: World) -> World:
    """A hundred strings, all indexed."""
    return indexed(world, 100)


def indexed(world: World, count: int) -> World:
    world.write(TITLES[:count])
    world.configure()
    assert world.done()["indexed"] == count
    return world


def some(count: int) -> list[uuid.UUID]:
    return [uuid_of("title", title) for title in TITLES[:count]]


def verified(world: World) -> dict[str, int]:
    ran = world.run("--verify", "--json")
    assert ran.code == 0, ran.err
    found: dict[str, int] = ran.document
    return found


def test_a_collection_that_was_deleted_is_noticed_by_the_next_run_and_filled_again(few: World, asked: list[str]) -> None:
    with connected(few.server) as client:
        client.collections.delete(few.name)
    ran = few.run()
    assert ran.code == 0, ran.err
    assert "The index had lost strings behind our back" in ran.out
    assert few.held() == few.wanted()
    assert len(few.wanted()) == 100
    assert asked == []
    assert few.done()["indexed"] == 0


def test_deleted_objects_are_noticed_by_the_next_run_and_written_again(few: World, asked: list[str]) -> None:
    before = few.times()
    few.delete(some(7))
    done = few.done()
    assert (done["index_mended"], done["indexed"]) == (True, 7)
    assert few.held() == few.wanted()
    after = few.times()
    assert {key for key in after if after[key] != before[key]} <= {*some(7)}, "the others were not touched"
    assert asked == []


def test_a_vector_that_was_changed_is_found_and_mended_by_verify(few: World, asked: list[str]) -> None:
    with connected(few.server) as client:
        data, query = client.collections.use(few.name).data, client.collections.use(few.name).query
        one = query.fetch_object_by_id(some(1)[0], include_vector=True)
        assert one is not None
        data.replace(one.uuid, one.properties, vector=np.roll(one.vector["default"], 1).tolist())
    assert few.held() != few.wanted()
    assert few.done()["indexed"] == 0, "a run looks at the number only"
    report = verified(few)
    assert (report["missing"], report["changed"], report["unexpected"], report["is_well_now"]) == (0, 1, 0, True)
    assert few.held() == few.wanted()
    assert few.not_found(few.wanted()) == 0
    assert verified(few)["changed"] == 0
    assert asked == []


def test_strangers_are_removed_by_verify_and_what_they_hid_is_written_again(few: World, asked: list[str]) -> None:
    with connected(few.server) as client:
        add(client, few.name, {uuid.uuid4(): [1.0] * 384 for _ in range(5)})
    few.delete(some(3))
    report = verified(few)
    assert (report["missing"], report["changed"], report["unexpected"], report["is_well_now"]) == (3, 0, 5, True)
    assert few.held() == few.wanted()
    assert len(few.wanted()) == 100
    assert asked == []


def embedded_only(world: World) -> None:
    world.write(TITLES)
    world.configure(weaviate_chunk=50, index_later=True)
    world.done()
    world.configure(index_later=False)


def test_a_collection_that_is_deleted_in_the_middle_of_a_run_stops_it_and_no_string_is_blamed(
    world: World, asked: list[str]
) -> None:
    embedded_only(world)

    def delete() -> None:
        wait_until(lambda: world.confirmed() >= 200)
        with connected(world.server) as client:
            client.collections.delete(world.name)

    with meanwhile(delete):
        ran = world.run()
    assert ran.code == 1
    assert f"The collection {world.name} at {world.server.url} went away while it was written" in ran.err
    assert world.failures() == {}
    assert not world.exists()
    again = world.run()
    assert again.code == 0, again.err
    assert "The index had lost strings behind our back" in again.out
    assert world.held() == world.wanted()
    assert len(world.wanted()) == len(asked) == len(TITLES)


def test_a_server_that_comes_back_empty_in_the_middle_of_a_run_is_filled_again(
    mortal_world: World, asked: list[str], pace: Pace
) -> None:
    world, pace.ours, pace.client = mortal_world, 0.3, 0.2
    embedded_only(world)

    def empty() -> None:
        wait_until(lambda: world.confirmed() >= 200)
        world.server.kill()
        world.server.wipe()
        world.server.restart()

    with meanwhile(empty):
        ran = world.run()
    assert ran.code == 1
    assert world.failures() == {}, "no string is to blame"
    assert world.run().code == 0
    assert world.held() == world.wanted()
    assert len(world.wanted()) == len(asked) == len(TITLES)


# A server that indexes behind its writes


def waiting(world: World) -> int:
    """How many vectors the server has stored and not indexed, by its own word."""
    nodes = json.loads(world.server.get("/v1/nodes?output=verbose"))["nodes"]
    return sum(shard["vectorQueueLength"] for node in nodes for shard in node["shards"] or [])


def test_a_server_that_indexes_behind_its_writes_is_waited_for_before_a_search_is_judged(
    weaviate_binary: Path, tmp_path: Path, asked: list[str], calls: Calls, pace: Pace
) -> None:
    """The clock of `--verify` runs ten times faster here; the server looks at its queue once in four seconds."""
    pace.ours = 0.1
    late = {"ASYNC_INDEXING": "true", "QUEUE_SCHEDULER_INTERVAL": "4s"}
    with WeaviateServer(tmp_path / "server", environment=late) as server:
        world = indexed(World(tmp_path, server), len(TITLES))
        assert waiting(world) == len(TITLES)
        assert world.held() == world.wanted(), "what is confirmed is there, by its UUID"
        report = verified(world)
        assert waiting(world) == 0
        assert (report["is_well_now"], report["not_searchable_yet"]) == (True, 0)
        assert report["searched"] == report["found"] == 100
        assert world.not_found(world.wanted()) <= len(TITLES) * 0.01
        assert not calls.in_doubt
        assert len(asked) == len(TITLES)
