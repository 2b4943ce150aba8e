"""The ledger's book of jobs: one row a provider batch, its rows as spans, and what a job brought back without a vector.

A job's `state` is ours:

    prepared   its request file is on disk
    uploaded   the service has the file
    creating   the create was announced; its reply is not here yet, or was lost: "in doubt" until a listing shows it
    open       the service has the batch
    ended      the service is done with it; its results are not collected yet
    collected  every row has its vector, its failure, or goes again
    returned   the service refused the whole job; its rows go again
    lost       its results are gone at the service, or it vanished there: a person decides

`status` is the service's own word, kept beside ours, whatever it may be.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields

from pipeline import spans as span_sets
from pipeline.spans import Spans

UNSENT = ("prepared", "uploaded")
ON_THE_WIRE = ("creating", "open")
UNCOLLECTED = (*UNSENT, *ON_THE_WIRE, "ended", "lost")


@dataclass(frozen=True, slots=True)
class Job:
    """One provider batch. `price` is USD for 1M tokens when it was prepared; `tokens` the estimate, `paid_tokens` the bill."""

    id: int
    generation: str
    state: str
    requests: int
    bytes: int
    tokens: int
    price: float
    sha256: str
    prepared_at: float
    input_file: str | None = None
    intent_at: float | None = None
    batch: str | None = None
    status: str | None = None
    created_at: float | None = None
    expires_at: float | None = None
    output_file: str | None = None
    error_file: str | None = None
    embedded: int | None = None
    failed: int | None = None
    paid_tokens: int | None = None
    ended_at: float | None = None
    reason: str | None = None
    cleaned: int = 0

    @property
    def request_name(self) -> str:
        """The request file's name on disk."""
        return f"batch_requests_{self.id:04d}.jsonl"

    @property
    def result_name(self) -> str:
        return f"batch_results_{self.id:04d}.jsonl"

    @property
    def error_name(self) -> str:
        return f"batch_errors_{self.id:04d}.jsonl"

    @property
    def remote_files(self) -> dict[str, str]:
        """role → id of each file at the service that is known of."""
        named = {"input": self.input_file, "output": self.output_file, "error": self.error_file}
        return {role: file for role, file in named.items() if file}

    def remote_name(self, catalogue_id: str) -> str:
        """The request file's name at the service: ours is recognised by it."""
        return f"{catalogue_id}_{self.request_name}"


_COLUMNS = tuple(entry.name for entry in fields(Job))


def reserve(database: sqlite3.Connection, table: str, last: int) -> None:
    """Raise the sequence of a table, so that no number up to `last` is ever given."""
    if not database.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table)).rowcount:
        database.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last))


class JobBook:
    """Jobs as the ledger keeps them; used through `Ledger.jobs`."""

    def __init__(self, database: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]) -> None:
        self._db = database
        self._transaction = transaction

    def next_number(self) -> int:
        """The number of the next job; numbers are never used again."""
        found = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'").fetchone()
        return 1 if found is None else int(found[0]) + 1

    def reserve_numbers(self, last: int) -> None:
        """Never give a number up to this one: the service may have a batch of it."""
        reserve(self._db, "job", last)

    def add(self, job: Job, rows: dict[str, Spans]) -> None:
        marks = ", ".join("?" * len(_COLUMNS))
        with self._transaction():
            values = [getattr(job, name) for name in _COLUMNS]
            self._db.execute(f"INSERT INTO job ({', '.join(_COLUMNS)}) VALUES ({marks})", values)
            spans = [(job.id, field, first, past) for field, spans in rows.items() for first, past in spans]
            self._db.executemany("INSERT INTO job_span VALUES (?, ?, ?, ?)", spans)

    def change(self, number: int, **values: object) -> Job:
        """Set some columns of a job; the job as it is then."""
        names = ", ".join(f"{name} = :{name}" for name in values if name in _COLUMNS)
        with self._transaction():
            self._db.execute(f"UPDATE job SET {names} WHERE id = :number", {**values, "number": number})
        return self.get(number)

    def drop_ended(self, generation: str) -> list[Job]:
        """Forget the jobs that are over; what they cost stays in the books, and what they were for the audit. One with files still
        at the service stays as well."""
        over = self.all(("collected", "returned"))
        dropped = [job for job in over if job.generation == generation and (job.cleaned or job.input_file is None)]
        with self._transaction():
            kept = [(job.id, json.dumps(asdict(job)), json.dumps(self.strings(job.id))) for job in dropped]
            self._db.executemany("INSERT OR REPLACE INTO past_job VALUES (?, ?, ?)", kept)
            for table, column in (("job_span", "job"), ("job", "id")):
                self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(job.id,) for job in dropped])
        return dropped

    def get(self, number: int) -> Job:
        row = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM job WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        return Job(*row)

    def all(self, states: Sequence[str] = ()) -> list[Job]:
        """The jobs in some states, or all of them, oldest first."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        return [Job(*row) for row in self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM job {where} ORDER BY id", tuple(states))]

    def rows(self, number: int) -> dict[str, Spans]:
        """The rows of a job, by field."""
        found: dict[str, Spans] = {}
        for field, first, past in self._db.execute(
            "SELECT field, first, past FROM job_span WHERE job = ? ORDER BY field, first", (number,)
        ):
            found.setdefault(field, []).append((first, past))
        return found

    def strings(self, number: int) -> dict[str, int]:
        """How many strings of each field a job has."""
        return {field: span_sets.count(rows) for field, rows in self.rows(number).items()}

    def past(self) -> list[tuple[Job, dict[str, int]]]:
        """The jobs that a reset forgot, as they were, with their strings by field."""
        found = self._db.execute("SELECT job, strings FROM past_job ORDER BY id")
        return [(Job(**json.loads(job)), json.loads(strings)) for job, strings in found]

    def rows_in_jobs(self, generation: str, field: str) -> Spans:
        """The rows of a field that are in a job which is not collected yet."""
        marks = ", ".join("?" * len(UNCOLLECTED))
        found = self._db.execute(
            "SELECT first, past FROM job_span JOIN job ON job.id = job_span.job "
            f"WHERE generation = ? AND field = ? AND state IN ({marks}) ORDER BY first",
            (generation, field, *UNCOLLECTED),
        )
        return [(first, past) for first, past in found]

    def created_since(self, moment: float) -> int:
        """How many creations were announced since a moment."""
        return int(self._db.execute("SELECT count(*) FROM job WHERE intent_at >= ?", (moment,)).fetchone()[0])

    def attempts(self, generation: str, field: str) -> dict[int, int]:
        """row → how often a job brought it back without a vector."""
        found = self._db.execute("SELECT row, count FROM attempt WHERE generation = ? AND field = ?", (generation, field))
        return {int(row): int(count) for row, count in found}

    def add_attempts(self, generation: str, field: str, rows: Iterable[tuple[int, str]]) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT INTO attempt VALUES (?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET count = count + 1, reason = excluded.reason",
                [(generation, field, row, reason) for row, reason in rows],
            )

    def forget_attempts(self, generation: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM attempt WHERE generation = ?", (generation,))
