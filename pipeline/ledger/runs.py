"""The ledger's log of runs: each command that could change something, the money that it booked, and what it deleted at the service.

Whoever must answer for the catalogue reads this; no stage does. What is in a line, and that no secret is, is known to
`commands/`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple

from pipeline.ledger.rows import Booking, Receipt, Run, Spending

_RUN = "id, command, version, host, user, pid, started_at, ended_at, exit_code"


class RunBook:
    """Runs as the ledger keeps them; used through `Ledger.runs`. It knows which run is this one."""

    def __init__(self, database: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]) -> None:
        self._db = database
        self._transaction = transaction
        self._now = 0  # the run that this connection works for; 0: none was begun

    def start(self, command: str, version: str, host: str, user: str, pid: int, at: float) -> int:
        """Note that a run begins; what is booked from now on is booked by it."""
        with self._transaction():
            added = self._db.execute(
                "INSERT INTO run (command, version, host, user, pid, started_at) VALUES (?, ?, ?, ?, ?, ?)",
                (command, version, host, user, pid, at),
            )
            self._now = int(added.lastrowid or 0)
            return self._now

    def end(self, run: int, at: float, exit_code: int) -> None:
        with self._transaction():
            self._db.execute("UPDATE run SET ended_at = ?, exit_code = ? WHERE id = ?", (at, exit_code, run))

    def all(self) -> Iterator[Run]:
        """The oldest first."""
        return (Run(*row) for row in self._db.execute(f"SELECT {_RUN} FROM run ORDER BY id"))

    def last(self, flag: str) -> tuple[float, int] | None:
        """When a command with this flag last ended, and with which exit code."""
        typed = "instr(' ' || command || ' ', ' ' || ? || ' ') > 0"
        query = f"SELECT ended_at, exit_code FROM run WHERE {typed} AND ended_at IS NOT NULL ORDER BY id DESC LIMIT 1"
        found = self._db.execute(query, (flag,)).fetchone()
        return None if found is None else (float(found[0]), int(found[1]))

    def book(self, spending: Spending, job: int) -> None:
        """Note what this run paid. The sums of all runs are in `spending`."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO booking VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, job, generation, field, kind) DO UPDATE SET "
                "strings = strings + excluded.strings, tokens = tokens + excluded.tokens, usd = usd + excluded.usd",
                (self._now, job, *astuple(spending)),
            )

    def bookings(self) -> Iterator[Booking]:
        """In the order of runs and jobs."""
        found = self._db.execute("SELECT * FROM booking ORDER BY run, job, generation, kind, field")
        return (Booking(run, job, Spending(*values)) for run, job, *values in found)

    def announce(self, files: Iterable[tuple[str, int, str]], at: float) -> None:
        """Note that these files, with job and role, are about to be deleted: gone from the service's lists, they are known here."""
        with self._transaction():
            rows = [(file, job, role, self._now, at) for file, job, role in files]
            self._db.executemany("INSERT OR IGNORE INTO receipt VALUES (?, ?, ?, ?, ?, '')", rows)

    def add_receipt(self, file: str, job: int, role: str, at: float, answer: str) -> None:
        """Note that a file is deleted at the service. The first answer stays: after it a file can only be gone."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO receipt VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (file) DO UPDATE SET "
                "run = excluded.run, at = excluded.at, answer = excluded.answer WHERE answer = ''",
                (file, job, role, self._now, at, answer),
            )

    def announced(self) -> list[Receipt]:
        """What was to be deleted and has no answer yet."""
        return [receipt for receipt in self._receipts() if not receipt.answer]

    def receipts(self) -> dict[str, Receipt]:
        """file → its receipt, in the order in which they were written."""
        return {receipt.file: receipt for receipt in self._receipts() if receipt.answer}

    def _receipts(self) -> Iterator[Receipt]:
        return (
            Receipt(*row)
            for row in self._db.execute("SELECT file, job, role, run, at, answer FROM receipt ORDER BY at, role, file")
        )
