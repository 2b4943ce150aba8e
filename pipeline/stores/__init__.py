"""Where vectors are searched: one contract, and a literal table of the stores that keep it.

A store joins by one file and one line in STORES; `tests/stores/contract.py` is then run on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.stores.contract import Hit, StoredString, VectorStore, VerifyReport, verify

StoreFactory = Callable[[Path, str, int], VectorStore]


def _embedded(folder: Path, generation: str, dimensions: int) -> VectorStore:
    from pipeline.stores.embedded import EmbeddedStore

    return EmbeddedStore(folder, generation, dimensions)


STORES: dict[str, StoreFactory] = {
    "embedded": _embedded,
}

__all__ = ["STORES", "Hit", "StoreFactory", "StoredString", "VectorStore", "VerifyReport", "verify"]
