"""Any format as Arrow batches: a row number and the wanted columns as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.reading import delimited, jsonl, quick
from pipeline.reading.rows import BATCH_ROWS, Cells, Reader
from pipeline.reading.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa


def read_rows(source: Source, reader: Reader) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in order: columns `row`, `c0`, `c1`, … in the order of `reader.columns`."""
    if source.kind == "parquet":
        from pipeline.reading import parquet

        return parquet.read(source, reader)
    if source.kind == "jsonl":
        return _batches(jsonl.read(source, reader), len(reader.columns))
    return _delimited(source, reader)


def _delimited(source: Source, reader: Reader) -> Iterator[pa.RecordBatch]:
    """Quickly as far as nobody could doubt what the rows are; strictly from there on."""
    opened = delimited.open_(source, reader)
    if opened.rows is not None:
        yield from quick.read(source.path, quick.Layout(opened.delimiter, opened.width, opened.wanted), opened.rows)
    yield from _batches(delimited.read(source, reader, opened, opened.rows), len(reader.columns))


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
