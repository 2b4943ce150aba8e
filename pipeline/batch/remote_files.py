"""Our files at the service: which of them are there, which may go, and deleting them with a receipt for each.

Ours is what the ledger knows by its id, what carries our catalogue's name, and what a batch with our metadata made. A file
may go when its job is over here: collected, or given back by the service. What belongs to any other job stays, a lost one
included, for a lost job may come home. Batches themselves can't be deleted: no service has a call for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.batch.collect import delete_file
from pipeline.batch.poll import ENDED
from pipeline.context import Context
from pipeline.errors import ServiceError
from pipeline.ledger import Job
from pipeline.progress import Bar
from pipeline.provider.batch_client import BatchClient, RefusedError

_OVER = ("collected", "returned")
_NAME = re.compile(r"(?P<catalogue>[0-9a-f]+)_batch_requests_(?P<number>[0-9]{4,})\.jsonl")


@dataclass(frozen=True, slots=True)
class RemoteOurs:
    """A file of ours at the service. `role`: input, output or error."""

    id: str
    job: int
    role: str


@dataclass(slots=True)
class Inventory:
    """What may be deleted, and what stays and why, in words."""

    files: list[RemoteOurs] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Deleted:
    """file → what the service answered; and the files that it would not delete."""

    answers: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def job_of(name: str, catalogue: str) -> int | None:
    """The job of a request file at the service, by its name; None when it is not one of this catalogue."""
    found = _NAME.fullmatch(name)
    return int(found["number"]) if found is not None and found["catalogue"] == catalogue else None


def take_stock(context: Context, client: BatchClient) -> Inventory:
    """What of ours the service may have, by the ledger and by its own lists; files with a receipt are not asked for again."""
    ledger, found = context.ledger, Inventory()
    known = {job.id: job for job in (*(job for job, _ in ledger.jobs.past()), *ledger.jobs.all())}
    over = {number: job for number, job in known.items() if job.state in _OVER and context.is_here(job)}
    unfinished = [job for job in known.values() if job.state not in _OVER]
    needed = {file for job in unfinished for file in job.remote_files.values()}
    done = ledger.runs.receipts()
    ours: dict[str, RemoteOurs] = {}
    strange: set[int] = set()
    announced = (RemoteOurs(one.file, one.job, one.role) for one in ledger.runs.announced())  # by a run that was killed
    for file in (*_known(over), *announced, *_by_name(context, client), *_by_metadata(context, client)):
        if file.id not in done and file.id not in needed and file.job in over:
            ours.setdefault(file.id, file)
        elif file.id not in done and file.job not in known:
            strange.add(file.job)
    found.files = sorted(ours.values(), key=lambda file: (file.job, file.role, file.id))
    found.stays += [f"the files of job {job.id}, which is {job.state}: {_way(job)}" for job in unfinished if job.remote_files]
    found.stays += [f"what there is of job {number}, which this ledger does not know" for number in sorted(strange)]
    found.stays += [
        f"the files of job {job.id}: they are at another service than {context.service.name}; set embedding_service to it"
        for job in known.values()
        if job.state in _OVER and job.remote_files and not job.cleaned and not context.is_here(job)
    ]
    return found


def _way(job: Job) -> str:
    if job.state == "lost":
        return "python batch_manager.py --retry-failed --yes gives it up"
    return "python batch_manager.py --download, when it is finished"


def _known(over: dict[int, Job]) -> Iterator[RemoteOurs]:
    for job in over.values():
        for role, file in job.remote_files.items():
            yield RemoteOurs(file, job.id, role)


def _by_name(context: Context, client: BatchClient) -> Iterator[RemoteOurs]:
    """Request files: an upload whose reply was lost was sent again, and left one that no job names."""
    catalogue = context.ledger.meta("catalogue_id") or ""
    for file in client.files():
        number = job_of(file.name, catalogue)
        if number is not None:
            yield RemoteOurs(file.id, number, "input")


def _by_metadata(context: Context, client: BatchClient) -> Iterator[RemoteOurs]:
    """Files of a second batch of a job, which was cancelled and never collected; the first brought the same strings."""
    catalogue = context.ledger.meta("catalogue_id") or ""
    for batch in client.batches():
        said = batch.metadata.get("job", "")  # a number, unless somebody else wrote it
        if batch.metadata.get("catalogue_id") == catalogue and said.isascii() and said.isdigit() and batch.status in ENDED:
            for role, file in (("input", batch.input_file), ("output", batch.output_file), ("error", batch.error_file)):
                if file:
                    yield RemoteOurs(file, int(said), role)


def delete_all(context: Context, client: BatchClient, files: list[RemoteOurs], bar: Bar) -> Deleted:
    """Delete file by file; all are announced before, and each receipt is durable before the next: this can end anywhere."""
    done = Deleted()
    context.ledger.runs.announce(((file.id, file.job, file.role) for file in files), context.clock.now())
    for file in files:
        try:
            done.answers[file.id] = delete_file(context, client, file.id, file.job, file.role)
        except RefusedError as problem:  # of this file; another may go
            done.refused[file.id] = str(problem)
        except ServiceError as problem:
            raise ServiceError(
                f"{context.service.name}: {problem}. {len(done.answers)} of {len(files)} files are deleted and have their "
                "receipts; run the same command again to go on."
            ) from problem
        bar.advance(1)
    receipts = context.ledger.runs.receipts()
    for job in context.ledger.jobs.all(_OVER):
        if not job.cleaned and job.remote_files and all(file in receipts for file in job.remote_files.values()):
            context.ledger.jobs.change(job.id, cleaned=1)
    return done
