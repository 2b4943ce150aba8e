"""A store joins by one line in STORES: that line puts it under the whole contract, and under the product by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.ledger import Generation
from pipeline.stores import STORES, Hit, StoredString, VectorStore, Wanted, Written
from tests.stores.contract import MakeStore, StoreContract, closing
from tests.tools import Catalogue

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = [("1", "Bach, Johann Sebastian", "Fugue"), ("2", "Bach, J. S.", "Toccata"), ("3", "Mozart", "Requiem")]


class MemoryStore:
    """The shortest store that keeps the contract: a dictionary for each folder and generation, gone with the process."""

    workers = 1
    chunk = 1000
    is_exact = True
    kept: dict[tuple[Path, str], dict[UUID, StoredString]] = {}  # noqa: RUF012  # shared by all: that is the point

    def __init__(self, folder: Path, generation: str, dimensions: int) -> None:
        self._strings = self.kept.setdefault((folder, generation), {})
        self._dimensions = dimensions

    def look(self) -> None:
        """There is always room."""

    def try_out(self) -> Iterator[str]:
        yield "a dictionary"

    def prepare(self) -> None:
        """The dictionary is there."""

    def publish(self) -> None:
        """Nobody else can see it."""

    def unsearchable(self) -> int:
        return 0

    def search_hybrid(self, text: str, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:  # noqa: ARG002
        raise StoreError("by vector alone")

    def upsert(self, strings: Sequence[StoredString]) -> Written:
        if any(string.vector.shape != (self._dimensions,) for string in strings):
            raise StoreError(f"all vectors need {self._dimensions} dimensions")
        self._strings.update({string.uuid: string for string in strings})
        return Written(frozenset(string.uuid for string in strings))

    def get(self, uuids: Sequence[UUID]) -> dict[UUID, StoredString]:
        return {key: self._strings[key] for key in uuids if key in self._strings}

    def search(self, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        query = vector.astype(np.float64)
        length = float(np.linalg.norm(query))
        if query.shape != (self._dimensions,) or not np.isfinite(length) or length == 0:
            raise StoreError(f"a search needs a vector of {self._dimensions} finite numbers that are not all zero")
        hits = []
        for string in self._strings.values():
            if field in (None, string.field):
                wide = string.vector.astype(np.float64)
                similarity = float((wide * query).sum() / length / np.sqrt((wide * wide).sum()))
                hits.append(Hit(string.uuid, string.field, string.text, string.frequency, similarity))
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.uuid))[:limit]

    def count(self, field: str | None = None) -> int:
        return sum(field in (None, string.field) for string in self._strings.values())

    def uuids(self) -> Iterator[UUID]:
        return iter(list(self._strings))

    def delete(self, uuids: Sequence[UUID]) -> int:
        return sum(self._strings.pop(key, None) is not None for key in uuids)

    def scrub(self) -> None:
        """A dictionary keeps nothing of what left it."""

    def clear(self) -> None:
        self._strings.clear()

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setattr(MemoryStore, "kept", {})
    monkeypatch.setitem(STORES, "memory", lambda w: MemoryStore(w.folder, w.generation.id, w.generation.dimensions))


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[MakeStore]:
        with closing(lambda generation, dimensions: MemoryStore(tmp_path, generation, dimensions)) as make:
            yield make


def opened(catalogue: Catalogue) -> VectorStore:
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
    assert generation is not None
    return MemoryStore(catalogue.checkpoint / "store", generation.id, generation.dimensions)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure(vector_store="memory")
    made.write(ROWS)
    return made


def test_a_registered_store_is_used_by_its_name_from_run_to_search(catalogue: Catalogue) -> None:
    ran = catalogue.run()
    assert ran.code == 0, ran.err
    assert "6 strings written to the memory index" in ran.out
    assert opened(catalogue).count() == 6
    found = catalogue.run("--search", "Bach, Johann Sebastian", "--json").document
    assert found["results"][0]["text"] == "Bach, Johann Sebastian"
    assert catalogue.run("--verify", "--json").document["is_well_now"] is True
    assert list((catalogue.checkpoint / "store").iterdir()) == []


def test_each_store_has_its_own_account_of_what_is_indexed(catalogue: Catalogue) -> None:
    catalogue.run()
    ran = catalogue.run("--set", "vector_store=embedded", "--json")
    assert ran.document["stages"]["embedding_and_indexing"]["indexed"] == 6
    assert ran.document["stages"]["embedding_and_indexing"]["embedded"] == 0
    assert opened(catalogue).count() == 6
    again = catalogue.run("--json").document["stages"]["embedding_and_indexing"]
    assert (again["indexed"], again["index_mended"]) == (0, False)


def test_a_store_that_lost_everything_is_mended_by_the_next_run(catalogue: Catalogue) -> None:
    catalogue.run()
    opened(catalogue).clear()
    stage = catalogue.run("--json").document["stages"]["embedding_and_indexing"]
    assert (stage["embedded"], stage["indexed"], stage["index_mended"]) == (0, 6, True)
    assert opened(catalogue).count() == 6


@pytest.mark.parametrize("command", [(), ("--status",), ("--check",), ("--dry-run",), ("--search", "x")])
def test_a_name_that_is_in_no_registry_is_refused_with_those_that_are(catalogue: Catalogue, command: tuple[str, ...]) -> None:
    ran = catalogue.run("--set", "vector_store=weaviat", *command)
    assert ran.code == 2
    assert ran.err == "config.yml: vector_store is 'weaviat'; it must be one of: embedded, weaviate, memory, none.\n"
    assert not catalogue.checkpoint.exists()


def test_the_registry_is_literal_and_each_store_opens_without_a_server(tmp_path: Path) -> None:
    for name, factory in STORES.items():
        assert re.fullmatch(r"[a-z]+", name)
        store = factory(Wanted(Config(), tmp_path, "some-catalogue", Generation("local", "m", None, 3)))
        assert store.workers >= 1
        store.close()
