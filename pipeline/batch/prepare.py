"""Preparing a job: the next pending strings as a request file, within every limit of one job.

A file is written when it may go, not long ahead: what is pending stays pending until then, and can change its mind
about the mode. The job exists from the ledger commit that names its file's sha256.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

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

_START = b'{"custom_id":"'
_LINES_A_WRITE = 1000
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
    final = place.data / f"batch_requests_{number:04d}.jsonl"
    rows: dict[str, list[int]] = {}
    requests = size = tokens = 0
    digest = hashlib.sha256()
    lines: list[bytes] = []
    before, behind = _around_a_text(context, generation)
    encode = msgspec.json.Encoder().encode
    with disk_errors(final), temporary(final).open("wb") as file:
        for field, row, text, count in _strings(context, duck, generation, room.requests):
            line = _START + custom_id(field, row, text).encode() + before + encode(text) + behind
            if size + len(line) > room.bytes or tokens + count > room.tokens:
                break
            if requests and room.wish is not None and tokens + count > room.wish:
                break
            lines.append(line)
            rows.setdefault(field, []).append(row)
            requests, size, tokens = requests + 1, size + len(line), tokens + count
            if len(lines) == _LINES_A_WRITE:
                _write(file, digest, lines)
            if requests == room.requests:  # before the next string is read: it would bring a whole window of them
                break
        _write(file, digest, lines)
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


def _strings(
    context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation, most: int
) -> Iterator[tuple[str, int, str, int]]:
    if most < 1:
        return
    for field in context.fields:
        for row, text, tokens in pending_strings(context, duck, generation, field, most):
            yield field, row, text, tokens


def _around_a_text(context: Context, generation: Generation) -> tuple[bytes, bytes]:
    """What is the same in every line of a job: between its custom_id and its text, and behind the text. Only those two are
    encoded for each line, which is
    `{"custom_id", "method", "url", "body": {"model", "input", "encoding_format", "dimensions" when asked for}}`."""
    more: dict[str, object] = {"encoding_format": context.service.encoding_format}
    if generation.asked is not None:
        more["dimensions"] = generation.asked
    body = b'","method":"POST","url":"/v1/embeddings","body":{"model":%b,"input":' % msgspec.json.encode(generation.model)
    return body, b"," + msgspec.json.encode(more)[1:] + b"}\n"


def _write(file: IO[bytes], digest: hashlib._Hash, lines: list[bytes]) -> None:
    piece = b"".join(lines)
    file.write(piece)
    digest.update(piece)
    lines.clear()
