"""One pass over the life of every job: settle doubts, look, collect, submit what may go, index.

The one order in which batch mode does things, whoever asks: collecting comes first, because paid results expire and
nothing that is wrong elsewhere (index, budget, quota) may hold it up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.batch.adopt import settle_doubts
from pipeline.batch.collect import clean, collect_job
from pipeline.batch.poll import poll
from pipeline.batch.submit import Submitted, check_budget, submit
from pipeline.collecting import collect_all
from pipeline.context import Context
from pipeline.errors import NamesakeError, ServiceError, StoreError
from pipeline.indexing import need_an_index
from pipeline.ledger import Generation, Job
from pipeline.ledger.jobs import UNSENT
from pipeline.log import event, logger
from pipeline.pending import announce_another_model, pending, preflight
from pipeline.provider.batch_client import BatchClient
from pipeline.provider.client import EmbeddingClient
from pipeline.provider.service import generation_of
from pipeline.realtime import settle_intents
from pipeline.tables.duck import connect

if TYPE_CHECKING:
    import duckdb

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Batches:
    """What a pass works with."""

    context: Context
    client: BatchClient
    duck: duckdb.DuckDBPyConnection
    generation: Generation

    def pending(self) -> int:
        """Strings that are in no job and have no embedding."""
        return sum(span_sets.count(pending(self.context, self.duck, self.generation, name)) for name in self.context.fields)


@dataclass(slots=True)
class Pass:
    """What one pass did."""

    collected: list[Job] = field(default_factory=list)
    submitted: list[Job] = field(default_factory=list)
    in_doubt: list[Job] = field(default_factory=list)
    waits_for: str = ""
    stop: NamesakeError | None = None
    index_trouble: StoreError | None = None
    unindexed: int = 0


@contextlib.contextmanager
def opened(context: Context) -> Iterator[Batches]:
    """The service and the tables, for the passes of one command."""
    generation = generation_of(context.service, context.ledger)
    with context.ledger.transaction():
        context.ledger.save_generation(generation, context.clock.now())
    # What a real-time run left belongs to this mode too: its answers are collected, its open requests are told.
    collect_all(context.place, context.ledger, context.clock, {generation.id: context.service.price})
    settle_intents(context.ledger, context.clock)
    embedding_client = EmbeddingClient(context.service, context.clock, context.transport() if context.transport else None)
    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    try:
        yield Batches(context, BatchClient(embedding_client, context.clock, context.policy), duck, generation)
    finally:
        duck.close()
        embedding_client.close()


def collect(batches: Batches, done: Pass, *, wait: bool = False, repeat: bool = True) -> None:
    """Everything that the service has finished comes home; files it still holds of us are deleted."""
    context = batches.context
    done.in_doubt = settle_doubts(context, batches.client, wait=wait, repeat=repeat)
    try:
        poll(context, batches.client)
    except ServiceError as problem:  # what has ended is collected all the same
        done.stop = problem
    for job in context.jobs_here(("ended",)):
        try:
            done.collected.append(collect_job(context, batches.client, batches.duck, job))
        except ServiceError as problem:  # of this job's files: the others' results expire meanwhile
            done.stop = problem
    _log_jobs("jobs.collected", done.collected, embedded=sum(job.embedded or 0 for job in done.collected))
    for job in context.jobs_here(("collected", "returned")):
        if not job.cleaned:
            clean(context, batches.client, job)


def send(batches: Batches, done: Pass) -> None:
    """Submit what is pending and may go. A budget or a limit that says no is told, not raised: what was done stays done."""
    context = batches.context
    if batches.pending() or context.ledger.jobs.all(UNSENT):
        try:
            need_an_index(context, batches.generation)
        except StoreError as problem:  # what is at the service goes on being collected
            done.index_trouble = problem
            return
    for name in context.fields:
        preflight(context, batches.duck, batches.generation, name)
    try:
        if batches.pending() and not any(job.generation == batches.generation.id for job in context.ledger.jobs.all()):
            announce_another_model(context, batches.duck, batches.generation, context.service.job_price)  # once, and not each pass
        check_budget(context, batches.duck, batches.generation)
    except NamesakeError as problem:
        done.stop = problem
        return
    sent: Submitted = submit(context, batches.client, batches.duck, batches.generation)
    done.submitted, done.waits_for, done.stop = sent.jobs, sent.waits_for, sent.stop or done.stop
    _log_jobs("jobs.submitted", done.submitted, tokens=sum(job.tokens for job in done.submitted))


def _log_jobs(name: str, jobs: list[Job], **facts: int) -> None:
    """One line for all jobs of a step; a line for each would be dozens an hour, for days."""
    if jobs:
        numbers = ",".join(f"{first}-{past - 1}" if past - first > 1 else str(first) for first, past in _numbers(jobs))
        event(_log, name, jobs=numbers, requests=sum(job.requests for job in jobs), **facts)


def _numbers(jobs: list[Job]) -> span_sets.Spans:
    return span_sets.of_rows(sorted(job.id for job in jobs))
