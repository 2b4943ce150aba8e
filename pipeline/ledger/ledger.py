"""Reading and changing the ledger. Everything that must be true together is one `with ledger.transaction():`.

Known here: the SQL of state. Not known: what a span means to a stage, where files lie, who holds the lock
(`checkpoint.py` makes sure that only one process opens it for writing; SQLite's WAL lets readers read meanwhile).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from pipeline import spans as span_sets
from pipeline.files import disk_error, disk_errors, fsync_folder, publish, temporary
from pipeline.ledger.erasing import Eraser
from pipeline.ledger.jobs import JobBook, reserve
from pipeline.ledger.news import NewsBook
from pipeline.ledger.rows import Doubt, Failure, Generation, Intent, Snapshot, Spending, TableFile
from pipeline.ledger.runs import RunBook
from pipeline.rights import make_file
from pipeline.spans import Spans

_FILE = "kind, scope, field, name, rows, first_row, past_row, bytes, sha256, created_at"
_MONEY = "generation, field, spans, strings, tokens, usd"


class Ledger:
    """One open connection; used by one thread."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._db = database
        self.path = path
        self.runs = RunBook(database, self.transaction)

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or none of it, durable when the block ends. A block inside a block joins the outer one."""
        if self._db.in_transaction:
            yield
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as problem:
            if "full" in str(problem) or "disk I/O" in str(problem):
                raise disk_error(self.path, problem) from problem
            raise

    @property
    def changes(self) -> int:
        """Grows with each row that this connection changes: whether a safe copy is worth its while."""
        return self._db.total_changes

    def save_copy(self, copy: Path) -> None:
        """A whole, consistent copy beside the ledger, replaced atomically."""
        draft = temporary(copy)
        draft.unlink(missing_ok=True)
        with disk_errors(copy):
            make_file(draft)
        target = sqlite3.connect(draft)
        try:
            self._db.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as problem:
            raise disk_error(copy, problem) from problem
        finally:
            target.close()
        publish(copy)
        fsync_folder(copy.parent)

    # What this catalogue is

    def meta(self, name: str) -> str | None:
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def set_meta(self, name: str, value: str) -> None:
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    # Files

    def next_file_number(self) -> int:
        """A number that no file has or had, so that a new reading never overwrites the one it replaces; a name that was
        written but never committed is used again and overwritten."""
        query = "SELECT max(seq) FROM (SELECT seq FROM sqlite_sequence WHERE name = 'file' UNION ALL SELECT id FROM file)"
        return int(self._db.execute(query).fetchone()[0] or 0) + 1

    def reserve_file_numbers(self, last: int) -> None:
        """Never give a number up to this one: a file of it may lie in the folder."""
        reserve(self._db, "file", last)

    def add_file(self, file: TableFile) -> None:
        with self.transaction():
            self._db.execute(f"INSERT INTO file ({_FILE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(file))

    def drop_files(self, kind: str, scope: str, field: str | None = None) -> list[str]:
        """Forget files; their names are given back, to be deleted after the commit."""
        names = [file.name for file in self.files(kind, scope, field)]
        with self.transaction():
            self._db.executemany("DELETE FROM file WHERE name = ?", [(name,) for name in names])
        return names

    def drop_file(self, name: str) -> None:
        """Forget one file."""
        with self.transaction():
            self._db.execute("DELETE FROM file WHERE name = ?", (name,))

    def files(self, kind: str | None = None, scope: str | None = None, field: str | None = None) -> list[TableFile]:
        """The files that exist, in the order they were made."""
        wanted = {"kind": kind, "scope": scope, "field": field}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = :{name}" for name in given) or "true"
        return [TableFile(*row) for row in self._db.execute(f"SELECT {_FILE} FROM file WHERE {where} ORDER BY id", given)]

    # Fields and snapshots

    def fields(self) -> dict[str, tuple[str, int]]:
        """name → (definition, next row number)."""
        return {row[0]: (row[1], row[2]) for row in self._db.execute("SELECT name, definition, next_row FROM field ORDER BY name")}

    def save_field(self, name: str, definition: str, next_row: int) -> None:
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO field VALUES (?, ?, ?)", (name, definition, next_row))

    def snapshot(self, kind: str) -> Snapshot | None:
        found = self._db.execute("SELECT * FROM snapshot WHERE kind = ?", (kind,)).fetchone()
        return None if found is None else Snapshot(*found)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(snapshot))

    def drop_snapshot(self, kind: str) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM snapshot WHERE kind = ?", (kind,))

    # Spans

    def spans(self, state: str, scope: str, field: str) -> Spans:
        found = self._db.execute(
            "SELECT first, past FROM span WHERE state = ? AND scope = ? AND field = ? ORDER BY first", (state, scope, field)
        )
        return [(first, past) for first, past in found]

    def add_spans(self, state: str, scope: str, field: str, more: Iterable[tuple[int, int]]) -> None:
        """Add rows to a state; neighbours become one span, so that order of arrival leaves no trace."""
        with self.transaction():
            for first, past in span_sets.union(more):
                touching = self._db.execute(
                    "SELECT min(first), max(past) FROM span WHERE state = ? AND scope = ? AND field = ? AND first <= ? AND "
                    "past >= ?",
                    (state, scope, field, past, first),
                ).fetchone()
                low, high = (first, past) if touching[0] is None else (min(first, touching[0]), max(past, touching[1]))
                self._db.execute(
                    "DELETE FROM span WHERE state = ? AND scope = ? AND field = ? AND first >= ? AND first <= ?",
                    (state, scope, field, low, high),
                )
                self._db.execute("INSERT INTO span VALUES (?, ?, ?, ?, ?)", (state, scope, field, low, high))

    def set_spans(self, state: str, scope: str, field: str, rows: Sequence[tuple[int, int]]) -> None:
        """Replace the rows of a state."""
        with self.transaction():
            self._db.execute("DELETE FROM span WHERE state = ? AND scope = ? AND field = ?", (state, scope, field))
            self._db.executemany("INSERT INTO span VALUES (?, ?, ?, ?, ?)", [(state, scope, field, *span) for span in rows])

    def index_again(self, field: str, rows: Sequence[tuple[int, int]]) -> None:
        """What an index keeps of these strings is no longer right: they count as not indexed, in every store."""
        if not rows:
            return
        with self.transaction():
            found = self._db.execute("SELECT DISTINCT scope FROM span WHERE state = 'indexed' AND field = ?", (field,)).fetchall()
            for (scope,) in found:
                indexed = self.spans("indexed", scope, field)
                self.set_spans("indexed", scope, field, span_sets.subtract(indexed, rows))
                self.add_spans("stale", scope, field, span_sets.intersect(indexed, rows))  # it may yet have to be taken out

    def drop_spans(self, state: str, scope: str) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM span WHERE state = ? AND scope = ?", (state, scope))

    def has_any(self, *scopes: str) -> bool:
        """Whether any row is in any state of one of these scopes."""
        marks = ", ".join("?" * len(scopes))
        return self._db.execute(f"SELECT 1 FROM span WHERE scope IN ({marks}) LIMIT 1", scopes).fetchone() is not None

    # Generations

    def generation(self, generation_id: str) -> Generation | None:
        found = self._db.execute(
            "SELECT service, model, asked, dimensions FROM generation WHERE id = ?", (generation_id,)
        ).fetchone()
        return None if found is None else Generation(*found)

    def generations(self) -> list[Generation]:
        """All that anything was ever embedded for, the oldest first."""
        found = self._db.execute("SELECT service, model, asked, dimensions FROM generation ORDER BY created_at, id")
        return [Generation(*row) for row in found]

    def current_generation(self) -> Generation | None:
        found = self._db.execute("SELECT service, model, asked, dimensions FROM generation WHERE is_current = 1").fetchone()
        return None if found is None else Generation(*found)

    def is_current(self, generation_id: str) -> bool:
        current = self.current_generation()
        return current is not None and current.id == generation_id

    def save_generation(self, generation: Generation, at: float) -> None:
        """Know a generation; the first one is current."""
        with self.transaction():
            is_first = self.current_generation() is None
            self._db.execute(
                "INSERT INTO generation VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET dimensions = "
                "excluded.dimensions",
                (generation.id, generation.service, generation.model, generation.asked, generation.dimensions, int(is_first), at),
            )

    def make_current(self, generation_id: str) -> None:
        with self.transaction():
            self._db.execute("UPDATE generation SET is_current = (id = ?)", (generation_id,))

    # Exceptional strings

    def add_failures(self, failures: Iterable[Failure]) -> None:
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO failure VALUES (?, ?, ?, ?, ?, ?, ?)", map(astuple, failures))

    def failures(self, scope: str, field: str | None = None) -> Iterator[Failure]:
        where, values = ("scope = ?", (scope,)) if field is None else ("scope = ? AND field = ?", (scope, field))
        found = self._db.execute(f"SELECT * FROM failure WHERE {where} ORDER BY scope, field, row", values)
        return (Failure(*row) for row in found)

    def failure_counts(self, scope: str, field: str | None = None) -> dict[tuple[str, str], int]:
        """(stage, code) → how many strings."""
        where, values = ("scope = ?", (scope,)) if field is None else ("scope = ? AND field = ?", (scope, field))
        found = self._db.execute(f"SELECT stage, code, count(*) FROM failure WHERE {where} GROUP BY 1, 2 ORDER BY 1, 2", values)
        return {(stage, code): count for stage, code, count in found}

    def drop_failures(self, scope: str) -> int:
        with self.transaction():
            return self._db.execute("DELETE FROM failure WHERE scope = ?", (scope,)).rowcount

    def drop_failures_of(self, scope: str, field: str, rows: Sequence[tuple[int, int]]) -> None:
        """Forget the failures of some rows."""
        with self.transaction():
            forget = "DELETE FROM failure WHERE scope = ? AND field = ? AND row >= ? AND row < ?"
            self._db.executemany(forget, [(scope, field, first, past) for first, past in rows])

    def drop_failed(self, scope: str, fields: Sequence[str]) -> int:
        """Forget what failed after it was sent; what preflight refused would only be refused again."""
        forget = "DELETE FROM failure WHERE scope = ? AND field = ? AND stage <> 'preflight'"
        with self.transaction():
            return sum(self._db.execute(forget, (scope, name)).rowcount for name in fields)

    # Requests on the wire, and money

    def add_intent(self, intent: Intent, at: float) -> int:
        with self.transaction():
            values = (intent.generation, intent.field, json.dumps(intent.spans), intent.strings, intent.tokens, intent.usd, at)
            added = self._db.execute(f"INSERT INTO intent ({_MONEY}, at) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            return int(added.lastrowid or 0)

    def restore_intent(self, number: int, intent: Intent, at: float) -> None:
        """Know an intent again under the number that its answer in the spool names."""
        with self.transaction():
            values = (
                number,
                intent.generation,
                intent.field,
                json.dumps(intent.spans),
                intent.strings,
                intent.tokens,
                intent.usd,
                at,
            )
            self._db.execute(f"INSERT OR IGNORE INTO intent (id, {_MONEY}, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def intents(self) -> dict[int, Intent]:
        """The requests that were announced and not yet booked."""
        found = self._db.execute(f"SELECT id, {_MONEY} FROM intent ORDER BY id")
        return {row[0]: Intent(row[1], row[2], [tuple(span) for span in json.loads(row[3])], *row[4:]) for row in found}

    def close_intents(self, numbers: Iterable[int]) -> None:
        with self.transaction():
            self._db.executemany("DELETE FROM intent WHERE id = ?", [(number,) for number in numbers])

    def add_doubt(self, intent: Intent, reason: str, at: float) -> None:
        """A request of this intent was sent and its answer never came."""
        with self.transaction():
            values = (
                intent.generation,
                intent.field,
                json.dumps(intent.spans),
                intent.strings,
                intent.tokens,
                intent.usd,
                reason,
                at,
            )
            self._db.execute(f"INSERT INTO doubt ({_MONEY}, reason, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def doubts(self) -> Iterator[Doubt]:
        found = self._db.execute(f"SELECT {_MONEY}, reason, at FROM doubt ORDER BY id")
        return (Doubt(row[0], row[1], [tuple(span) for span in json.loads(row[2])], *row[3:]) for row in found)

    def doubt_totals(self) -> tuple[int, float]:
        """How many strings are possibly paid twice, and for how much."""
        strings, usd = self._db.execute("SELECT coalesce(sum(strings), 0), coalesce(sum(usd), 0.0) FROM doubt").fetchone()
        return int(strings), float(usd)

    def spend(self, spending: Spending, job: int = 0) -> None:
        """Book what was paid, for a job or for none."""
        with self.transaction():
            self.runs.book(spending, job)
            self._db.execute(
                "INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (generation, field, kind) DO UPDATE SET "
                "strings = strings + excluded.strings, tokens = tokens + excluded.tokens, usd = usd + excluded.usd",
                astuple(spending),
            )

    def spendings(self) -> list[Spending]:
        return [Spending(*row) for row in self._db.execute("SELECT * FROM spending ORDER BY generation, field, kind")]

    def spent_usd(self) -> float:
        """Collected, on the wire, and possibly paid twice: what the budget has lost already."""
        paid, doubted = (
            self._db.execute(f"SELECT coalesce(sum(usd), 0.0) FROM {table}").fetchone()[0] for table in ("spending", "doubt")
        )
        return float(paid + doubted + self.on_its_way_usd())

    def on_its_way_usd(self) -> float:
        """On the wire and in jobs that are not collected, as estimated. Summed by itself: what is left of a subtraction of sums is
        seldom nothing, even when nothing is on its way."""
        (open_,) = self._db.execute("SELECT coalesce(sum(usd), 0.0) FROM intent").fetchone()
        (in_jobs,) = self._db.execute(
            "SELECT coalesce(sum(tokens * price / 1000000.0), 0.0) FROM job WHERE state IN ('creating', 'open', 'ended', 'lost')"
        ).fetchone()
        return float(open_ + in_jobs)

    @property
    def eraser(self) -> Eraser:
        """What `--forget-text` does to the ledger."""
        return Eraser(self._db, self.path, self.transaction)

    @property
    def jobs(self) -> JobBook:
        """What is known of provider batches."""
        return JobBook(self._db, self.transaction)

    @property
    def news(self) -> NewsBook:
        """What stopped the last command, and what was told of it."""
        return NewsBook(self._db, self.transaction)
