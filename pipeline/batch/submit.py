"""Submitting: which jobs may go now, their upload, and the one create that each of them gets.

Before a create its intent is in the ledger, with the service's file id: after a lost reply or a kill, `adopt.py` finds
the batch by that id. Admission knows five limits: requests, tokens and batches enqueued, creations an hour, free disk.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.batch.poll import is_stuck
from pipeline.batch.prepare import Room, next_job
from pipeline.batch.strangers import refuse_paid_twice, strange_batches
from pipeline.context import Context
from pipeline.errors import BudgetError, DiskError, NamesakeError, ServiceError
from pipeline.files import free_bytes
from pipeline.interrupts import Interrupts
from pipeline.ledger import Generation, Job
from pipeline.ledger.jobs import ON_THE_WIRE, UNSENT
from pipeline.log import event, logger
from pipeline.pending import estimate, pending
from pipeline.provider.batch_client import BatchClient, GoneError, NotNowError, RefusedError, ReplyLostError
from pipeline.provider.batch_limits import BatchLimits, batch_limits
from pipeline.provider.prices import usd

if TYPE_CHECKING:
    import duckdb

HOUR = 3600.0
_BYTES_A_NUMBER = {"base64": 16 / 3, "float": 21.0}  # of a vector's number in a result file
_log = logger(__name__)


@dataclass(slots=True)
class Submitted:
    """What went, and why no more did."""

    jobs: list[Job]
    waits_for: str = ""
    stop: NamesakeError | None = None


def submit(context: Context, client: BatchClient, duck: duckdb.DuckDBPyConnection, generation: Generation) -> Submitted:
    """Send jobs until a limit says wait, or nothing is pending. Jobs prepared by an earlier run go first."""
    done = Submitted([])
    try:
        # Those of another model wait for a config that means that model: this client speaks to another service, perhaps.
        left = [job for job in context.ledger.jobs.all(("prepared", "uploaded")) if job.generation == generation.id]
        # Before a request file is written: a newer ledger than this one may have left one of the same number.
        strangers = strange_batches(context, client) if left or _is_pending(context, duck, generation) else {}
        uploaded = _uploaded(client) if any(job.input_file is None for job in left) else {}
        for earlier in left:
            refuse_paid_twice(earlier, strangers)
            done.jobs.append(_send(context, client, earlier, uploaded))
        while True:
            room, waits_for = admission(context, generation)
            if waits_for:
                done.waits_for = waits_for
                break
            job = next_job(context, duck, generation, room)
            if job is None:
                if _is_pending(context, duck, generation):
                    what = "the next string does not fit what is left of the limits (openai_tier, max_enqueued_tokens)"
                    if not context.ledger.jobs.all(ON_THE_WIRE):  # and nothing will ever leave more
                        raise ServiceError(f"{what}. Raise them, or: python batch_manager.py --finish-realtime")
                    done.waits_for = what
                break
            refuse_paid_twice(job, strangers)
            done.jobs.append(_send(context, client, job, {}))
    except ReplyLostError as problem:
        done.waits_for = f"{problem}; the next look at the service's list settles it"
    except NamesakeError as problem:
        done.stop = problem
    return done


def _is_pending(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation) -> bool:
    return any(pending(context, duck, generation, name) for name in context.fields)


def admission(context: Context, generation: Generation) -> tuple[Room, str]:
    """The room for one more job, or what it waits for."""
    limits: BatchLimits = batch_limits(context.config)
    jobs = context.ledger.jobs
    there = [job for job in jobs.all(("creating", "open")) if not is_stuck(job)]
    now = context.clock.now()
    requests = limits.enqueued_requests - sum(job.requests for job in there)
    tokens = limits.enqueued_tokens - sum(job.tokens for job in there if job.generation == generation.id)
    ceiling = context.ledger.meta("job_token_ceiling")
    room = Room(
        requests=min(limits.requests_a_job, requests, _disk_room(context, generation, there)),
        bytes=limits.bytes_a_job,
        tokens=tokens,
        wish=int(ceiling) if ceiling else None,
    )
    if len(there) >= limits.active_batches:
        return room, f"{len(there)} jobs are at the service, as many as may be at once (max_active_batches)"
    if jobs.created_since(now - HOUR) >= limits.creations_an_hour:
        return room, f"{limits.creations_an_hour:,} jobs were created within the last hour"
    if there and _is_scant(room, limits):
        return room, "the limit of enqueued requests or tokens is reached (openai_tier, max_enqueued_tokens)"
    return room, ""


def _is_scant(room: Room, limits: BatchLimits) -> bool:
    """Room for less than a twentieth of a job: waiting makes fewer and fuller jobs."""
    tokens = room.tokens if room.wish is None else min(room.tokens, room.wish)
    return room.is_none or room.requests < limits.requests_a_job // 20 or tokens < limits.enqueued_tokens // 20


def _disk_room(context: Context, generation: Generation, there: list[Job]) -> int:
    """How many more results fit on the disk beside those that are still to come; twice: as text and as vectors."""
    a_result = (generation.dimensions or 1536) * (_BYTES_A_NUMBER[context.service.encoding_format] + 4 + 4) + 1000
    to_come = sum(job.requests for job in there)
    fit = int(free_bytes(context.place.data) * 0.9 / a_result) - to_come
    if fit < 1:
        raise DiskError(
            f"{context.place.data}: the disk has no room for the results of another job ({to_come:,} results are still to come). "
            "Nothing more was submitted. Free some space and run the same command again."
        )
    return fit


def check_budget(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation) -> None:
    """Before the first create of a command: all that is pending must fit the budget, or nothing is sent."""
    price = context.service.job_price
    if not price:
        return
    tokens = sum(estimate(context, duck, generation, name, exact=context.service.is_exact).tokens for name in context.fields)
    tokens += sum(job.tokens for job in context.ledger.jobs.all(UNSENT) if job.generation == generation.id)
    spent, needed, budget = context.ledger.spent_usd(), usd(tokens, price), context.config.budget_usd
    if spent + needed > budget:
        raise BudgetError(
            f"budget_usd is {budget:g}: ${spent:.4f} is spent or on its way, and what is pending would cost ${needed:.4f} by batch "
            f"({tokens:,} tokens). Nothing was submitted. Raise budget_usd, or try a part: --limit N or --fields a,b"
        )


def _send(context: Context, client: BatchClient, job: Job, uploaded: dict[tuple[str, int], str]) -> Job:
    """Upload what is not uploaded, then create, once."""
    jobs = context.ledger.jobs
    catalogue = context.ledger.meta("catalogue_id") or ""
    if job.input_file is None:
        path = context.place.data / job.request_name
        found = uploaded.get((job.remote_name(catalogue), job.bytes))
        job = jobs.change(job.id, state="uploaded", input_file=found or client.upload(path, job.remote_name(catalogue)))
    waits = context.policy.waits()
    while True:
        asked_at = client.now()
        try:
            with held_back():
                job = jobs.change(job.id, state="creating", intent_at=asked_at)
                return create(context, client, job)
        except NotNowError as problem:
            client.pause(problem, waits)


def held_back() -> AbstractContextManager[None]:
    """From the intent to the reply an interrupt waits, since it would leave a doubt. A second one does not: a service may hang."""
    return Interrupts(only_the_first=True).held_back()


def create(context: Context, client: BatchClient, job: Job) -> Job:
    """The create of a job whose intent is in the ledger."""
    jobs = context.ledger.jobs
    metadata = {
        "catalogue_id": context.ledger.meta("catalogue_id") or "", "job": str(job.id), "sha256": job.sha256, "program": "namesake",
    }  # fmt: skip
    try:
        made = client.create(job.input_file or "", metadata)
    except ReplyLostError:
        raise
    except (RefusedError, GoneError):  # "cannot find file", right after an upload or after its expiry: it is uploaded again
        jobs.change(job.id, state="prepared", input_file=None, intent_at=None)
        raise
    except ServiceError:  # quota, key, not now: nothing was made, and the file is still there
        jobs.change(job.id, state="uploaded", intent_at=None)
        raise
    job = jobs.change(
        job.id, state="open", batch=made.id, status=made.status, created_at=made.created_at, expires_at=made.expires_at, reason=None
    )
    event(_log, "job.submitted", level=logging.DEBUG, job=job.id, remote=made.id, requests=job.requests)
    return job


def _uploaded(client: BatchClient) -> dict[tuple[str, int], str]:
    """(name, size) → id of the files at the service: a kill may have come between an upload and its record."""
    return {(file.name, file.bytes): file.id for file in client.files()}
