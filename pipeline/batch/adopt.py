"""After a doubt: is there a batch for this job at the service? The service's own list says, not our memory.

A job in "creating" has an intent and no batch id: its reply was lost, or we were killed. A batch with its input file
or its metadata is adopted. If none shows in two listings, and the intent is older than the grace period by the
service's clock, the create is sent again. Two found: the older stays, the other is cancelled, both are told.
"""

from __future__ import annotations

from pipeline.batch.submit import create
from pipeline.context import Context
from pipeline.ledger import Job
from pipeline.log import event, logger
from pipeline.provider.batch_client import BatchClient, RemoteBatch

_log = logger(__name__)


def settle_doubts(context: Context, client: BatchClient, *, wait: bool) -> list[Job]:
    """Settle every job in doubt; those that are still in doubt are given back. `wait`: sleep the grace period out."""
    doubtful = context.ledger.jobs.all(("creating",))
    if not doubtful:
        return []
    listed = list(client.batches())
    left = [job for job in doubtful if not _adopt(context, client, job, listed)]
    if wait and left:
        due = max(job.intent_at or 0.0 for job in left) + context.config.create_grace_seconds
        while (remaining := due - client.now()) > 0:
            context.clock.sleep(min(remaining, 30.0))
            listed = list(client.batches())
            left = [job for job in left if not _adopt(context, client, job, listed)]
    return [job for job in left if not _repeat(context, client, job)]


def _adopt(context: Context, client: BatchClient, job: Job, listed: list[RemoteBatch]) -> bool:
    catalogue = context.ledger.meta("catalogue_id")
    found = [
        batch
        for batch in listed
        if batch.input_file == job.input_file
        or (batch.metadata.get("catalogue_id"), batch.metadata.get("job")) == (catalogue, str(job.id))
    ]
    if not found:
        return False
    oldest, *others = sorted(found, key=lambda batch: (batch.created_at, batch.id))
    reason = None
    if others:
        for other in others:
            client.cancel(other.id)
        reason = f"found {len(found)} batches; {', '.join(other.id for other in others)} cancelled"
    context.ledger.jobs.change(
        job.id,
        state="open",
        batch=oldest.id,
        status=oldest.status,
        created_at=oldest.created_at,
        expires_at=oldest.expires_at,
        reason=reason,
    )
    event(_log, "job.adopted", job=job.id, remote=oldest.id, others=len(others))
    return True


def _repeat(context: Context, client: BatchClient, job: Job) -> bool:
    """Create again, when the intent is old enough and a second listing does not show the batch either."""
    if client.now() - (job.intent_at or 0.0) < context.config.create_grace_seconds:
        return False
    if _adopt(context, client, job, list(client.batches())):
        return True
    job = context.ledger.jobs.change(job.id, intent_at=client.now())
    event(_log, "job.created_again", job=job.id)
    create(context, client, job)
    return True
