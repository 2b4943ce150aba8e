"""Work spread over processes gives what one process gives, in its order, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline import pending
from pipeline.processes import spread
from pipeline.provider.tokens import count_tokens
from tests.tools import Catalogue

CHUNKS = [[f"Bach, Johann Sebastian, {number}-{number + 65}" for number in range(start, start + 7)] for start in range(0, 140, 7)]


def length_or_end(number: int) -> int:
    """Ends its process at 3, unless that is the one of the test."""
    if number == 3 and os.environ.get("NAMESAKE_TEST_PARENT") != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 2


def test_the_results_are_those_of_one_process_in_its_order() -> None:
    with spread(count_tokens, is_worth_it=True, cores=2) as count:
        assert list(count(CHUNKS)) == [count_tokens(texts) for texts in CHUNKS]
        assert list(count([])) == []


def test_what_it_takes_ahead_of_the_results_is_bounded() -> None:
    taken = 0

    def chunks() -> Iterator[list[str]]:
        nonlocal taken
        for texts in CHUNKS:
            taken += 1
            yield texts

    with spread(count_tokens, is_worth_it=True, cores=2) as count:
        next(count(chunks()))
    assert taken <= 5


def test_work_of_no_worth_starts_no_process() -> None:
    with spread(_pid, is_worth_it=False) as ask:
        assert set(ask(range(3))) == {os.getpid()}


def _pid(_: int) -> int:
    return os.getpid()


def test_what_a_killed_process_leaves_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMESAKE_TEST_PARENT", str(os.getpid()))
    with spread(length_or_end, is_worth_it=True, cores=2) as ask:
        assert list(ask(range(20))) == [number * 2 for number in range(20)]


_LEAVES = """
import multiprocessing, sys, time
from pipeline.processes import spread
with spread(time.sleep, is_worth_it=True, cores=2) as rest:
    next(rest([0.0] * 9))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_processes_end_when_their_parent_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _LEAVES], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 30
    while left := [pid for pid in children if _lives(pid)]:
        assert time.monotonic() < deadline, f"{left} outlived their parent"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_tokens_counted_by_processes_are_kept_as_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several windows, each a table file and a commit of its own."""
    monkeypatch.setattr(pending, "_COUNT_WINDOW", 30)
    found = []
    for worth in (1, 10**9):
        monkeypatch.setattr(pending, "_WORTH_PROCESSES", worth)
        (tmp_path / str(worth)).mkdir()
        catalogue = Catalogue(tmp_path / str(worth))
        catalogue.configure(fields={"person": "person"})
        catalogue.write((str(number), f"Person {number}, of {'some ' * (number % 7)}where", "") for number in range(100))
        assert catalogue.run("--dry-run").code == 0
        with catalogue.ledger() as ledger:
            files = ledger.files("tokens", field="person")
            assert [file.rows for file in files] == [30, 30, 30, 10]
            names = [str(catalogue.checkpoint / "tables" / file.name) for file in files]
        with duckdb.connect() as duck:
            found.append(duck.execute("SELECT row, tokens FROM read_parquet(?) ORDER BY row", [names]).fetchall())
    assert found[0] == found[1]
    assert len(found[0]) == 100
