"""A job as the state keeps it, and its life as a plan: what is due when, from its own figures alone.

No clock is read and nothing is worked on here: `work` does that. Everything follows from the second of the
creation and the pace that was settled then, so a job looks the same however seldom anybody looks at it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from pipeline.local_service.misbehaviour import Misbehaviours
from pipeline.local_service.settings import Pace

if TYPE_CHECKING:
    import sqlite3

Ended = Literal["completed", "failed", "expired", "cancelled"]


@dataclass(slots=True, kw_only=True)
class Job:
    """One batch: the row of the table, in the order of its columns.

    `left_at` is when somebody last saw it with work left that was due: it can't have ended before.
    """

    number: int
    id: str
    input_file_id: str
    input_file_name: str
    metadata: str | None
    output_expires_after: int | None
    pace: str
    misbehaviours: str
    created_at: float
    expires_at: float
    status: str
    active: int
    in_progress_at: float | None
    finalizing_at: float | None
    cancelling_at: float | None
    ended_at: float | None
    ends_at: float | None
    left_at: float | None
    model: str | None
    errors: str | None
    total: int
    tokens: int
    completed: int
    failed: int
    tokens_used: int
    read_bytes: int
    read_rows: int
    output_name: str
    output_bytes: int
    error_name: str
    error_bytes: int
    output_file_id: str | None
    error_file_id: str | None

    def speed(self) -> Pace:
        return msgspec.json.decode(self.pace, type=Pace)

    def wrongs(self) -> Misbehaviours:
        return msgspec.json.decode(self.misbehaviours, type=Misbehaviours)

    def working_seconds(self) -> float:
        pace = self.speed()
        return pace.working + (self.total / pace.requests_per_second if pace.requests_per_second else 0.0)

    def due(self, at: float) -> int:
        """How many rows are to be done by then."""
        if self.in_progress_at is None or at < self.in_progress_at:
            return 0
        seconds = self.working_seconds()
        share = min(1.0, (at - self.in_progress_at) / seconds) if seconds else 1.0
        wrongs = self.wrongs()
        for told in (wrongs.find("stuck"), wrongs.find("end")):
            share = share if told is None else min(share, told.share)
        return math.floor(self.total * share + 1e-6)  # what seconds as floats may be off by


class End(NamedTuple):
    """How a job ends if nothing more happens to it: the word, the time, and the time up to which it works."""

    status: Ended
    at: float
    works_until: float


_NAMES = tuple(column.name for column in fields(Job))
COLUMNS = ", ".join(_NAMES)


def end_of(job: Job) -> End:
    """The end of a job that was found to be in order, or was cancelled before anybody looked."""
    pace, wrongs = job.speed(), job.wrongs()
    if job.cancelling_at is not None:
        return End("cancelled", job.cancelling_at + pace.cancelling, job.cancelling_at)
    started = job.created_at + pace.validating
    worked = started + job.working_seconds()
    status: Ended = "completed"
    at = worked + pace.finalizing
    if told := wrongs.find("end"):
        at = worked = started + told.share * job.working_seconds()
        status = told.end
    if wrongs.find("stuck"):
        at = math.inf
    if at > job.expires_at and not wrongs.find("stuck"):
        return End("expired", job.expires_at, job.expires_at)
    return End(status, at, worked)


def load(connection: sqlite3.Connection, job_id: str) -> Job | None:
    """A job by its id."""
    row = connection.execute(f"SELECT {COLUMNS} FROM batches WHERE id = ?", (job_id,)).fetchone()
    return None if row is None else job_of(row)


def job_of(row: tuple[object, ...]) -> Job:
    """A row of `COLUMNS` as a job."""
    return Job(**dict(zip(_NAMES, row, strict=True)))  # type: ignore[arg-type]  # the columns' types are those of the table


def insert(connection: sqlite3.Connection, job: Job) -> None:
    """Write down a new job."""
    connection.execute(f"INSERT INTO batches ({COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})", _values(job))


def save(connection: sqlite3.Connection, job: Job) -> None:
    """Write down what has become of a job."""
    changes = ", ".join(f"{name} = ?" for name in _NAMES)
    connection.execute(f"UPDATE batches SET {changes} WHERE number = ?", (*_values(job), job.number))


def _values(job: Job) -> tuple[object, ...]:
    return tuple(getattr(job, name) for name in _NAMES)
