"""What the ledger says of the catalogue: counted by spans, as `--status` does, so it costs what is pending, not what is done.

No table, list or index is opened. Of the input only names and sizes are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from pipeline import spans as span_sets
from pipeline.belonging import belonging, pending_in_index, refused, scope_of
from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.ledger import Generation, Job, Ledger, Snapshot
from pipeline.provider.service import generation_of
from pipeline.reading import find_sources, fingerprint_of
from pipeline.reporting.numbers import (
    LONGEST,
    Facts,
    FieldStrings,
    IndexFacts,
    Input,
    JobLine,
    Jobs,
    Model,
    Money,
    Paid,
    SourceFile,
    Trouble,
)

MOST_JOBS = 1000
_MOST_SOURCES = 50
_BILLED = "collected"


def facts_of(context: Context) -> Facts | None:
    """The facts; None when nothing was read yet."""
    ledger = context.ledger
    snapshot = ledger.snapshot("full") or ledger.snapshot("trial")
    if snapshot is None:
        return None
    generation = generation_of(context.service, ledger)
    scope = scope_of(context.config.vector_store, generation)
    names = field_names(context)
    jobs = ledger.jobs.all()
    fields_of = {job.id: tuple(ledger.jobs.rows(job.id)) for job in jobs}
    verified = ledger.runs.last("--verify")
    return Facts(
        input=_input(context, snapshot),
        models=tuple(_models(ledger, generation)),
        fields=tuple(_field(ledger, generation, snapshot.kind, scope, name) for name in names),
        dropped=tuple(
            Trouble(name, stage, code, strings)
            for name in names
            for failed_in in (generation.id, scope)
            for (stage, code), strings in ledger.failure_counts(failed_in, name).items()
        ),
        money=_money(context, jobs, fields_of),
        jobs=Jobs(
            len(jobs),
            dict(sorted(Counter(job.state for job in jobs).items())),
            tuple(_line(job, fields_of[job.id]) for job in jobs[-MOST_JOBS:]),
        ),
        index=IndexFacts(
            context.config.vector_store, None if verified is None else verified[0], verified is not None and verified[1] == 0
        ),
    )


def field_names(context: Context) -> list[str]:
    """Every field that the ledger knows, those of the config first and in its order."""
    known = context.ledger.fields()
    configured = [field.name for field in context.config.fields if field.name in known]
    return configured + [name for name in known if name not in configured]


def _input(context: Context, snapshot: Snapshot) -> Input:
    config = context.config
    try:
        found = find_sources(config.folder, config.input)
        is_as_read = fingerprint_of(found) == snapshot.fingerprint
        sources = [SourceFile(source.name, source.path.stat().st_size) for source in found[:_MOST_SOURCES]] if is_as_read else []
    except (InputError, OSError):  # gone since it was read: whoever reads it says so
        found, is_as_read, sources = [], False, []
    return Input(
        config.input, snapshot.created_at, snapshot.records, snapshot.rejected, snapshot.limited_to,
        len(found) if is_as_read else 0, tuple(sources), is_as_read,
    )  # fmt: skip


def _models(ledger: Ledger, configured: Generation) -> Iterator[Model]:
    for known in ledger.generations():
        embedded = sum(span_sets.count(ledger.spans("embedded", known.id, name)) for name in ledger.fields())
        yield Model(
            known.id, known.service, known.model, known.dimensions, ledger.is_current(known.id), known.id == configured.id, embedded
        )


def _field(ledger: Ledger, generation: Generation, kind: str, scope: str, name: str) -> FieldStrings:
    present = ledger.spans("present", kind, name)
    left = span_sets.subtract(present, ledger.spans("embedded", generation.id, name))
    in_jobs = span_sets.intersect(left, span_sets.union(ledger.jobs.rows_in_jobs(generation.id, name)))
    left_over = span_sets.subtract(left, in_jobs)
    given_up: dict[bool, list[int]] = {True: [], False: []}
    for failure in ledger.failures(generation.id, name) if left_over else ():
        given_up[failure.stage == "preflight"].append(failure.row)
    never_sent, failed = (span_sets.intersect(left_over, span_sets.of_rows(given_up[early])) for early in (True, False))
    pending = span_sets.subtract(left_over, span_sets.union(never_sent, failed))
    return FieldStrings(
        name=name,
        occurrences=sum(file.rows for file in ledger.files("occurrences", kind, name)),
        present=span_sets.count(present),
        absent=ledger.fields()[name][1] - span_sets.count(present),
        embedded=span_sets.count(present) - span_sets.count(left),
        in_jobs=span_sets.count(in_jobs),
        pending=span_sets.count(pending),
        never_sent=span_sets.count(never_sent),
        failed=span_sets.count(failed),
        belongs_in_index=span_sets.count(belonging(ledger, generation, name)),
        confirmed=span_sets.count(ledger.spans("indexed", scope, name)),
        to_index=span_sets.count(pending_in_index(ledger, scope, generation, name)),
        refused_by_index=span_sets.count(refused(ledger, scope, name)),
    )


def _money(context: Context, jobs: list[Job], fields_of: dict[int, tuple[str, ...]]) -> Money:
    ledger = context.ledger
    doubtful, doubtful_usd = ledger.doubt_totals()
    spent = ledger.spent_usd()
    on_the_wire = sum(intent.usd for intent in ledger.intents().values())
    paid = tuple(_paid(ledger, jobs, fields_of, field_names(context)))
    in_jobs = max(0.0, spent - on_the_wire - doubtful_usd - sum(one.usd for one in paid))
    return Money(
        paid, _cents(in_jobs), _cents(on_the_wire), doubtful, _cents(doubtful_usd), _cents(spent), context.config.budget_usd
    )


def _cents(usd: float) -> float:
    """Without the noise of adding up: a billionth of a dollar is no money."""
    return round(usd, 9)


def _paid(ledger: Ledger, jobs: list[Job], fields_of: dict[int, tuple[str, ...]], names: list[str]) -> Iterator[Paid]:
    """The books by field. They book jobs as a whole, so those of one field are taken out of that sum by what they cost."""
    booked: dict[tuple[str, str], tuple[int, int, float]] = {}

    def add(field: str, kind: str, strings: int, tokens: int, usd: float) -> None:
        before = booked.get((field, kind), (0, 0, 0.0))
        booked[field, kind] = (before[0] + strings, before[1] + tokens, before[2] + usd)

    for spending in ledger.spendings():
        add(spending.field, spending.kind, spending.strings, spending.tokens, spending.usd)
    for job in jobs:
        if job.state == _BILLED and len(fields_of[job.id]) == 1 and ("", "batch") in booked:
            of_job = (job.embedded or 0, job.paid_tokens or 0, (job.paid_tokens or 0) * job.price / 1_000_000)
            add("", "batch", *(-value for value in of_job))  # type: ignore[arg-type]
            add(fields_of[job.id][0], "batch", *of_job)
    order = {name: place for place, name in enumerate(names)}
    for (field, kind), (strings, tokens, usd) in sorted(booked.items(), key=lambda one: (order.get(one[0][0], len(order)), one[0])):
        if strings or tokens or _cents(usd):
            yield Paid(field, kind, strings, tokens, _cents(usd))


def _line(job: Job, fields: tuple[str, ...]) -> JobLine:
    tokens = job.tokens if job.paid_tokens is None else job.paid_tokens
    return JobLine(
        id=job.id,
        state=job.state,
        status=job.status or "",
        fields=fields,
        requests=job.requests,
        embedded=job.embedded if job.state in ("collected", "returned") else None,
        tokens=tokens,
        usd=_cents(tokens * job.price / 1_000_000),
        is_estimate=job.paid_tokens is None,
        began_at=job.created_at or job.intent_at or job.prepared_at,
        ended_at=job.ended_at,
        expires_at=job.expires_at if job.state in ("creating", "open", "ended") else None,
        reason=(job.reason or "")[:LONGEST],
    )


def generation_with_vectors(context: Context) -> Generation | None:
    """The configured generation, if anything of it is embedded."""
    known = context.ledger.generation(generation_of(context.service, context.ledger).id)
    return known if known is not None and known.dimensions else None


def first_failures(context: Context, most: int) -> list[tuple[str, int, str, str, str]]:
    """(field, row, stage, code, reason) of the first strings that were dropped, field by field."""
    generation = generation_of(context.service, context.ledger)
    scopes = (generation.id, scope_of(context.config.vector_store, generation))
    found = (
        (one.field, one.row, one.stage, one.code, one.reason)
        for name in field_names(context)
        for scope in scopes
        for one in islice(context.ledger.failures(scope, name), most)
    )
    return list(islice(found, most))
