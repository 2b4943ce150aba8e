"""`batch_deadline_hours`: when the pending work has waited too long, open jobs are cancelled and harvested, and the late
rest goes through real time.

The hours count from the first create of the work that is pending now. What real time costs is the command's to show
before it begins; the budget is checked there as for every real-time run.
"""

from __future__ import annotations

from pipeline.context import Context
from pipeline.log import event, logger
from pipeline.provider.batch_client import BatchClient

_SINCE = "batch_work_since"
_log = logger(__name__)


def note_work(context: Context, *, is_left: bool) -> None:
    """Remember when the work began that is still at the service; forget it once nothing is left."""
    since = context.ledger.meta(_SINCE)
    if not is_left:
        if since:
            context.ledger.set_meta(_SINCE, "")
    elif not since:
        first = min(
            (job.intent_at or job.prepared_at for job in context.ledger.jobs.all(("creating", "open", "ended"))), default=None
        )
        if first is not None:
            context.ledger.set_meta(_SINCE, str(first))


def is_past(context: Context, client: BatchClient) -> bool:
    """Whether the pending work has waited longer than the user wants, by the service's clock: ours may have been set."""
    hours, since = context.config.batch_deadline_hours, context.ledger.meta(_SINCE)
    return hours is not None and bool(since) and client.now() - float(since or 0) > hours * 3600


def cancel_open(context: Context, client: BatchClient) -> int:
    """Cancel what is open; how many jobs that was. Their partial output is collected like any other."""
    cancelled = 0
    for job in context.jobs_here(("open",)):
        if job.status != "cancelling":
            found = client.cancel(job.batch or "")
            context.ledger.jobs.change(job.id, status=found.status)
            event(_log, "job.late", job=job.id, remote=job.batch, status=found.status)
            cancelled += 1
    return cancelled
