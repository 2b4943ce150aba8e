"""Adopting vectors: they become embeddings of this catalogue, in files of bounded size and one ledger commit for all of them.

Until that commit nothing is imported, however far the writing came: a kill leaves files that the next command sweeps. What was
paid for them, and to whom, is not known here; the books say that they cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.files import disk_errors, publish_table, temporary
from pipeline.importing.looking import Looked, sample_key
from pipeline.ledger import Spending, TableFile
from pipeline.log import event, logger
from pipeline.progress import Bar
from pipeline.spans import Spans
from pipeline.tables.embeddings import Origin, write_embedding_pieces

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

KIND = "import"  # of a spending that was none
_BATCHES_A_FILE = 12  # of 4,096 rows: as many as a job has
_log = logger(__name__)


def adopt(context: Context, looked: Looked) -> dict[str, int]:
    """Write every candidate and commit; how many strings by field."""
    ledger, generation = context.ledger, looked.generation
    written: list[tuple[TableFile, Spans]] = []
    with context.progress.bar("importing", looked.findings.count("candidate")) as bar:
        for name in context.fields:
            batches = looked.findings.candidates(name)
            while some := list(islice(batches, _BATCHES_A_FILE)):
                written.append(_write(context, looked, name, some, bar))
    imported: dict[str, int] = {}
    with ledger.transaction():
        for file, rows in written:
            ledger.add_file(file)
            ledger.add_spans("embedded", generation.id, file.field, rows)
            ledger.drop_failures_of(generation.id, file.field, rows)  # what had failed has its vector now
            imported[file.field] = imported.get(file.field, 0) + file.rows
        for name, count in imported.items():
            ledger.spend(Spending(generation.id, name, KIND, count, 0, 0.0))
        ledger.set_meta(sample_key(generation), "")
    event(_log, "import.committed", generation=generation.id, files=len(written), strings=sum(imported.values()))
    return imported


def _write(context: Context, looked: Looked, name: str, batches: list[pa.RecordBatch], bar: Bar) -> tuple[TableFile, Spans]:
    """One file. Its number is reserved first: without its commit it would be taken for that of a newer ledger."""
    ledger, generation = context.ledger, looked.generation
    number = ledger.next_file_number()
    ledger.reserve_file_numbers(number)
    final = context.place.tables / f"embeddings_{generation.id}_{name}_{number:06d}.parquet"

    def pieces() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for batch in batches:
            yield batch.column("row").to_numpy(), looked.vectors.read(batch.column("slot").to_pylist())
            bar.advance(batch.num_rows)

    with disk_errors(final):
        write_embedding_pieces(temporary(final), looked.vectors.dimensions, pieces(), Origin.of(generation, name))
    size, hashed = publish_table(final)
    rows = span_sets.of_rows(row for batch in batches for row in batch.column("row").to_pylist())
    count = span_sets.count(rows)
    now = context.clock.now()
    return TableFile("embeddings", generation.id, name, final.name, count, rows[0][0], rows[-1][1], size, hashed, now), rows
