"""The state: totals that several processes share, and, only when asked, the truth about what was embedded."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from pipeline.local_service import Request, State, StateError, handle
from pipeline.local_service.model import MODEL

if TYPE_CHECKING:
    from pathlib import Path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ask(state: State, *texts: str) -> str:
    body = json.dumps({"model": MODEL, "input": texts, "encoding_format": "base64"}).encode()
    response = handle(Request("POST", "/v1/embeddings", body=body), state, lambda: 0.0)
    assert response.status == 200
    return response.headers["x-request-id"]


def test_each_text_is_counted_as_often_as_it_was_embedded() -> None:
    with State(record=True) as state:
        ask(state, "a", "b", "a")
        ask(state, "ü")
        ask(state, "ü")
        ask(state, "ü")
        assert state.embedded() == {sha256("a"): 2, sha256("b"): 1, sha256("ü"): 3}
        again = [("a", 2), ("ü", 3)]
        assert state.summary()["embedded_more_than_once"] == sorted(
            ({"sha256": sha256(text), "times": times} for text, times in again),
            key=lambda entry: str(entry["sha256"]),
        )
        assert (state.summary()["texts"], state.summary()["tokens"]) == (6, 6)


def test_a_request_is_open_until_its_answer_has_left() -> None:
    with State(record=True) as state:
        assert state.arrived(0.0) == 1
        request_id = ask(state, "a")
        assert (state.summary()["open"], state.summary()["answered"]) == (2, 0)
        state.answered(request_id, 1.0)
        state.answered(request_id, 2.0)
        assert (state.summary()["open"], state.summary()["answered"]) == (1, 1)


def test_without_record_totals_are_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with State(path) as state:
        state.answered(ask(state, "a", "a"), 0.0)
        assert state.summary() == {
            "open": 0,
            "answered": 1,
            "texts": 2,
            "tokens": 2,
            "embedded_more_than_once": [],
            "batches": [],
        }
    tables = sqlite3.connect(path)
    assert tables.execute("SELECT (SELECT count(*) FROM requests), (SELECT count(*) FROM embedded)").fetchone() == (0, 0)
    tables.close()


def test_a_file_keeps_what_was_counted_and_what_was_open(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with State(path, record=True, tokens_per_minute=1000) as state:
        ask(state, "a")
    with State(path, record=True, tokens_per_minute=1000) as state:
        assert ask(state, "a") == "req_local_000000000002"
        assert state.embedded() == {sha256("a"): 2}
        assert state.summary()["open"] == 2


def embed_in_another_process(path: Path, begin: str) -> None:
    with State(path, record=True) as state:
        for number in range(20):
            state.answered(ask(state, f"{begin} {number}", "shared"), 0.0)


def test_processes_and_threads_share_one_new_file_and_lose_no_count(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=embed_in_another_process, args=(path, str(number))) for number in range(3)]
    for worker in workers:
        worker.start()
    with State(path, record=True) as state, ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda number: ask(state, f"here {number}", "shared"), range(40)))
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert len(set(ids)) == 40
    with State(path, record=True) as state:
        summary = state.summary()
        assert (summary["texts"], summary["open"], summary["answered"]) == (200, 40, 60)
        assert [entry["times"] for entry in summary["embedded_more_than_once"]] == [100]
        assert state.embedded()[sha256("shared")] == 100
        assert len(state.embedded()) == 101


def test_many_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    for attempt in range(10):
        path = tmp_path / f"{attempt}.sqlite"
        with ThreadPoolExecutor(8) as pool:
            for state in pool.map(lambda _, path=path: State(path), range(8)):
                state.close()


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    foreign, text, newer = tmp_path / "foreign", tmp_path / "text", tmp_path / "newer"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    State(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    text.write_text("not a database, and long enough to be looked at as one " * 40, encoding="utf-8")
    for path, says in [
        (foreign, "another program's"),
        (newer, "version 99"),
        (text, "not a database"),
        (tmp_path, "unable to open"),
        (tmp_path / "no" / "such", "unable to open"),
    ]:
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(StateError, match=says) as caught:
            State(path)
        assert before == (path.read_bytes() if path.is_file() else b"")
        assert str(path) in str(caught.value)


def test_a_failing_transaction_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with State(path, record=True) as state:
        beside = sqlite3.connect(path)
        beside.execute("CREATE TRIGGER full BEFORE INSERT ON embedded BEGIN SELECT raise(ABORT, 'full'); END")
        with pytest.raises(sqlite3.Error, match="full"):
            state.settle(None, 0.0, ["a", "b"], tokens=2)
        assert (state.summary()["answered"], state.summary()["texts"], state.embedded()) == (0, 0, {})
        beside.execute("DROP TRIGGER full")
        beside.close()
        ask(state, "a")
        assert state.embedded() == {sha256("a"): 1}


@pytest.mark.parametrize("options", [{"api_key": " "}, {"requests_per_minute": 0}, {"tokens_per_minute": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"empty|at least 1"):
        State(**options)  # type: ignore[arg-type]
