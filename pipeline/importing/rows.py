"""Reading a source that is a table or a collection: its rows as text, field and vector, some thousand at a time.

A vector is a list of numbers in Parquet, and in a cell a JSON list or base64. JSON Lines are read by `lines.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.importing.lines import Read, Rejected, Sink, Vectors, keep_row
from pipeline.importing.sources import Columns, Source, missing_column
from pipeline.reading import Reader, read_rows
from pipeline.reading import Rejected as RejectedRow
from pipeline.reading import Source as Table

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 4096

Batch = tuple[Sequence[int], list[Any], list[Any], list[Any]]  # numbers of rows, texts, fields, vectors


def read_table(config: Config, source: Source, columns: Columns, vectors: Vectors) -> Iterator[Read]:
    """The rows, a piece for each batch."""
    bad: list[RejectedRow] = []
    batches = _batches(config, source, columns, bad.append)
    for number, batch in enumerate(batches):
        read = Read()
        sink = Sink(vectors, number, read)
        try:
            for read.lines, text, named, content in zip(*batch, strict=True):
                keep_row(read, sink, text, named, content)
        finally:
            sink.close()
        read.rejected += [Rejected(one.row, one.id, one.reason) for one in bad]
        bad.clear()
        yield read
    if bad:
        yield Read(rejected=[Rejected(one.row, one.id, one.reason) for one in bad])


def _batches(config: Config, source: Source, columns: Columns, reject: Callable[[RejectedRow], None]) -> Iterator[Batch]:
    if source.kind == "parquet":
        return _parquet(source.path, columns)
    if source.kind == "weaviate":
        from pipeline.importing.objects import read_objects

        return read_objects(config, source.collection, columns)
    return _delimited(config, source, columns, reject)


def _delimited(config: Config, source: Source, columns: Columns, reject: Callable[[RejectedRow], None]) -> Iterator[Batch]:
    names = columns.wanted()
    named_by = dict.fromkeys(names, "--columns")
    reader = Reader(names, named_by, config.input_encoding, config.input_delimiter if source.kind == "csv" else None, reject)
    for batch in read_rows(Table(source.path, str(source.path), source.kind), reader):
        rows = batch.column("row").to_pylist()
        cells = [batch.column(f"c{place}").to_pylist() for place in range(len(names))]
        for start in range(0, len(rows), _BATCH_ROWS):
            texts, contents, *fields = (column[start : start + _BATCH_ROWS] for column in cells)
            yield rows[start : start + _BATCH_ROWS], texts, fields[0] if fields else [None] * len(texts), contents


def _parquet(path: Path, columns: Columns) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 1
    try:
        with pq.ParquetFile(path) as file:
            for column in columns.wanted():
                if column not in file.schema_arrow.names:
                    raise missing_column(path, column, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns.wanted())):
                texts = batch.column(columns.text).to_pylist()
                fields = [None] * len(texts) if columns.field is None else batch.column(columns.field).to_pylist()
                yield range(first, first + len(texts)), texts, fields, _contents(batch.column(columns.vector))
                first += len(texts)
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{path}: this Parquet file can't be read: {str(problem).splitlines()[0]}") from problem


@np.errstate(over="ignore")
def _contents(column: pa.Array) -> list[Any]:
    """Each row's vector, as an array of numbers where the column holds lists."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        column = column.cast(pa.list_(kind.value_type))
    elif not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return column.to_pylist()  # type: ignore[no-any-return]
    numbers = column.values
    if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
        return column.to_pylist()  # type: ignore[no-any-return]
    flat = numbers.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)  # a missing number is NaN, and refused as that
    known = column.is_valid().to_pylist()
    edges = column.offsets.to_pylist()
    return [flat[first:past] if is_known else None for (first, past), is_known in zip(pairwise(edges), known, strict=True)]


def learn_table_dimensions(config: Config, source: Source, columns: Columns) -> int:
    """The commonest length of its first vectors."""
    for read in read_table(config, source, columns, Vectors(0, None)):
        del read.lengths[0]
        if read.lengths:
            return read.lengths.most_common(1)[0][0]
    return 0
