"""SIGKILL at random moments of imports, of the server and of the product; the server's content is the truth.

Each kill is between the first and the last confirmed chunk. After an import's kills the product is simply run again, and
judged: nothing lacks, nothing is double, each vector is the stored one byte by byte and found by a search, nothing was
embedded twice, and one more run writes nothing.
`NAMESAKE_KILLS=20 python -m pytest tests/weaviate/test_kills.py -s` makes a longer run; `NAMESAKE_SEED` another one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.config import Config
from pipeline.ledger import Generation
from pipeline.stores.weaviate import WeaviateStore
from tests.stores.contract import random_strings
from tests.weaviate.conftest import Calls, Pace
from tests.weaviate.world import World, meanwhile, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("NAMESAKE_KILLS", "5"))
SEED = int(os.environ.get("NAMESAKE_SEED", "20261121"))
CHUNK, KILLS_AN_IMPORT = 50, 3
TITLES = [f"Surname {number % 701}, Forename {number}" for number in range(3000)]


def embed_first(world: World) -> None:
    """Everything is embedded and nothing indexed: what follows is an import alone."""
    world.write(TITLES)
    world.configure(weaviate_chunk=CHUNK, index_later=True)
    assert world.done()["embedded"] == len(TITLES)
    world.configure(index_later=False)


def judge(world: World, asked: list[str], searched: int = len(TITLES)) -> None:
    wanted = world.wanted()
    assert len(wanted) == len(TITLES)
    assert world.held() == wanted
    assert world.filtered() == world.confirmed() == len(TITLES)
    assert world.not_found(wanted, len(TITLES) // searched) <= searched * 0.01
    before = world.times()
    again = world.done()
    assert [again[name] for name in ("embedded", "indexed", "removed_from_index", "index_mended")] == [0, 0, 0, False]
    assert world.times() == before, "a further run must write nothing"
    assert sorted(asked) == sorted(TITLES), "each string is embedded once, whatever is killed"


def some_moments(moments: random.Random, count: int) -> list[int]:
    """How many strings are confirmed when the server is killed: any time after the first chunk and before the last."""
    return sorted(moments.randrange(CHUNK, len(TITLES) * 9 // 10) for _ in range(count))


class Killer:
    """Kills the server beside a run, by plan; a kill that the server stays down after is the last one of the run."""

    def __init__(self, world: World, pace: Pace, moments: random.Random) -> None:
        self.world, self.pace, self.moments = world, pace, moments
        self.confirmed: list[int] = []
        self.came_back: list[bool] = []
        self.carried_on = 0  # kills after which the run went on by itself
        self.ended = threading.Event()

    def play(self, plan: list[tuple[int, bool]]) -> None:
        """(how many are confirmed, whether it comes back while the run goes on)"""
        while plan:
            threshold, comes_back = plan[0]
            wait_until(lambda: self.ended.is_set() or self.world.confirmed() >= threshold)  # noqa: B023
            if self.ended.is_set():
                return
            time.sleep(self.moments.random() * 0.05)
            plan.pop(0)
            self.pace.ours, self.pace.client = (1.0, 0.5) if comes_back else (0.02, 0.05)
            self.world.server.kill()
            self.confirmed.append(self.world.confirmed())
            self.came_back.append(comes_back)
            if not comes_back:
                return
            self.world.server.restart()

    def run(self, plan: list[tuple[int, bool]]) -> int:
        """A run beside which the plan is played as far as it goes; its exit code."""
        self.ended.clear()
        kills = len(self.confirmed)
        with meanwhile(lambda: self.play(plan)):
            ran = self.world.run()
            self.ended.set()
        here = self.came_back[kills:]
        self.carried_on += sum(here) - (ran.code != 0 and here[-1:] == [True])
        if ran.code:
            assert ran.code == 1
            assert len(self.confirmed) > kills
            assert "Weaviate" in ran.err or "did not confirm" in ran.err
            assert "run the same command again" in ran.err or "Is it running" in ran.err
        return ran.code


def test_a_server_killed_in_the_middle_of_imports_and_started_again_on_its_data_loses_nothing(
    mortal_world: World, asked: list[str], calls: Calls, pace: Pace
) -> None:
    world, moments = mortal_world, random.Random(SEED)
    killer = Killer(world, pace, moments)
    embed_first(world)
    stopped = imports = 0
    left = max(1, KILLS * 3 // 5)
    while left:
        imports += 1
        count = min(left, KILLS_AN_IMPORT)
        left -= count
        plan = [(moment, number % KILLS_AN_IMPORT != 1) for number, moment in enumerate(some_moments(moments, count))]
        while plan:
            stopped += killer.run(plan)
            if not world.server.running:
                world.server.restart()
        assert world.run().code == 0
        judge(world, asked)
        if left:
            assert world.run("--reset", "embedding_and_indexing").code == 0
    print(f"\nkills: {len(killer.confirmed)} in {imports} imports of {len(TITLES)}, with {killer.confirmed} confirmed")
    print(f"the run went on by itself after {killer.carried_on} of {sum(killer.came_back)} kills; {stopped} runs stopped")
    print(f"chunks in doubt: {calls.in_doubt}; strings deleted and written again: {calls.rewritten()}")
    assert all(0 < confirmed < len(TITLES) for confirmed in killer.confirmed)
    assert calls.in_doubt
    assert calls.rewritten(), "no kill ever left a doubt: this test would prove nothing"


def test_a_server_killed_in_the_middle_of_imports_and_emptied_is_filled_again_from_what_is_stored_here(
    mortal_world: World, asked: list[str], calls: Calls, pace: Pace
) -> None:
    world, moments = mortal_world, random.Random(SEED + 1)
    killer = Killer(world, pace, moments)
    embed_first(world)
    kills = max(1, KILLS - max(1, KILLS * 3 // 5))
    for moment in some_moments(moments, kills):
        if killer.confirmed:
            assert world.run("--reset", "embedding_and_indexing").code == 0
        assert killer.run([(moment, False)]) == 1
        world.server.wipe()
        world.server.start()
        assert not world.exists()
        assert world.done()["indexed"] == len(TITLES)
        judge(world, asked, 600)
    print(f"\nkills: {len(killer.confirmed)} of {kills}, with {killer.confirmed} confirmed; the volume was empty afterwards")
    print(f"chunks in doubt: {calls.in_doubt}; strings deleted and written again: {calls.rewritten()}")
    assert len(killer.confirmed) == kills
    assert all(0 < confirmed < len(TITLES) for confirmed in killer.confirmed)


@contextlib.contextmanager
def nothing_is_booked(world: World) -> Iterator[None]:
    """Somebody else holds the ledger's write lock: what the server stores meanwhile stays unconfirmed."""
    with contextlib.closing(sqlite3.connect(world.catalogue.checkpoint / "ledger.sqlite", timeout=10)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        yield
        ledger.rollback()


def test_the_product_killed_between_a_write_and_its_booking_deletes_what_is_in_doubt_and_writes_it_again(
    world: World, asked: list[str], calls: Calls
) -> None:
    embed_first(world)
    command = [sys.executable, str(ROOT / "main.py"), "--config", str(world.catalogue.config)]
    doubts = []
    for moment in some_moments(random.Random(SEED + 2), 3):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as product:
            wait_until(lambda: world.confirmed() >= moment)  # noqa: B023
            with nothing_is_booked(world):
                wait_until(lambda: world.count() > world.confirmed())
                product.send_signal(signal.SIGKILL)
                assert product.wait(20) == -signal.SIGKILL
        doubts.append(world.count() - world.confirmed())
        assert 0 < world.confirmed() < len(TITLES)
    confirmed = world.confirmed_keys()
    in_doubt = set(world.held()) - confirmed
    assert world.done()["indexed"] == len(TITLES) - len(confirmed)
    assert in_doubt
    assert in_doubt <= set(calls.deleted)
    assert not confirmed & set(calls.deleted)
    print(f"\nkills of the product: 3, with {doubts} strings stored and not confirmed; deleted at last: {len(calls.deleted)}")
    judge(world, asked, 600)


def store_at(world: World, dimensions: int) -> WeaviateStore:
    """A store without a catalogue."""
    config = Config(
        vector_store="weaviate",
        weaviate_url=world.server.url,
        weaviate_grpc_port=world.server.grpc_port,
        collection=world.alias,
    )
    return WeaviateStore(config, "a-catalogue", Generation("0000aaaa", "some-model", None, dimensions))


def test_what_is_confirmed_outlives_a_kill_at_that_very_moment_and_is_found_by_a_search(mortal_world: World) -> None:
    """The server answers while the log of its vector index is still in its memory; the store must not take that for stored."""
    with contextlib.closing(store_at(mortal_world, 64)) as store:
        store.prepare()
        strings = random_strings(200, 64)
        assert len(store.upsert(strings).confirmed) == 200
        mortal_world.server.kill()
        mortal_world.server.restart()
        vectors = {string.uuid: string.vector.tobytes() for string in strings}
        assert mortal_world.held(name=store.name) == vectors
        assert mortal_world.not_found(vectors, name=store.name) <= 2


def test_a_chunk_whose_answer_did_not_come_is_sent_once_and_not_confirmed(mortal_world: World) -> None:
    """The client's own `insert_many` would send it again, and tell nobody."""
    server, store = mortal_world.server, store_at(mortal_world, 64)
    with contextlib.closing(store), ThreadPoolExecutor(1) as another:
        store.prepare()
        strings = random_strings(CHUNK, 64)
        os.kill(server.pid, signal.SIGSTOP)
        written = another.submit(store.upsert, strings)
        time.sleep(0.3)
        server.kill()
        server.restart()
        found = written.result(20)
        assert (found.confirmed, dict(found.refused)) == (frozenset(), {})
        assert found.trouble
        assert len(mortal_world.held(name=store.name)) == 0, "what a stopped server never read was sent once, and not again"
        wait_until(lambda: bool(store.upsert(strings).confirmed))  # the channel looks again some tenths of a second later
        assert len(mortal_world.held(name=store.name)) == CHUNK
