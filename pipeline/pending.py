"""What is still to be embedded, what of it can't be, and what the rest will cost.

Pending = present − embedded − failed or refused. Preflight looks only at what is pending: an empty text or one that
is surely too long is listed with its reason and never sent. Tokens are counted once a string, and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.files import disk_errors, publish, sha256_of, temporary
from pipeline.indexing import string_files
from pipeline.ledger import Failure, Generation, TableFile
from pipeline.provider.service import MOST_INPUT_TOKENS
from pipeline.provider.tokens import EXACT, count_tokens
from pipeline.spans import Spans
from pipeline.tables.duck import parquet
from pipeline.tables.strings import blank_strings, read_strings, rows_of_first_records, text_bytes

if TYPE_CHECKING:
    import duckdb

_COUNT_WINDOW = 262_144  # strings counted between two commits
_READ_WINDOW = 131_072  # strings sorted at once: a job takes the first of millions, and must not wait for all to be sorted


@dataclass(frozen=True, slots=True)
class Estimate:
    """A field's pending strings, and their tokens: exact, or at most so many."""

    strings: int
    tokens: int
    is_exact: bool


def present(context: Context, duck: duckdb.DuckDBPyConnection, field: str) -> Spans:
    """The strings that this run is about: of the whole catalogue as last read, or of its first records."""
    ledger = context.ledger
    if context.limit is None:
        return ledger.spans("present", "full", field)
    if ledger.snapshot("trial") is not None:
        return ledger.spans("present", "trial", field)
    occurrences = [context.place.tables / file.name for file in ledger.files("occurrences", "full", field)]
    return rows_of_first_records(duck, occurrences, context.limit)


def pending(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str) -> Spans:
    """Present and neither embedded nor given up."""
    ledger = context.ledger
    left = span_sets.subtract(present(context, duck, field), ledger.spans("embedded", generation.id, field))
    left = span_sets.subtract(left, span_sets.union(ledger.jobs.rows_in_jobs(generation.id, field)))
    given_up = span_sets.of_rows(failure.row for failure in ledger.failures(generation.id, field))
    return span_sets.subtract(left, given_up)


def preflight(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str) -> int:
    """List what is never sent; how many strings that was."""
    files = string_files(context.place, context.ledger, field)
    todo = pending(context, duck, generation, field)
    refused = [(row, "empty" if not text else "blank", _blank_words(text)) for row, text in blank_strings(duck, files, todo)]
    if context.service.is_exact:
        count_pending(context, duck, generation, field)
        refused += [
            (row, "too_long", f"{tokens:,} tokens; the model takes {MOST_INPUT_TOKENS:,}")
            for row, tokens in _too_long(context, duck, field, todo)
        ]
    now = context.clock.now()
    context.ledger.add_failures(Failure(generation.id, field, row, "preflight", code, reason, now) for row, code, reason in refused)
    return len(refused)


def _blank_words(text: str) -> str:
    return f"white space only ({len(text)} characters)" if text else "no text"


def _too_long(context: Context, duck: duckdb.DuckDBPyConnection, field: str, todo: Spans) -> list[tuple[int, int]]:
    files = token_files(context, field)
    if not files or not todo:
        return []
    found = duck.execute(f"SELECT row, tokens FROM {parquet(files)} WHERE tokens > {MOST_INPUT_TOKENS} ORDER BY row").fetchall()
    inside = set(span_sets.rows_of(span_sets.intersect(span_sets.of_rows(row for row, _ in found), todo)))
    return [(row, tokens) for row, tokens in found if row in inside]


def token_files(context: Context, field: str) -> list[Path]:
    """The tables of exact token counts."""
    return [context.place.tables / file.name for file in context.ledger.files("tokens", EXACT, field)]


def count_pending(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str) -> None:
    """Count the tokens of pending strings that were never counted; a table file and a commit each window."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ledger = context.ledger
    files = string_files(context.place, ledger, field)
    todo = span_sets.subtract(pending(context, duck, generation, field), ledger.spans("counted", EXACT, field))
    if not todo:
        return
    with disk_errors(context.place.tables), context.progress.bar(f"counting tokens of {field}", span_sets.count(todo)) as bar:
        for window in span_sets.windows(todo, _COUNT_WINDOW):
            number = ledger.next_file_number()
            final = context.place.tables / f"tokens_{field}_{number:06d}.parquet"
            schema = pa.schema([("row", pa.int64()), ("tokens", pa.int32())])
            with pq.ParquetWriter(temporary(final), schema) as writer:
                for batch in read_strings(duck, files, window):
                    tokens = pa.array(count_tokens(batch.column("text").to_pylist()), pa.int32())
                    writer.write_batch(pa.record_batch([batch.column("row"), tokens], schema=schema))
                    bar.advance(batch.num_rows)
            publish(final)
            rows, size = span_sets.count(window), final.stat().st_size
            file = TableFile(
                "tokens", EXACT, field, final.name, rows, window[0][0], window[-1][1], size, sha256_of(final), context.clock.now()
            )
            with ledger.transaction():
                ledger.add_file(file)
                ledger.add_spans("counted", EXACT, field, window)


def estimate(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str, *, exact: bool) -> Estimate:
    """The tokens of what is pending. Exact counts must have been made before."""
    todo = pending(context, duck, generation, field)
    strings = span_sets.count(todo)
    if not exact:
        return Estimate(strings, text_bytes(duck, string_files(context.place, context.ledger, field), todo), False)
    total = 0
    for batch in read_strings(duck, token_files(context, field), todo, "row, tokens"):
        total += int(batch.column("tokens").to_numpy().sum())
    return Estimate(strings, total, True)


def pending_strings(
    context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str
) -> Iterator[tuple[int, str, int]]:
    """(row, text, tokens) of what is pending, ascending; a bound in bytes where tokens can't be counted."""
    files = string_files(context.place, context.ledger, field)
    todo = pending(context, duck, generation, field)
    exact = context.service.is_exact
    joined = f"JOIN {parquet(token_files(context, field))} counted USING (row)" if exact and todo else ""
    for window in span_sets.windows(todo, _READ_WINDOW):
        for batch in read_strings(duck, files, window, "row, text, tokens" if exact else "row, text", joined):
            rows, texts = (batch.column(name).to_pylist() for name in ("row", "text"))
            tokens = batch.column("tokens").to_pylist() if exact else [len(text.encode()) for text in texts]
            yield from zip(rows, texts, tokens, strict=True)
