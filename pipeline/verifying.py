"""Comparing a store with what belongs in it: all UUIDs, some vectors, and whether a search finds what is stored.

The UUIDs of both sides meet in DuckDB, which spills to disk: no set of them is held in memory. Mending is left to
`indexing.py`: what lacks becomes pending again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline import spans as span_sets
from pipeline.belonging import belonging, refused
from pipeline.indexing import Index, keys_of, string_files, strings_of
from pipeline.log import event, logger
from pipeline.spans import Spans
from pipeline.stores import StoredString
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb

_KEYS = 65_536  # UUIDs taken over at a time
_BLOCKS = 50  # a sample is so many runs of neighbours: their vectors lie together on disk
_SEARCHES = 100
_FOUND_IN = 10  # a stored string should be among so many nearest to its own vector
_FOUND_OF = 0.9  # quantized vectors and a graph miss some: recall is judged, never a single miss
_LOOK_SECONDS = 5.0
_LOOKS_WITHOUT_PROGRESS = 24
_log = logger(__name__)


@dataclass(slots=True)
class Comparison:
    """How a store differs from what belongs in it."""

    expected: int = 0
    there: int = 0
    unexpected: int = 0
    missing: dict[str, Spans] = field(default_factory=dict)
    changed: dict[str, Spans] = field(default_factory=dict)
    compared: int = 0
    refused: int = 0
    searched: int = 0
    found: int = 0
    unsearchable: int = 0

    @property
    def is_well(self) -> bool:
        return not (self.missing or self.changed or self.unexpected)

    @property
    def is_searchable(self) -> bool:
        """What was searched for was found, as far as a search could be judged."""
        return self.found >= self.searched * _FOUND_OF

    @property
    def is_sound(self) -> bool:
        """Whoever reads it gets all that belongs in it."""
        return self.is_well and self.is_searchable and not self.unsearchable


def mend(index: Index, vectors: int | None, write: Callable[[], object]) -> tuple[Comparison, Comparison]:
    """Compare; where it is not well, let what is pending be written and compare again; judge a search. As it was, and as it is."""
    was = now = compare(index, vectors)
    if not was.is_well:
        forget_missing(index, was)
        write()
        now = compare(index, vectors)
    judge_search(index, now)
    return was, now


def notice_loss(index: Index) -> bool:
    """A cheap look at each run: a store that holds fewer strings than it confirmed is compared and mended as a whole."""
    confirmed, there = index.confirmed(), index.store.count()
    if there >= confirmed:
        return False
    event(_log, "index.lost", confirmed=confirmed, there=there)
    forget_missing(index, compare(index, 0))
    return True


def compare(index: Index, vectors: int | None) -> Comparison:
    """Compare all UUIDs and so many vectors (None: every one), nothing is changed."""
    report = Comparison()
    index.duck.execute("CREATE OR REPLACE TABLE there (uuid UUID)")
    index.duck.execute("CREATE OR REPLACE TABLE expected (field VARCHAR, row BIGINT, uuid UUID)")
    report.there = _take_over(index.duck, index.store.uuids())
    for name in index.fields():
        unwilling = refused(index.ledger, index.scope, name)
        spans = span_sets.subtract(belonging(index.ledger, index.generation, name), unwilling)
        report.expected += span_sets.count(spans)
        report.refused += span_sets.count(unwilling)
        _expect(index, name, spans)
        lost = "SELECT row FROM expected ANTI JOIN there USING (uuid) WHERE field = ? ORDER BY row"
        if missing := span_sets.of_rows(_first_column(index.duck, lost, [name])):
            report.missing[name] = missing
        _compare_strings(index, name, span_sets.subtract(spans, missing), vectors, report)
    report.unexpected = next(_first_column(index.duck, "SELECT count(*) FROM there ANTI JOIN expected USING (uuid)", []))
    return report


def judge_search(index: Index, report: Comparison) -> None:
    """Whether a search finds what is stored, once the store has caught up with its writes; `unsearchable` when it has not."""
    if index.store.is_exact:
        return
    report.unsearchable = _wait_for_queue(index)
    if report.unsearchable:
        return
    for name in index.fields():
        sample = _blocks(index.ledger.spans("indexed", index.scope, name), _SEARCHES)
        for string in islice((string for _, strings in strings_of(index, name, sample) for string in strings), _SEARCHES):
            hits = index.store.search(string.vector, _FOUND_IN)
            # Equal vectors push each other out of the first places: as near as oneself is found too.
            near = bool(hits) and hits[-1].similarity > 1 - 1e-6
            report.searched += 1
            report.found += near or string.uuid in {hit.uuid for hit in hits}


def forget_missing(index: Index, report: Comparison) -> None:
    """Strings that the store lost or holds otherwise are pending again; strangers are removed."""
    strangers = _first_column(index.duck, "SELECT uuid::VARCHAR FROM there ANTI JOIN expected USING (uuid)", [])
    while some := [uuid.UUID(key) for key in islice(strangers, _KEYS)]:
        index.store.delete(some)
    for name in index.fields():
        lost = span_sets.union(report.missing.get(name, []), report.changed.get(name, []))
        for window in span_sets.windows(lost, _KEYS):  # also what seems to be missing: half of it may be there
            index.store.delete([key for _, key in keys_of(index, name, window)])
        indexed = index.ledger.spans("indexed", index.scope, name)
        index.ledger.set_spans("indexed", index.scope, name, span_sets.subtract(indexed, lost))


def _take_over(duck: duckdb.DuckDBPyConnection, keys: Iterator[uuid.UUID]) -> int:
    """The store's UUIDs into `there`; how many they are."""
    import pyarrow as pa

    total = 0
    while some := [str(key) for key in islice(keys, _KEYS)]:
        batch = pa.table({"uuid": some})
        duck.register("some_keys", batch)
        duck.execute("INSERT INTO there SELECT uuid::UUID FROM some_keys")
        duck.unregister("some_keys")
        total += len(some)
    return total


def _expect(index: Index, name: str, spans: Spans) -> None:
    """The UUIDs that belong, into `expected`."""
    import pyarrow as pa

    files = string_files(index.place, index.ledger, name)
    for batch in read_strings(index.duck, files, spans, "row, uuid::VARCHAR AS uuid"):
        index.duck.register("some_keys", pa.Table.from_batches([batch]))
        index.duck.execute("INSERT INTO expected SELECT ?, row, uuid::UUID FROM some_keys", [name])
        index.duck.unregister("some_keys")


def _first_column(duck: duckdb.DuckDBPyConnection, query: str, values: list[str]) -> Iterator[Any]:
    """The values of a query's only column, a bounded number of them in memory."""
    cursor = duck.cursor()
    found = cursor.execute(query, values)
    while rows := found.fetchmany(_KEYS):
        yield from (row[0] for row in rows)


def _compare_strings(index: Index, name: str, spans: Spans, most: int | None, report: Comparison) -> None:
    """Texts, labels and vectors of some strings, byte by byte."""
    changed: list[int] = []
    sample = spans if most is None else _blocks(spans, most)
    for rows, strings in strings_of(index, name, sample):
        found = index.store.get([string.uuid for string in strings])
        report.compared += len(rows)
        changed += [row for row, string in zip(rows, strings, strict=True) if not _same(found.get(string.uuid), string)]
    if changed:
        report.changed[name] = span_sets.of_rows(sorted(changed))


def _same(found: StoredString | None, wanted: StoredString) -> bool:
    if found is None or found.vector.tobytes() != wanted.vector.tobytes():
        return False
    return all(getattr(found, name) == getattr(wanted, name) for name in ("uuid", "field", "text", "crc32", "frequency", "model"))


def _blocks(spans: Spans, most: int) -> Spans:
    """At most so many of the rows: all, or runs of neighbours spread evenly."""
    total = span_sets.count(spans)
    if total <= most:
        return spans
    if most < 1:
        return []
    length = max(1, most // _BLOCKS)
    pieces = most // length
    chosen = [(number * total // pieces, number * total // pieces + length) for number in range(pieces)]  # the how-manieth rows
    found: Spans = []
    before = 0
    for first, past in spans:
        here = span_sets.intersect([(before, before + past - first)], chosen)
        found += [(first + start - before, first + end - before) for start, end in here]
        before += past - first
    return span_sets.union(found)


def _wait_for_queue(index: Index) -> int:
    """Until the store has indexed what it stored; what is left when it makes no progress for two minutes."""
    lowest, idle = index.store.unsearchable(), 0
    while lowest and idle < _LOOKS_WITHOUT_PROGRESS:
        index.clock.sleep(_LOOK_SECONDS)
        left = index.store.unsearchable()
        lowest, idle = (left, 0) if left < lowest else (lowest, idle + 1)
    return lowest
