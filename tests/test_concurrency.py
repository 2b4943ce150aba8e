"""Several processes at once over one checkpoint folder: cron that overlaps, readers beside a run, a folder in two places.

All of them are real processes, and the service is one more, on a port: what it embedded and which batches it made is the
truth. That a second writer exits 75 and names the first is `test_checkpoint.py` and `batch/test_modes.py`, command by command.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import Checkpoint, reading, writing
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import Pace
from pipeline.locking import lock_holder
from tests.batch.world import Maker
from tests.crash.served import ENVIRONMENT, ROOT, Service, service
from tests.crash.zygote import Ended, Zygote
from tests.tools import Catalogue, Ran

AT_ONCE = 6
ROUNDS = 3


def write_catalogue(folder: Path, url: str, names: int, **keys: object) -> Path:
    folder.mkdir(exist_ok=True)
    write_names(folder, names)
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
    (folder / "my.yml").write_text(
        f"input: names.csv\nfields: {{person: person}}\nembedding_service: {url}\nservice_name: loopback\n"
        f"embedding_model: local-lexical-384\nlog_level: error\n{lines}",
        encoding="utf-8",
    )
    return folder / "my.yml"


def write_names(folder: Path, names: int) -> None:
    """Whole at once: a run may be reading it."""
    draft = folder / "names.csv.new"
    with draft.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows((number, f"Surname {number}, Forename {number % 7}") for number in range(names))
    draft.replace(folder / "names.csv")


def start(program: str, config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / program), "--config", str(config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err, [])


def people(config: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(ended(start("main.py", config, "--status", "--json")).out)["fields"]["person"]
    return found


# Writers


def assert_each_once(config: Path, served: Service, names: int) -> None:
    truth = served.state()
    assert truth["embedded_more_than_once"] == []
    assert truth["texts"] == names
    assert set(Counter(batch["metadata"]["job"] for batch in truth["batches"]).values()) == {1}, "a batch was made twice"
    found = people(config)
    assert found["embedded"] == found["indexed"] == names


def test_cron_that_overlaps_makes_no_batch_twice(tmp_path: Path) -> None:
    """Six `--advance` within a second, from the very first on; one works, the others say so in a sentence and are no alarm."""
    with service(tmp_path, latency=0.05) as served:
        config = write_catalogue(tmp_path / "c", served.url, 60, batch_embedding_size=10, max_active_batches=3)
        worked = locked = 0
        for _ in range(ROUNDS):
            for ran in [ended(one) for one in [start("batch_manager.py", config, "--advance") for _ in range(AT_ONCE)]]:
                assert (ran.code, ran.err) == (0, ""), ran.err
                is_locked = "Another run is at work" in ran.out
                locked += is_locked
                worked += not is_locked
                if is_locked:
                    assert len(ran.out.splitlines()) == 1 or ran.out.count("Another run is at work") == 1
        assert worked >= ROUNDS
        assert locked > 0, "they did not overlap: this test would prove nothing"
        assert ended(start("batch_manager.py", config, "--wait", "--set", "batch_poll_interval=1")).code == 0
        assert_each_once(config, served, 60)


def test_two_runs_at_once_of_which_one_works_and_the_other_names_it(tmp_path: Path) -> None:
    with service(tmp_path, latency=0.2) as served:
        config = write_catalogue(tmp_path / "c", served.url, 60, max_inputs_per_request=5, max_concurrent_requests=1)
        first = start("main.py", config)
        while not served.state()["open"]:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds the lock for as long as the others need
        others = [("main.py",), ("batch_manager.py", "--advance"), ("batch_manager.py", "--download")]
        second, advance, download = [ended(one) for one in [start(name, config, *flags) for name, *flags in others]]
        first.send_signal(signal.SIGCONT)
        ran = ended(first)
    assert ran.code == 0, ran.err
    assert second.code == 75
    assert f"process {first.pid} on " in second.err
    for one in (advance, download):
        assert (one.code, one.err) == (0, "")
        assert f"process {first.pid} on " in one.out
    found = people(config)
    assert found["embedded"] == found["indexed"] == 60


def test_the_words_of_a_process_that_lives_again_hold_nobody_up(tmp_path: Path) -> None:
    """Its number was given to somebody else: the lock is the kernel's, not the file's."""
    with service(tmp_path, latency=0) as served:
        config = write_catalogue(tmp_path / "c", served.url, 5)
        assert ended(start("main.py", config)).code == 0
        place = Checkpoint(config.parent / "checkpoints")
        place.lock.write_text(json.dumps({"pid": os.getpid(), "host": "here", "command": "main.py"}), encoding="utf-8")
        assert lock_holder(place.lock) is None
        assert ended(start("main.py", config)).code == 0


# Readers

READERS: tuple[tuple[str, ...], ...] = (
    ("main.py", "--status"),
    ("main.py", "--batch-status"),
    ("main.py", "--search", "Surname 3, Forename 3"),
    ("main.py", "--export-embeddings", "out.parquet"),
    ("main.py", "--export-occurrences", "out.csv"),
    ("batch_manager.py", "--status"),
    ("batch_manager.py", "--list"),
    ("batch_manager.py", "--failures"),
)
LONGEST_READING = 10.0  # seconds, on a busy machine; a run here takes longer than that


class Writer(threading.Thread):
    """Run after run in processes of their own: more names each time, in real time and by batch."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        self.config = config
        self.ran: list[Ended] = []

    def run(self) -> None:
        for number in range(1, 4):
            write_names(self.config.parent, 40 + 20 * number)
            by_batch = f"use_batch_embeddings={'true' if number % 2 else 'false'}"
            self.ran.append(ended(start("main.py", self.config, "--set", by_batch, "--set", "batch_poll_interval=1")))


def test_readers_beside_a_run_never_err_never_wait_and_see_no_torn_state(tmp_path: Path) -> None:
    with service(tmp_path, latency=0.1) as served, Zygote(tmp_path) as forks:
        config = write_catalogue(
            tmp_path / "c", served.url, 40, max_inputs_per_request=4, max_concurrent_requests=1, batch_embedding_size=4
        )
        assert ended(start("main.py", config)).code == 0
        writer = Writer(config)
        writer.start()
        seen = {"present": 0, "embedded": 0, "indexed": 0, "rows": 0}
        beside = 0
        while writer.is_alive():
            for program, flag, *more in READERS:
                values = [str(tmp_path / value) if value.startswith("out.") else value for value in more]
                began = time.monotonic()
                ran = forks.run(program, ["--config", str(config), flag, *values, "--json"])
                assert (ran.code, ran.err) == (0, ""), (program, flag, ran.out, ran.err)
                assert time.monotonic() - began < LONGEST_READING
                _compare(seen, flag, json.loads(ran.out))
                beside += writer.is_alive()
        writer.join()
        assert [(ran.code, ran.err) for ran in writer.ran] == [(0, "")] * 3
        assert beside > len(READERS), "no reader ran beside a run: this test would prove nothing"
        assert_each_once(config, served, 100)


def _compare(seen: dict[str, int], flag: str, found: dict[str, Any]) -> None:
    """What was there stays there; and the numbers of one answer are of one moment."""
    if flag == "--status" and "fields" in found:
        now = found["fields"]["person"]
        assert now["indexed"] <= now["embedded"] <= now["present"]
        assert now["embedded"] + now["pending"] + now["in_jobs"] + now["failed"] >= now["present"]
        for name in ("present", "embedded", "indexed"):
            assert now[name] >= seen[name]
            seen[name] = now[name]
    elif flag == "--export-embeddings":
        assert found["rows"] >= seen["rows"]
        seen["rows"] = found["rows"]


def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    """Whatever a run commits while the numbers are read one by one."""
    place = Checkpoint(tmp_path / "state")
    with writing(place, "test") as ledger:
        ledger.add_spans("embedded", "g", "person", [(0, 5)])
        with reading(place) as read:
            assert read is not None
            assert read.spans("embedded", "g", "person") == [(0, 5)]
            ledger.add_spans("embedded", "g", "person", [(5, 9)])
            ledger.add_spans("indexed", "g", "person", [(0, 9)])
            assert read.spans("indexed", "g", "person") == []
        with reading(place) as read:
            assert read is not None
            assert read.spans("indexed", "g", "person") == [(0, 9)]


@pytest.mark.parametrize(
    ("asked", "begins"),
    [(("--search", "Bach"), "search._opened"), (("--export-occurrences", "out.csv"), "export._occurrences")],
    ids=lambda value: value[0],
)
def test_a_reader_whose_tables_are_replaced_under_its_eyes_reads_anew(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, str], begins: str
) -> None:
    """A run deletes the tables of the reading before, and an export may take longer than that."""
    catalogue = Catalogue(quick_path)
    catalogue.configure()
    catalogue.write([("1", "Bach", "Fugue")])
    assert catalogue.run("--quiet").code == 0
    module, name = begins.split(".")
    real = getattr(import_module(f"pipeline.commands.{module}"), name)
    runs: list[Ran] = []

    def beside_a_run(*arguments: Any) -> Any:
        if not runs:
            catalogue.write([("1", "Bach", "Fugue"), ("2", "Telemann", "Suite")])
            runs.append(catalogue.run("--quiet", "--end", "preprocessing"))
        return real(*arguments)

    monkeypatch.setattr(f"pipeline.commands.{begins}", beside_a_run)
    ran = catalogue.run(asked[0], str(quick_path / asked[1]) if "." in asked[1] else asked[1])
    assert runs[0].code == 0
    assert (ran.code, ran.err) == (0, "")


# One folder in two places


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    maker = Maker(tmp_path, monkeypatch)
    yield maker
    for state in maker.states:
        state.close()


@pytest.mark.parametrize("first", ["checkpoints", "copy"])
@pytest.mark.parametrize("collected", [True, False], ids=["a job before", "no job before"])
def test_a_copy_that_was_taken_over_does_not_pay_for_what_the_other_has_sent(
    make: Maker, tmp_path: Path, first: str, collected: bool
) -> None:
    """Both are used all the same: the service's list tells the second of them, before it sends anything."""
    world = make(batch_embedding_size=2, max_active_batches=1)
    if collected:
        assert world.run("--create").code == 0
        assert world.run("--download").code == 0
    else:
        assert world.main("--end", "preprocessing").code == 0
    shutil.copytree(world.catalogue.checkpoint, tmp_path / "copy")
    in_the_copy = ("--set", "checkpoint_dir=copy")
    refused = world.run("--create", *in_the_copy)
    assert refused.code == 2
    assert "--take-over" in refused.err
    assert world.main("--take-over", *in_the_copy).code == 0
    one, other = ((), in_the_copy) if first == "checkpoints" else (in_the_copy, ())
    assert world.run("--create", *one).code == 0
    batches = len(world.batches())
    stopped = world.run("--create", *other)
    assert stopped.code in (1, 2)
    assert "of this very catalogue" in stopped.err
    assert "Nothing was submitted" in stopped.err
    assert len(world.batches()) == batches
    for _ in range(4):
        assert world.run("--advance", *one).code == 0
    assert world.twice() == 0
    assert world.main("--status", "--json", *one).document["fields"]["title"]["indexed"] == 4


def test_what_the_other_copy_has_collected_is_brought_over_and_not_paid_for_again(make: Maker, tmp_path: Path) -> None:
    """Its cron was not switched off: it came first, and deleted the results at the service."""
    world = make(Misbehaviour(kind="refused_row", create=1, row=2), batch_embedding_size=2, pace=Pace(working=3600.0))
    assert world.run("--create").code == 0
    shutil.copytree(world.catalogue.checkpoint, tmp_path / "copy")
    in_the_copy = ("--set", "checkpoint_dir=copy")
    assert world.main("--take-over", *in_the_copy).code == 0
    world.clock.sleep(7200.0)
    world.run("--advance")
    assert world.run("--advance", *in_the_copy).code == 1
    (need,) = world.main("--status", "--json", *in_the_copy).document["needs"]
    assert f"bring batch_results_0001.jsonl and the like from there into {tmp_path / 'copy'}" in need["words"]
    for path in world.catalogue.checkpoint.glob("batch_[re]*_000?.jsonl"):
        shutil.copy(path, tmp_path / "copy")
    ran = world.run("--download", *in_the_copy)
    assert (ran.code, ran.err.count("Jobs are lost")) == (1, 0), "one string was refused, and that is told"
    found = world.main("--status", "--json", *in_the_copy).document
    assert found["fields"]["title"] == world.main("--status", "--json").document["fields"]["title"]
    assert (found["fields"]["title"]["indexed"], found["fields"]["title"]["failed"], found["possibly_paid_twice"]["usd"]) == (
        3,
        1,
        0,
    )
    assert len(world.batches()) == 2
    assert world.twice() == 0
