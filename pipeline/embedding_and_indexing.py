"""Stage 2, embedding and indexing: pending strings → embeddings → index. The heart.

What was left by an earlier run comes first: answers in the spool are collected, requests without an answer are counted
as possibly paid twice. Then preflight, the budget, the requests, the index. Whatever stops the requests, what is
embedded gets indexed, and only then is the reason told. Preprocessing is known only by the tables it left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.belonging import is_whole, other_in_use, scope_of
from pipeline.collecting import collect, collect_all
from pipeline.context import Context
from pipeline.dropping import delete_job_files, forget_progress, refuse_while_jobs_are_open, take_back_unsent_jobs
from pipeline.errors import BudgetError, NamesakeError, StoreError, UserError
from pipeline.indexing import Index, IndexReport, index_pending, need_an_index, open_index, start_over
from pipeline.ledger import Generation, Ledger
from pipeline.log import event, logger
from pipeline.pending import announce_another_model, estimate, pending, pending_strings, preflight
from pipeline.provider.client import EmbeddingClient
from pipeline.provider.service import generation_of
from pipeline.realtime import Chunk, RealTime, RunReport, Terms, pack, settle_intents
from pipeline.tables.duck import connect
from pipeline.verifying import mend, notice_loss

if TYPE_CHECKING:
    import duckdb

NAME = "embedding_and_indexing"
COPY_SECONDS = 300.0  # between two safe copies of the ledger, while a run embeds for hours
_log = logger(__name__)


@dataclass(slots=True)
class EmbeddingReport:
    """What this run did.

    `refused`: never sent. `failed`: refused by the service, or answered unusably. `doubtful`: strings of requests that an
    earlier run left without an answer. `unindexed`: refused by the index. `to_index`: left for a later run.
    """

    generation: Generation
    already: int = 0
    embedded: int = 0
    refused: int = 0
    failed: int = 0
    indexed: int = 0
    removed: int = 0
    unindexed: int = 0
    to_index: int = 0
    in_index: int = 0
    mended: bool = False
    set_aside: int = 0
    trouble: str = ""
    doubtful: int = 0
    doubtful_usd: float = 0.0
    switched: str = ""  # another model is in use from now on, in words
    stop: NamesakeError | None = None


def run(context: Context) -> EmbeddingReport:
    """Embed what is pending and index what is not indexed. The report's `stop` says why it ended early, if it did."""
    ledger = context.ledger
    need_a_reading(context)
    generation = generation_of(context.service, ledger)
    report = EmbeddingReport(generation)
    with ledger.transaction():
        ledger.save_generation(generation, context.clock.now())
    failed_before = _failed(ledger, generation)
    _finish_last_run(context, report)
    take_back_unsent_jobs(ledger, generation, "sent in real time")
    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    try:
        report.already = sum(_embedded(ledger, generation, name) for name in context.fields)
        report.refused = sum(preflight(context, duck, generation, name) for name in context.fields)
        _embed(context, duck, generation, report)
    finally:
        duck.close()
    report.failed = _failed(ledger, generation) - failed_before
    report.embedded = sum(_embedded(ledger, generation, name) for name in context.fields) - report.already
    try:
        _index(context, report)
    except StoreError as problem:  # what was embedded is told first
        report.stop = report.stop or problem
    return report


def need_a_reading(context: Context) -> None:
    """A trial's reading serves a trial only: taken for the catalogue it would leave most of it out in silence."""
    trial = context.ledger.snapshot("trial")
    new = [name for name in context.fields if name not in context.ledger.fields()]
    if new and (trial or context.ledger.snapshot("full")):
        raise UserError(f"The field {new[0]!r} is not preprocessed yet: run both stages (python main.py).")
    if context.ledger.snapshot("full") is not None or (trial is not None and context.limit is not None):
        return
    if trial is not None:
        raise UserError(
            f"Only the first {trial.limited_to:,} records were read, for a trial. For all: python main.py; or give --limit too."
        )
    raise UserError("Nothing is preprocessed yet: run the stage preprocessing first (python main.py runs all stages).")


def reset(context: Context) -> None:
    """Forget ended jobs and their files, failures and index progress, and empty the index. What was paid for stays."""
    ledger, store = context.ledger, context.config.vector_store
    configured = generation_of(context.service, ledger)
    refuse_while_jobs_are_open(ledger, configured)
    _finish_last_run(context, EmbeddingReport(configured))
    generation = ledger.generation(configured.id)
    if generation is None:
        return
    delete_job_files(context, forget_progress(ledger, generation, "taken back by a reset"))
    if store != "none" and generation.dimensions:
        index = open_index(context.place, ledger, context.config, generation, context.clock, context.policy)
        try:
            start_over(index)
        finally:
            index.close()
    else:
        ledger.drop_spans("indexed", scope_of(store, generation))


def _finish_last_run(context: Context, report: EmbeddingReport) -> None:
    """Collect what was answered before a kill; what was not answered may have been paid all the same."""
    collect_all(context.place, context.ledger, context.clock, {report.generation.id: context.service.price})
    report.doubtful, report.doubtful_usd = settle_intents(context.ledger, context.clock)
    if report.doubtful:
        event(_log, "requests.without_answer", strings=report.doubtful, usd=report.doubtful_usd)


def _embedded(ledger: Ledger, generation: Generation, name: str) -> int:
    return span_sets.count(ledger.spans("embedded", generation.id, name))


def _failed(ledger: Ledger, generation: Generation) -> int:
    return sum(count for (stage, _), count in ledger.failure_counts(generation.id).items() if stage == "service")


def _embed(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, report: EmbeddingReport) -> None:
    ledger, service = context.ledger, context.service
    total = sum(span_sets.count(pending(context, duck, generation, name)) for name in context.fields)
    if not total:
        return
    need_an_index(context, generation)
    announce_another_model(context, duck, generation, context.service.price)
    _check_budget(context, duck, generation)
    client = EmbeddingClient(service, context.clock, context.transport() if context.transport else None)
    terms = Terms(
        service=service,
        generation=generation.id,
        client=client,
        clock=context.clock,
        policy=context.policy,
        workers=context.config.max_concurrent_requests,
        budget_usd=context.config.budget_usd,
        say=context.say,
        has_embedded_before=any(ledger.spans("embedded", generation.id, name) for name in ledger.fields()),
    )

    copied_at = context.clock.elapsed()

    def collected(path: Path) -> None:
        nonlocal copied_at
        collect(path, context.place, ledger, context.clock, {generation.id: service.price})
        if context.clock.elapsed() - copied_at >= COPY_SECONDS:
            ledger.save_copy(context.place.copy)
            copied_at = context.clock.elapsed()

    try:
        with context.progress.bar("embedding", total) as bar:
            done: RunReport = RealTime(terms, ledger, context.place.spool, collected, bar).run(_chunks(context, duck, generation))
    finally:
        client.close()
    report.set_aside, report.trouble, report.stop = done.set_aside, done.trouble, done.stop


def _chunks(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation) -> Iterator[Chunk]:
    for name in context.fields:
        yield from pack(name, pending_strings(context, duck, generation, name), context.config.max_inputs_per_request)


def _check_budget(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation) -> None:
    """Before the first call: all that is pending must fit, or nothing is sent."""
    service, budget = context.service, context.config.budget_usd
    if not service.price:
        return
    tokens = sum(estimate(context, duck, generation, name, exact=service.is_exact).tokens for name in context.fields)
    spent, needed = context.ledger.spent_usd(), service.usd(tokens)
    if spent + needed > budget:
        about = "" if service.is_exact else "at most "
        raise BudgetError(
            f"budget_usd is {budget:g}: ${spent:.4f} is spent, and this run would cost {about}${needed:.4f} more ({tokens:,} "
            "tokens). Nothing was sent. Raise budget_usd, or try a part: --limit N or --fields a,b"
        )


def index_all(context: Context) -> EmbeddingReport:
    """Index what is embedded and not indexed; all that batch mode needs of this stage after a collection."""
    report = EmbeddingReport(generation_of(context.service, context.ledger))
    _index(context, report)
    return report


def _index(context: Context, report: EmbeddingReport) -> None:
    """Index all that is embedded in this generation, and let it take over once nothing of it is missing."""
    ledger, store = context.ledger, context.config.vector_store
    generation = ledger.generation(report.generation.id) or report.generation
    report.generation = generation
    names = [field.name for field in context.config.fields]
    is_done = report.stop is None and not report.set_aside and is_whole(ledger, generation, names)
    if store == "none" or not generation.dimensions:
        if is_done:
            _take_over(context, report)
        return
    index = open_index(context.place, ledger, context.config, generation, context.clock, context.policy)
    try:
        if context.config.index_later:
            report.to_index, report.in_index = index.todo(), index.confirmed()
            return
        index.store.look()
        report.mended = notice_loss(index)
        done = IndexReport()
        try:
            _write(context, index, done)
        finally:
            report.indexed, report.removed, report.unindexed = done.written, done.removed, done.refused
            report.to_index = index.todo()
        report.in_index = index.confirmed()
        if is_done:
            _take_over(context, report, index)
        if report.in_index and ledger.is_current(generation.id):
            index.store.publish()
    finally:
        index.close()


def _write(context: Context, index: Index, done: IndexReport | None = None) -> None:
    with context.progress.bar("indexing", index.todo()) as bar:
        index_pending(index, bar, done)


def _take_over(context: Context, report: EmbeddingReport, index: Index | None = None) -> None:
    """A second model's generation becomes the one that is read: its index is compared with what belongs in it before, and mended
    if need be. StoreError when it is not sound; then the one before stays in use."""
    ledger, generation = context.ledger, report.generation
    before, words = other_in_use(ledger, generation), ""
    if before is None:
        ledger.make_current(generation.id)
        return
    if index is not None:
        _, found = mend(index, context.config.verify_vectors, lambda: _write(context, index))
        if not found.is_sound:
            raise StoreError(
                f"The index of {generation.words} is not sound yet ({found.unsearchable:,} strings not searchable, {found.found:,} "
                f"of {found.searched:,} found by their own vector), so {before.words} stays in use. To look again: python main.py; "
                "to build it anew, at no cost: python main.py --reindex"
            )
        words = f"Verified: {found.expected:,} strings in the index, {found.compared:,} vectors compared, all equal. "
    ledger.make_current(generation.id)
    report.switched = (
        f"{words}From now on {generation.words} is in use. What {before.words} has is kept until: python main.py --drop-embeddings "
        f"{before.id}"
    )
