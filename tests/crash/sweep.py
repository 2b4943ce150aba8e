"""A sweep of kills: each command of a small catalogue, killed at its n-th durable or network call, for every n.

After a kill (or two: the recovery may be killed as well) the same command is simply typed again until nothing is left to
do. The service, a process of its own that survives, is the truth: what it embedded, which batches it made, what it was
asked (`judge.py`). `python -m tests.crash --points 1000` makes a long sweep; `tests/crash/test_sweep.py` runs a slice.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import shutil
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.judge import is_done, judge
from tests.crash.places import PLACES, paid_call_open, place_of
from tests.crash.scenarios import SCENARIOS, Scenario, write
from tests.crash.served import Service, service
from tests.crash.zygote import HAS_STRACE, KILLED, Aim, Ended, Zygote
from tests.weaviate.world import connected
from tests.weaviate_server import WeaviateServer

MOST_TURNS = 10
_OUT_OF_REACH = 60_000
_SPOOL = "spool/00000001.spool"
_POINTS_A_SERVICE = 100  # one is renewed before it has seen more batches than an account may make in an hour


@dataclass(frozen=True)
class Call:
    """The n-th call of a kind by one thread; `path`, in the checkpoint folder, leaves out those on other files."""

    name: str
    number: int
    path: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.number}{self.path and f' of {self.path}'}"


@dataclass(frozen=True)
class Point:
    """One catalogue's kills: at a call of the first turn that reaches it, and perhaps at one of the turns after it."""

    scenario: Scenario
    at: tuple[Call, ...]

    def __str__(self) -> str:
        return f"{self.scenario.name}, {', then '.join(map(str, self.at))}"


@dataclass
class Tally:
    """What a sweep hit, and what came of it."""

    points: int = 0
    doubles: int = 0
    paid_call_open: int = 0
    twice: int = 0
    reported: int = 0
    unreached: int = 0
    places: Counter[str] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        kills = self.points + self.doubles
        yield f"{self.points} points, {self.doubles} of them killed twice in a row: {kills} kills, each ended with {KILLED}"
        yield f"{self.paid_call_open} kills with a paid call open; {self.unreached} aims beyond the last call"
        yield f"embedded more than once: {self.twice} strings (in real time alone), all among the {self.reported} reported"
        yield f"not recovered, lost, or paid twice unseen: {len(self.failures)}"
        yield from (f"  {count:>5}  {name}" for name, count in self.scenarios.items())
        yield from (f"  {self.places[name]:>5}  {name:<4} {words}" for name, words in PLACES.items())
        yield from self.failures


@dataclass
class Rig:
    """What points need: a zygote, a service that does its best and one that refuses a row of each job, an index server."""

    folder: Path
    zygote: Zygote
    weaviate: WeaviateServer | None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    services: dict[bool, Service] = field(default_factory=dict)
    served: int = 0

    def service(self, *, refuses: bool) -> Service:
        if self.served >= _POINTS_A_SERVICE:
            self.stack.close()
            self.services, self.served = {}, 0
        self.served += 1
        if refuses not in self.services:
            (its_own := self.folder / f"service-{uuid.uuid4().hex}").mkdir()
            faults = its_own / "faults.json"
            faults.write_text(json.dumps([{"kind": "refused_row", "row": 5}] if refuses else []))
            self.services[refuses] = self.stack.enter_context(service(its_own, 0.005, "--misbehave", str(faults)))
        return self.services[refuses]


@contextlib.contextmanager
def rig(folder: Path, weaviate: WeaviateServer | None) -> Iterator[Rig]:
    folder.mkdir(exist_ok=True)
    with Zygote(folder) as zygote:
        made = Rig(folder, zygote, weaviate)
        with made.stack:
            yield made


def run(rig: Rig, point: Point, tally: Tally) -> list[Ended]:
    """Kill a catalogue as the point says, recover it, and judge; the runs that came to their end."""
    scenario = point.scenario
    served = rig.service(refuses=scenario.refuses)
    before = served.state()
    others = {batch["id"] for batch in before["batches"]}
    mark = uuid.uuid4().hex[:8]
    server = rig.weaviate if scenario.weaviate else None
    made = write(rig.folder / mark, mark, scenario, served.url, _index(server, f"Sweep{mark}"))
    ended: list[Ended] = []
    reached = step = 0
    for _ in range(MOST_TURNS):
        command = scenario.commands[step % len(scenario.commands)]
        aim = _aim(point.at[reached], made.checkpoint) if reached < len(point.at) and step >= scenario.aims_at else None
        one = rig.zygote.run(command[0], made.typed(command), aim)
        if aim is not None and one.code == KILLED:
            _book(tally, point, one, is_second=reached == 1)
            reached += 1
            continue
        assert one.code in ((0, 1) if scenario.refuses else (0,)), f"{command} ended with {one.code}\n{one.err}"
        ended.append(one)
        step += 1
        if step >= len(scenario.commands) and is_done(rig.zygote, made):
            break
    else:
        raise AssertionError(f"not finished after {MOST_TURNS} turns")
    tally.unreached += reached < len(point.at)
    paid = judge(rig.zygote, made, scenario, served, others, server)
    if scenario.asks is not None:
        assert served.state()["texts"] - before["texts"] <= scenario.asks + paid.reported, "what was imported was paid for again"
    tally.twice += paid.twice
    tally.reported += paid.reported
    if server is not None:
        _drop(server, made.collection)
    shutil.rmtree(made.folder)
    return ended


def _aim(call: Call, checkpoint: Path) -> Aim:
    return Aim(call.name, call.number, checkpoint / call.path if call.path else None)


def _index(server: WeaviateServer | None, collection: str) -> str:
    if server is None:
        return ""
    return f"vector_store: weaviate\nweaviate_url: {server.url}\nweaviate_grpc_port: {server.grpc_port}\ncollection: {collection}\n"


def _drop(server: WeaviateServer, alias: str) -> None:
    with connected(server) as client:
        for name in client.collections.list_all():
            if name.startswith(alias):
                client.collections.delete(name)
        client.alias.delete(alias_name=alias)


def _book(tally: Tally, point: Point, ended: Ended, *, is_second: bool) -> None:
    tally.points += not is_second
    tally.doubles += is_second
    tally.paid_call_open += paid_call_open(ended.calls)
    tally.scenarios[point.scenario.name] += not is_second
    tally.places[place_of(ended.calls)] += 1


def plan(rig: Rig, points: int, seed: int) -> list[Point]:
    """Every call of every small scenario; what is left of the points are random ones of all, killed twice in a row. Fewer
    points than there are calls are drawn among them, a fifth killed twice."""
    chance = random.Random(seed)
    calls = {one: calls_of(rig, one) for one in SCENARIOS if rig.weaviate is not None or not one.weaviate}
    small = [Point(one, (call,)) for one, made in calls.items() if one.small for call in made]
    doubles = max(points - len(small), points // 5)
    singles = small if len(small) <= points - doubles else chance.sample(small, points - doubles)
    drawn = [chance.choice(list(calls)) for _ in range(doubles)]
    return singles + [Point(one, tuple(chance.choices(calls[one], k=2))) for one in drawn]


def calls_of(rig: Rig, scenario: Scenario) -> list[Call]:
    """Every call that one thread makes in a run that nobody disturbs."""
    if not HAS_STRACE:
        return [Call("instant", number) for number in range(1, 150)]
    ended = run(rig, Point(scenario, (Call("fsync", _OUT_OF_REACH),)), Tally())[scenario.aims_at]
    made = Counter((call.thread, call.name) for call in ended.calls)
    most = {name: max(count for (_, of_name), count in made.items() if of_name == name) for _, name in made}
    # The worker's own writes: the main thread makes as many calls of their kind before it begins.
    spool = [Call("fsync", n, _SPOOL) for n in range(1, sum(_SPOOL in call.about for call in ended.calls))]
    return [Call(name, n) for name in sorted(most) for n in range(1, most[name] + 1)] + spool


def sweep(folder: Path, points: int, seed: int, weaviate: WeaviateServer | None, tally: Tally, workers: int = 2) -> None:
    """A long sweep. A point that fails is told at its end, and its catalogue is kept; the others go on."""
    waiting: queue.SimpleQueue[Point] = queue.SimpleQueue()
    with rig(folder / "plan", weaviate) as planning:
        for point in plan(planning, points, seed):
            waiting.put(point)
    print(f"{waiting.qsize()} points planned", flush=True)
    lock = threading.Lock()

    def work(number: int) -> None:
        with rig(folder / str(number), weaviate) as mine, contextlib.suppress(queue.Empty):
            while True:
                _try(mine, waiting.get_nowait(), tally, lock)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _try(mine: Rig, point: Point, tally: Tally, lock: threading.Lock) -> None:
    own = Tally()
    try:
        run(mine, point, own)
    except Exception:  # noqa: BLE001 - any end but a good one is what is looked for: it is told, and the sweep fails
        own.failures.append(f"{point}: {traceback.format_exc()}")
    with lock:
        before = tally.points
        for name in ("points", "doubles", "paid_call_open", "twice", "reported", "unreached", "places", "scenarios", "failures"):
            setattr(tally, name, getattr(tally, name) + getattr(own, name))
        if own.failures:
            print(own.failures[0], flush=True)
        if tally.points // 50 > before // 50:
            print(f"{tally.points} points, {len(tally.failures)} failures; last: {point}", flush=True)
