"""Jobs that the copy knows too little of, or not at all: from request files, and from the service's own list.

A request file says which rows it asks for, and its CRC32s prove the texts. The list says whether there is a batch for it,
and how far that is. What has ended is left for the next run to collect, as ever: from the result file if it is here, so
that nothing is downloaded for nothing. A job without a batch in the list is in doubt, which `batch/adopt.py` settles:
nothing is created because of a restore that would not have been created without one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline import spans as span_sets
from pipeline.batch.adopt import batches_of
from pipeline.batch.poll import ENDED
from pipeline.context import Context
from pipeline.errors import CheckpointError, ServiceError
from pipeline.files import publish, sha256_of, temporary
from pipeline.identity import crc32_of, parse_custom_id
from pipeline.indexing import string_files
from pipeline.ledger import Generation, Job, Spending
from pipeline.ledger.jobs import UNCOLLECTED
from pipeline.provider.batch_client import MOST_REQUEST_FILE, BatchClient, GoneError, RemoteBatch
from pipeline.provider.service import generation_of
from pipeline.provider.tokens import count_tokens
from pipeline.restoring.texts import learn_strings
from pipeline.spans import Spans
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb

_NUMBERED = re.compile(r"batch_(requests|results|errors)_([0-9]{4,})\.jsonl")
_REMOTE = re.compile(r"_batch_requests_([0-9]{4,})\.jsonl")


class _Body(msgspec.Struct):
    model: str
    input: str
    dimensions: int | None = None


class _Request(msgspec.Struct):
    custom_id: str
    body: _Body


@dataclass(slots=True)
class FromJobs:
    """What became of the jobs. `booked`: numbers of jobs whose money is in the books, or will be when they are collected."""

    new: int = 0
    strings: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    booked: set[int] = field(default_factory=set)
    rows: dict[tuple[str, str], Spans] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def has_jobs(context: Context, made_by_jobs: bool) -> bool:
    """Whether there is any sign of a batch, ever: then the service must be asked, or something might be paid twice."""
    return made_by_jobs or context.ledger.jobs.next_number() > 1 or any(_numbers(context.place.data))


def _numbers(root: Path) -> Iterator[int]:
    return (int(found[2]) for path in root.iterdir() if (found := _NUMBERED.fullmatch(path.name)))


class JobsAgain:
    """The jobs of the draft, brought to what the service says of them."""

    def __init__(self, context: Context, duck: duckdb.DuckDBPyConnection, client: BatchClient, collected: set[int]) -> None:
        self._context = context
        self._ledger = context.ledger
        self._duck = duck
        self._client = client
        self._collected = collected  # jobs that an adopted embeddings file says it was made of
        self._catalogue = context.ledger.meta("catalogue_id") or ""
        self._found = FromJobs()

    def restore(self) -> FromJobs:
        """Ask the service, enter the jobs that are missing, and settle the state of each."""
        self._refuse_other_services()
        first_new = self._ledger.jobs.next_number()
        try:
            listed = list(self._client.batches())
            files = {(file.name, file.bytes): file.id for file in self._client.files()}
        except ServiceError as problem:
            raise ServiceError(
                f"There were batch jobs, and the service can't be asked which of them it has ({problem}). Without its list the "
                "restored ledger might pay for them again. Nothing was changed; type the same again when the service answers."
            ) from problem
        ours = {number: batch for batch in listed if (number := self._number_of(batch))}
        remote = [int(found[1]) for name, _ in files if name.startswith(self._catalogue) and (found := _REMOTE.search(name))]
        here = set(_numbers(self._context.place.data))
        new = sorted(number for number in here | set(ours) if number >= first_new)
        requests = {number: path for number in new if (path := self._requests_of(number, ours.get(number))) is not None}
        self._found.strings = learn_strings(self._context, self._duck, requests.values())
        for number, path in requests.items():
            self._enter(number, path, ours.get(number))
        self._ledger.jobs.reserve_numbers(max([0, *here, *ours, *remote]))
        for job in self._ledger.jobs.all(UNCOLLECTED):
            batches = batches_of(job, self._catalogue, listed)
            input_file = job.input_file or files.get((job.remote_name(self._catalogue), job.bytes))
            self._settle(replace(job, input_file=input_file), batches)
        for job in self._ledger.jobs.all():
            self._found.states[job.state] = self._found.states.get(job.state, 0) + 1
        return self._found

    def _refuse_other_services(self) -> None:
        for job in self._ledger.jobs.all(UNCOLLECTED):
            generation = self._ledger.generation(job.generation)
            if generation is not None and generation.service != self._context.service.name:
                raise CheckpointError(
                    f"Job {job.id} is one of {generation.service}, and the config names {self._context.service.name}: its list "
                    "would say nothing. Nothing was changed. Set embedding_service back, restore, and then change it again."
                )

    def _number_of(self, batch: RemoteBatch) -> int:
        said = batch.metadata.get("job", "")
        return int(said) if batch.metadata.get("catalogue_id") == self._catalogue and said.isascii() and said.isdigit() else 0

    def _requests_of(self, number: int, batch: RemoteBatch | None) -> Path | None:
        """The request file of a job that the copy does not know; the service may still have it."""
        path = self._context.place.data / f"batch_requests_{number:04d}.jsonl"
        try:
            if batch is not None and not _is_whole(path, batch.metadata.get("sha256")):
                self._client.download(batch.input_file, temporary(path), MOST_REQUEST_FILE)
                publish(path)
        except GoneError as problem:
            self._without_requests(path, batch, str(problem))
            return None
        return path if path.exists() else None

    def _enter(self, number: int, path: Path, batch: RemoteBatch | None) -> None:
        """A job that the copy does not know, from its requests."""
        try:
            job, rows = self._job_of(path, number)
        except ValueError as problem:
            self._without_requests(path, batch, str(problem))
            return
        self._ledger.jobs.add(job, rows)
        self._found.new += 1

    def _without_requests(self, path: Path, batch: RemoteBatch | None, problem: str) -> None:
        """Nobody can say which rows these are. A batch that is over, and whose input we deleted, was collected and cleaned up;
        what it cost is booked all the same."""
        if path.exists():
            self._found.aside[path.name] = problem
        if batch is None:
            return
        number = self._number_of(batch)
        if batch.status not in ENDED or (batch.output_file is not None and self._client.has(batch.output_file)):
            self._found.lost.append(f"job {number} ({batch.id}, {batch.status}): {path.name} is not usable ({problem})")
            return
        generation = generation_of(self._context.service, self._ledger)
        tokens = batch.tokens or 0
        usd = tokens * self._context.service.job_price / 1_000_000
        self._ledger.spend(Spending(generation.id, "", "batch", batch.completed, tokens, usd), number)
        if batch.tokens is not None:
            self._found.booked.add(number)

    def _job_of(self, path: Path, number: int) -> tuple[Job, dict[str, Spans]]:
        """The job of a request file; ValueError when it does not fit this catalogue."""
        named: dict[str, dict[int, str]] = {}
        texts: list[str] = []
        models: set[tuple[str, int | None]] = set()
        try:
            with path.open("rb") as file:
                for line in file:
                    request = msgspec.json.decode(line, type=_Request)
                    name = parse_custom_id(request.custom_id)
                    if name is None or name.crc32 != crc32_of(request.body.input):
                        raise ValueError(f"{request.custom_id[:60]!r} is no name of its text")
                    named.setdefault(name.field, {})[name.index] = name.crc32
                    texts.append(request.body.input)
                    models.add((request.body.model, request.body.dimensions))
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise ValueError(f"it is not whole: {problem}") from problem
        if len(models) != 1:
            raise ValueError("it is empty" if not models else "it asks for several models")
        rows = {of: span_sets.of_rows(sorted(crc32s)) for of, crc32s in named.items()}
        for of, crc32s in named.items():
            if self._known(of, rows[of]) != crc32s:
                raise ValueError(f"its rows of {of} are not the strings that are known under these numbers")
        service = self._context.service
        generation = self._generation(*models.pop())
        tokens = sum(count_tokens(texts)) if service.is_exact else sum(len(text.encode()) for text in texts)
        size, made = path.stat().st_size, path.stat().st_mtime
        return Job(
            number, generation.id, "prepared", len(texts), size, tokens, service.job_price, sha256_of(path), made
        ), rows  # fmt: skip

    def _known(self, name: str, spans: Spans) -> dict[int, str]:
        """row → CRC32 of the text that stands there."""
        batches = read_strings(self._duck, string_files(self._context.place, self._ledger, name), spans)
        return {
            row: crc32_of(text)
            for batch in batches
            for row, text in zip(batch.column("row").to_pylist(), batch.column("text").to_pylist(), strict=True)
        }

    def _generation(self, model: str, asked: int | None) -> Generation:
        """A request does not name the service: it is the one that is asked now."""
        service = self._context.service
        wanted = Generation(service.name, service.model if model == service.asked_model else model, asked, 0)
        known = self._ledger.generation(wanted.id)
        if known is None:
            configured = generation_of(service, self._ledger)
            known = configured if configured.id == wanted.id else replace(wanted, dimensions=asked or 0)
            self._ledger.save_generation(known, self._context.clock.now())
        return known

    def _settle(self, job: Job, batches: list[RemoteBatch]) -> None:
        """The state of one job, by the list and by which of its rows have vectors."""
        rows = self._ledger.jobs.rows(job.id)
        lacking = {
            name: span_sets.subtract(spans, self._ledger.spans("embedded", job.generation, name)) for name, spans in rows.items()
        }
        left = sum(map(span_sets.count, lacking.values()))
        changes = self._without_batch(job, left) if not batches else self._with_batch(job, batches, left)
        if batches or job.id in self._collected or changes.get("state") == "collected":
            self._found.booked.add(job.id)
            for name, spans in rows.items():
                key = (job.generation, name)
                self._found.rows[key] = span_sets.union(self._found.rows.get(key, []), spans)
        if changes.get("state") == "collected" and isinstance(tokens := changes.get("paid_tokens"), int):
            usd = tokens * job.price / 1_000_000
            self._ledger.spend(Spending(job.generation, "", "batch", job.requests - left, tokens, usd), job.id)
        if changes:
            self._ledger.jobs.change(job.id, **changes)

    def _without_batch(self, job: Job, left: int) -> dict[str, object]:
        if job.id in self._collected or (not left and job.batch is not None):
            return _over("collected", job, left, job.tokens)
        if left < job.requests and job.batch is None:
            # Some of its rows have vectors, and no batch of it made them: they were taken back, and went another way.
            return {**_over("returned", job, left, 0), "reason": "never created; its strings went another way"}
        if job.batch is not None:
            return {}
        return {
            "state": "creating",
            "input_file": job.input_file,
            "intent_at": self._client.now(),
            "reason": "not in the service's list yet",
        }

    def _with_batch(self, job: Job, batches: list[RemoteBatch], left: int) -> dict[str, object]:
        batch = batches[0]
        shown: dict[str, object] = {
            "input_file": batch.input_file, "intent_at": job.intent_at or batch.created_at, "batch": batch.id,
            "status": batch.status, "created_at": batch.created_at, "expires_at": batch.expires_at,
            "output_file": batch.output_file, "error_file": batch.error_file, "reason": None,
        }  # fmt: skip
        tokens = job.tokens if batch.tokens is None else batch.tokens
        if not left and batch.status in ENDED:
            return {**shown, **_over("collected" if batch.completed else "returned", job, left, tokens)}
        if len(batches) > 1:  # which of them stays is told, and booked, by the next look
            return {"state": "creating", "input_file": batch.input_file, "intent_at": self._client.now()}
        if batch.status not in ENDED:
            return {**shown, "state": "open"}
        was_collected = job.id in self._collected or left < job.requests
        if was_collected and not self._is_at_hand(job, batch):
            return {**shown, **_over("collected", job, left, tokens)}  # what it lacks had failed, or goes again
        ended: dict[str, object] = {
            "state": "ended",
            "embedded": batch.completed,
            "failed": batch.failed,
            "ended_at": self._client.now(),
        }
        if batch.errors:
            code, message, line = batch.errors[0]
            ended["reason"] = f"{code}: {message}" + (f" (line {line})" if line is not None else "")
        return {**shown, **ended}

    def _is_at_hand(self, job: Job, batch: RemoteBatch) -> bool:
        """Whether the results can be read once more: here, or at the service."""
        root = self._context.place.data
        wanted = ((batch.output_file, job.result_name), (batch.error_file, job.error_name))
        return all((root / name).exists() or self._client.has(file) for file, name in wanted if file)


def _over(state: str, job: Job, left: int, tokens: int) -> dict[str, object]:
    return {"state": state, "embedded": job.requests - left, "failed": left, "paid_tokens": tokens}


def _is_whole(path: Path, sha256: str | None) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return sha256 in (None, hashlib.file_digest(file, "sha256").hexdigest())
