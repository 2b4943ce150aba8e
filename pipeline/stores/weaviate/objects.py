"""What a query gives back, as ours: strings and hits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.stores.contract import Hit, StoredString

if TYPE_CHECKING:
    from numpy.typing import NDArray


def vector_of(entry: Any) -> NDArray[np.float32]:
    """The vector of what a query gave back; empty when it gave none."""
    return np.array(next(iter(entry.vector.values()), []), np.float32)


def string_of(entry: Any) -> StoredString:
    """An object as the string it was made of."""
    found = entry.properties
    return StoredString(
        entry.uuid, str(found["field"]), str(found["text"]), str(found["crc32"]), int(found["frequency"]), str(found["model"]),
        vector_of(entry),
    )  # fmt: skip


def hit_of(entry: Any, query: NDArray[np.float64]) -> Hit:
    """With the exact cosine, each by itself: the same vector gets the same number whatever the server reckoned with."""
    vector = vector_of(entry).astype(np.float64)
    length = float(np.sqrt((vector * vector).sum()))
    similarity = float((vector * query).sum() / length) if length > 0 else 0.0
    found = entry.properties
    return Hit(entry.uuid, str(found["field"]), str(found["text"]), int(found["frequency"]), similarity)
