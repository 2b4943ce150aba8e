"""Collecting a job: its output and error files become embeddings, failures, and rows that go again.

Both files are downloaded whole before the first line is read (`results.py`), checked against the size that the service
says, and kept for audit. A line finds its text by the row number in its custom_id, and the CRC32 there proves that it is
the right one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline import spans as span_sets
from pipeline.batch.poll import OVER_LIMIT
from pipeline.batch.results import Harvest, Key, read_results
from pipeline.context import Context
from pipeline.errors import ServiceStoppedError
from pipeline.files import disk_errors, fsync_folder, publish, publish_table, temporary
from pipeline.identity import custom_id, parse_custom_id
from pipeline.indexing import string_files
from pipeline.ledger import Failure, Generation, Job, Spending, TableFile
from pipeline.log import event, logger
from pipeline.processes import ahead
from pipeline.provider.batch_client import BatchClient, GoneError
from pipeline.provider.service import most_result_bytes
from pipeline.spans import Spans
from pipeline.tables.embeddings import Origin, write_embedding_pieces
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    from numpy.typing import NDArray

_PIECE_ROWS = 4096
_CUT_SHORT = ("expired", "cancelled")  # a row that was not reached spends no attempt
_log = logger(__name__)


class _Name(msgspec.Struct):
    custom_id: str | None = None


def collect_job(context: Context, client: BatchClient, duck: duckdb.DuckDBPyConnection, job: Job) -> Job:
    """Bring an ended job into the tables, in one ledger commit, and then delete its files at the service."""
    ledger = context.ledger
    if job.status == "failed" and job.output_file is None:
        return _return(context, client, job)
    try:
        paths = list(_results(context, client, job))
    except GoneError as problem:
        event(_log, "job.lost", job=job.id, reason=str(problem))
        return ledger.jobs.change(job.id, state="lost", reason=f"its results are gone at the service ({problem})")
    generation = ledger.generation(job.generation)
    if generation is None:
        raise ServiceStoppedError(f"Job {job.id} belongs to the generation {job.generation}, which the ledger does not know.")
    scratch = context.place.scratch / f"job_{job.id:04d}"
    rows = ledger.jobs.rows(job.id)
    with disk_errors(scratch):
        harvest = read_results(paths, lambda: dict(_wanted(context, duck, rows)), generation.dimensions, scratch)
    for key in ((name, row) for name, spans in rows.items() for row in span_sets.rows_of(spans)):
        if key not in harvest.slots and key not in harvest.failed and key not in harvest.again:
            harvest.again[key] = ("neither in the output nor in the error file", job.status not in _CUT_SHORT)
    written = _write_tables(context, job, generation, harvest)
    job = _commit(context, job, generation, harvest, written)
    return clean(context, client, job)


def clean(context: Context, client: BatchClient, job: Job) -> Job:
    """Delete what the service holds of a collected job, once it need not be kept. A kill in between leaves files that the next
    command deletes."""
    kept = context.config.keep_remote_hours * 3600
    if kept and client.now() - (job.ended_at or 0.0) < kept:
        return job
    for role, file in job.remote_files.items():
        delete_file(context, client, file, job.id, role)
    return context.ledger.jobs.change(job.id, cleaned=1)


def delete_file(context: Context, client: BatchClient, file: str, job: int, role: str) -> str:
    """Delete a file at the service and keep the receipt. A kill in between costs the answer: the next one is that it is gone."""
    answer = client.delete(file)
    context.ledger.runs.add_receipt(file, job, role, context.clock.now(), answer)
    return answer


def _results(context: Context, client: BatchClient, job: Job) -> Iterator[Path]:
    """The files of a job. One of errors that is gone costs no vector: its rows are in no file, and go again."""
    generation = context.ledger.generation(job.generation)
    most = most_result_bytes(job.requests, generation.dimensions if generation is not None else 0)
    if job.output_file:
        yield _download(context, client, job.output_file, job.result_name, most)
    if job.error_file:
        try:
            yield _download(context, client, job.error_file, job.error_name, most)
        except GoneError as problem:
            event(_log, "job.errors_gone", job=job.id, reason=str(problem))


def _download(context: Context, client: BatchClient, file: str, name: str, most: int) -> Path:
    """A file of the service under our own name; what an earlier run downloaded whole is not fetched again."""
    final = context.place.data / name
    if not final.exists():
        client.download(file, temporary(final), most)
        publish(final)
        fsync_folder(final.parent)
    return final


def _wanted(context: Context, duck: duckdb.DuckDBPyConnection, rows: dict[str, Spans]) -> Iterator[tuple[str, Key]]:
    """custom_id → (field, row), for every string of the job."""
    for name, spans in rows.items():
        for batch in read_strings(duck, string_files(context.place, context.ledger, name), spans):
            for row, text in zip(batch.column("row").to_pylist(), batch.column("text").to_pylist(), strict=True):
                yield custom_id(name, row, text), (name, row)


def _write_tables(context: Context, job: Job, generation: Generation, harvest: Harvest) -> list[tuple[TableFile, Spans]]:
    """A file for each field. All are written before the first is made durable: then the scratch files can go, and the disk never
    gets to see what it would only have to forget."""
    ledger, place = context.ledger, context.place
    number = ledger.next_file_number()
    good = sorted(key for key in harvest.slots if key not in harvest.failed)
    drafts: list[tuple[Path, str, Spans]] = []
    for name in sorted({key[0] for key in good}):
        fresh = span_sets.subtract(
            span_sets.of_rows(row for of_field, row in good if of_field == name), ledger.spans("embedded", generation.id, name)
        )
        if fresh:
            final = place.tables / f"embeddings_{generation.id}_{name}_{number + len(drafts):06d}.parquet"
            with disk_errors(final), ahead(_pieces(name, fresh, harvest)) as pieces:
                write_embedding_pieces(temporary(final), harvest.dimensions, pieces, Origin.of(generation, name, job.id))
            drafts.append((final, name, fresh))
    for path in harvest.scratch:
        path.unlink()
    written: list[tuple[TableFile, Spans]] = []
    for final, name, fresh in drafts:
        size, hashed = publish_table(final)
        rows = (span_sets.count(fresh), fresh[0][0], fresh[-1][1])
        file = TableFile("embeddings", generation.id, name, final.name, *rows, size, hashed, context.clock.now())
        written.append((file, fresh))
    return written


def _pieces(name: str, rows: Spans, harvest: Harvest) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The vectors in the order of their rows."""
    import numpy as np

    for window in span_sets.windows(rows, _PIECE_ROWS):
        numbers = list(span_sets.rows_of(window))
        yield np.array(numbers, np.int64), harvest.vectors([(name, row) for row in numbers])


def _commit(context: Context, job: Job, generation: Generation, harvest: Harvest, written: list[tuple[TableFile, Spans]]) -> Job:
    """Everything that the job was, in one transaction."""
    ledger, now = context.ledger, context.clock.now()
    fields = sorted({name for name, _ in (*harvest.slots, *harvest.failed, *harvest.again)})
    with ledger.transaction():
        for file, fresh in written:
            ledger.add_file(file)
            ledger.add_spans("embedded", generation.id, file.field, fresh)
        if not generation.dimensions and harvest.dimensions:
            ledger.save_generation(Generation(generation.service, generation.model, generation.asked, harvest.dimensions), now)
        for name in fields:
            _book_rows(context, generation, name, harvest)
        good = len(harvest.slots) - sum(key in harvest.slots for key in harvest.failed)
        tokens = harvest.tokens or round(job.tokens * len(harvest.slots) / job.requests)
        ledger.spend(Spending(generation.id, "", "batch", len(harvest.slots), tokens, tokens * job.price / 1_000_000), job.id)
        if job.status == "completed" and ledger.meta("job_token_ceiling"):
            ledger.set_meta("job_token_ceiling", "")  # the service takes whole jobs again
        job = ledger.jobs.change(job.id, state="collected", embedded=good, failed=job.requests - good, paid_tokens=tokens)
    event(
        _log, "job.collected", level=logging.DEBUG, job=job.id, embedded=good, failed=len(harvest.failed), again=len(harvest.again)
    )
    return job


def _book_rows(context: Context, generation: Generation, name: str, harvest: Harvest) -> None:
    """Failures of a field, and the rows that go again while their attempts last. A row that has a vector by now did not fail:
    after a restore a job may be collected again, and what it lacked may have come by another."""
    ledger, now, most = context.ledger, context.clock.now(), context.config.batch_max_attempts
    lacking = [row for (of_field, row) in (*harvest.again, *harvest.failed) if of_field == name]
    lacking_spans = span_sets.union((row, row + 1) for row in lacking)
    open_ = set(span_sets.rows_of(span_sets.subtract(lacking_spans, ledger.spans("embedded", generation.id, name))))
    spent = [
        (row, reason) for (of_field, row), (reason, counts) in harvest.again.items() if of_field == name and counts and row in open_
    ]
    ledger.jobs.add_attempts(generation.id, name, spent)
    attempts = ledger.jobs.attempts(generation.id, name) if spent else {}
    ledger.add_failures(
        Failure(generation.id, name, row, "service", "attempts", f"{reason} ({attempts[row]} attempts)", now)
        for row, reason in spent
        if attempts[row] >= most
    )
    ledger.add_failures(
        Failure(generation.id, name, row, "service", code, reason, now)
        for (of_field, row), (code, reason) in harvest.failed.items()
        if of_field == name and row in open_
    )


def _return(context: Context, client: BatchClient, job: Job) -> Job:
    """The service refused the whole job: nothing was done and nothing paid; its rows are pending again."""
    ledger, generation = context.ledger, context.ledger.generation(job.generation)
    over_limit = (job.reason or "").startswith(OVER_LIMIT)
    blamed = {} if over_limit else _blamed(context, client, job)
    with ledger.transaction():
        if over_limit:
            # Others share the account, or its limit is lower than we were told: half as much next time. No row is to blame.
            ledger.set_meta("job_token_ceiling", str(max(1, job.tokens // 2)))
        elif generation is not None:
            for name in sorted({field for field, _ in blamed}):
                _book_rows(context, generation, name, Harvest(0, again=blamed))
        job = ledger.jobs.change(job.id, state="returned", embedded=0, failed=job.requests, paid_tokens=0)
    event(_log, "job.returned", job=job.id, reason=job.reason)
    return job


def _blamed(context: Context, client: BatchClient, job: Job) -> dict[tuple[str, int], tuple[str, bool]]:
    """The rows that cost the job: those of the lines that the service names, or all of them when it names none."""
    reasons = {line: f"{code}: {message}" for code, message, line in client.retrieve(job.batch or "").errors if line is not None}
    path = context.place.data / job.request_name
    if reasons and path.exists():
        blamed = {}
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                name = parse_custom_id(msgspec.json.decode(line, type=_Name).custom_id or "") if number in reasons else None
                if name is not None:
                    blamed[name.field, name.index] = (f"its job was refused for it: {reasons[number]}", True)
        if blamed:
            return blamed
    words = f"its job was refused: {job.reason or 'without a reason'}"
    rows = context.ledger.jobs.rows(job.id)
    return {(name, row): (words, True) for name, spans in rows.items() for row in span_sets.rows_of(spans)}
