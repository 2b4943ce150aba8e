"""What every store promises.

A string is in the store when `upsert` has confirmed its UUID, and not before. Nothing here knows of the ledger, the
tables or a server.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
class Written:
    """What came of one upsert.

    A string that is neither confirmed nor refused may be stored, or half stored: it is deleted before it is written
    again. `trouble` says why there are such strings.
    """

    confirmed: frozenset[uuid.UUID]
    refused: Mapping[uuid.UUID, str] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result; `similarity` is the cosine, 1.0 for the same direction."""

    uuid: uuid.UUID
    field: str
    text: str
    frequency: int
    similarity: float


class VectorStore(Protocol):
    """An index of one generation. Opening one changes nothing; `prepare` comes before the first upsert of a run."""

    workers: int  # how many upserts may be under way at once
    chunk: int  # how many strings one upsert takes best
    is_exact: bool  # a search looks at every vector: whether it finds what is stored need not be judged

    def look(self) -> None:
        """Nothing is changed; StoreError when the store can't be reached, or what is there does not fit."""

    def try_out(self) -> Iterator[str]:
        """What a run would need is tried, a sentence each, and nothing is left behind; StoreError for what fails."""

    def prepare(self) -> None:
        """Look, and make what an upsert needs."""

    def publish(self) -> None:
        """The index is complete: whoever reads by the common name gets this generation from now on."""

    def upsert(self, strings: Sequence[StoredString]) -> Written:
        """Write strings once, replacing those with the same UUID. StoreError when going on makes no sense."""

    def get(self, uuids: Sequence[uuid.UUID]) -> dict[uuid.UUID, StoredString]:
        """Those of the strings that are there, whole."""

    def search(self, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        """The nearest strings by cosine, nearest first; with `field`, only of that field."""

    def search_hybrid(self, text: str, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        """Strings near by vector, by the letters of the text, or both, best first; StoreError where there is no such search."""

    def count(self, field: str | None = None) -> int:
        """How many strings are there."""

    def uuids(self) -> Iterator[uuid.UUID]:
        """Every UUID there is, each once, in no particular order."""

    def unsearchable(self) -> int:
        """How many stored vectors a search can't find yet, because the store indexes behind its writes."""

    def delete(self, uuids: Sequence[uuid.UUID]) -> int:
        """Remove strings; how many of them were there."""

    def scrub(self) -> None:
        """Leave nothing in the store's own files of what was deleted, as far as it is ours to say; StoreError when somebody who
        reads them now stands in the way."""

    def clear(self) -> None:
        """Remove everything of this generation, whatever form it has; `prepare` comes before the next upsert."""

    def close(self) -> None:
        """Give back files and connections."""
