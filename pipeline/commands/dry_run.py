"""`--dry-run`: what a run would do and cost, by field and for both modes, before anything is sent.

The input is read and tokens are counted for good, since neither costs money and the next run uses both; nothing is
embedded, and no service is asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import spans as span_sets
from pipeline.belonging import other_in_use
from pipeline.commands.console import Console, dollars, size, strings
from pipeline.commands.session import Options, changing
from pipeline.context import Context
from pipeline.files import free_bytes
from pipeline.ledger import Generation
from pipeline.provider.batch_limits import batch_limits
from pipeline.provider.prices import LISTED, OPENAI_MODELS, usd
from pipeline.provider.service import generation_of

if TYPE_CHECKING:
    import duckdb

    from pipeline.preprocessing import FieldReport

_OPENAI = OPENAI_MODELS["text-embedding-3-small"]
_BYTES_A_REQUEST = 180  # of a line of a request file beside its text
_BYTES_A_ROW = 120  # of the index's own properties beside vector and text, measured on the sample


@dataclass(frozen=True, slots=True)
class Line:
    """A field of the dry run. `tokens` are OpenAI's, counted exactly."""

    field: str
    occurrences: int
    unique: int
    pending: int
    refused: int
    tokens: int
    text_bytes: int
    bound: int


def dry_run(options: Options, console: Console) -> int:
    """Read, count, show."""
    with changing(options, console, "main.py --dry-run") as context:
        from pipeline import preprocessing
        from pipeline.tables.duck import connect

        read = preprocessing.run(context)
        generation = generation_of(context.service, context.ledger)
        duck = connect(context.place.scratch, context.config.memory_limit_gb)
        try:
            lines = [_line(context, duck, generation, name, read.fields[name]) for name in context.fields]
        finally:
            duck.close()
        console.document(_document(context, generation, read.records, read.rejected, lines))
        if not console.as_json:
            _show(context, console, generation, read.records, read.rejected, lines)
    return 0


def _line(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, name: str, read: FieldReport) -> Line:
    from pipeline import pending

    pending.preflight(context, duck, generation, name)
    listed = span_sets.of_rows(known.row for known in context.ledger.failures(generation.id, name) if known.stage == "preflight")
    refused = span_sets.count(span_sets.intersect(pending.present(context, duck, name), listed))
    pending.count_pending(context, duck, generation, name)
    exact = pending.estimate(context, duck, generation, name, exact=True)
    bound = pending.estimate(context, duck, generation, name, exact=False)
    billed = exact.tokens if context.service.is_exact else bound.tokens
    return Line(name, read.occurrences, read.strings, exact.strings, refused, exact.tokens, bound.tokens, billed)


def _document(context: Context, generation: Generation, records: int, rejected: int, lines: list[Line]) -> dict[str, Any]:
    service = context.service
    before = other_in_use(context.ledger, generation)
    return {
        "service": service.name,
        "model": service.model,
        "generation": generation.id,
        "generation_in_use": generation.id if before is None else before.id,
        "records": records,
        "rejected_rows": rejected,
        "tokens_are": "exact" if service.is_exact else "counted as OpenAI's models would; the price is bound by bytes",
        "fields": [
            {
                "field": line.field,
                "pending": line.pending,
                "refused": line.refused,
                "tokens": line.tokens,
                "real_time_usd": service.usd(line.bound),
                "batch_usd": None if service.batch_price is None else usd(line.bound, service.batch_price),
            }
            for line in lines
        ],
        "pending": sum(line.pending for line in lines),
        "real_time_usd": service.usd(sum(line.bound for line in lines)),
        "batch_usd": None if service.batch_price is None else usd(sum(line.bound for line in lines), service.batch_price),
        "spent_usd": context.ledger.spent_usd(),
        "budget_usd": context.config.budget_usd,
        **_space(context, generation, lines),
        "disk_free_bytes": free_bytes(context.place.data),
    }


def _space(context: Context, generation: Generation, lines: list[Line]) -> dict[str, int]:
    """Bytes up, down and on disk. A vector is 4 bytes a number, and 16/3 a number on its way as base64 in JSON."""
    count = sum(line.pending for line in lines)
    vectors = count * (generation.dimensions or _OPENAI.dimensions) * 4
    texts = sum(line.text_bytes for line in lines)
    wire = vectors * 4 // 3 if context.config.encoding_format == "base64" else vectors * 21 // 4
    index = vectors + texts + count * _BYTES_A_ROW if context.config.vector_store == "embedded" else 0
    return {"upload_bytes": texts, "download_bytes": wire, "disk_bytes": vectors + index}


def _show(context: Context, console: Console, generation: Generation, records: int, rejected: int, lines: list[Line]) -> None:
    service, say = context.service, console.answer
    say()
    say(f"{records:,} records; {rejected:,} rows rejected. What a run would embed now:")
    say()
    say(f"  {'field':<16}{'strings':>12}{'tokens':>14}{'real time':>12}{'batch':>12}{'not sent':>10}")
    for line in lines:
        batch = "-" if service.batch_price is None else dollars(usd(line.bound, service.batch_price))
        price = dollars(service.usd(line.bound))
        say(f"  {line.field:<16}{line.pending:>12,}{line.tokens:>14,}{price:>12}{batch:>12}{line.refused:>10,}")
    count, tokens = sum(line.pending for line in lines), sum(line.tokens for line in lines)
    bound = sum(line.bound for line in lines)
    batch = "-" if service.batch_price is None else dollars(usd(bound, service.batch_price))
    say(
        f"  {'all':<16}{count:>12,}{tokens:>14,}{dollars(service.usd(bound)):>12}{batch:>12}"
        f"{sum(line.refused for line in lines):>10,}"
    )
    say()
    if (before := other_in_use(context.ledger, generation)) is not None:
        say(
            f"{generation.words} is another model than the one in use, {before.words}, which stays in use until all of the new "
            "one is embedded, indexed and verified, and is kept after that."
        )
    for words in _remarks(context, lines, tokens):
        say(words)
    if service.batch_price is not None and count:
        say(_rounds(context, lines))
    space = _space(context, generation, lines)
    say(
        f"On the wire: {size(space['upload_bytes'])} up, about {size(space['download_bytes'])} down. On disk: about "
        f"{size(space['disk_bytes'])} more; {size(free_bytes(context.place.data))} are free."
    )
    needed = context.ledger.spent_usd() + service.usd(bound)
    if service.price and needed > context.config.budget_usd:
        say(
            f"This is more than budget_usd allows: {dollars(needed)} of {dollars(context.config.budget_usd)}. A run would stop "
            "before it."
        )


def _rounds(context: Context, lines: list[Line]) -> str:
    """How long batch mode would take at the account's limits, and what it would save."""
    service, limits = context.service, batch_limits(context.config)
    requests, size, tokens = (sum(getattr(line, name) for line in lines) for name in ("pending", "text_bytes", "bound"))
    size += requests * _BYTES_A_REQUEST
    a_job = min(limits.enqueued_tokens, tokens)
    jobs = max(math.ceil(requests / limits.requests_a_job), math.ceil(size / limits.bytes_a_job), math.ceil(tokens / max(1, a_job)))
    rounds = max(
        math.ceil(tokens / limits.enqueued_tokens),
        math.ceil(requests / limits.enqueued_requests),
        math.ceil(jobs / limits.active_batches),
    )
    saved = service.usd(tokens) - usd(tokens, service.batch_price or 0.0)
    one = "1 job" if jobs == 1 else f"{jobs:,} jobs"
    turns = "1 round" if rounds == 1 else f"{rounds:,} rounds"
    return (
        f"By batch: {one} in {turns} at your limits (openai_tier {context.config.openai_tier}): {_long(rounds)} if a job takes "
        f"1 h, {_long(rounds * 24)} if it takes 24 h; it saves {dollars(saved)}."
    )


def _long(hours: int) -> str:
    return f"{hours:,} h" if hours < 48 else f"{round(hours / 24):,} days"


def _remarks(context: Context, lines: list[Line], tokens: int) -> list[str]:
    """What the figures mean."""
    service = context.service
    remarks = []
    occurrences = sum(line.occurrences for line in lines)
    unique = sum(line.unique for line in lines)
    if occurrences:
        remarks.append(
            f"Deduplication: {occurrences:,} occurrences are {strings(unique)}; {occurrences - unique:,} embeddings saved."
        )
    shared = _texts_in_two_fields(context)
    if shared:
        remarks.append(
            f"{shared:,} texts stand in more than one field; each field embeds its own, since they are different strings."
        )
    if service.is_exact:
        remarks.append(f"Tokens are exact. Prices as listed in {LISTED}.")
    else:
        real, half = dollars(usd(tokens, _OPENAI.price)), dollars(usd(tokens, _OPENAI.batch_price))
        remarks.append(
            f"Tokens are counted as OpenAI's models would: {_OPENAI.name} would cost {real} in real time, {half} by batch."
        )
    if service.price and not service.is_exact:
        remarks.append("This service's own tokens are not known here: its price is an upper bound, a token for each byte.")
    return remarks


def _texts_in_two_fields(context: Context) -> int:
    from pipeline.indexing import string_files
    from pipeline.tables.duck import connect
    from pipeline.tables.strings import texts_shared

    tables = [string_files(context.place, context.ledger, name) for name in context.fields]
    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    try:
        return texts_shared(duck, [files for files in tables if files])
    finally:
        duck.close()
