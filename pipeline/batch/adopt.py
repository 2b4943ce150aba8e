"""After a doubt: is there a batch for this job at the service? The service's own list says, not our memory.

A job in "creating" has an intent and no batch id: its reply was lost, or we were killed. A batch with its input file
or its metadata is adopted. If none shows in two listings, and the intent is older than the grace period by the
service's clock, the create is sent again. Two found: the older stays, the other is cancelled, both are told.
"""

from __future__ import annotations

from pipeline import spans as span_sets
from pipeline.batch.submit import create, held_back
from pipeline.context import Context
from pipeline.errors import ServiceError
from pipeline.ledger import Intent, Job
from pipeline.log import event, logger
from pipeline.provider.batch_client import BatchClient, RemoteBatch, ReplyLostError

_log = logger(__name__)


def settle_doubts(context: Context, client: BatchClient, *, wait: bool, repeat: bool = True) -> list[Job]:
    """Settle every job in doubt; those that are still in doubt are given back.

    `wait`: sleep the grace period out. `repeat`: a create may be sent again; without it, this costs nothing, and a job whose
    create never arrived is one that waits to be submitted.
    """
    doubtful = context.jobs_here(("creating",))
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
    return [job for job in left if not _repeat(context, client, job, repeat=repeat)]


def batches_of(job: Job, catalogue: str, listed: list[RemoteBatch]) -> list[RemoteBatch]:
    """The batches that were made for a job, the oldest first: known by id, by input file, or by what their metadata says."""
    said = (catalogue, str(job.id), job.sha256)
    return sorted(
        (
            batch
            for batch in listed
            if batch.id == job.batch
            or batch.input_file == job.input_file
            or tuple(batch.metadata.get(name) for name in ("catalogue_id", "job", "sha256")) == said
        ),
        key=lambda batch: (batch.created_at, batch.id),
    )


def _adopt(context: Context, client: BatchClient, job: Job, listed: list[RemoteBatch]) -> bool:
    found = batches_of(job, context.ledger.meta("catalogue_id") or "", listed)
    if not found:
        return False
    oldest, *others = found
    words = [f"{other.id} ({client.cancel(other.id).status})" for other in others]
    with context.ledger.transaction():
        for word in words:
            reason = f"job {job.id} has two batches: {oldest.id} stays, and {word} is not collected"
            book_as_paid_twice(context, job, reason)
            context.say(f"  {reason[:1].upper()}{reason[1:]}; its strings are listed as possibly paid twice")
        context.ledger.jobs.change(
            job.id,
            state="open",
            batch=oldest.id,
            status=oldest.status,
            created_at=oldest.created_at,
            expires_at=oldest.expires_at,
            reason=None,
        )
    event(_log, "job.adopted", job=job.id, remote=oldest.id, others=len(others))
    return True


def _repeat(context: Context, client: BatchClient, job: Job, *, repeat: bool) -> bool:
    """Create again, when the intent is old enough and a second listing does not show the batch either."""
    if client.now() - (job.intent_at or 0.0) < context.config.create_grace_seconds:
        return False
    if _adopt(context, client, job, list(client.batches())):
        return True
    if job.input_file is None:  # of a restored ledger: its file never reached the service, or is not known to have
        context.ledger.jobs.change(job.id, state="prepared", intent_at=None)
        return True
    if not repeat:  # in real-time mode nobody else would ever settle it, and its strings would wait for ever
        context.ledger.jobs.change(job.id, state="uploaded", intent_at=None)
        return True
    job = context.ledger.jobs.change(job.id, intent_at=client.now())
    event(_log, "job.created_again", job=job.id)
    try:
        with held_back():
            create(context, client, job)
    except ReplyLostError:
        return False
    except ServiceError as problem:
        # The job is unsent again, and submitting it tells why; what is finished must not wait for that.
        event(_log, "job.refused", job=job.id, reason=str(problem))
    return True


def book_as_paid_twice(context: Context, job: Job, reason: str) -> None:
    """The strings of a job as possibly paid twice, each field with its part of the tokens."""
    for name, spans in context.ledger.jobs.rows(job.id).items():
        count = span_sets.count(spans)
        tokens = round(job.tokens * count / job.requests)
        intent = Intent(job.generation, name, spans, count, tokens, tokens * job.price / 1_000_000)
        context.ledger.add_doubt(intent, reason, context.clock.now())
