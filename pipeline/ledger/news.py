"""What stopped the last command, and what was told of it: the ledger's rows behind `--status` and `notify_command`.

A stop is kept by the kind of command, and goes when one of that kind ends well. What was told is kept by event, so that
it is told once. Used through `Ledger.news`; what is worth telling is not known here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stop:
    """How the last command of a kind was stopped. `passes`: the next one may do better, and nobody has to act."""

    command: str
    error: str
    words: str
    passes: bool
    at: float


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it was last told, or last looked at; `failed`: nobody can be sure that it arrived."""

    event: str
    detail: str
    at: float
    failed: bool = False


class NewsBook:
    """Stops and tellings, as the ledger keeps them."""

    def __init__(self, database: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]) -> None:
        self._db = database
        self._transaction = transaction

    def stops(self) -> list[Stop]:
        """What stopped the last commands, the oldest first."""
        found = self._db.execute("SELECT command, error, words, passes, at FROM stop ORDER BY at, kind")
        return [Stop(command, error, words, bool(passes), at) for command, error, words, passes, at in found]

    def save_stop(self, kind: str, stop: Stop) -> None:
        with self._transaction():
            values = (kind, stop.command, stop.error, stop.words, int(stop.passes), stop.at)
            self._db.execute(
                "INSERT OR REPLACE INTO stop (kind, command, error, words, passes, at) VALUES (?, ?, ?, ?, ?, ?)", values
            )

    def drop_stop(self, kind: str | None = None) -> None:
        """A command of this kind ended well; None: one that does the work of every kind."""
        with self._transaction():
            self._db.execute("DELETE FROM stop WHERE kind = coalesce(?, kind)", (kind,))

    def told(self, event: str) -> Told | None:
        found = self._db.execute("SELECT event, detail, at, failed FROM told WHERE event = ?", (event,)).fetchone()
        return None if found is None else Told(found[0], found[1], found[2], bool(found[3]))

    def save_told(self, told: Told) -> None:
        with self._transaction():
            values = (told.event, told.detail, told.at, int(told.failed))
            self._db.execute("INSERT OR REPLACE INTO told (event, detail, at, failed) VALUES (?, ?, ?, ?)", values)

    def forget(self, event: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM told WHERE event = ?", (event,))
