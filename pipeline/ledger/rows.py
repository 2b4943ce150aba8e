"""What the ledger gives and takes: frozen rows, no SQL."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipeline.spans import Spans


@dataclass(frozen=True, slots=True)
class TableFile:
    """An immutable file: `kind` is records, occurrences, frequencies, strings, tokens or embeddings; `scope` the
    snapshot, tokenizer or generation that it belongs to (empty for strings); no row outside first_row … past_row - 1."""

    kind: str
    scope: str
    field: str
    name: str
    rows: int
    first_row: int
    past_row: int
    bytes: int
    sha256: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The input as last read: `full`, or `trial` when only the first `limited_to` records were taken."""

    kind: str
    fingerprint: str
    reading: str
    id_column: str
    records: int
    rejected: int
    limited_to: int | None
    created_at: float


@dataclass(frozen=True, slots=True)
class Generation:
    """(service, model, dimensions). `asked` is the config's embedding_dimensions; `dimensions` 0 means not known yet."""

    service: str
    model: str
    asked: int | None
    dimensions: int

    @property
    def id(self) -> str:
        """Eight hex digits that name it in files and indexes; what was asked, so that it never changes."""
        asked = self.asked or "native"
        return hashlib.sha256(f"{self.service}\0{self.model}\0{asked}".encode()).hexdigest()[:8]

    @property
    def words(self) -> str:
        """What a person calls it; the dimensions where they were asked for."""
        return f"{self.service} {self.model}" + (f" ({self.asked} dimensions)" if self.asked else "")


@dataclass(frozen=True, slots=True)
class Failure:
    """A string that was not embedded or indexed, and why. `stage`: preflight, service or index."""

    scope: str
    field: str
    row: int
    stage: str
    code: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Intent:
    """A real-time request that is about to be sent: which rows, and what it will cost at most."""

    generation: str
    field: str
    spans: Spans
    strings: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """A request whose answer never came: its strings are possibly paid twice."""

    generation: str
    field: str
    spans: Spans
    strings: int
    tokens: int
    usd: float
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class Run:
    """A command that could change something: who typed what, where, and how it ended. Without an end it was killed, or is at
    work."""

    id: int
    command: str
    version: str
    host: str
    user: str
    pid: int
    started_at: float
    ended_at: float | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A file that is deleted at the service: when, by which run, and what the service answered. `role`: input, output, error."""

    file: str
    job: int
    role: str
    run: int
    at: float
    answer: str


@dataclass(frozen=True, slots=True)
class Spending:
    """What was paid for a field of a generation, by kind (`realtime`, `batch`, `search`, `estimate`)."""

    generation: str
    field: str
    kind: str
    strings: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class Booking:
    """Money by the run that booked it, and the job that it is for (0: none)."""

    run: int
    job: int
    spending: Spending
