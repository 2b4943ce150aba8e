"""Three nodes that hold everything three times: an import goes on without one of them, and in the end each has all of it."""

from __future__ import annotations

import base64
import contextlib
import csv
import http.client
import json
import random
import struct
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.weaviate.conftest import Pace
from tests.weaviate.test_kills import SEED
from tests.weaviate.world import World, meanwhile, wait_until
from tests.weaviate_server import WeaviateCluster, WeaviateServer

SAMPLE = Path(__file__).resolve().parents[2] / "sample" / "records.csv"
TITLES = [f"Surname {number % 701}, Forename {number}" for number in range(1500)]
REPAIR = {"ASYNC_REPLICATION_FREQUENCY": "2s", "ASYNC_REPLICATION_PROPAGATION_DELAY": "2s"}
REPAIR_SECONDS = 120  # that the nodes have to bring one up to date that was away


@pytest.fixture
def world(weaviate_cluster: WeaviateCluster, tmp_path: Path) -> World:
    """A catalogue at the first of three nodes, which look after each other more often than once in half a minute."""
    if any(REPAIR.items() - node.environment.items() for node in weaviate_cluster.nodes):
        weaviate_cluster.stop()
        for node in weaviate_cluster.nodes:
            node.environment.update(REPAIR)
    weaviate_cluster.start()
    made = World(tmp_path, weaviate_cluster.nodes[0])
    made.keys = {"weaviate_replication": 3}
    return made


def leader(world: World) -> str:
    """The node that the others ask about collections. Without it they stand still for a minute, and go on: too long for here."""
    found: str = json.loads(world.server.get("/v1/cluster/statistics"))["statistics"][0]["leaderId"]
    return found


def lacking(world: World, node: WeaviateServer, wanted: dict[uuid.UUID, bytes], keys: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Which strings this very node does not have, each with its vector byte by byte; asked one by one, of no other node."""
    found = set()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", node.ports.http, timeout=10)) as client:
        for key in keys:
            client.request("GET", f"/v1/objects/{world.name}/{key}?node_name={node.name}&include=vector")
            answer = client.getresponse()
            body = answer.read()
            if answer.status != 200 or vector_of(body) != wanted[key]:
                found.add(key)
    return found


def vector_of(body: bytes) -> bytes:
    vector = json.loads(body)["vectors"]["default"]
    return struct.pack(f"<{len(vector)}f", *vector) if isinstance(vector, list) else base64.b64decode(vector)


def test_the_sample_in_three_nodes_is_what_is_stored_here_and_a_second_run_writes_nothing(world: World, asked: list[str]) -> None:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    world.catalogue.write(rows, header=header)
    world.configure(fields={"person": "person", "title": "title", "composite": "composite"}, max_rejected_rows=1000)
    assert world.done()["indexed"] == len(asked)
    wanted = world.wanted()
    assert len(wanted) == len(asked) > 5000
    assert world.held() == wanted
    before = world.times()
    again = world.done()
    assert (again["embedded"], again["indexed"], again["index_mended"]) == (0, 0, False)
    assert world.times() == before
    assert len(wanted) == len(asked), "nothing was embedded twice"


def test_an_import_goes_on_without_one_node_and_each_has_everything_in_the_end(
    world: World, weaviate_cluster: WeaviateCluster, asked: list[str], pace: Pace
) -> None:
    pace.ours = 0.1
    world.write(TITLES)
    world.configure(weaviate_chunk=50, index_later=True)
    world.done()
    world.configure(index_later=False)
    moment, seen = random.Random(SEED).randrange(50, 700), []
    lost = next(node for node in weaviate_cluster.nodes[1:] if node.name != leader(world))

    def one_goes_and_comes_back() -> None:
        wait_until(lambda: world.confirmed() >= moment)
        lost.kill()
        seen.append(world.confirmed())
        wait_until(lambda: world.confirmed() >= seen[0] + 200)  # written while it is away
        lost.restart()

    with meanwhile(one_goes_and_comes_back):
        ran = world.run()
    weaviate_cluster.wait_until_joined()
    if ran.code:
        assert "run the same command again" in ran.err
        ran = world.run()
    assert ran.code == 0, ran.err
    assert 0 < seen[0] < len(TITLES)
    wanted = world.wanted()
    assert len(wanted) == len(asked) == len(TITLES)
    assert world.held() == wanted
    assert world.not_found(wanted, 3) <= len(TITLES) // 3 * 0.01

    left = {node.name: set(wanted) for node in weaviate_cluster.nodes}
    deadline = time.monotonic() + REPAIR_SECONDS
    while any(left.values()) and time.monotonic() < deadline:
        for node in weaviate_cluster.nodes:
            left[node.name] = lacking(world, node, wanted, left[node.name])
        time.sleep(0.5)
    assert {name: len(keys) for name, keys in left.items()} == {node.name: 0 for node in weaviate_cluster.nodes}
    again = world.done()
    assert (again["embedded"], again["indexed"], again["index_mended"]) == (0, 0, False)
