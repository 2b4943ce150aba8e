"""Preparing a job: the next pending strings as a request file, within every limit of one job.

A file is written when it may go, not long ahead: what is pending stays pending until then, and can change its mind
about the mode. The job exists from the ledger commit that names its file's sha256.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.files import disk_errors, publish, temporary
from pipeline.identity import custom_id
from pipeline.ledger import Generation, Job
from pipeline.log import event, logger
from pipeline.pending import pending_strings

if TYPE_CHECKING:
    import duckdb

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """What one more job may hold at most."""

    requests: int
    bytes: int
    tokens: int
    wish: int | None = None  # of tokens, after the service refused more; a single string may pass it, or nothing would ever go

    @property
    def is_none(self) -> bool:
        return self.requests < 1 or self.tokens < 1


def next_job(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, room: Room) -> Job | None:
    """Write the next request file and enter its job; None when nothing is pending, or nothing fits the room."""
    ledger, place = context.ledger, context.place
    number = ledger.jobs.next_number()
    final = place.root / f"batch_requests_{number:04d}.jsonl"
    rows: dict[str, list[int]] = {}
    requests = size = tokens = 0
    digest = hashlib.sha256()
    with disk_errors(final), temporary(final).open("wb") as file:
        for field, row, text, count in _strings(context, duck, generation):
            line = _line(context, generation, custom_id(field, row, text), text)
            if requests == room.requests or size + len(line) > room.bytes or tokens + count > room.tokens:
                break
            if requests and room.wish is not None and tokens + count > room.wish:
                break
            file.write(line)
            digest.update(line)
            rows.setdefault(field, []).append(row)
            requests, size, tokens = requests + 1, size + len(line), tokens + count
    if not requests:
        temporary(final).unlink()
        return None
    publish(final)
    price = context.service.job_price
    now = context.clock.now()
    job = Job(number, generation.id, "prepared", requests, size, tokens, price, digest.hexdigest(), now)
    ledger.jobs.add(job, {field: span_sets.of_rows(of_field) for field, of_field in rows.items()})
    event(_log, "job.prepared", level=logging.DEBUG, job=number, requests=requests, bytes=size, tokens=tokens)
    return job


def _strings(context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation) -> Iterator[tuple[str, int, str, int]]:
    for field in context.fields:
        for row, text, tokens in pending_strings(context, duck, generation, field):
            yield field, row, text, tokens


def _line(context: Context, generation: Generation, name: str, text: str) -> bytes:
    body: dict[str, object] = {"model": generation.model, "input": text, "encoding_format": context.service.encoding_format}
    if generation.asked is not None:
        body["dimensions"] = generation.asked
    request = {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": body}
    return msgspec.json.encode(request) + b"\n"
