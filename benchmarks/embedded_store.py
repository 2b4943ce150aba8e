"""(d) The embedded store beside what it is made of: upsert beside bare SQLite and a file, search beside bare NumPy.

    python -m benchmarks.embedded_store [--strings 20000] [--dimensions 384] [--runs 3] [--queries 50] [--folder DIR]
                                                        the full size: --strings 200000, with 384 and with 1536 dimensions

Upsert: chunks of the store's own size, into an empty store. The bare way appends a chunk's vectors to a file, fsyncs
it, and inserts its rows with one `executemany` in one transaction, into the same table with the same journal and
`synchronous` setting; it looks for no string that is there already. Making the chunks is in no time.
Search: the ten nearest. The bare way multiplies a memory-mapped float32 file by the query and takes the best by
`argpartition`; it does not say what they are called. Both in this process, in turn for each query, after a first round
that counts for neither.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.racing import append
from benchmarks.watching import own_peak
from pipeline.stores import StoredString
from pipeline.stores.embedded import EmbeddedStore

UPSERT_BAR, SEARCH_BAR = 0.7, 0.8
_SEED = 20_260_101
_NEAREST = 10
_TABLE = """CREATE TABLE string (
    uuid BLOB PRIMARY KEY, slot INTEGER NOT NULL UNIQUE, field TEXT NOT NULL, text TEXT NOT NULL, crc32 TEXT NOT NULL,
    frequency INTEGER NOT NULL, model TEXT NOT NULL
) WITHOUT ROWID"""

Vectors = NDArray[np.float32]
Upsert = Callable[[list[StoredString], Vectors], None]


def chunks(strings: int, dimensions: int) -> Iterator[tuple[list[StoredString], Vectors]]:
    """Strings of some 60 letters with unit vectors."""
    for start in range(0, strings, EmbeddedStore.chunk):
        count = min(EmbeddedStore.chunk, strings - start)
        vectors = np.random.default_rng((_SEED, start)).standard_normal((count, dimensions), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield [_string(start + place, vector) for place, vector in enumerate(vectors)], vectors


def _string(number: int, vector: Vectors) -> StoredString:
    text = f"Person {number}, of somewhere or other, a composer, 1685-1750"
    return StoredString(uuid.uuid5(uuid.NAMESPACE_DNS, text), "person", text, f"{number:08x}", 1, "some-model", vector)


def fill(strings: int, dimensions: int, upsert: Upsert) -> float:
    """The seconds that the upserts take."""
    taken = 0.0
    for chunk, vectors in chunks(strings, dimensions):
        start = time.perf_counter()
        upsert(chunk, vectors)
        taken += time.perf_counter() - start
    return taken


def by_store(folder: Path, strings: int, dimensions: int) -> float:
    store = EmbeddedStore(folder, "made", dimensions)

    def upsert(chunk: list[StoredString], _: Vectors) -> None:
        if len(store.upsert(chunk).confirmed) != len(chunk):
            raise SystemExit("not every string was confirmed")

    try:
        return fill(strings, dimensions, upsert)
    finally:
        store.close()


def bare(folder: Path, strings: int, dimensions: int) -> float:
    db = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(_TABLE)
    handle = os.open(folder / "bare.f32", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    slot = 0

    def upsert(chunk: list[StoredString], vectors: Vectors) -> None:
        nonlocal slot
        os.write(handle, vectors.data)
        os.fsync(handle)
        rows = [
            (one.uuid.bytes, slot + place, one.field, one.text, one.crc32, one.frequency, one.model)
            for place, one in enumerate(chunk)
        ]
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO string VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.execute("COMMIT")
        slot += len(chunk)

    try:
        return fill(strings, dimensions, upsert)
    finally:
        db.close()
        os.close(handle)


def search(store: Path, other: Path, strings: int, dimensions: int, queries: int) -> tuple[list[float], list[float]]:
    """The seconds of each query, by the store and bare."""
    opened = EmbeddedStore(store, "made", dimensions)
    matrix = np.memmap(other / "bare.f32", "<f4", "r", shape=(strings, dimensions)).view(np.ndarray)
    asked = np.random.default_rng(_SEED + 1).standard_normal((queries + 2, dimensions), dtype=np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    ours: list[float] = []
    theirs: list[float] = []
    for query in asked:
        start = time.perf_counter()
        hits = opened.search(query, _NEAREST)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        scores = matrix @ query
        best = np.argpartition(scores, -_NEAREST)[-_NEAREST:]
        best = best[np.argsort(scores[best])[::-1]]
        theirs.append(time.perf_counter() - start)
        numbers = [int(hit.text.split(",")[0].split()[1]) for hit in hits]
        if not np.allclose([hit.similarity for hit in hits], scores[best], atol=1e-4) or len(set(numbers) - set(best.tolist())) > 1:
            raise SystemExit("the two found different strings")
    opened.close()
    return ours[2:], theirs[2:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--strings", type=int, default=20_000)
    options.add_argument("--dimensions", type=int, default=384)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--folder", type=Path, help="where to work, on the disk that is meant (default: a temporary folder)")
    typed = options.parse_args()
    strings, dimensions = typed.strings, typed.dimensions
    if typed.folder:
        typed.folder.mkdir(parents=True, exist_ok=True)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(typed.runs):
        with tempfile.TemporaryDirectory(dir=typed.folder) as made, tempfile.TemporaryDirectory(dir=typed.folder) as other:
            ours.append(strings / by_store(Path(made), strings, dimensions))
            theirs.append(strings / bare(Path(other), strings, dimensions))
            if number == typed.runs - 1:
                found, plain = search(Path(made), Path(other), strings, dimensions, typed.queries)
    rate, floor = statistics.median(ours), statistics.median(theirs)
    held = f"{own_peak() / 2**20:.0f} MB, what is mapped of the files included"
    one, other_one = statistics.median(found), statistics.median(plain)
    append(
        f"(d) The embedded store, {strings:,} strings of {dimensions} dimensions",
        [
            f"{'':<26}{'product':>16}{'bare':>16}{'product / bare':>18}",
            f"{'upsert, strings a second':<26}{rate:>16,.0f}{floor:>16,.0f}{rate / floor:>18.2f}   bar: {UPSERT_BAR}",
            f"{'search, queries a second':<26}{1 / one:>16,.1f}{1 / other_one:>16,.1f}{other_one / one:>18.2f}   bar: {SEARCH_BAR}",
            f"medians of {typed.runs} runs and of {typed.queries} queries in turn; peak memory of both together {held}",
        ],
    )


if __name__ == "__main__":
    main()
