"""Rows of any format as Arrow batches: a row number and the wanted columns as text.

A row that can't be read is given to `reject` with its reason and the reading goes on; what is structurally broken is
an InputError. What makes a readable row a bad one (no id, an id that stands twice, NUL, a cell too large) is decided
later, in one place for all formats: `tables/snapshot.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.reading.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 16_384
Cells = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out: where it begins, and why."""

    file: str
    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reader:
    """What to read and how; `named_by` says which config key asked for a column, for the messages."""

    columns: tuple[str, ...]
    named_by: dict[str, str]
    encoding: str
    delimiter: str | None
    reject: Callable[[Rejected], None]

    def missing(self, source: Source, column: str, known: Sequence[str]) -> InputError:
        """The sentence for a column that is not there."""
        near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return InputError(
            f"{source.name}: there is no column {column!r}, which {self.named_by.get(column, 'fields')} names.{hint} "
            f"It has: {', '.join(map(repr, known[:20]))}{' …' if len(known) > 20 else ''}."
        )


def read_rows(source: Source, reader: Reader) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in order: columns `row`, `c0`, `c1`, … in the order of `reader.columns`."""
    from pipeline.reading import delimited, jsonl, parquet

    if source.kind == "parquet":
        return parquet.read(source, reader)
    read = jsonl.read if source.kind == "jsonl" else delimited.read
    return _batches(read(source, reader), len(reader.columns))


def _batches(rows: Iterator[tuple[int, Cells]], width: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    names = ["row", *(f"c{index}" for index in range(width))]
    numbers: list[int] = []
    cells: list[Cells] = []

    def batch() -> pa.RecordBatch:
        columns = zip(*cells, strict=True)
        return pa.record_batch([pa.array(numbers, pa.int64()), *(pa.array(column, pa.large_string()) for column in columns)], names)

    for number, row in rows:
        numbers.append(number)
        cells.append(row)
        if len(numbers) == BATCH_ROWS:
            yield batch()
            numbers, cells = [], []
    if numbers:
        yield batch()
