"""Polling: the service's word about each open job, kept beside our state. Nothing is downloaded here."""

from __future__ import annotations

import contextlib
import logging

from pipeline.context import Context
from pipeline.errors import ServiceError
from pipeline.ledger import Job
from pipeline.log import event, logger
from pipeline.provider.batch_client import BatchClient, GoneError, RemoteBatch

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
USUAL = frozenset({"validating", "in_progress", "finalizing", "completed"})
KNOWN = ENDED | USUAL | {"cancelling"}
TROUBLES_MEAN_DOWN = 3
LOOKS_AGAIN = (2.0, 10.0, 30.0)  # seconds before each further look at a batch that is not shown
LATE_SECONDS = 7200.0  # so long past its expiry, a job that still runs is stuck
OVER_LIMIT = ("token_limit_exceeded", "request_limit_exceeded")  # too much waits at the service; no row is to blame
_log = logger(__name__)


def poll(context: Context, client: BatchClient) -> list[Job]:
    """Look at every open job; those that have ended are given back, ready to be collected.

    A job that can't be looked at now holds up no other; after some of them the service is down, and that is raised.
    """
    ended: list[Job] = []
    troubles: list[ServiceError] = []
    for job in context.jobs_here(("open", "lost")):
        if job.state == "lost" and job.status in ENDED:
            # Its results are gone at the service, and no look brings them back; but whoever has the file may bring it.
            if (context.place.data / job.result_name).exists():
                ended.append(context.ledger.jobs.change(job.id, state="ended", reason=None))
            continue
        try:
            found = _look(context, client, job)
        except GoneError as problem:
            if job.state != "lost" and _is_young(context, client, job):
                context.ledger.jobs.change(job.id, reason=f"the service does not show {job.batch} yet")
            elif job.state != "lost":
                words = f"the service does not know {job.batch} any more ({problem})"
                context.ledger.jobs.change(job.id, state="lost", reason=words)
                event(_log, "job.lost", job=job.id, remote=job.batch)
            continue
        except ServiceError as problem:
            troubles.append(problem)
            if len(troubles) == TROUBLES_MEAN_DOWN:
                break
            continue
        after = _record(context, client, job, found)
        if after.state == "ended":
            ended.append(after)
    if troubles:
        raise troubles[0]
    return ended


def _look(context: Context, client: BatchClient, job: Job) -> RemoteBatch:
    """The batch of a job. A service that does not show it is asked again before it is believed; a job that is lost already
    gets one look in each command, and comes back with it."""
    batch = job.batch or ""
    try:
        return client.retrieve(batch)
    except GoneError:
        if job.state == "lost" or _is_young(context, client, job):
            raise
    for wait in LOOKS_AGAIN[:-1]:
        context.clock.sleep(wait)
        with contextlib.suppress(GoneError):
            return client.retrieve(batch)
    context.clock.sleep(LOOKS_AGAIN[-1])
    return client.retrieve(batch)


def _is_young(context: Context, client: BatchClient, job: Job) -> bool:
    """Made so lately that the service may not show it yet."""
    return client.now() - (job.created_at or 0.0) < context.config.create_grace_seconds


def _record(context: Context, client: BatchClient, job: Job, found: RemoteBatch) -> Job:
    if found.status != job.status:
        # Hundreds of jobs go their way in days: only what is out of the ordinary is told by itself.
        level = logging.DEBUG if found.status in USUAL else logging.INFO
        facts = {"job": job.id, "remote": found.id, "status": found.status, "done": found.completed, "of": found.total}
        event(_log, "job.status", level=level, **facts)
    reason = None
    if found.status not in ENDED and found.expires_at is not None and client.now() > found.expires_at + LATE_SECONDS:
        reason = f"stuck: two hours past its expiry; give it up with: python batch_manager.py --cancel {job.id}"
    elif found.status not in KNOWN:
        reason = f"the status {found.status!r} is not known to this version; taken for in progress"
    elif found.errors:
        code, message, line = found.errors[0]
        reason = f"{code}: {message}" + (f" (line {line})" if line is not None else "")
    news: dict[str, object] = {
        "state": "ended" if found.status in ENDED else "open",
        "status": found.status,
        "output_file": found.output_file,
        "error_file": found.error_file,
        "embedded": found.completed,
        "failed": found.failed,
        "expires_at": found.expires_at,
        "ended_at": client.now() if found.status in ENDED else None,
        "reason": reason,
    }
    if all(getattr(job, name) == value for name, value in news.items()):
        return job  # most looks find nothing new, and a commit is a wait for the disk
    return context.ledger.jobs.change(job.id, **news)


def is_stuck(job: Job) -> bool:
    """At the service long past its expiry: it counts no more, and a person decides."""
    return job.state == "open" and (job.reason or "").startswith("stuck")
