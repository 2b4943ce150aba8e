"""Reading the tables of strings, records and occurrences: by row numbers, by text, or whole, never all in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import spans as span_sets
from pipeline.arrays import to_numpy
from pipeline.spans import Spans
from pipeline.tables.duck import blank_sql, parquet, quoted

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from numpy.typing import NDArray

BATCH_ROWS = 16_384


def in_spans(rows: NDArray[np.int64], spans: Spans) -> NDArray[np.bool_]:
    """Which of the rows lie in the spans."""
    edges = np.array([edge for span in spans for edge in span], dtype=np.int64)
    inside: NDArray[np.bool_] = np.searchsorted(edges, rows, side="right") % 2 == 1
    return inside


def read_strings(
    duck: duckdb.DuckDBPyConnection,
    files: Sequence[Path],
    spans: Spans,
    columns: str = "row, text",
    extra: str = "",
    *,
    ordered: bool = True,
) -> Iterator[pa.RecordBatch]:
    """The strings of the given rows, ascending, in batches. `extra` joins another table by row. Who only adds something up
    does without the order: to sort 45 million rows takes minutes and gigabytes."""
    if not files or not spans:
        return
    query = f"SELECT {columns} FROM {parquet(files)} string {extra} WHERE row >= {spans[0][0]} AND row < {spans[-1][1]}"
    if ordered:
        query += " ORDER BY row"
    for batch in duck.cursor().sql(query).to_arrow_reader(BATCH_ROWS):
        wanted = in_spans(to_numpy(batch.column("row")), spans)
        if wanted.all():
            yield batch
        elif wanted.any():
            yield batch.take(np.flatnonzero(wanted))


def blank_strings(duck: duckdb.DuckDBPyConnection, files: Sequence[Path], spans: Spans) -> list[tuple[int, str]]:
    """The rows among the given ones whose text is empty or white space; a field can have few of them."""
    if not files or not spans:
        return []
    bounds = f"row >= {spans[0][0]} AND row < {spans[-1][1]}"
    found = duck.execute(f"SELECT row, text FROM {parquet(files)} WHERE {bounds} AND {blank_sql('text')} ORDER BY row").fetchall()
    pending = in_spans(np.array([row for row, _ in found], dtype=np.int64), spans)
    return [pair for pair, is_pending in zip(found, pending.tolist(), strict=True) if is_pending]


def text_bytes(duck: duckdb.DuckDBPyConnection, files: Sequence[Path], spans: Spans) -> int:
    """The UTF-8 size of the texts of the given rows."""
    total = 0
    for batch in read_strings(duck, files, spans, "row, octet_length(encode(text)) AS size", ordered=False):
        total += int(to_numpy(batch.column("size")).sum())
    return total


def find_text(duck: duckdb.DuckDBPyConnection, files: Sequence[Path], text: str) -> int | None:
    """The row of exactly this text, if the field has it."""
    if not files:
        return None
    found = duck.execute(f"SELECT row FROM {parquet(files)} WHERE text = ? LIMIT 1", [text]).fetchone()
    return None if found is None else int(found[0])


def most_frequent_text(duck: duckdb.DuckDBPyConnection, files: Sequence[Path], frequencies: Sequence[Path]) -> str | None:
    """The text that occurs most often, white space aside; of equal ones the first by row."""
    if not files or not frequencies:
        return None
    found = duck.execute(
        f"SELECT text FROM {parquet(files)} JOIN {parquet(frequencies)} known USING (row) WHERE NOT {blank_sql('text')} "
        "ORDER BY frequency DESC, row LIMIT 1"
    ).fetchone()
    return None if found is None else str(found[0])


def texts_of(duck: duckdb.DuckDBPyConnection, files: Sequence[Path], rows: Sequence[int]) -> dict[int, str]:
    """row → text, for a few rows."""
    if not files or not rows:
        return {}
    batches = read_strings(duck, files, span_sets.of_rows(sorted(set(rows))))
    return {row: text for batch in batches for row, text in zip(batch["row"].to_pylist(), batch["text"].to_pylist(), strict=True)}


def record_ids_of(
    duck: duckdb.DuckDBPyConnection, records: Sequence[Path], occurrences: Sequence[Path], row: int, most: int
) -> tuple[list[str], int]:
    """The first ids of the records in which a string occurs, and how many there are."""
    if not records or not occurrences:
        return [], 0
    found = duck.execute(
        f"SELECT id, count(*) OVER () FROM {parquet(occurrences)} mention JOIN {parquet(records)} known USING (record) "
        f"WHERE mention.row = ? ORDER BY record LIMIT {most}",
        [row],
    ).fetchall()
    return [identifier for identifier, _ in found], int(found[0][1]) if found else 0


def rows_of_first_records(duck: duckdb.DuckDBPyConnection, occurrences: Sequence[Path], records: int) -> Spans:
    """The strings that occur in the first records: what a trial of `--limit` is about."""
    if not occurrences:
        return []
    reader = (
        duck.cursor()
        .sql(f"SELECT DISTINCT row FROM {parquet(occurrences)} WHERE record < {records} ORDER BY row")
        .to_arrow_reader(BATCH_ROWS)
    )
    return span_sets.of_rows(row for batch in reader for row in batch.column("row").to_pylist())


def texts_shared(duck: duckdb.DuckDBPyConnection, tables: Sequence[Sequence[Path]]) -> int:
    """How many texts stand in more than one of the tables."""
    if len(tables) < 2:
        return 0
    hashes = " UNION ALL ".join(f"SELECT md5_number(text) AS text FROM {parquet(files)}" for files in tables)
    found = duck.execute(f"SELECT count(*) FROM (SELECT text FROM ({hashes}) GROUP BY text HAVING count(*) > 1)").fetchone()
    return int(found[0]) if found else 0


def read_occurrences(
    duck: duckdb.DuckDBPyConnection, records: Sequence[Path], occurrences: Sequence[Path], files: Sequence[Path], field: str
) -> Iterator[pa.RecordBatch]:
    """(id of the record, field, uuid of the string) of a field, in the order of the records."""
    if not occurrences:
        return
    mentions = f"(SELECT record, row AS string_row FROM {parquet(occurrences)}) mention"
    query = (
        f"SELECT id, {quoted(field)} AS field, uuid::VARCHAR AS uuid FROM {mentions} JOIN {parquet(records)} known USING (record) "
        f"JOIN {parquet(files)} string ON string.row = string_row ORDER BY record"
    )
    yield from duck.cursor().sql(query).to_arrow_reader(BATCH_ROWS)
