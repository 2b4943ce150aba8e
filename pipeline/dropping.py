"""Dropping a generation: its embeddings, its index, its failures and the jobs that are over, in one ledger commit.

The other generations are left as they are, and so are the books: what was paid is paid. A collection at a server goes before
the commit, for it can be filled again at no cost; files go after it, and what a kill leaves of them is swept by the next run.
Whether anybody meant it is not known here.
"""

from __future__ import annotations

from pipeline.belonging import STALE, scope_of
from pipeline.checkpoint import delete_index_files, delete_tables
from pipeline.collecting import collect_all
from pipeline.context import Context
from pipeline.errors import UserError
from pipeline.files import fsync_folder
from pipeline.indexing import open_store
from pipeline.ledger import Generation, Job, Ledger
from pipeline.ledger.jobs import UNCOLLECTED, UNSENT
from pipeline.realtime import settle_intents
from pipeline.stores import STORES

_THERE = ("indexed", STALE, "writing")
_IN_FILES = "embedded"  # the store that is files of ours


def refuse_while_jobs_are_open(ledger: Ledger, generation: Generation) -> None:
    """What the service is at work on, or has finished, is paid for: it comes home before its job is forgotten."""
    jobs = [job for job in ledger.jobs.all(UNCOLLECTED) if job.state not in UNSENT and job.generation == generation.id]
    lost = [str(job.id) for job in jobs if job.state == "lost"]
    if lost:
        raise UserError(
            f"Job {', '.join(lost)}: lost at the service, and perhaps paid. Nothing was changed. First let the strings go again: "
            "python batch_manager.py --retry-failed --yes"
        )
    if jobs:
        raise UserError(
            f"{len(jobs)} jobs of {generation.words} are not collected yet, and what they did is paid for. Nothing was changed. "
            f"First, with a config that names {generation.service}: python batch_manager.py --download; to end the open ones "
            "before: python batch_manager.py --cancel"
        )


def take_back_unsent_jobs(ledger: Ledger, generation: Generation, reason: str) -> None:
    """A job that no batch was ever asked for holds nothing that is paid: its strings are pending as any other."""
    for job in ledger.jobs.all(UNSENT):
        if job.generation == generation.id:
            ledger.jobs.change(job.id, state="returned", embedded=0, failed=job.requests, paid_tokens=0, reason=reason)


def forget_progress(ledger: Ledger, generation: Generation, reason: str) -> list[Job]:
    """Failures, attempts and jobs that are over; the jobs, whose files can go after the commit."""
    with ledger.transaction():
        for scope in (generation.id, *(scope_of(store, generation) for store in STORES)):
            ledger.drop_failures(scope)
        ledger.jobs.forget_attempts(generation.id)
        take_back_unsent_jobs(ledger, generation, reason)
        return ledger.jobs.drop_ended(generation.id)


def delete_job_files(context: Context, jobs: list[Job]) -> None:
    """The request, result and error files of jobs that the ledger has just forgotten."""
    for job in jobs:
        for name in (job.request_name, job.result_name, job.error_name):
            (context.place.data / name).unlink(missing_ok=True)
    fsync_folder(context.place.data)


def drop(context: Context, generation: Generation) -> None:
    """All of it. Cut off anywhere, the same can be done again."""
    ledger, place, store_name = context.ledger, context.place, context.config.vector_store
    refuse_while_jobs_are_open(ledger, generation)
    collect_all(place, ledger, context.clock, {})
    settle_intents(ledger, context.clock)
    if store_name not in (_IN_FILES, "none") and generation.dimensions:
        opened = open_store(place, ledger, context.config, generation)
        try:
            opened.clear()
        finally:
            opened.close()
    with ledger.transaction():
        names = ledger.drop_files("embeddings", generation.id)
        ledger.drop_spans("embedded", generation.id)
        jobs = forget_progress(ledger, generation, "its embeddings were dropped")
        for store in STORES:  # of one that is out of reach now is known what it may still hold
            scope = scope_of(store, generation)
            for field in ledger.fields() if store not in (_IN_FILES, store_name) else ():
                ledger.add_spans(STALE, scope, field, ledger.spans("indexed", scope, field))
            for state in _THERE if store in (_IN_FILES, store_name) else ("indexed",):
                ledger.drop_spans(state, scope)
    delete_tables(place, names)
    delete_index_files(place, generation.id)
    delete_job_files(context, jobs)
