"""Where vectors are searched: one contract, and a literal table of the stores that keep it.

A store joins by one file and one line in STORES; `tests/stores/contract.py` is then run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.ledger import Generation
from pipeline.stores.contract import Hit, StoredString, VectorStore, Written


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which index is opened: of which generation and catalogue, as the config says, with a folder for files."""

    config: Config
    folder: Path
    catalogue: str
    generation: Generation


StoreFactory = Callable[[Wanted], VectorStore]


def _embedded(wanted: Wanted) -> VectorStore:
    from pipeline.stores.embedded import EmbeddedStore

    return EmbeddedStore(wanted.folder, wanted.generation.id, wanted.generation.dimensions)


def _weaviate(wanted: Wanted) -> VectorStore:
    from pipeline.stores.weaviate import WeaviateStore

    return WeaviateStore(wanted.config, wanted.catalogue, wanted.generation)


STORES: dict[str, StoreFactory] = {
    "embedded": _embedded,
    "weaviate": _weaviate,
}

__all__ = ["STORES", "Hit", "StoreFactory", "StoredString", "VectorStore", "Wanted", "Written"]
