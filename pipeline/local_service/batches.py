"""`/v1/batches`: create, retrieve, list, cancel, and what a batch looks like.

What becomes of a batch is in `work`, when in `jobs`. Counts are of executed rows: one that expired or was
cancelled before its turn is neither completed nor failed, though it has a line in the error file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.local_service import files, jobs, work
from pipeline.local_service.jobs import COLUMNS, Job, end_of, job_of, load
from pipeline.local_service.messages import Answer, Call, RefusedError, json_object, only, required
from pipeline.local_service.settings import DAY
from pipeline.local_service.state import new_id, next_count
from pipeline.local_service.validation import ENDPOINT

if TYPE_CHECKING:
    import sqlite3

    from pipeline.local_service.misbehaviour import Misbehaviours
    from pipeline.local_service.settings import BatchLimits

_KEYS = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_HOUR = 3600


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A creation that is in order."""

    input_file_id: str
    metadata: dict[str, str] | None
    output_expires_after: int | None


def create(call: Call) -> Answer:
    """Make a batch; its file is looked into later."""
    wanted = _wanted(json_object(call.request.body))
    state = call.state
    work.look_before_create(state, call.now)
    with state.transaction("BEGIN") as connection:
        _input_file(connection, wanted, call.now)
    with state.transaction() as connection:
        wrongs = state.misbehaviours.of_create(next_count(connection, "create"))
    _refuse_if_told(wrongs)
    with state.transaction() as connection:
        file = _input_file(connection, wanted, call.now)  # again: it may have been deleted in between
        _check_limits(connection, state.batch_limits, call.now)
        job = Job(
            number=next_count(connection, "batch number"),
            id=new_id(connection, "batch", "batch_"),
            input_file_id=file.id,
            input_file_name=file.filename,
            metadata=None if wanted.metadata is None else json.dumps(wanted.metadata),
            output_expires_after=wanted.output_expires_after,
            pace=msgspec.json.encode(state.pace).decode(),
            misbehaviours=msgspec.json.encode(wrongs).decode(),
            created_at=call.now,
            expires_at=call.now + DAY,
            status="validating",
            active=1,
            in_progress_at=None,
            finalizing_at=None,
            cancelling_at=None,
            ended_at=None,
            ends_at=None,
            left_at=None,
            model=None,
            errors=None,
            total=0,
            tokens=0,
            completed=0,
            failed=0,
            tokens_used=0,
            read_bytes=0,
            read_rows=0,
            output_name=new_id(connection, "file", "file-"),
            output_bytes=0,
            error_name=new_id(connection, "file", "file-"),
            error_bytes=0,
            output_file_id=None,
            error_file_id=None,
        )
        jobs.insert(connection, job)
    return Answer(_shown(job, call.now), lost=wrongs.find("lose_reply") is not None)


def retrieve(call: Call) -> Answer:
    """One batch, as the clock has it."""
    work.look_at_one(call.state, call.argument, call.now)
    with call.state.transaction("BEGIN") as connection:
        return Answer(_shown(_find(connection, call.argument, call.now), call.now))


def listed(call: Call) -> Answer:
    """A page of the batches, newest first."""
    limit, after = call.limit(_DEFAULT_PAGE, _MAX_PAGE), call.one("after")
    work.look_at_all(call.state, call.now)
    shapes: list[dict[str, object]] = []
    with call.state.transaction("BEGIN") as connection:
        below = math.inf
        if after:
            below = _find(connection, after, call.now).number
        for row in connection.execute(f"SELECT {COLUMNS} FROM batches WHERE number < ? ORDER BY number DESC", (below,)):
            job = job_of(row)
            age = call.now - job.created_at
            if not job.wrongs().find("hide", age) and not job.wrongs().find("vanish", age):
                shapes.append(_shape(job, call.now))
            if len(shapes) > limit:
                break
    return Answer(files.page(shapes, limit))


def cancel(call: Call) -> Answer:
    """Ask a batch to stop; what was due by now is still done."""
    work.look_at_one(call.state, call.argument, call.now)
    with call.state.transaction() as connection:
        job = _find(connection, call.argument, call.now)
        if not job.active:
            raise RefusedError(f"Cannot cancel a batch with status '{job.status}'.", status=409)
        if job.cancelling_at is None:
            job.status, job.cancelling_at = "cancelling", call.now
            job.ends_at = end_of(job).at
            jobs.save(connection, job)
    return Answer(_shown(job, call.now))


def _find(connection: sqlite3.Connection, batch_id: str, now: float) -> Job:
    job = load(connection, batch_id)
    if job is None or job.wrongs().find("vanish", now - job.created_at):
        raise RefusedError(f"No batch found with id '{batch_id[:100]}'.", status=404)
    return job


def _shown(job: Job, now: float) -> bytes:
    return msgspec.json.encode(_shape(job, now))


def _shape(job: Job, now: float) -> dict[str, object]:
    """As OpenAI shows it."""
    wrongs, age = job.wrongs(), now - job.created_at
    told = wrongs.find("unknown_status", age)
    ended = {f"{word}_at": job.ended_at if job.status == word else None for word in ("completed", "failed", "expired", "cancelled")}
    times = {
        "created_at": job.created_at,
        "in_progress_at": job.in_progress_at,
        "expires_at": job.expires_at,
        "finalizing_at": job.finalizing_at,
        "cancelling_at": job.cancelling_at,
        **ended,
    }
    counts = {"total": job.total, "completed": job.completed, "failed": job.failed}
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "model": job.model,
        "errors": None if job.errors is None else {"object": "list", "data": msgspec.Raw(job.errors.encode())},
        "input_file_id": job.input_file_id,
        "completion_window": "24h",
        "status": told.status if told else job.status,
        "output_file_id": job.output_file_id,
        "error_file_id": job.error_file_id,
        **{name: None if at is None else int(at) for name, at in times.items()},
        "request_counts": None if wrongs.find("no_counts", age) else counts,
        "usage": {
            "input_tokens": job.tokens_used,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": job.tokens_used,
        },
        "metadata": None if job.metadata is None else msgspec.Raw(job.metadata.encode()),
    }


def _wanted(body: dict[str, Any]) -> _Wanted:
    only(body, _KEYS)
    for key, value in (("endpoint", ENDPOINT), ("completion_window", "24h")):
        if required(body, key) != value:
            raise RefusedError(f"Invalid value for '{key}': it must be '{value}' here.", param=key, code="invalid_value")
    file_id = required(body, "input_file_id")
    if not isinstance(file_id, str):
        raise RefusedError("Invalid type for 'input_file_id': expected a string.", param="input_file_id", code="invalid_type")
    expires = body.get("output_expires_after")
    seconds = None
    if expires is not None:
        if not isinstance(expires, dict) or set(expires) != {"anchor", "seconds"} or expires["anchor"] != "created_at":
            raise RefusedError(
                'Invalid \'output_expires_after\': expected {"anchor": "created_at", "seconds": …}.',
                param="output_expires_after",
                code="invalid_value",
            )
        seconds = files.life(expires["seconds"], "output_expires_after.seconds")
    return _Wanted(file_id, _metadata(body.get("metadata")), seconds)


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise RefusedError("Invalid 'metadata': expected an object of strings.", param="metadata", code="invalid_type")
    wrong = None
    if len(value) > _MAX_PAIRS:
        wrong = f"at most {_MAX_PAIRS} pairs are taken, got {len(value)}"
    elif any(len(key) > _MAX_KEY for key in value):
        wrong = f"a key may have {_MAX_KEY} characters"
    elif any(len(text) > _MAX_VALUE for text in value.values()):
        wrong = f"a value may have {_MAX_VALUE} characters"
    if wrong:
        raise RefusedError(f"Invalid 'metadata': {wrong}.", param="metadata", code="invalid_value")
    return value


def _input_file(connection: sqlite3.Connection, wanted: _Wanted, now: float) -> files.StoredFile:
    try:
        file = files.find(connection, wanted.input_file_id, now)
    except RefusedError as error:
        raise RefusedError(
            f"Cannot find file {wanted.input_file_id[:100]}, or you do not have access to it.", param="input_file_id"
        ) from error
    if file.purpose != "batch":
        raise RefusedError(f"The input file must have the purpose 'batch', and has '{file.purpose}'.", param="input_file_id")
    return file


def _refuse_if_told(wrongs: Misbehaviours) -> None:
    if wrongs.find("insufficient_quota"):
        raise RefusedError(
            "You exceeded your current quota, please check your plan and billing details.",
            status=429,
            kind="insufficient_quota",
            code="insufficient_quota",
        )
    if wrongs.find("unauthorized"):
        raise RefusedError("Incorrect API key provided.", status=401, code="invalid_api_key")


def _check_limits(connection: sqlite3.Connection, limits: BatchLimits, now: float) -> None:
    made = connection.execute(
        "SELECT created_at FROM batches WHERE created_at > ? ORDER BY created_at DESC LIMIT 1 OFFSET ?",
        (now - _HOUR, limits.created_per_hour - 1),
    ).fetchone()
    if made is not None:
        raise RefusedError(
            f"Rate limit reached: {limits.created_per_hour} batches may be created an hour.",
            status=429,
            kind="requests",
            code="rate_limit_exceeded",
            headers={"retry-after": str(max(1, math.ceil(made[0] + _HOUR - now)))},
        )
    if limits.active is None:
        return
    query = "SELECT count(*) FROM batches WHERE ends_at > ? OR (active AND ends_at IS NULL)"
    (active,) = connection.execute(query, (now,)).fetchone()
    if active >= limits.active:
        raise RefusedError(
            f"Too many active batches: {active} of {limits.active}. Please try again once some of them have been completed.",
            status=429,
            kind="requests",
            code="rate_limit_exceeded",
        )
