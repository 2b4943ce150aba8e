"""What every store promises, and the comparison of a store with what it should hold.

A string is in the store when `upsert` has given back its UUID, and not before. Nothing here knows of the ledger, the
tables or a server.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StoredString:
    """A string as it stands in the index. `crc32` is a label; `vector` is what the service gave, unchanged."""

    uuid: uuid.UUID
    field: str
    text: str
    crc32: str
    frequency: int
    model: str
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; `similarity` is the cosine, 1.0 for the same direction."""

    uuid: uuid.UUID
    field: str
    text: str
    frequency: int
    similarity: float


class VectorStore(Protocol):
    """An index of one generation."""

    def upsert(self, strings: Sequence[StoredString]) -> set[uuid.UUID]:
        """Write strings, replacing those with the same UUID; the UUIDs that are durably stored are given back."""

    def get(self, uuids: Sequence[uuid.UUID]) -> dict[uuid.UUID, StoredString]:
        """Those of the strings that are there, whole."""

    def search(self, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        """The nearest strings by cosine, nearest first; with `field`, only of that field."""

    def count(self, field: str | None = None) -> int:
        """How many strings are there."""

    def uuids(self) -> Iterator[uuid.UUID]:
        """Every UUID there is, each once, in no particular order."""

    def delete(self, uuids: Sequence[uuid.UUID]) -> int:
        """Remove strings; how many of them were there."""

    def clear(self) -> None:
        """Remove everything of this generation."""

    def close(self) -> None:
        """Give back files and connections."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How a store differs from what it should hold."""

    expected: int
    missing: list[uuid.UUID]
    changed: list[uuid.UUID]
    unexpected: list[uuid.UUID]
    vectors_compared: int

    @property
    def is_well(self) -> bool:
        return not (self.missing or self.changed or self.unexpected)


def verify(
    store: VectorStore, expected: Iterable[Sequence[tuple[uuid.UUID, NDArray[np.float32]]]], sample_every: int = 1
) -> VerifyReport:
    """Compare all UUIDs, and every n-th vector, with what the store should hold, given in chunks."""
    import numpy as np

    there = set(store.uuids())  # 45 million of them would be 4 GB: a store for so many brings its own comparison
    missing: list[uuid.UUID] = []
    changed: list[uuid.UUID] = []
    total = compared = 0
    for chunk in expected:
        total += len(chunk)
        missing += [key for key, _ in chunk if key not in there]
        sample = [(key, vector) for key, vector in chunk[::sample_every] if key in there]
        found = store.get([key for key, _ in sample])
        compared += len(sample)
        changed += [key for key, vector in sample if key not in found or not np.array_equal(found[key].vector, vector)]
        there.difference_update(key for key, _ in chunk)
    return VerifyReport(total, missing, changed, sorted(there), compared)
