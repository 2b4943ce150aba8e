"""Before the first create of a command: does the service know batches of this catalogue that this ledger does not?

An older ledger in the place of a newer one, a copy of the folder in use beside it, or a catalogue begun anew because its
folder was lost, would pay for everything again. Newest first, one page of the list mostly tells: what is older than a batch
of this ledger was looked at when that one was made. A ledger that never created a job also compares the very requests. A
batch that the list still hides is not seen here.
"""

from __future__ import annotations

import itertools

from pipeline.context import Context
from pipeline.errors import UserError
from pipeline.ledger import Job
from pipeline.ledger.jobs import UNSENT
from pipeline.log import event, logger
from pipeline.provider.batch_client import BatchClient, RemoteBatch

_OVER = ("failed", "expired", "cancelled")
_log = logger(__name__)


def strange_batches(context: Context, client: BatchClient) -> dict[str, RemoteBatch]:
    """sha256 of the requests → a batch that did or does them, made by a ledger that is not this one; only for a ledger without a
    job. UserError when there is one of this very catalogue."""
    if context.agreed:
        return {}
    jobs = context.ledger.jobs.all()
    unsent = {job.id for job in jobs if job.batch is None and job.state in (*UNSENT, "returned")}
    following = context.ledger.jobs.next_number()
    is_first = len(jobs) == len(unsent) == following - 1
    known = {job.batch for job in jobs if job.batch is not None}
    newer = list(itertools.takewhile(lambda batch: batch.id not in known, client.batches()))
    worth = [batch for batch in newer if batch.status not in _OVER or batch.completed]
    ours = [batch for batch in worth if _is_unknown(batch, context.ledger.meta("catalogue_id") or "", unsent, following)]
    if ours:
        raise UserError(
            f"The service has {len(ours)} batches of this very catalogue that this ledger does not know ({ours[0].id} and its "
            "like): it is older than they are, or a copy of its folder is in use elsewhere. Nothing was submitted. Go on with that "
            f"copy, or move {context.ledger.path} aside, and: python main.py --restore-ledger"
        )
    return {batch.metadata.get("sha256", ""): batch for batch in worth} if is_first else {}


def _is_unknown(batch: RemoteBatch, catalogue: str, unsent: set[int], following: int) -> bool:
    """Made for a job that this ledger never sent. Of a job that it did send, `adopt.py` knows all the batches."""
    said = batch.metadata.get("job", "")
    number = int(said) if said.isascii() and said.isdigit() else following
    return batch.metadata.get("catalogue_id") == catalogue and (number in unsent or number >= following)


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
