"""What is still to be embedded, what of it can't be, and what the rest will cost.

Pending = present − embedded − failed or refused. Preflight looks only at what is pending: an empty text or one that
is surely too long is listed with its reason and never sent. Tokens are counted once a string, and kept.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import spans as span_sets
from pipeline.amounts import dollars
from pipeline.arrays import to_arrow, to_numpy
from pipeline.belonging import other_in_use
from pipeline.context import Context
from pipeline.files import disk_errors, publish_table, temporary
from pipeline.indexing import string_files
from pipeline.ledger import Failure, Generation, TableFile
from pipeline.processes import spread
from pipeline.progress import Bar
from pipeline.provider.prices import usd
from pipeline.provider.service import MOST_INPUT_TOKENS
from pipeline.provider.tokens import EXACT, count_tokens
from pipeline.spans import Spans
from pipeline.tables.duck import parquet
from pipeline.tables.strings import blank_strings, read_strings, rows_of_first_records, text_bytes

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_COUNT_WINDOW = 262_144  # strings counted between two commits
_WORTH_PROCESSES = 50_000  # strings to count: a second of work; fewer are counted before a process has begun
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


def token_files(context: Context, field: str, spans: Spans | None = None) -> list[Path]:
    """The tables of exact token counts; those that can hold one of the rows, if any are given. Of 45 million strings there are
    hundreds of tables, and a job needs one or two."""
    files = context.ledger.files("tokens", EXACT, field)
    if spans is not None:
        files = [file for file in files if file.first_row < spans[-1][1] and file.past_row > spans[0][0]]
    return [context.place.tables / file.name for file in files]


def count_pending(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str) -> None:
    """Count the tokens of pending strings that were never counted; a table file and a commit each window."""
    ledger = context.ledger
    files = string_files(context.place, ledger, field)
    todo = span_sets.subtract(pending(context, duck, generation, field), ledger.spans("counted", EXACT, field))
    strings = span_sets.count(todo)
    if not todo:
        return
    waiting: deque[tuple[Spans, pa.Array]] = deque()  # what is being counted: the window that it belongs to, and its rows

    def texts() -> Iterator[list[str]]:
        for window in span_sets.windows(todo, _COUNT_WINDOW):
            for batch in read_strings(duck, files, window):
                waiting.append((window, batch.column("row")))
                yield batch.column("text").to_pylist()

    with (
        disk_errors(context.place.tables),
        context.progress.bar(f"counting tokens of {field}", strings) as bar,
        spread(count_tokens, is_worth_it=strings >= _WORTH_PROCESSES) as count,
    ):
        counted = ((*waiting.popleft(), tokens) for tokens in count(texts()))
        for window, pieces in itertools.groupby(counted, key=lambda piece: piece[0]):
            _write_counts(context, field, window, ((rows, tokens) for _, rows, tokens in pieces), bar)


def _write_counts(context: Context, field: str, window: Spans, pieces: Iterable[tuple[pa.Array, list[int]]], bar: Bar) -> None:
    """The counts of a window as a table file, and the commit that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ledger = context.ledger
    final = context.place.tables / f"tokens_{field}_{ledger.next_file_number():06d}.parquet"
    schema = pa.schema([("row", pa.int64()), ("tokens", pa.int32())])
    with pq.ParquetWriter(temporary(final), schema) as writer:
        for numbers, tokens in pieces:
            writer.write_batch(pa.record_batch([numbers, to_arrow(np.array(tokens, np.int32))], schema=schema))
            bar.advance(len(numbers))
    size, hashed = publish_table(final)
    rows = (span_sets.count(window), window[0][0], window[-1][1])
    file = TableFile("tokens", EXACT, field, final.name, *rows, size, hashed, context.clock.now())
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
    for batch in read_strings(duck, token_files(context, field), todo, "row, tokens", ordered=False):
        total += int(to_numpy(batch.column("tokens")).sum())
    return Estimate(strings, total, True)


def announce_another_model(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, price: float) -> None:
    """What a second generation costs is said before its first string is sent."""
    before = other_in_use(context.ledger, generation)
    if before is None:
        return
    exact = context.service.is_exact
    found = [estimate(context, duck, generation, name, exact=exact) for name in context.fields]
    strings, tokens = sum(one.strings for one in found), sum(one.tokens for one in found)
    context.say(
        f"Another model: {strings:,} strings to embed with {generation.words}, for {'' if exact else 'at most '}"
        f"{dollars(usd(tokens, price))}. {before.words} stays in use until all of it is embedded, indexed and verified."
    )


def pending_strings(
    context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, field: str, most: int = _READ_WINDOW
) -> Iterator[tuple[int, str, int]]:
    """(row, text, tokens) of what is pending, ascending; a bound in bytes where tokens can't be counted. Who needs few says how
    many at most: no more are read before the first is given."""
    files = string_files(context.place, context.ledger, field)
    todo = pending(context, duck, generation, field)
    exact = context.service.is_exact
    for window in span_sets.windows(todo, min(most, _READ_WINDOW)):
        joined = f"JOIN {parquet(token_files(context, field, window))} counted USING (row)" if exact else ""
        for batch in read_strings(duck, files, window, "row, text, tokens" if exact else "row, text", joined):
            rows, texts = (batch.column(name).to_pylist() for name in ("row", "text"))
            tokens = batch.column("tokens").to_pylist() if exact else [len(text.encode()) for text in texts]
            yield from zip(rows, texts, tokens, strict=True)
