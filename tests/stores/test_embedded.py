"""The embedded store keeps the contract, survives a kill at any moment, and says so when its files were damaged."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import CheckpointError, DiskError, StoreError
from pipeline.identity import uuid_of
from pipeline.stores import embedded
from pipeline.stores.embedded import EmbeddedStore
from tests.stores.contract import MakeStore, StoreContract, closing, nearest, random_strings, same, stored

ROOT = Path(__file__).resolve().parents[2]
GENERATION = "0000aaaa"


class TestEmbeddedStore(StoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[MakeStore]:
        with closing(lambda generation, dimensions: EmbeddedStore(tmp_path, generation, dimensions)) as make:
            yield make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path, GENERATION, 3)
    yield opened
    opened.close()


def reopened(folder: Path, dimensions: int = 3) -> EmbeddedStore:
    return EmbeddedStore(folder, GENERATION, dimensions)


def test_a_stop_between_vectors_and_commit_leaves_no_name_without_its_vector(
    store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [stored("a", [1, 0, 0]), stored("b", [0, 1, 0])]
    store.upsert(before)
    real = EmbeddedStore._write_vectors

    def stopped(*arguments: object) -> list[int]:
        real(*arguments)  # type: ignore[arg-type]  # whatever it is given
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedStore, "_write_vectors", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.upsert([stored("a", [5, 5, 5]), stored("c", [0, 0, 1])])
    monkeypatch.undo()
    store.close()
    again = reopened(tmp_path)
    found = again.get([*again.uuids()])
    assert set(found) == {string.uuid for string in before}
    assert all(same(found[string.uuid], string) for string in before)
    assert (tmp_path / f"{GENERATION}.f32").stat().st_size == 4 * 12, "the vectors that nothing names are still there"
    more = [stored(text, [number, 1, 2]) for number, text in enumerate("def")]
    again.upsert(more)
    assert (tmp_path / f"{GENERATION}.f32").stat().st_size == 5 * 12, "what nothing named was written over"
    found = again.get([string.uuid for string in [*before, *more]])
    assert all(same(found[string.uuid], string) for string in [*before, *more])
    again.close()


_LOOP = """
    import sys
    from pathlib import Path
    import numpy as np
    from pipeline.stores.embedded import EmbeddedStore
    from tests.stores.contract import stored

    store = EmbeddedStore(Path(sys.argv[1]), "0000aaaa", 64)
    for turn in range(10**9):
        # Forty strings a turn: half of them new, half of them known with another vector.
        strings = [
            stored(f"text {number}", np.full(64, turn + 1 + number / 64))
            for number in range(20 * turn, 20 * turn + 40)
        ]
        confirmed = store.upsert(strings).confirmed
        print(turn, len(confirmed), flush=True)
"""


@pytest.mark.parametrize("lines", [1, 4, 11])
def test_after_a_kill_every_confirmed_string_is_there_with_its_vector_and_none_is_torn(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_LOOP), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child, child.stdout:
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().splitlines()
    assert child.returncode == -signal.SIGKILL
    turns = [int(line.split()[0]) for line in said if len(line.split()) == 2]
    assert len(turns) >= lines
    store = reopened(tmp_path, 64)
    by_text = {string.text: string.vector for string in store.get(list(store.uuids())).values()}
    assert len(by_text) == store.count()
    for number in range(20 * turns[-1] + 40):
        # Confirmed in its last turn that was said; the turn after that may have been committed and not said.
        last = min(number // 20, turns[-1])
        allowed = [np.full(64, turn + 1 + number / 64, np.float32) for turn in (last, turns[-1] + 1)]
        assert any(np.array_equal(by_text[f"text {number}"], vector) for vector in allowed), number
    assert len(by_text) in (20 * turns[-1] + 40, 20 * turns[-1] + 60)
    assert all(len(set(vector.tolist())) == 1 for vector in by_text.values()), "a vector was torn"
    store.close()


def test_a_vector_file_that_was_cut_is_told_with_the_way_out(store: EmbeddedStore, tmp_path: Path) -> None:
    strings = [stored("a", [1, 0, 0]), stored("b", [0, 1, 0]), stored("c", [0, 0, 1])]
    store.upsert(strings)
    os.truncate(tmp_path / f"{GENERATION}.f32", 2 * 12 + 5)
    with pytest.raises(StoreError, match="--reindex"):
        store.search(np.ones(3, np.float32), 1)
    with pytest.raises(StoreError, match="--reindex"):
        store.upsert([stored("d", [1, 1, 1])])
    assert store.count() == 2, "so that a run that compares numbers notices"
    assert store.count("person") == 2
    assert set(store.get([string.uuid for string in strings])) == {string.uuid for string in strings[:2]}
    store.clear()
    store.upsert(strings)
    assert store.count() == len(store.search(np.ones(3, np.float32), 5)) == 3


def test_a_vector_file_that_vanished_counts_as_empty(store: EmbeddedStore, tmp_path: Path) -> None:
    store.upsert([stored("a", [1, 0, 0])])
    store.close()
    (tmp_path / f"{GENERATION}.f32").unlink()
    again = reopened(tmp_path)
    assert again.count() == 0
    with pytest.raises(StoreError, match="--reindex"):
        again.search(np.ones(3, np.float32), 1)
    again.close()


@pytest.mark.parametrize("garbage", [b"this is no database, whatever its name says" * 100, b"\0" * 8192])
def test_garbage_in_place_of_the_database_is_told_with_the_way_out(tmp_path: Path, garbage: bytes) -> None:
    reopened(tmp_path).close()
    (tmp_path / f"{GENERATION}.sqlite").write_bytes(garbage)
    with pytest.raises(StoreError, match="--reindex") as told:
        reopened(tmp_path)
    assert str(tmp_path) in str(told.value)


@pytest.mark.parametrize("use", ["count", "get", "search", "uuids", "delete", "upsert", "clear"])
def test_damaged_pages_are_told_with_the_way_out_by_whatever_meets_them(tmp_path: Path, use: str) -> None:
    whole = reopened(tmp_path)
    whole.upsert(random_strings(400, 3))
    whole.close()
    path = tmp_path / f"{GENERATION}.sqlite"
    with sqlite3.connect(path) as database:
        roots = database.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'string'").fetchall()
    database.close()
    content = bytearray(path.read_bytes())
    for (page,) in roots:
        content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    path.write_bytes(content)
    damaged = reopened(tmp_path)
    with pytest.raises(StoreError, match="--reindex"):
        _use(damaged, use)
    damaged.close()


def _use(store: EmbeddedStore, how: str) -> None:
    keys = [uuid_of("person", f"text {number}") for number in range(400)]
    match how:
        case "count":
            store.count()
        case "get":
            store.get(keys)
        case "search":
            store.search(np.ones(3, np.float32), 400)
        case "uuids":
            list(store.uuids())
        case "delete":
            store.delete(keys)
        case "upsert":
            store.upsert(random_strings(400, 3, seed=2))
        case _:
            store.clear()


def test_a_store_of_other_dimensions_under_the_same_name_is_refused(store: EmbeddedStore, tmp_path: Path) -> None:
    store.upsert([stored("a", [1, 0, 0])])
    with pytest.raises(StoreError, match=r"3 dimensions, not 4.*delete the folder.*--reindex"):
        reopened(tmp_path, 4)


@pytest.mark.parametrize("suffix", ["f32", "sqlite"])
def test_a_symbolic_link_in_place_of_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "somebody_elses_file"
    target.write_bytes(b"precious")
    (tmp_path / f"{GENERATION}.{suffix}").symlink_to(target)
    with pytest.raises(CheckpointError, match="symbolic link"):
        reopened(tmp_path)
    assert target.read_bytes() == b"precious"


def test_a_full_disk_is_told_as_one_and_nothing_is_confirmed(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.upsert([stored("a", [1, 0, 0])])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="No space left"):
        store.upsert([stored("b", [0, 1, 0])])
    monkeypatch.undo()
    assert list(store.uuids()) == [uuid_of("person", "a")]
    store.upsert([stored("b", [0, 1, 0])])
    assert store.count() == 2


@pytest.mark.parametrize("strings_a_slice", [1, 7, 64])
def test_a_search_over_several_slices_equals_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strings_a_slice: int
) -> None:
    monkeypatch.setattr(embedded, "_SLICE_BYTES", strings_a_slice * 16 * 4)
    store = reopened(tmp_path, 16)
    strings = [*random_strings(150, 16), *random_strings(50, 16, seed=3, field="title")]
    store.upsert(strings)
    store.delete([string.uuid for string in strings[::9]])  # holes among the slots
    left = [string for place, string in enumerate(strings) if place % 9]
    query = random_strings(1, 16, seed=4)[0].vector
    for field in (None, "title"):
        expected = nearest([string for string in left if field in (None, string.field)], query)
        for limit in (1, 10, 1000):
            hits = store.search(query, limit, field)
            assert [hit.uuid for hit in hits] == [key for key, _ in expected[:limit]]
            assert [hit.similarity for hit in hits] == pytest.approx([score for _, score in expected[:limit]], abs=1e-6)
    store.close()


def test_a_reader_keeps_searching_while_a_writer_writes_and_clears(store: EmbeddedStore, tmp_path: Path) -> None:
    strings = random_strings(200, 3)
    store.upsert(strings)
    reader = reopened(tmp_path)
    mapped = reader._mapped()
    store.upsert([stored("new", [1, 2, 3])])
    assert reader.search(np.array([1, 2, 3], np.float32), 1)[0].text == "new"
    store.clear()
    assert mapped.sum() == pytest.approx(np.stack([string.vector for string in strings]).sum(), rel=1e-3), (
        "a search under way still reads the old vectors: a cut file would have killed it"
    )
    assert reader.search(np.ones(3, np.float32), 1) == []
    reader.close()


def test_a_second_search_sees_what_another_deleted_or_changed_since_the_first(store: EmbeddedStore, tmp_path: Path) -> None:
    store.upsert([stored("a", [1, 0, 0]), stored("b", [0, 1, 0])])
    reader = reopened(tmp_path)
    query = np.array([1, 0, 0], np.float32)
    for field in (None, "person"):
        assert reader.search(query, 1, field)[0].text == "a"
    store.delete([stored("a", [1, 0, 0]).uuid])
    for field in (None, "person"):
        assert [hit.text for hit in reader.search(query, 2, field)] == ["b"]
    store.upsert([stored("b", [0, 0, 1])])
    assert reader.search(query, 1)[0].similarity == pytest.approx(0.0)
    reader.upsert([stored("c", [1, 0, 0])])
    assert reader.search(query, 1)[0].text == "c", "and what it wrote itself"
    reader.close()


def test_what_did_not_change_is_not_written_again(store: EmbeddedStore, tmp_path: Path) -> None:
    strings = random_strings(20, 3)
    store.upsert(strings)
    size = (tmp_path / f"{GENERATION}.f32").stat().st_size
    store.upsert(strings)
    assert (tmp_path / f"{GENERATION}.f32").stat().st_size == size == 20 * 12


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        reopened(tmp_path).close()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
