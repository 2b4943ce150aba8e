"""What a report says, as plain frozen numbers and texts: the form of `report.json`, and all that the page is made of.

`Facts` come from the ledger alone and decide whether a report is up to date; `Samples` are looked up only for a new
one. Where they come from is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = 1  # of report.json; a report of another one is written anew
LONGEST = 500  # characters of any text that is quoted


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the input, by the name that the user knows."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Input:
    """What came in by the last reading. `sources` are the first ones, and none when the input has changed since."""

    wanted: str
    read_at: float
    records: int
    rejected_rows: int
    trial_of: int | None
    files: int
    sources: tuple[SourceFile, ...]
    is_as_read: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A generation: who embedded, and how much of it there is."""

    id: str
    service: str
    model: str
    dimensions: int
    is_current: bool
    is_configured: bool
    embedded: int


@dataclass(frozen=True, slots=True)
class FieldStrings:
    """A field's strings. Those that are present are embedded, in jobs, pending, never sent or failed; each is one of these.

    `absent` ones left the catalogue. `confirmed` is what the index has given back the UUIDs of, absent ones included."""

    name: str
    occurrences: int
    present: int
    absent: int
    embedded: int
    in_jobs: int
    pending: int
    never_sent: int
    failed: int
    belongs_in_index: int
    confirmed: int
    to_index: int
    refused_by_index: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """How many strings of a field were dropped for one reason. `stage`: preflight, service or index."""

    field: str
    stage: str
    code: str
    strings: int


@dataclass(frozen=True, slots=True)
class Paid:
    """What a field has cost, in one way. A job of several fields is billed as one: `field` is empty then, and for searches."""

    field: str
    kind: str
    strings: int
    tokens: int
    usd: float


@dataclass(frozen=True, slots=True)
class Money:
    """All of it adds up to `spent_usd`, which is what the budget has lost."""

    paid: tuple[Paid, ...]
    in_jobs_usd: float
    on_the_wire_usd: float
    doubtful_strings: int
    doubtful_usd: float
    spent_usd: float
    budget_usd: float


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job. `tokens` and `usd` are an estimate until it is collected. Moments are seconds since 1970."""

    id: int
    state: str
    status: str
    fields: tuple[str, ...]
    requests: int
    embedded: int | None
    tokens: int
    usd: float
    is_estimate: bool
    began_at: float
    ended_at: float | None
    expires_at: float | None
    reason: str

    @property
    def is_running(self) -> bool:
        return self.ended_at is None and self.state in ("creating", "open")


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs, the latest of them by line."""

    total: int
    states: dict[str, int]
    lines: tuple[JobLine, ...]


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """The index of the configured model. `verified_at`: when `--verify` last ended, and whether it found all well."""

    store: str
    verified_at: float | None
    was_well: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger says."""

    input: Input
    models: tuple[Model, ...]
    fields: tuple[FieldStrings, ...]
    dropped: tuple[Trouble, ...]
    money: Money
    jobs: Jobs
    index: IndexFacts

    def sum_of(self, name: str) -> int:
        """One number of the fields, over all of them."""
        return sum(getattr(one, name) for one in self.fields)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was left out."""

    file: str
    row: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """The reasons, the commonest first, and the first rows; `trouble` says why there are none to show."""

    reasons: tuple[tuple[str, int], ...] = ()
    first: tuple[RejectedRow, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class DroppedString:
    """A string without an embedding, or that the index refused."""

    field: str
    row: int
    stage: str
    code: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Near:
    """A neighbour; `similarity` is the cosine."""

    text: str
    similarity: float
    frequency: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A string drawn at random, and those nearest to it in its field."""

    field: str
    text: str
    nearest: tuple[Near, ...]


@dataclass(frozen=True, slots=True)
class Similarities:
    """How alike two strings of a field are that were drawn at random: how many pairs fall into each bin of `width`, from `low`."""

    field: str
    strings: int
    pairs: int
    low: float
    width: float
    counts: tuple[int, ...]
    median: float
    highest: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What a bounded look shows. `not_asked` says why there are no neighbours, `not_read` why there are no similarities;
    `is_whole` is false when the index could not be asked just then."""

    seed: int
    is_whole: bool
    rejected: RejectedRows
    dropped: tuple[DroppedString, ...]
    neighbours: tuple[Neighbours, ...]
    similarities: tuple[Similarities, ...]
    not_asked: str = ""
    not_read: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """One report. `state` is a hash of what it was made from."""

    format: int
    state: str
    written_at: str
    version: str
    facts: Facts
    samples: Samples
