"""Indexing: the store is made to hold what belongs in it, each string confirmed by its UUID before it counts.

Only tables are read, so everything here can be repeated at no cost. A chunk that was under way when a run ended is known
(`writing`): it may be half stored, so it is deleted before it is written again. What belongs is `belonging.py`; a store
that lost something behind our back is `verifying.py`.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.belonging import STALE, belonging, pending_in_index, scope_of
from pipeline.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import StoreError
from pipeline.identity import crc32_of, uuid_of
from pipeline.ledger import Failure, Generation, Ledger
from pipeline.log import event, logger
from pipeline.progress import Bar
from pipeline.retry import Clock, RetryPolicy
from pipeline.spans import Spans
from pipeline.stores import STORES, StoredString, VectorStore, Wanted, Written
from pipeline.tables.duck import connect, parquet
from pipeline.tables.embeddings import read_embeddings
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb

_DELETE_CHUNK = 4096
_THERE = ("indexed", STALE, "writing")  # by its ledger the store has these, or may have them
_REFUSED_IN_A_ROW = 1000
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
    clock: Clock
    policy: RetryPolicy

    @property
    def scope(self) -> str:
        """What "indexed" is kept by."""
        return scope_of(self.store_name, self.generation)

    def fields(self) -> list[str]:
        return list(self.ledger.fields())

    def pending(self, field: str) -> Spans:
        """Belonging and not yet confirmed by the store."""
        return pending_in_index(self.ledger, self.scope, self.generation, field)

    def surplus(self, field: str) -> Spans:
        """In the store, or perhaps there, and no longer belonging."""
        there = span_sets.union(*(self.ledger.spans(state, self.scope, field) for state in _THERE))
        return span_sets.subtract(there, belonging(self.ledger, self.generation, field))

    def todo(self) -> int:
        """How many strings are to be written or removed."""
        return sum(span_sets.count(self.pending(field)) + span_sets.count(self.surplus(field)) for field in self.fields())

    def confirmed(self) -> int:
        """How many strings the store has confirmed, and was not told to remove."""
        return sum(span_sets.count(self.ledger.spans("indexed", self.scope, field)) for field in self.fields())

    def close(self) -> None:
        self.store.close()
        self.duck.close()


@dataclass(slots=True)
class IndexReport:
    """What one turn of indexing did."""

    written: int = 0
    removed: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Strings that are written by one upsert, and their rows."""

    field: str
    rows: list[int]
    strings: list[StoredString]

    def without(self, settled: set[uuid.UUID]) -> _Chunk:
        left = [place for place, string in enumerate(self.strings) if string.uuid not in settled]
        return _Chunk(self.field, [self.rows[place] for place in left], [self.strings[place] for place in left])


def open_index(
    place: Checkpoint, ledger: Ledger, config: Config, generation: Generation, clock: Clock, policy: RetryPolicy,
    *, scratch: Path | None = None,
) -> Index:  # fmt: skip
    """Open the store of a generation whose vector length is known. A reader brings a scratch folder of its own."""
    store = open_store(place, ledger, config, generation)
    duck = connect(scratch or place.scratch, config.memory_limit_gb)
    return Index(place, ledger, store, config.vector_store, generation, duck, clock, policy)


def open_store(place: Checkpoint, ledger: Ledger, config: Config, generation: Generation) -> VectorStore:
    """The store alone."""
    return STORES[config.vector_store](Wanted(config, place.store, ledger.meta("catalogue_id") or "", generation))


def need_an_index(context: Context, generation: Generation) -> None:
    """Before anything is paid for: StoreError when the index could not be written."""
    config, ledger = context.config, context.ledger
    if config.vector_store == "none" or config.index_later:
        return
    store = open_store(context.place, ledger, config, ledger.generation(generation.id) or generation)
    try:
        store.look()
    except StoreError as problem:
        raise StoreError(
            f"{problem}\nNothing was sent to be embedded. To embed now and index later: index_later: true"
        ) from problem
    finally:
        store.close()


def index_pending(index: Index, bar: Bar, report: IndexReport | None = None) -> IndexReport:
    """Make the store hold what belongs, and remember what it confirmed. A report that is given tells of a broken-off turn too."""
    report = report or IndexReport()
    if not index.todo():
        return report
    index.store.prepare()
    for field in index.fields():
        report.removed += _remove(index, field, index.surplus(field), bar)
        _delete_doubtful(index, field)
    _write(index, bar, report)
    for field in index.fields():
        for state in ("writing", STALE):
            index.ledger.set_spans(state, index.scope, field, [])
    return report


def _remove(index: Index, field: str, spans: Spans, bar: Bar) -> int:
    """Take rows out of the store, and then out of what is indexed."""
    for window in span_sets.windows(spans, _DELETE_CHUNK):
        index.store.delete([key for _, key in keys_of(index, field, window)])
        for state in _THERE:
            index.ledger.set_spans(
                state, index.scope, field, span_sets.subtract(index.ledger.spans(state, index.scope, field), window)
            )
        bar.advance(span_sets.count(window))
    return span_sets.count(spans)


def _delete_doubtful(index: Index, field: str) -> None:
    """What an earlier run was writing when it ended may be half stored, and written over it would stay so."""
    doubtful = span_sets.intersect(index.pending(field), index.ledger.spans("writing", index.scope, field))
    for window in span_sets.windows(doubtful, _DELETE_CHUNK):
        index.store.delete([key for _, key in keys_of(index, field, window)])
    index.ledger.set_spans("writing", index.scope, field, [])


def _write(index: Index, bar: Bar, report: IndexReport) -> None:
    """Several upserts at once, in whatever order they end; the ledger is written by this thread alone."""
    under_way: deque[tuple[_Chunk, Future[Written]]] = deque()
    pool = ThreadPoolExecutor(index.store.workers, thread_name_prefix="upsert")
    try:
        for chunk in _chunks(index):
            under_way.append((chunk, pool.submit(index.store.upsert, chunk.strings)))
            if len(under_way) > index.store.workers:  # one waits, so that no worker does
                _settle(index, *under_way.popleft(), bar, report)
        while under_way:
            _settle(index, *under_way.popleft(), bar, report)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for chunk, future in under_way:  # after an error or Ctrl-C: what was confirmed meanwhile counts
            if not future.cancelled() and future.exception() is None:
                _book(index, chunk, future.result(), bar, report)


def _chunks(index: Index) -> Iterator[_Chunk]:
    """What is pending. It counts as being written from before the store first hears of it."""
    for field in index.fields():
        for rows, strings in strings_of(index, field, index.pending(field)):
            index.ledger.add_spans("writing", index.scope, field, span_sets.of_rows(rows))
            for start in range(0, len(rows), index.store.chunk):
                yield _Chunk(field, rows[start : start + index.store.chunk], strings[start : start + index.store.chunk])


def _settle(index: Index, chunk: _Chunk, future: Future[Written], bar: Bar, report: IndexReport) -> None:
    """Wait for an upsert; what it left open is deleted and written again, a bounded number of times."""
    written = future.result()
    left = _book(index, chunk, written, bar, report)
    waits = index.policy.waits()
    while left.rows:
        wait = next(waits, None)
        if wait is None:
            raise StoreError(
                f"The index {index.store_name} did not confirm {len(left.rows)} of {len(chunk.rows)} strings of {chunk.field}"
                f"{f' ({written.trouble})' if written.trouble else ''}. The embeddings are safe; run the same command again."
            )
        event(_log, "index.again", field=chunk.field, strings=len(left.rows), reason=written.trouble, wait=round(wait, 1))
        index.clock.sleep(wait)
        try:
            index.store.delete([string.uuid for string in left.strings])
            written = index.store.upsert(left.strings)
        except StoreError as problem:
            written = Written(frozenset(), {}, str(problem))
        left = _book(index, left, written, bar, report)


def _book(index: Index, chunk: _Chunk, written: Written, bar: Bar, report: IndexReport) -> _Chunk:
    """Remember what was confirmed and what was refused; what is neither is given back."""
    if written.refused and not written.confirmed and not report.written and _is_all_refused(index, chunk, written, report):
        raise StoreError(
            f"The index {index.store_name} refused {report.refused + len(written.refused):,} strings and took none, so something "
            f"else is wrong: {next(iter(written.refused.values()))}"
        )
    pairs = list(zip(chunk.rows, chunk.strings, strict=True))
    confirmed = [row for row, string in pairs if string.uuid in written.confirmed]
    now = index.clock.now()
    failures = [
        Failure(index.scope, chunk.field, row, "index", "refused", written.refused[string.uuid], now)
        for row, string in pairs
        if string.uuid in written.refused
    ]
    with index.ledger.transaction():
        index.ledger.add_spans("indexed", index.scope, chunk.field, span_sets.of_rows(confirmed))
        index.ledger.add_failures(failures)
    report.written += len(confirmed)
    report.refused += len(failures)
    bar.advance(len(confirmed) + len(failures))
    return chunk.without({*written.confirmed, *written.refused})


def _is_all_refused(index: Index, chunk: _Chunk, written: Written, report: IndexReport) -> bool:
    """A whole first chunk of an empty index, or very many of one that has strings: then not each of them is to blame."""
    return report.refused > _REFUSED_IN_A_ROW or (len(written.refused) == len(chunk.rows) and not index.confirmed())


def start_over(index: Index) -> None:
    """Empty the store of this generation; everything that belongs is pending again."""
    index.store.clear()
    with index.ledger.transaction():
        for state in _THERE:
            index.ledger.drop_spans(state, index.scope)
        index.ledger.drop_failures(index.scope)


def keys_of(index: Index, field: str, spans: Spans) -> Iterator[tuple[int, uuid.UUID]]:
    """The UUIDs of rows."""
    for batch in read_strings(index.duck, string_files(index.place, index.ledger, field), spans, "row, uuid::VARCHAR AS uuid"):
        for row, key in zip(batch.column("row").to_pylist(), batch.column("uuid").to_pylist(), strict=True):
            yield row, uuid.UUID(key)


def strings_of(index: Index, field: str, spans: Spans) -> Iterator[tuple[list[int], list[StoredString]]]:
    """The embedded strings of the given rows, some thousand at a time, with everything the index keeps of them."""
    files = string_files(index.place, index.ledger, field)
    frequencies = snapshot_files(index.place, index.ledger, "frequencies", field)
    joined = f"LEFT JOIN {parquet(frequencies)} known USING (row)" if frequencies else ""
    columns = f"row, text, {'coalesce(known.frequency, 0)' if frequencies else '0'} AS frequency"
    for found, vectors in read_embeddings(embedding_files(index.place, index.ledger, index.generation, field, spans), spans):
        rows: list[int] = found.tolist()
        texts: list[str] = []
        counts: list[int] = []
        for batch in read_strings(index.duck, files, span_sets.of_rows(rows), columns, joined):
            texts += batch.column("text").to_pylist()
            counts += batch.column("frequency").to_pylist()
        yield (
            rows,
            [
                StoredString(uuid_of(field, text), field, text, crc32_of(text), count, index.generation.model, vector)
                for text, count, vector in zip(texts, counts, vectors, strict=True)
            ],
        )


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
