"""The table of embeddings: row and vector, a file for each collected piece of a generation and field.

A file's rows ascend and no row stands in two files of a generation: collecting leaves out what is there already. Each
file says itself what it is (`Origin`), and its pages carry checksums, so that it can be taken in again when the ledger is
lost. What that means for the ledger is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import spans as span_sets
from pipeline.arrays import to_arrow, to_numpy
from pipeline.ledger import Generation
from pipeline.spans import Spans
from pipeline.tables.strings import in_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_ROWS = 4096
_GROUP_BYTES = 12 << 20  # a reader holds a whole row group; this much is read as fast as more


_ORIGIN = b"namesake.origin"


class Origin(msgspec.Struct, frozen=True):
    """Whose vectors a file holds, and what they were paid with: `job`, or real time (None), whose `tokens` and USD for 1M of
    them stand here; a job's stand at the service."""

    service: str
    model: str
    asked: int | None
    field: str
    job: int | None = None
    tokens: int = 0
    price: float = 0.0

    @classmethod
    def of(cls, generation: Generation, field: str, job: int | None = None, tokens: int = 0, price: float = 0.0) -> Origin:
        return cls(generation.service, generation.model, generation.asked, field, job, tokens, price)

    def generation(self, dimensions: int) -> Generation:
        return Generation(self.service, self.model, self.asked, dimensions)


@dataclass(frozen=True, slots=True)
class Looked:
    """A file that was read whole: its rows, its vectors' length, and its origin if it says one."""

    rows: Spans
    dimensions: int
    origin: Origin | None


def vector_array(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """A matrix as an Arrow column of vectors, without a copy."""
    return pa.FixedSizeListArray.from_arrays(to_arrow(vectors.reshape(-1)), vectors.shape[1])


def matrix_of(column: pa.Array) -> NDArray[np.float32]:
    """An Arrow column of vectors as a matrix."""
    flat: NDArray[np.float32] = to_numpy(column.flatten())
    return flat.reshape(len(column), -1)


def write_embeddings(target: Path, rows: NDArray[np.int64], vectors: NDArray[np.float32], origin: Origin | None = None) -> None:
    """Write one file; the rows must ascend."""
    table = pa.Table.from_arrays([to_arrow(rows), vector_array(vectors)], ["row", "vector"], metadata=_said(origin))
    # Vectors are noise to a compressor; a dictionary or zstd costs time and saves nothing.
    pq.write_table(
        table, target, compression="none", use_dictionary=False, row_group_size=_group_rows(vectors.shape[1]),
        write_statistics=["row"], write_page_checksum=True,
    )  # fmt: skip


def _group_rows(dimensions: int) -> int:
    return max(1, min(8192, _GROUP_BYTES // (4 * dimensions)))


def write_embedding_pieces(
    target: Path, dimensions: int, pieces: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], origin: Origin | None = None
) -> None:
    """The same, piece by piece, for more vectors than memory should hold; rows ascend over all pieces."""
    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), dimensions))], metadata=_said(origin))
    with pq.ParquetWriter(
        target, schema, compression="none", use_dictionary=False, write_statistics=["row"], write_page_checksum=True
    ) as writer:
        for rows, vectors in pieces:
            writer.write_batch(pa.record_batch([to_arrow(rows), vector_array(vectors)], schema=schema))


def _said(origin: Origin | None) -> dict[bytes, bytes] | None:
    return None if origin is None else {_ORIGIN: msgspec.json.encode(origin)}


def look_through(path: Path) -> Looked:
    """Read a file whole; ValueError says why it is no sound table of embeddings."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            said = (file.schema_arrow.metadata or {}).get(_ORIGIN)
            origin = None if said is None else msgspec.json.decode(said, type=Origin)
            rows: list[Spans] = []
            dimensions, last = 0, -1
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                numbers, vectors = to_numpy(batch.column("row")), matrix_of(batch.column("vector"))
                if numbers.dtype != np.int64 or vectors.dtype != np.float32:
                    raise ValueError("its columns are not those of embeddings")
                if numbers[0] <= last or (np.diff(numbers) <= 0).any():
                    raise ValueError("its rows do not ascend")
                if not (np.isfinite(vectors).all() and vectors.any(axis=1).all()):
                    raise ValueError("it holds vectors that are none")
                dimensions, last = vectors.shape[1], int(numbers[-1])
                rows.append(span_sets.of_rows(numbers.tolist()))
    except (pa.ArrowException, OSError, KeyError, msgspec.DecodeError) as problem:
        raise ValueError(f"it can't be read: {str(problem).splitlines()[0] if str(problem) else problem!r}") from problem
    if not rows:
        raise ValueError("it is empty")
    return Looked(span_sets.union(*rows), dimensions, origin)


def rows_in(files: Iterable[Path]) -> Spans:
    """The rows of some files; no vector is read."""
    found: list[Spans] = []
    for path in files:
        with pq.ParquetFile(path) as file:
            found += [
                span_sets.of_rows(batch.column("row").to_pylist())
                for batch in file.iter_batches(batch_size=BATCH_ROWS * 16, columns=["row"])
            ]
    return span_sets.union(*found)


def read_embeddings(files: Iterable[Path], spans: Spans) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The embeddings of the given rows, file by file in batches: rows ascend within a file."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in _groups_with(file, spans):
                for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
                    rows = to_numpy(batch.column("row"))
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
