"""What was on its way in real time, and what was paid since the copy was made.

Answers in the spool name intents that only the lost ledger knew: they are known again, so that the next run collects them
as ever. An embeddings file says what it cost; where none says so, tokens are counted, or bounded by bytes, and booked as
an estimate, so that the budget holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.identity import crc32_of, parse_custom_id
from pipeline.indexing import string_files
from pipeline.ledger import Intent, Spending
from pipeline.provider.tokens import count_tokens
from pipeline.restoring.jobs import FromJobs
from pipeline.restoring.tables import Piece
from pipeline.spool import Frame, frames, spool_files
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb

ESTIMATE = "estimate"  # the kind of a spending that no answer of the service has said


class _Named(msgspec.Struct):
    custom_id: str


@dataclass(slots=True)
class FromSpool:
    """What the spool gave: strings that are answered and not in a table yet; and answers to nothing that is known."""

    waiting: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Booked:
    """USD of real time that files say themselves, and that had to be estimated."""

    told: float
    estimated: float
    is_exact: bool


def adopt_spool(context: Context, duck: duckdb.DuckDBPyConnection) -> FromSpool:
    """Know the intents again whose answers wait; those of the copy whose rows all have vectors by now are over."""
    ledger, found = context.ledger, FromSpool()
    for path in spool_files(context.place.spool):
        for frame in frames(path):
            said = frame.envelope
            rows = _rows(context, duck, frame)
            if rows is None:
                found.lost.append(f"answers in {path.name}: their strings are not there")
                continue
            left = span_sets.subtract(rows, ledger.spans("embedded", said.generation, said.field))
            if not left:
                continue  # a collecting was killed before it could delete the file
            count = span_sets.count(rows)
            intent = Intent(said.generation, said.field, rows, count, said.tokens, context.service.usd(said.tokens))
            ledger.restore_intent(said.intent, intent, said.at)
            found.waiting += span_sets.count(left)
    over = [
        number
        for number, intent in ledger.intents().items()
        if not span_sets.subtract(intent.spans, ledger.spans("embedded", intent.generation, intent.field))
    ]
    ledger.close_intents(over)
    return found


def _rows(context: Context, duck: duckdb.DuckDBPyConnection, frame: Frame) -> span_sets.Spans | None:
    """The rows of an answer, proved by the CRC32 of their texts; None when they are not those of this catalogue."""
    named: dict[int, str] = {}
    for line in frame.lines:
        try:
            said = msgspec.json.decode(line, type=_Named).custom_id
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = str(json.loads(line)["custom_id"])
        name = parse_custom_id(said)
        if name is not None and name.field == frame.envelope.field:
            named[name.index] = name.crc32
    rows = span_sets.of_rows(sorted(named))
    known = {row: crc32_of(text) for row, text in _texts(context, duck, frame.envelope.field, rows)}
    return rows if rows and known == named else None


def _texts(context: Context, duck: duckdb.DuckDBPyConnection, name: str, rows: span_sets.Spans) -> Iterator[tuple[int, str]]:
    for batch in read_strings(duck, string_files(context.place, context.ledger, name), rows):
        yield from zip(batch.column("row").to_pylist(), batch.column("text").to_pylist(), strict=True)


def book_real_time(context: Context, duck: duckdb.DuckDBPyConnection, pieces: list[Piece], jobs: FromJobs) -> Booked:
    """Book what the pieces cost that no job accounts for."""
    told = estimated = 0.0
    for piece in pieces:
        origin = piece.origin
        if origin is not None and origin.job is None:
            usd = origin.tokens * origin.price / 1_000_000
            count = span_sets.count(piece.rows)
            context.ledger.spend(Spending(piece.generation, piece.field, "realtime", count, origin.tokens, usd))
            told += usd
        elif origin is None or origin.job not in jobs.booked:
            estimated += _estimate(context, duck, piece, jobs)
    return Booked(told, estimated, context.service.is_exact)


def _estimate(context: Context, duck: duckdb.DuckDBPyConnection, piece: Piece, jobs: FromJobs) -> float:
    """The price of a piece whose file does not say it, at the price of today."""
    by_job = piece.origin is not None
    # What a job of the list has in it is paid by that job.
    rows = span_sets.subtract(piece.rows, jobs.rows.get((piece.generation, piece.field), []))
    tokens = 0
    for window in span_sets.windows(rows, 65_536):
        texts = [text for _, text in _texts(context, duck, piece.field, window)]
        tokens += sum(count_tokens(texts)) if context.service.is_exact else sum(len(text.encode()) for text in texts)
    usd = tokens * (context.service.job_price if by_job else context.service.price) / 1_000_000
    if rows:
        context.ledger.spend(Spending(piece.generation, piece.field, ESTIMATE, span_sets.count(rows), tokens, usd))
    return usd
