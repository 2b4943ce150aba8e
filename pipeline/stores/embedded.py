"""The embedded store: SQLite for UUID and properties, one memory-mapped float32 file for the vectors.

Search is exact: NumPy goes through every vector of the generation, in slices. A vector is appended and fsynced before
the SQLite commit that names its slot, so a kill leaves at most vectors that nothing names, never a name without its
vector. A changed vector gets a new slot: the old one stays valid until the commit. Good for some hundred thousand
strings; beyond, each search reads gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.files import disk_error, disk_errors, fsync_folder, fsync_handle, no_symlink, temporary
from pipeline.rights import make_file
from pipeline.stores.contract import Hit, StoredString, Written

LARGE = 300_000  # strings; from here on a search takes long enough to say so
_SLICE_BYTES = 64 << 20
_KEYS_A_QUERY = 500
_UNIT = 1e-5  # a length this near to 1 counts as 1 while the nearest are looked for
_CACHE_KB = 65_536  # of SQLite's pages: UUIDs are spread over all of them, and a chunk touches a thousand
_PAGES_A_CHECKPOINT = 8192  # written to the log before they go into the database: a chunk alone is as many as the default
_NOISE = 1e-4  # by more than `_UNIT` and rounding can be off there; what is so near to the last place is computed exactly
_SCHEMA = """
CREATE TABLE IF NOT EXISTS string (
    uuid BLOB PRIMARY KEY, slot INTEGER NOT NULL UNIQUE, field TEXT NOT NULL, text TEXT NOT NULL, crc32 TEXT NOT NULL,
    frequency INTEGER NOT NULL, model TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO string VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (uuid) DO UPDATE SET slot = excluded.slot,
    field = excluded.field, text = excluded.text, crc32 = excluded.crc32, frequency = excluded.frequency, model = excluded.model
"""


class EmbeddedStore:
    """One generation's index, in two files named after it."""

    workers = 1  # SQLite has one writer
    chunk = 1000
    is_exact = True

    def __init__(self, folder: Path, generation: str, dimensions: int) -> None:
        self.dimensions = dimensions
        # What the last search found out, for as long as the files are what they were then.
        self._map: tuple[tuple[int, int, int], NDArray[np.float32]] | None = None
        self._live: tuple[tuple[int, int, str | None], NDArray[np.int64]] | None = None
        self._vectors = folder / f"{generation}.f32"
        self._path = folder / f"{generation}.sqlite"
        for path in (self._vectors, self._path):
            no_symlink(path)
        if not self._path.exists():
            with disk_errors(self._path):
                make_file(self._path)
        try:
            # One upsert at a time, but not always from the thread that opened it.
            self._db = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_A_CHECKPOINT}")
            self._db.executescript(_SCHEMA)
            known = self._fact("dimensions")
        except sqlite3.DatabaseError as problem:
            raise self._broken(problem) from problem
        if not self._vectors.exists():
            with disk_errors(self._vectors):
                make_file(self._vectors)
                fsync_folder(folder)
        if known not in (None, dimensions):
            self._db.close()
            raise self._unusable(f"it holds vectors of {known} dimensions, not {dimensions}")

    def _broken(self, problem: sqlite3.DatabaseError) -> Exception:
        if "full" in str(problem) or "disk I/O" in str(problem):
            return disk_error(self._path, problem)
        return self._unusable(str(problem))

    def _unusable(self, why: str) -> StoreError:
        return StoreError(
            f"{self._path} can't be used ({why}). The embeddings are safe in the tables: delete the folder "
            f"{self._path.parent} and run python main.py --reindex, which costs nothing."
        )

    def _shorter(self) -> StoreError:
        return StoreError(f"{self._vectors} is shorter than its index says; python main.py --reindex builds both anew.")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        """All of it or none; SQLite's errors become ours."""
        try:
            self._db.execute(begin)
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.DatabaseError as problem:
            raise self._broken(problem) from problem

    def close(self) -> None:
        self._map = self._live = None
        self._db.close()

    def look(self) -> None:
        """The files were looked at when the store was opened."""

    def try_out(self) -> Iterator[str]:
        yield f"{self._path} holds {self.count():,} strings"

    def prepare(self) -> None:
        """They were made then, too."""

    def publish(self) -> None:
        """Nobody reads an embedded index by another name."""

    def unsearchable(self) -> int:
        return 0

    def upsert(self, strings: Sequence[StoredString]) -> Written:
        last = {string.uuid.bytes: string for string in strings}  # as bytes: a UUID computes its hash anew each time
        if not last:
            return Written(frozenset())
        keys = list(last)
        wrong = {string.vector.shape for string in last.values()} - {(self.dimensions,)}
        if wrong:
            raise StoreError(f"vectors of {wrong.pop()[-1]} dimensions do not belong into an index of {self.dimensions}")
        matrix = np.stack([last[key].vector for key in keys]).astype(np.float32, copy=False)
        with self._transaction("BEGIN IMMEDIATE"):
            slots = self._write_vectors(keys, matrix)
            rows = [
                (key, slot, string.field, string.text, string.crc32, string.frequency, string.model)
                for (key, string), slot in zip(last.items(), slots, strict=True)
            ]
            lengths = np.linalg.norm(matrix, axis=1)
            self._db.executemany(_UPSERT, sorted(rows))  # in the order of the table: neighbours are written together
            self._db.execute("INSERT OR IGNORE INTO fact VALUES ('dimensions', ?)", (self.dimensions,))
            if bool(np.any(np.abs(lengths - 1.0) > _UNIT)):
                self._db.execute("INSERT OR REPLACE INTO fact VALUES ('other_lengths', 1)")
        return Written(frozenset(string.uuid for string in last.values()))

    def _write_vectors(self, keys: Sequence[bytes], matrix: NDArray[np.float32]) -> list[int]:
        """The slot of each vector: the old one where it holds the very same vector, else a new one, durable."""
        old = self._slots(keys)
        kept: dict[int, int] = {}
        if old:
            mapped = self._mapped()
            same = ((place, old[key]) for place, key in enumerate(keys) if key in old and old[key] < len(mapped))
            kept = {place: slot for place, slot in same if mapped[slot].tobytes() == matrix[place].tobytes()}
        fresh = [place for place in range(len(keys)) if place not in kept]
        width = self.dimensions * 4
        with disk_errors(self._vectors):
            handle = os.open(self._vectors, os.O_RDWR | os.O_NOFOLLOW)
            try:
                # Behind every slot that a commit named: what a killed run appended after that is written over.
                start = self._next_slot()
                if os.fstat(handle).st_size < start * width:
                    raise self._shorter()
                new_ones = matrix if len(fresh) == len(keys) else matrix[fresh]
                written = np.ascontiguousarray(new_ones, dtype="<f4").data.cast("B") if fresh else memoryview(b"")
                place = start * width
                while written:
                    count = os.pwrite(handle, written, place)
                    written, place = written[count:], place + count
                fsync_handle(handle)
            finally:
                os.close(handle)
        new = {place: start + number for number, place in enumerate(fresh)}
        return [kept[place] if place in kept else new[place] for place in range(len(keys))]

    def _next_slot(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(slot), -1) + 1 FROM string").fetchone()[0])

    def _fact(self, name: str) -> int | None:
        found = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if found is None else int(found[0])

    def _rows(self) -> int:
        return self._vectors.stat().st_size // (self.dimensions * 4)

    def _mapped(self) -> NDArray[np.float32]:
        """The file as it is now. Mapped again only when it is another, or of another size: each new map costs a fault for every
        page that a search touches, which is more than the search itself."""
        found = self._vectors.stat()
        which = (found.st_dev, found.st_ino, found.st_size)
        if self._map is None or self._map[0] != which:
            rows = found.st_size // (self.dimensions * 4)
            shape = (rows, self.dimensions)
            fresh = np.memmap(self._vectors, "<f4", "r", shape=shape).view(np.ndarray) if rows else np.empty(shape, np.float32)
            self._map = (which, fresh)
        return self._map[1]

    def _slots(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        return dict(self._select("uuid, slot", keys))

    def _select(self, columns: str, keys: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[start : start + _KEYS_A_QUERY]
            marks = ", ".join("?" * len(some))
            yield from self._db.execute(f"SELECT {columns} FROM string WHERE uuid IN ({marks})", some)

    def get(self, uuids: Sequence[uuid.UUID]) -> dict[uuid.UUID, StoredString]:
        with self._transaction("BEGIN"):
            rows = list(self._select("uuid, slot, field, text, crc32, frequency, model", [key.bytes for key in uuids]))
            mapped = self._mapped()
        found: dict[uuid.UUID, StoredString] = {}
        for key, slot, field, text, crc32, frequency, model in rows:
            identifier = uuid.UUID(bytes=key)
            if isinstance(slot, int) and slot < len(mapped):  # a vector that was lost is a string that is not there
                found[identifier] = StoredString(identifier, field, text, crc32, frequency, model, np.array(mapped[slot]))
        return found

    def search(self, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        query = np.asarray(vector, dtype=np.float64)
        length = float(np.linalg.norm(query))
        if query.shape != (self.dimensions,) or not np.isfinite(length) or length == 0.0:
            raise StoreError(f"a search needs a vector of {self.dimensions} finite numbers that are not all zero")
        query = query / length
        with self._transaction("BEGIN"):  # slots and rows of one moment, whatever a writer commits meanwhile
            slots = self._live_slots(field)
            if limit < 1 or not len(slots):
                return []
            mapped = self._mapped()
            if slots.max() >= len(mapped):
                raise self._shorter()
            live = self._similarities(mapped, query.astype(np.float32))[slots]
            if limit < len(live):
                slots = slots[live >= np.partition(live, -limit)[-limit] - _NOISE]
            similarity = dict(zip(slots.tolist(), self._cosines(mapped, slots, query), strict=True))
            rows = list(self._at_slots(slots.tolist()))
        hits = [Hit(uuid.UUID(bytes=key), found, text, count, similarity[slot]) for key, slot, found, text, count in rows]
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.uuid))[:limit]  # equal ones in a fixed order

    def search_hybrid(self, text: str, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:  # noqa: ARG002
        raise StoreError("The embedded index searches by vector alone; hybrid search comes with vector_store: weaviate.")

    def _similarities(self, mapped: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Nearly the cosine of every slot with a query of length 1, without holding more than a slice in memory."""
        scores = np.empty(len(mapped), np.float32)
        rows = max(1, _SLICE_BYTES // (self.dimensions * 4))
        of_any_length = self._fact("other_lengths") is not None
        for start in range(0, len(mapped), rows):
            piece = mapped[start : start + rows]
            scores[start : start + rows] = piece @ query
            if of_any_length:
                lengths = np.linalg.norm(piece, axis=1)
                scores[start : start + rows] /= np.where(lengths > 0, lengths, np.inf)
        return scores

    def _cosines(self, mapped: NDArray[np.float32], slots: NDArray[np.int64], query: NDArray[np.float64]) -> Iterator[float]:
        """The cosine of some slots, each by itself: the same vector gets the same number wherever it stands."""
        rows = max(1, _SLICE_BYTES // (self.dimensions * 8))
        for start in range(0, len(slots), rows):
            piece = mapped[slots[start : start + rows]].astype(np.float64)
            lengths = np.sqrt((piece * piece).sum(axis=1))
            yield from ((piece * query).sum(axis=1) / np.where(lengths > 0, lengths, np.inf)).tolist()

    def _at_slots(self, slots: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(slots), _KEYS_A_QUERY):
            some = slots[start : start + _KEYS_A_QUERY]
            marks = ", ".join("?" * len(some))
            yield from self._db.execute(f"SELECT uuid, slot, field, text, frequency FROM string WHERE slot IN ({marks})", some)

    def _live_slots(self, field: str | None) -> NDArray[np.int64]:
        """The slots that have a name, looked up again when anybody changed anything. Within a transaction: the version that
        SQLite tells is then that of what is read."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        which = (int(version), self._db.total_changes, field)
        if self._live is None or self._live[0] != which:
            self._live = (which, self._read_live_slots(field))
        return self._live[1]

    def _read_live_slots(self, field: str | None) -> NDArray[np.int64]:
        if field is not None:
            found = self._db.execute("SELECT slot FROM string WHERE field = ?", (field,)).fetchall()
        else:
            named, past = self._db.execute("SELECT count(*), coalesce(max(slot), -1) + 1 FROM string").fetchone()
            if named == past:
                return np.arange(past)
            found = self._db.execute("SELECT slot FROM string").fetchall()
        return np.array([slot for (slot,) in found], dtype=np.int64)

    def count(self, field: str | None = None) -> int:
        # A string whose vector was lost does not count, so that a run notices a vector file that got shorter.
        with self._transaction("BEGIN"):
            query = "SELECT count(*) FROM string WHERE slot < ?" + ("" if field is None else " AND field = ?")
            return int(self._db.execute(query, (self._rows(),) if field is None else (self._rows(), field)).fetchone()[0])

    def uuids(self) -> Iterator[uuid.UUID]:
        with self._transaction("BEGIN"):
            keys = self._db.execute("SELECT uuid FROM string WHERE slot < ?", (self._rows(),)).fetchall()
        return (uuid.UUID(bytes=key) for (key,) in keys)

    def delete(self, uuids: Sequence[uuid.UUID]) -> int:
        if not uuids:
            return 0
        with self._transaction("BEGIN IMMEDIATE"):
            return sum(self._db.execute("DELETE FROM string WHERE uuid = ?", (key.bytes,)).rowcount for key in set(uuids))

    def scrub(self) -> None:
        live = self._read_live_slots(None)
        width = self.dimensions * 4
        with disk_errors(self._vectors), self._vectors.open("r+b") as file:
            for slot in np.setdiff1d(np.arange(self._rows()), live).tolist():
                file.seek(slot * width)
                file.write(bytes(width))
            file.flush()
            fsync_handle(file.fileno())
        try:
            self._db.execute("VACUUM")
            is_busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.DatabaseError as problem:
            if "locked" not in str(problem):
                raise self._broken(problem) from problem
            is_busy = True
        if is_busy:
            raise StoreError(f"{self._path} is being searched by another command: run the same command again when that has ended.")

    def clear(self) -> None:
        with self._transaction("BEGIN IMMEDIATE"):
            self._db.execute("DELETE FROM string")
            self._db.execute("DELETE FROM fact")
        # A new file, not a cut one: a search that has the old one mapped would die of it.
        with disk_errors(self._vectors):
            fresh = temporary(self._vectors)
            make_file(fresh)
            fresh.replace(self._vectors)
            fsync_folder(self._vectors.parent)
