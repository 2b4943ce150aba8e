"""The table of embeddings: row and vector, a file for each collected piece of a generation and field.

A file's rows ascend and no row stands in two files of a generation: collecting leaves out what is there already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.spans import Spans
from pipeline.tables.strings import in_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_ROWS = 4096
_GROUP_BYTES = 12 << 20  # a reader holds a whole row group; this much is read as fast as more


def vector_array(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """A matrix as an Arrow column of vectors, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def matrix_of(column: pa.Array) -> NDArray[np.float32]:
    """An Arrow column of vectors as a matrix."""
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def write_embeddings(target: Path, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
    """Write one file; the rows must ascend."""
    table = pa.table({"row": pa.array(rows), "vector": vector_array(vectors)})
    # Vectors are noise to a compressor; a dictionary or zstd costs time and saves nothing.
    pq.write_table(
        table,
        target,
        compression="none",
        use_dictionary=False,
        row_group_size=_group_rows(vectors.shape[1]),
        write_statistics=["row"],
    )


def _group_rows(dimensions: int) -> int:
    return max(1, min(8192, _GROUP_BYTES // (4 * dimensions)))


def write_embedding_pieces(target: Path, dimensions: int, pieces: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
    """The same, piece by piece, for more vectors than memory should hold; rows ascend over all pieces."""
    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), dimensions))])
    with pq.ParquetWriter(target, schema, compression="none", use_dictionary=False, write_statistics=["row"]) as writer:
        for rows, vectors in pieces:
            writer.write_batch(pa.record_batch([pa.array(rows), vector_array(vectors)], schema=schema))


def read_embeddings(files: Iterable[Path], spans: Spans) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The embeddings of the given rows, file by file in batches: rows ascend within a file."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in _groups_with(file, spans):
                for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
                    rows = batch.column("row").to_numpy()
                    wanted = in_spans(rows, spans)
                    if wanted.any():
                        vectors = matrix_of(batch.column("vector"))
                        yield (rows, vectors) if wanted.all() else (rows[wanted], vectors[wanted])


def _groups_with(file: pq.ParquetFile, spans: Spans) -> Iterator[int]:
    """The row groups that can hold one of the rows, by their own statistics."""
    for group in range(file.metadata.num_row_groups):
        bounds = file.metadata.row_group(group).column(0).statistics
        if bounds is None or any(first <= bounds.max and past > bounds.min for first, past in spans):
            yield group
