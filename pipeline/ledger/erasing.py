"""Taking strings out of the ledger for good: what is said of their rows, their texts where a reason quotes them, and what
SQLite leaves of both in its pages and its log. Which strings, and where else they stand, is not known here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.files import disk_error
from pipeline.spans import Spans

FORGOTTEN = "[forgotten]"  # stands where a text stood
_SHORTEST = 4  # letters; what is shorter stands in any reason, and says nothing there
# Tables with somebody's words, and the column; a run's command never holds a text.
_REASONS = (("failure", "reason"), ("attempt", "reason"), ("doubt", "reason"), ("job", "reason"), ("stop", "words"))
_PAST_REASON = "json_extract(job, '$.reason')"


def forms_of(text: str) -> list[str]:
    """A text as it may stand in somebody's words: as it is, on one line, and as JSON and Python write it."""
    if len(text.strip()) < _SHORTEST:
        return []
    plain = {text, " ".join(text.split())}
    written = {json.dumps(one, ensure_ascii=ascii_only)[1:-1] for one in plain for ascii_only in (True, False)}
    return sorted(plain | written | {repr(one)[1:-1] for one in plain}, key=len, reverse=True)  # one may stand within another


class Eraser:
    """The ledger's part of `--forget-text`; used through `Ledger.eraser`."""

    def __init__(self, database: sqlite3.Connection, path: Path, transaction: Callable[[], AbstractContextManager[None]]) -> None:
        self._db = database
        self._path = path
        self._transaction = transaction
        self._db.execute("PRAGMA secure_delete = ON")

    def exceptions(self, field: str, rows: Spans) -> None:
        """Forget that these rows failed, or came back without a vector."""
        with self._transaction():
            for table in ("failure", "attempt"):
                self._db.executemany(
                    f"DELETE FROM {table} WHERE field = ? AND row >= ? AND row < ?", [(field, first, past) for first, past in rows]
                )

    def words(self, texts: Iterable[str]) -> None:
        """Take texts out of whatever anybody said of them."""
        with self._transaction():
            for text in texts:
                for form in forms_of(text):
                    for table, column in _REASONS:
                        self._db.execute(
                            f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?) > 0",
                            (form, FORGOTTEN, form),
                        )
                    self._db.execute(
                        f"UPDATE past_job SET job = json_set(job, '$.reason', replace({_PAST_REASON}, ?, ?)) "
                        f"WHERE instr({_PAST_REASON}, ?) > 0",
                        (form, FORGOTTEN, form),
                    )

    def compact(self) -> None:
        """Write the database anew, without the pages of what was deleted, and empty its log."""
        try:
            self._db.execute("VACUUM")
            is_busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as problem:
            if "full" in str(problem) or "disk I/O" in str(problem):
                raise disk_error(self._path, problem) from problem
            is_busy = True
        if is_busy:
            raise CheckpointError(
                f"{self._path} is being read by another command, and what was deleted is still in its log. Run the same command "
                "again when that has ended."
            )
