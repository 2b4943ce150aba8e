"""A sweep of kills: each command of a small catalogue, killed at its n-th durable or network call, for every n.

After a kill (or two: the recovery may be killed as well) the same command is simply typed again until nothing is left to
do. The service, a process of its own that survives, is the truth: what it embedded, which batches it made, what it was
asked. `python -m tests.crash --points 1000` makes a long sweep; `tests/crash/test_sweep.py` runs a slice of it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.identity import uuid_of
from pipeline.local_service.model import embed
from tests.crash.test_realtime_kills import Service, service
from tests.crash.zygote import KILLED, Ended, Zygote

NAMES = [f"Surname {number}, Forename {number % 7}" for number in range(30)]
MOST_TURNS = 8


@dataclass(frozen=True)
class Scenario:
    """What is typed, turn by turn, until it has nothing left to do; the last command is repeated."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    keys: str = ""
    aims_at: int = 0  # the first of the commands that is killed
    pays_once: bool = True  # batch mode: never twice; real time: those on the wire, and they are reported


BATCH = "use_batch_embeddings: true\nbatch_poll_interval: 1\ncreate_grace_seconds: 1\nbatch_embedding_size: 12\n"
SCENARIOS = (
    Scenario("real time", (("main.py",),), pays_once=False),
    Scenario("batch, automatic", (("main.py",),), BATCH),
    Scenario("batch, by hand", (("batch_manager.py", "--create"), ("batch_manager.py", "--download")), BATCH),
    Scenario("batch, --advance", (("batch_manager.py", "--advance"),), BATCH),
    Scenario("indexing", (("main.py", "--set", "index_later=true"), ("main.py",)), aims_at=1),
)


@dataclass
class Tally:
    """What a sweep hit, and what came of it."""

    points: int = 0
    doubles: int = 0
    open_paid_call: int = 0
    twice: int = 0
    reported: int = 0
    hit: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        yield f"{self.points} points hit, {self.doubles} of them twice in a row; {self.open_paid_call} with a paid call open"
        yield f"embedded more than once: {self.twice}, reported: {self.reported}; lost: 0, batches paid twice: 0"
        yield from (f"  {count:>5}  {what}" for what, count in self.hit.most_common())


def write_catalogue(folder: Path, url: str, scenario: Scenario) -> Path:
    folder.mkdir(parents=True)
    with (folder / "names.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows(enumerate(NAMES))
    (folder / "my.yml").write_text(
        f"input: names.csv\nfields: {{person: person}}\nembedding_service: {url}\nservice_name: loopback\n"
        "embedding_model: local-lexical-384\nmax_concurrent_requests: 1\nmax_inputs_per_request: 8\nlog_level: error\n"
        f"{scenario.keys}",
        encoding="utf-8",
    )
    return folder / "my.yml"


def point(zygote: Zygote, folder: Path, scenario: Scenario, kill_at: int, tally: Tally, second: int | None = None) -> bool:
    """One catalogue, killed at one call of the first turn that reaches it, and recovered; whether it was reached."""
    (its_own := folder.parent / f"{folder.name}-service").mkdir()
    with service(its_own, latency=0.02) as served:
        config = write_catalogue(folder, served.url, scenario)
        kills = [kill_at] if second is None else [kill_at, second]
        reached = step = 0
        for _ in range(MOST_TURNS):
            command = scenario.commands[min(step, len(scenario.commands) - 1)]
            aim = kills[reached] if reached < len(kills) and step >= scenario.aims_at else None
            ended = zygote.run(command[0], ["--config", str(config), *command[1:]], aim)
            if aim is not None and ended.code == KILLED:
                reached += 1
                _book(tally, served, ended, is_second=reached == 2)
            elif ended.code not in (0, 75):
                raise AssertionError(f"{scenario.name}, point {kill_at}: {command} ended with {ended.code}\n{ended.err}")
            else:
                step += 1
                if step >= len(scenario.commands) and _is_done(zygote, config):
                    break
        judge(zygote, config, served, scenario, tally)
    shutil.rmtree(folder)
    shutil.rmtree(its_own)
    return reached > 0


def _book(tally: Tally, served: Service, ended: Ended, *, is_second: bool) -> None:
    tally.points += 1
    tally.doubles += is_second
    tally.open_paid_call += bool(served.state()["open"])
    call = ended.last.split(" ")[0]
    about = next(
        (word for word in ("ledger", "spool", "tables", "batch_requests", "batch_results", "store", "TCP") if word in ended.last),
        "",
    )
    tally.hit[f"{call} {about}".strip()] += 1


def _is_done(zygote: Zygote, config: Path) -> bool:
    found = json.loads(zygote.run("main.py", ["--config", str(config), "--status", "--json"]).out)
    people = found.get("fields", {}).get("person", {})
    return bool(people.get("embedded") == people.get("indexed") == len(NAMES) and people.get("in_jobs") == 0)


def judge(zygote: Zygote, config: Path, served: Service, scenario: Scenario, tally: Tally) -> None:
    """The invariants of a recovery, by the service's own word and by the index's own content."""
    assert _is_done(zygote, config), f"{scenario.name}: not finished after {MOST_TURNS} turns"
    truth = served.state()
    assert truth["open"] == 0
    twice = {entry["sha256"] for entry in truth["embedded_more_than_once"]}
    listed = _listed(config.parent / "checkpoints" / "possibly_paid_twice.csv")
    tally.twice += len(twice)
    tally.reported += len(listed)
    if scenario.pays_once:
        assert not twice, "a string was paid for twice in batch mode"
        jobs = Counter(batch["metadata"]["job"] for batch in truth["batches"] if batch["status"] == "completed")
        assert set(jobs.values()) <= {1}, "two batches did the same job"
    assert twice <= {hashlib.sha256(text.encode()).hexdigest() for text in listed}
    before = truth["answered"], len(truth["batches"]), sorted(path.name for path in (config.parent / "checkpoints").rglob("*.tmp"))
    again = zygote.run(scenario.commands[-1][0], ["--config", str(config), *scenario.commands[-1][1:]])
    assert again.code == 0, again.err
    after = served.state()
    assert (after["answered"], len(after["batches"]), []) == before, "a further run asked for something, or a draft was left"
    verified = json.loads(zygote.run("main.py", ["--config", str(config), "--verify", "--json"]).out)
    assert verified["is_well_now"]
    assert (verified["missing"], verified["changed"], verified["unexpected"], verified["written"]) == (0, 0, 0, 0)
    _compare_index(config.parent / "checkpoints" / "store")


def _listed(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def _compare_index(store: Path) -> None:
    """The index holds each string once, under its UUID, with the very vector of its text."""
    (database,) = store.glob("*.sqlite")
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT uuid, text, slot FROM string").fetchall()
    vectors = np.fromfile(database.with_suffix(".f32"), "<f4").reshape(-1, 384)
    assert sorted(text for _, text, _ in rows) == sorted(NAMES)
    for key, text, slot in rows:
        assert uuid_of("person", text).bytes == key
        assert np.array_equal(vectors[slot], embed([text])[0])


def sweep(folder: Path, points: int, seed: int, tally: Tally, say: bool = False) -> None:
    """Every n of every scenario, as long as points are left; then random ones, half of them twice in a row."""
    chance = random.Random(seed)
    with Zygote(folder) as zygote:
        ends: dict[str, int] = {}
        for scenario in SCENARIOS:
            for kill_at in range(1, points + 1):
                if tally.points >= points:
                    return
                if not point(zygote, folder / f"{len(ends)}-{kill_at}", scenario, kill_at, tally):
                    ends[scenario.name] = kill_at
                    break
                if say and tally.points % 25 == 0:
                    print(f"{tally.points} points; {scenario.name}, call {kill_at}", flush=True)
        number = 0
        while tally.points < points:
            scenario = chance.choice(SCENARIOS)
            first, second = chance.randrange(1, ends[scenario.name]), chance.randrange(1, ends[scenario.name])
            point(zygote, folder / f"random-{number}", scenario, first, tally, second)
            number += 1
