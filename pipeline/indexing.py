"""Indexing: embeddings that are not yet in the store go there, and count as indexed once it has confirmed each UUID.

Only tables are read, so everything here can be repeated at no cost: a run goes on, `--verify` mends what lacks,
`--reindex` builds the whole index anew. Which embeddings belong: all of the generation, strings that left the
catalogue included.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import spans as span_sets
from pipeline.checkpoint import Checkpoint
from pipeline.errors import StoreError
from pipeline.identity import crc32_of, uuid_of
from pipeline.ledger import Generation, Ledger
from pipeline.log import event, logger
from pipeline.progress import Bar
from pipeline.spans import Spans
from pipeline.stores import STORES, StoredString, VectorStore, VerifyReport, verify
from pipeline.tables.duck import connect, parquet
from pipeline.tables.embeddings import read_embeddings
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

CHUNK = 1000
_VERIFY_CHUNK = 4096
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Index:
    """A store opened for a generation, with the tables that feed it."""

    place: Checkpoint
    ledger: Ledger
    store: VectorStore
    store_name: str
    generation: Generation
    duck: duckdb.DuckDBPyConnection

    @property
    def scope(self) -> str:
        """What "indexed" is kept by."""
        return scope_of(self.store_name, self.generation)

    def fields(self) -> list[str]:
        return list(self.ledger.fields())

    def pending(self, field: str) -> Spans:
        """Embedded and not yet confirmed by the store."""
        return span_sets.subtract(
            self.ledger.spans("embedded", self.generation.id, field), self.ledger.spans("indexed", self.scope, field)
        )

    def close(self) -> None:
        self.store.close()
        self.duck.close()


def scope_of(store_name: str, generation: Generation) -> str:
    """What "indexed" is kept by: a store and a generation."""
    return f"{store_name}:{generation.id}"


def open_index(
    place: Checkpoint, ledger: Ledger, store_name: str, generation: Generation, memory_gb: float, *, scratch: Path | None = None
) -> Index:
    """Open the store of a generation whose vector length is known. A reader brings a scratch folder of its own."""
    store = STORES[store_name](place.store, generation.id, generation.dimensions)
    return Index(place, ledger, store, store_name, generation, connect(scratch or place.scratch, memory_gb))


def notice_loss(index: Index) -> bool:
    """A cheap look at each run: a store that holds fewer strings than it confirmed is compared and mended as a whole."""
    confirmed = sum(span_sets.count(index.ledger.spans("indexed", index.scope, field)) for field in index.fields())
    there = index.store.count()
    if there >= confirmed:
        return False
    event(_log, "index.lost", confirmed=confirmed, there=there)
    forget_missing(index, compare(index))
    return True


def index_pending(index: Index, bar: Bar) -> int:
    """Write what is pending, and remember what the store confirmed."""
    written = 0
    for field in index.fields():
        for rows, strings in _strings(index, field, index.pending(field), CHUNK):
            confirmed = index.store.upsert(strings)
            lacking = {string.uuid for string in strings} - confirmed
            kept = [row for row, string in zip(rows, strings, strict=True) if string.uuid in confirmed]
            index.ledger.add_spans("indexed", index.scope, field, span_sets.of_rows(kept))
            written += len(kept)
            bar.advance(len(kept))
            if lacking:
                raise StoreError(
                    f"The index {index.store_name} did not confirm {len(lacking)} of {len(strings)} strings of {field}. The "
                    "embeddings are safe; run the same command again."
                )
    return written


def compare(index: Index) -> VerifyReport:
    """All UUIDs, and all vectors, of what is embedded against the store."""
    return verify(index.store, _expected(index))


def forget_missing(index: Index, report: VerifyReport) -> int:
    """Strings that the store lost or holds with another vector are pending again; strangers are removed."""
    wanted = {*report.missing, *report.changed}
    index.store.delete([*report.unexpected, *report.changed])
    forgotten = 0
    with index.ledger.transaction():
        for field in index.fields():
            indexed = index.ledger.spans("indexed", index.scope, field)
            gone = span_sets.of_rows(row for row, key in _keys(index, field, indexed) if key in wanted)
            forgotten += span_sets.count(gone)
            index.ledger.set_spans("indexed", index.scope, field, span_sets.subtract(indexed, gone))
    return forgotten


def start_over(index: Index) -> None:
    """Empty the store of this generation; everything embedded is pending again."""
    index.ledger.drop_spans("indexed", index.scope)
    index.store.clear()


def _expected(index: Index) -> Iterator[Sequence[tuple[uuid.UUID, NDArray[np.float32]]]]:
    for field in index.fields():
        embedded = index.ledger.spans("embedded", index.generation.id, field)
        for _, strings in _strings(index, field, embedded, _VERIFY_CHUNK):
            yield [(string.uuid, string.vector) for string in strings]


def _keys(index: Index, field: str, spans: Spans) -> Iterator[tuple[int, uuid.UUID]]:
    for batch in read_strings(index.duck, string_files(index.place, index.ledger, field), spans, "row, uuid::VARCHAR AS uuid"):
        for row, key in zip(batch.column("row").to_pylist(), batch.column("uuid").to_pylist(), strict=True):
            yield row, uuid.UUID(key)


def _strings(index: Index, field: str, spans: Spans, most: int) -> Iterator[tuple[list[int], list[StoredString]]]:
    """The embedded strings of the given rows with everything the index keeps of them."""
    files = string_files(index.place, index.ledger, field)
    frequencies = snapshot_files(index.place, index.ledger, "frequencies", field)
    joined = f"LEFT JOIN {parquet(frequencies)} known USING (row)" if frequencies else ""
    frequency = "coalesce(known.frequency, 0)" if frequencies else "0"
    for rows, vectors in read_embeddings(embedding_files(index.place, index.ledger, index.generation, field, spans), spans):
        for start in range(0, len(rows), most):
            some = rows[start : start + most].tolist()
            texts: list[str] = []
            counts: list[int] = []
            for batch in read_strings(index.duck, files, span_sets.of_rows(some), f"row, text, {frequency} AS frequency", joined):
                texts += batch.column("text").to_pylist()
                counts += batch.column("frequency").to_pylist()
            strings = [
                StoredString(uuid_of(field, text), field, text, crc32_of(text), count, index.generation.model, vector)
                for text, count, vector in zip(texts, counts, vectors[start : start + most], strict=True)
            ]
            yield some, strings


def string_files(place: Checkpoint, ledger: Ledger, field: str) -> list[Path]:
    """The tables of a field's strings."""
    return [place.tables / file.name for file in ledger.files("strings", field=field)]


def snapshot_files(place: Checkpoint, ledger: Ledger, kind: str, field: str) -> list[Path]:
    """Records, occurrences or frequencies of the catalogue as last read whole; of the trial, when that is all there is."""
    for snapshot in ("full", "trial"):
        if found := ledger.files(kind, snapshot, field):
            return [place.tables / file.name for file in found]
    return []


def embedding_files(place: Checkpoint, ledger: Ledger, generation: Generation, field: str, spans: Spans) -> list[Path]:
    """The files that can hold one of the rows."""
    files = ledger.files("embeddings", generation.id, field)
    return [
        place.tables / file.name for file in files if any(first < file.past_row and past > file.first_row for first, past in spans)
    ]
