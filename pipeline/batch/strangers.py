"""Before the first create of a ledger that never created a job: does the service know this catalogue, or its very requests?

An older ledger in the place of a newer one, or a catalogue begun anew because its folder was lost, would pay for
everything again. One listing tells; a ledger that has a batch of its own is not asked again.
"""

from __future__ import annotations

from pipeline.context import Context
from pipeline.errors import UserError
from pipeline.ledger import Job
from pipeline.ledger.jobs import UNSENT
from pipeline.log import event, logger
from pipeline.provider.batch_client import BatchClient, RemoteBatch

_OVER = ("failed", "expired", "cancelled")
_log = logger(__name__)


def strange_batches(context: Context, client: BatchClient) -> dict[str, RemoteBatch]:
    """sha256 of the requests → a batch that did or does them, made by a ledger that is not this one. UserError when it was
    made for this very catalogue."""
    jobs = context.ledger.jobs.all()
    is_first = len(jobs) == context.ledger.jobs.next_number() - 1 and all(
        job.batch is None and job.state in (*UNSENT, "returned") for job in jobs
    )
    if not is_first or context.agreed:
        return {}
    worth = [batch for batch in client.batches() if batch.status not in _OVER or batch.completed]
    ours = [batch for batch in worth if batch.metadata.get("catalogue_id") == context.ledger.meta("catalogue_id")]
    if ours:
        raise UserError(
            f"The service has {len(ours)} batches of this very catalogue ({ours[0].id} and its like), and this ledger knows of no "
            f"job: it is older than they are. Nothing was submitted. Move {context.ledger.path} aside, and: python main.py "
            "--restore-ledger"
        )
    return {batch.metadata.get("sha256", ""): batch for batch in worth}


def refuse_paid_twice(job: Job, strangers: dict[str, RemoteBatch]) -> None:
    """UserError when the requests of a job were sent before, by a catalogue of another name."""
    same = strangers.get(job.sha256)
    if same is None:
        return
    event(_log, "job.known_elsewhere", job=job.id, remote=same.id)
    raise UserError(
        f"The service has a batch with exactly the requests of job {job.id}: {same.id} ({same.status}), made for the catalogue "
        f"{same.metadata.get('catalogue_id')}. It is paid, and this catalogue, which has no job yet, would pay again. Nothing "
        "was submitted. If the checkpoint folder of that catalogue was lost: bring it back from a backup, its "
        "ledger.copy.sqlite at least, and: python main.py --restore-ledger. If it lies elsewhere: set checkpoint_dir to it, and "
        "once it was moved: python main.py --take-over. To pay for it all the same: the same command with --yes"
    )
