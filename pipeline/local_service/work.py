"""The work of the jobs: each request that looks at them brings them to where the clock says they are.

There is no thread. What is due is done in slices. A slice is made without the lock, so that who else uses the state
is not kept waiting, and written down in one transaction if the job is still as it was: what was written and that
it was stand or fall together. So a process may be killed at any point, and several may work on one job at once.

It knows neither HTTP nor what a batch looks like to a client.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from pipeline.local_service import files
from pipeline.local_service.jobs import COLUMNS, End, Job, end_of, job_of, load, save
from pipeline.local_service.results import Results, Row, never_executed, results, row_of
from pipeline.local_service.settings import MONTH
from pipeline.local_service.validation import Validated, lines, validate

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from pipeline.local_service.settings import BatchLimits
    from pipeline.local_service.state import State

ROWS_A_LOOK = 50_000  # one job of the largest kind
_SLICE_ROWS, _SLICE_INPUTS = 1024, 2048
_WRITTEN_BYTES = 1 << 20


def look_at_one(state: State, job_id: str, now: float) -> None:
    """Bring one job up to date, and before it the validation of all, in the order of their creation."""
    _validate_all(state, now)
    _advance(state, job_id, now, ROWS_A_LOOK)


def look_at_all(state: State, now: float) -> None:
    """Bring all jobs up to date, the oldest first, as far as one request goes."""
    _validate_all(state, now)
    left = ROWS_A_LOOK
    for job in _active(state):
        left = _advance(state, job.id, now, left)


def look_before_create(state: State, now: float) -> None:
    """Know how large all jobs are, which the limits ask; that is cheap, and working on them is not."""
    _validate_all(state, now)


def _active(state: State, where: str = "active") -> list[Job]:
    with state.transaction("BEGIN") as connection:
        return [job_of(row) for row in connection.execute(f"SELECT {COLUMNS} FROM batches WHERE {where} ORDER BY number")]


def _validate_all(state: State, now: float) -> None:
    """Each in a transaction of its own; those that come first take what the limits leave."""
    for waiting in _active(state, "active AND status = 'validating'"):
        if waiting.created_at + waiting.speed().validating <= now:
            found = _looked_into(state, waiting)
            with state.transaction() as connection:
                if load(connection, waiting.id) == waiting:  # else somebody else was first, or it was cancelled
                    _validate(state, connection, waiting, found)
                    save(connection, waiting)


def _advance(state: State, job_id: str, now: float, left: int) -> int:
    """Work until nothing more is due or `left` rows are done; what remains of `left`."""
    while True:
        with state.transaction("BEGIN") as connection:
            job = load(connection, job_id)
        if job is None or not job.active or (job.in_progress_at is None and job.cancelling_at is None):
            return left
        before = replace(job)
        end = end_of(job)
        missing = job.due(min(now, end.works_until)) - job.read_rows
        if missing <= 0 and now < end.at:
            _show(job, end, now)
            if job == before:
                return left
        made = _made(state, job, min(missing, left)) if missing > 0 and left > 0 else None
        with state.transaction() as connection:
            if load(connection, job_id) != before:
                continue  # somebody else got on with it: what was made here is thrown away, and counted nowhere
            if made is not None:
                _keep(state, connection, job, made)
                left -= len(made.rows)
            elif missing > 0 and left > 0:
                _input_gone(state, connection, job)
            elif missing > 0:
                job.left_at = now
            elif now >= end.at:
                _finish(state, connection, job, end)
            save(connection, job)
        if made is None:
            return left


def _show(job: Job, end: End, now: float) -> None:
    """The word for a job that goes on."""
    if job.cancelling_at is None and job.read_rows == job.total and now >= end.works_until:
        job.status, job.finalizing_at = "finalizing", end.works_until


def _looked_into(state: State, job: Job) -> Validated:
    """What the input file holds, read without keeping anybody waiting."""
    try:
        if job.wrongs().find("input_not_found"):
            raise FileNotFoundError
        with (state.folder / job.input_file_id).open("rb") as file:
            return validate(file, state.batch_limits)
    except FileNotFoundError:
        found = Validated()
        found.wrong("invalid_request", f"Cannot find file {job.input_file_id}, or you do not have access to it.", "input_file_id")
        return found


def _validate(state: State, connection: sqlite3.Connection, job: Job, found: Validated) -> None:
    """From `validating` to `in_progress` or `failed`, at the time when that was due."""
    at = job.created_at + job.speed().validating
    if not found.errors:
        _check_queue(connection, state.batch_limits, found, at)
    job.model = found.model or None
    if found.errors:
        job.errors = msgspec.json.encode(found.errors).decode()
        _finish(state, connection, job, End("failed", at, at))
        return
    job.status, job.in_progress_at = "in_progress", at
    job.total, job.tokens = found.total, found.tokens
    job.ends_at = min(end_of(job).at, job.expires_at)


def _check_queue(connection: sqlite3.Connection, limits: BatchLimits, found: Validated, at: float) -> None:
    """What is enqueued at that second with this job must be within the limits, else it fails, late as it is."""
    # There is one model here, so "per model" and "in all" are the same.
    query = "SELECT coalesce(sum(total), 0), coalesce(sum(tokens), 0) FROM batches WHERE in_progress_at <= ? AND ends_at > ?"
    requests, tokens = connection.execute(query, (at, at)).fetchone()
    for code, kind, queued, limit in (
        ("token_limit_exceeded", "token", tokens + found.tokens, limits.enqueued_tokens),
        ("request_limit_exceeded", "request", requests + found.total, limits.enqueued_requests),
    ):
        if queued > limit:
            found.wrong(
                code,
                f"Enqueued {kind} limit reached for {found.model} in organization local. Limit: {limit:,} enqueued {kind}s. "
                "Please try again once some in_progress batches have been completed.",
            )


class _Slice(NamedTuple):
    """Rows that were worked on, where they end in the input, and what came of them."""

    rows: list[Row]
    read_bytes: int
    found: Results


def _made(state: State, job: Job, rows: int) -> _Slice | None:
    """So many of the next rows, or fewer, worked on; None when the input is gone."""
    wanted: list[Row] = []
    read_bytes, inputs = job.read_bytes, 0
    with contextlib.suppress(FileNotFoundError), (state.folder / job.input_file_id).open("rb") as file:
        for line, after in lines(file, job.read_bytes):
            wanted.append(row_of(job.read_rows + len(wanted) + 1, line))
            read_bytes, inputs = after, inputs + wanted[-1].inputs
            if len(wanted) == min(rows, _SLICE_ROWS) or inputs >= _SLICE_INPUTS:
                break
    return _Slice(wanted, read_bytes, results(job.id, wanted, job.wrongs())) if wanted else None


def _keep(state: State, connection: sqlite3.Connection, job: Job, made: _Slice) -> None:
    """Write a slice down: its lines, where it ends, and that its texts were embedded."""
    found = made.found
    if found.output:
        job.output_bytes = _append(state, job.output_name, job.output_bytes, found.output)
    if found.errors:
        job.error_bytes = _append(state, job.error_name, job.error_bytes, found.errors)
    job.completed += found.completed
    job.failed += found.failed
    job.tokens_used += found.tokens
    job.read_bytes, job.read_rows = made.read_bytes, job.read_rows + len(made.rows)
    state.embedded_in_batch(connection, job.id, found.texts, found.tokens)


def _input_gone(state: State, connection: sqlite3.Connection, job: Job) -> None:
    """Somebody took the file out of our folder."""
    job.errors = _errors("The input file is gone.")
    at = max(job.in_progress_at or 0.0, job.left_at or 0.0)
    _finish(state, connection, job, End("failed", at, at))


def _append(state: State, name: str, size: int, pieces: Iterable[bytes]) -> int:
    """Write behind the first `size` bytes; what lies beyond is of a slice that never came to its end."""
    path = state.folder / name
    if size == 0:
        path.unlink(missing_ok=True)
        files.create_file(path).close()
    with path.open("r+b", buffering=_WRITTEN_BYTES) as file:
        file.truncate(size)
        file.seek(size)
        for piece in pieces:
            file.write(piece)
        return file.tell()


def _finish(state: State, connection: sqlite3.Connection, job: Job, end: End) -> None:
    """The end of a job, and its files from here on."""
    job.status, job.active = end.status, 0
    job.ended_at = job.ends_at = max(end.at, job.left_at or 0.0)
    if end.status == "completed":
        job.finalizing_at = max(end.works_until, job.left_at or 0.0)
    wrongs = job.wrongs()
    if end.status == "failed" and job.errors is None:
        job.errors = _errors("The batch failed.")
    if end.status in ("expired", "cancelled") and job.read_rows < job.total:
        with contextlib.suppress(FileNotFoundError), (state.folder / job.input_file_id).open("rb") as file:
            left = (
                never_executed(job.id, number, line, f"batch_{end.status}")
                for number, (line, _) in enumerate(lines(file, job.read_bytes), job.read_rows + 1)
            )
            job.error_bytes = _append(state, job.error_name, job.error_bytes, left)
    job.output_file_id = _publish(state, connection, job, "output")
    job.error_file_id = _publish(state, connection, job, "error")
    if job.error_file_id is None and wrongs.find("empty_error_file_id"):
        job.error_file_id = ""
    deleted = connection.execute("SELECT 1 FROM files WHERE id = ?", (job.input_file_id,)).fetchone() is None
    if deleted and not _read_by_others(connection, job):
        (state.folder / job.input_file_id).unlink(missing_ok=True)  # while we needed it


def _read_by_others(connection: sqlite3.Connection, job: Job) -> bool:
    query = "SELECT 1 FROM batches WHERE active AND input_file_id = ? AND number != ?"
    return connection.execute(query, (job.input_file_id, job.number)).fetchone() is not None


def _publish(state: State, connection: sqlite3.Connection, job: Job, kind: Literal["output", "error"]) -> str | None:
    """From here on a file like any other; None when there is nothing in it."""
    name, size = (job.output_name, job.output_bytes) if kind == "output" else (job.error_name, job.error_bytes)
    wrongs = job.wrongs()
    if not size and not (kind == "error" and wrongs.find("empty_error_file")):
        return None
    if size and wrongs.find("no_last_newline"):
        size -= 1
    _append(state, name, size, ())
    if kind == "output" and wrongs.find("output_gone"):
        (state.folder / name).unlink()
        return name
    at = job.ended_at or 0.0
    expires_at = at + (job.output_expires_after or MONTH)
    files.insert(connection, name, f"{job.id}_{kind}.jsonl", "batch_output", size, at, expires_at)
    return name


def _errors(message: str) -> str:
    return msgspec.json.encode([{"code": "server_error", "message": message, "param": None, "line": None}]).decode()
