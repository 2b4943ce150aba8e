"""Parquet: texts as they are, numbers and dates as text; a row's number counts from 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrays import to_arrow
from pipeline.errors import InputError
from pipeline.reading.rows import BATCH_ROWS, Reader
from pipeline.reading.sources import Source


def read(source: Source, reader: Reader) -> Iterator[pa.RecordBatch]:
    """The rows in the order of the file, in the same form as the other formats give."""
    try:
        with pq.ParquetFile(source.path) as file:
            known = file.schema_arrow.names
            for column in reader.columns:
                if column not in known:
                    raise reader.missing(source, column, known)
                if known.count(column) > 1:
                    raise reader.repeated(source, column, known.count(column))
                kind = file.schema_arrow.field(column).type
                if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                    raise InputError(f"{source.name}: the column {column!r} is {kind}; only texts, numbers and dates can be read.")
            number = 1
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(reader.columns)):
                texts = [batch.column(column).cast(pa.large_string()) for column in reader.columns]
                for text in texts:
                    text.validate(full=True)  # others may have written bytes that are no UTF-8
                names = ["row", *(f"c{index}" for index in range(len(texts)))]
                yield pa.record_batch([to_arrow(np.arange(number, number + batch.num_rows)), *texts], names)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{source.name}: this Parquet file can't be read: {str(problem).splitlines()[0]}") from problem
