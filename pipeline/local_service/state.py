"""What the service remembers: one SQLite file, or memory, for several threads and processes at once.

Contents of files lie in a folder beside it (`<state file>.files`, or a temporary one), each under an id of ours.

Always kept: how many requests were answered, texts embedded and tokens counted, and what is left of the rate
limits. Only with `record`, for tests and rehearsals that need a truth beside the client's own: which requests
have arrived and are not yet answered, and how often each text (by its sha256, never the text) was embedded. A
request that was open when its process was killed stays open in the file for ever: that is the truth about it.

It doesn't know HTTP, JSON or the model, and never looks at a clock: the time comes with each call.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict

import numpy as np

from pipeline.local_service.misbehaviour import Misbehaviour, Misbehaviours
from pipeline.local_service.schema import VERSION, SchemaError, bring_up_to_date, version_of
from pipeline.local_service.settings import AS_REAL, AT_ONCE, BatchLimits, Pace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BUSY_SECONDS = 30.0  # how long another process's transaction is waited for
_ID_PREFIX = "req_local_"
_DIGEST_BYTES = 32
_EVERY_DIGEST = "SELECT sha256s FROM embedded UNION ALL SELECT sha256s FROM embedded_in_batches"


class StateError(Exception):
    """The state file can't be used: not ours, of a newer version, not writable."""


class Embedded(TypedDict):
    """A text, by its hash, and how often it was embedded."""

    sha256: str
    times: int


class BatchSummary(TypedDict):
    """A batch as the service itself knows it, whatever it tells."""

    id: str
    status: str
    input_file_id: str
    input_file_name: str
    metadata: dict[str, str] | None
    request_counts: dict[str, int]


class Summary(TypedDict):
    """What a test in another process asks: see `State.summary`."""

    open: int
    answered: int
    texts: int
    tokens: int
    embedded_more_than_once: list[Embedded]
    batches: list[BatchSummary]


@dataclass(frozen=True, slots=True)
class Limited:
    """A request that a rate limit refused; `wait` is None when no waiting would help."""

    kind: str
    limit: int
    used: int
    requested: int
    wait: float | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a request: its id, the headers of the rate limits, and whether one refused it."""

    request_id: str
    headers: dict[str, str] = field(default_factory=dict)
    limited: Limited | None = None


def is_shared(folder: Path) -> bool:
    """Whether what is made in a folder is meant for its group: it hands its group on, which may write."""
    shared = stat.S_ISGID | stat.S_IWGRP
    return folder.is_dir() and folder.stat().st_mode & shared == shared


class State:
    """The one mutable thing of the service; close it, or use it as a context manager."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        record: bool = False,
        api_key: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        pace: Pace = AT_ONCE,
        batch_limits: BatchLimits = AS_REAL,
        misbehaviours: Sequence[Misbehaviour] = (),
    ) -> None:
        if api_key is not None and not api_key.strip():
            raise ValueError("The API key is empty: no request could ever match it.")
        limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        for kind, limit in limits.items():
            if limit is not None and limit < 1:
                raise ValueError(f"{kind}_per_minute is {limit}; it must be at least 1.")
        self.record = record
        self.api_key = api_key
        self.pace = pace
        self.batch_limits = batch_limits
        self.misbehaviours = Misbehaviours(tuple(misbehaviours))
        self._path = path
        self._folder: Path | None = None
        self._folder_removed: weakref.finalize[..., State] | None = None
        self._limits = {kind: limit for kind, limit in limits.items() if limit is not None}
        self._lock, self._folder_lock = threading.Lock(), threading.Lock()
        if path is not None:
            with contextlib.suppress(OSError):  # SQLite says what is wrong; one that it makes itself may be read by all
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660 if is_shared(path.parent) else 0o600))
        try:
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise StateError(f"{path}: {error}.") from error
        try:
            self._prepare()
        except (sqlite3.Error, SchemaError) as error:
            self._connection.close()
            raise StateError(f"{path}: {error}".rstrip(".") + ".") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            self._connection.close()
            if self._folder_removed is not None:
                self._folder_removed()

    @property
    def folder(self) -> Path:
        """Where contents lie; made when it is first needed, for the eyes of those only who may see the folder it is in."""
        with self._folder_lock:
            if self._folder is None:
                if self._path is None:
                    self._folder = Path(tempfile.mkdtemp(prefix="local-service-"))
                    # Not only by `close`: a state in memory may end with its process.
                    self._folder_removed = weakref.finalize(self, shutil.rmtree, str(self._folder), ignore_errors=True)
                else:
                    folder = self._path.with_name(self._path.name + ".files")
                    folder.mkdir(mode=0o770 if is_shared(folder.parent) else 0o700, exist_ok=True)
                    self._folder = folder
            return self._folder

    @contextlib.contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing, and alone: other threads and processes wait. Never one within another."""
        with self._lock:
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def embedded_in_batch(self, connection: sqlite3.Connection, batch: str, texts: Sequence[str], tokens: int) -> None:
        """Count what was embedded for a batch, within the transaction that keeps its results."""
        connection.execute("UPDATE totals SET texts = texts + ?, tokens = tokens + ?", (len(texts), tokens))
        if self.record and texts:
            connection.execute("INSERT INTO embedded_in_batches VALUES (NULL, ?, ?)", (batch, _digests(texts)))

    def arrived(self, now: float) -> int | None:
        """Write down that a request has come, before anything is done for it; only with `record`."""
        if not self.record:
            return None
        with self.transaction() as connection:
            number = _next_number(connection)
            connection.execute("INSERT INTO requests VALUES (?, ?, NULL)", (number, now))
        return number

    def settle(self, number: int | None, now: float, texts: Sequence[str] = (), tokens: int = 0) -> Settled:
        """Count an answer that is ready, and the texts embedded for it, unless a rate limit forbids it.

        One transaction, after the work and before the answer leaves: from here on a real service would bill
        it. Only answers with texts count against the limits. A refused one leaves no count but its own.
        """
        digests = _digests(texts) if self.record else b""
        with self.transaction() as connection:
            if number is None:
                number = _next_number(connection)
                connection.execute("UPDATE totals SET answered = answered + 1")
            headers, limited = self._take(connection, now, tokens) if texts else ({}, None)
            if texts and limited is None:
                connection.execute("UPDATE totals SET texts = texts + ?, tokens = tokens + ?", (len(texts), tokens))
                if digests:
                    connection.execute("INSERT INTO embedded VALUES (?, ?)", (number, digests))
        return Settled(f"{_ID_PREFIX}{number:012d}", headers, limited)

    def answered(self, request_id: str, now: float) -> None:
        """Write down that a request was answered, or its client was gone; only with `record`."""
        if not self.record:
            return
        with self.transaction() as connection:
            closed = connection.execute(
                "UPDATE requests SET answered = ? WHERE number = ? AND answered IS NULL",
                (now, int(request_id.removeprefix(_ID_PREFIX))),
            )
            connection.execute("UPDATE totals SET answered = answered + ?", (closed.rowcount,))

    def summary(self) -> Summary:
        """The totals; and, of what `record` wrote, the open requests and the texts embedded again."""
        with self.transaction("BEGIN") as connection:
            (waiting,) = connection.execute("SELECT count(*) FROM requests WHERE answered IS NULL").fetchone()
            answered, texts, tokens = connection.execute("SELECT answered, texts, tokens FROM totals").fetchone()
            rows = connection.execute(_EVERY_DIGEST).fetchall()
            batches = connection.execute(
                "SELECT id, status, input_file_id, input_file_name, metadata, total, completed, failed FROM batches ORDER BY number"
            ).fetchall()
        return {
            "open": waiting,
            "answered": answered,
            "texts": texts,
            "tokens": tokens,
            "embedded_more_than_once": [{"sha256": digest, "times": times} for digest, times in _counted(rows, at_least=2).items()],
            "batches": [
                {
                    "id": batch,
                    "status": status,
                    "input_file_id": file,
                    "input_file_name": name,
                    "metadata": None if metadata is None else json.loads(metadata),
                    "request_counts": {"total": total, "completed": completed, "failed": failed},
                }
                for batch, status, file, name, metadata, total, completed, failed in batches
            ],
        }

    def embedded(self) -> dict[str, int]:
        """How often each text was embedded while `record` was on, by its sha256, in the order of that."""
        with self.transaction("BEGIN") as connection:
            rows = connection.execute(_EVERY_DIGEST).fetchall()
        return _counted(rows, at_least=1)

    def _prepare(self) -> None:
        with self.transaction("BEGIN"):
            version_of(self._connection)  # before anything is written to what may not be ours
        _switch_to_wal(self._connection)
        # Outlives a crash of the process; a power cut may lose the last answers, and nobody paid for them.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with self.transaction() as connection:
            if version_of(connection) < VERSION:  # still: another process may have been first
                bring_up_to_date(connection)

    def _take(self, connection: sqlite3.Connection, now: float, tokens: int) -> tuple[dict[str, str], Limited | None]:
        """Take one request and its tokens from what the limits leave, from both or from none."""
        wanted = {"requests": 1, "tokens": tokens}
        available = {}
        for kind, limit in self._limits.items():
            row = connection.execute("SELECT available, at FROM buckets WHERE kind = ?", (kind,)).fetchone()
            left, at = row or (limit, now)
            # A clock that was set back refills nothing, and is believed from then on.
            available[kind] = min(float(limit), left + max(0.0, now - at) * limit / 60)
        limited = next(
            (
                _limited(kind, limit, available[kind], wanted[kind])
                for kind, limit in self._limits.items()
                if wanted[kind] > available[kind] + 1e-6  # what seconds as floats may be off by
            ),
            None,
        )
        headers = {}
        for kind, limit in self._limits.items():
            left = available[kind] if limited else max(0.0, available[kind] - wanted[kind])
            connection.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)", (kind, left, now))
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(math.floor(left + 1e-6))
            headers[f"x-ratelimit-reset-{kind}"] = duration((limit - left) * 60 / limit)
        return headers, limited


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it, rounded up: `20ms`, `1s`, `1.5s`, `6m0s`."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _limited(kind: str, limit: int, available: float, wanted: int) -> Limited:
    wait = None if wanted > limit else (wanted - available) * 60 / limit
    return Limited(kind, limit, limit - math.floor(available), wanted, wait)


def next_count(connection: sqlite3.Connection, kind: str) -> int:
    """1, 2, 3 … of a kind, kept with the transaction."""
    connection.execute("INSERT INTO counts VALUES (?, 1) ON CONFLICT (kind) DO UPDATE SET value = value + 1", (kind,))
    (value,) = connection.execute("SELECT value FROM counts WHERE kind = ?", (kind,)).fetchone()
    return int(value)


def new_id(connection: sqlite3.Connection, kind: str, begin: str) -> str:
    """An id that no file of the service has used: whoever remembers one of a lost state finds nothing under it."""
    (seed,) = connection.execute("SELECT seed FROM seeds").fetchone()
    return begin + hashlib.blake2b(f"{kind} {next_count(connection, kind)}".encode(), digest_size=16, key=seed).hexdigest()


def _digests(texts: Sequence[str]) -> bytes:
    return b"".join(hashlib.sha256(text.encode()).digest() for text in texts)


def _counted(rows: list[tuple[bytes]], at_least: int) -> dict[str, int]:
    every = np.frombuffer(b"".join(row[0] for row in rows), f"V{_DIGEST_BYTES}")
    digests, times = np.unique(every, return_counts=True)
    wanted = times >= at_least
    return {digest.tobytes().hex(): count for digest, count in zip(digests[wanted], times[wanted].tolist(), strict=True)}


def _next_number(connection: sqlite3.Connection) -> int:
    connection.execute("UPDATE totals SET requests = requests + 1")
    (number,) = connection.execute("SELECT requests FROM totals").fetchone()
    return int(number)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Two processes that make the same new file meet here, and SQLite doesn't wait for the lock by itself."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
