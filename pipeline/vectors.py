"""A vector as a service writes it, base64 or a list of numbers, made one of float32, or refused with a reason.

Which string it belongs to, and how long it must be, is not known here.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray


def parse_vector(embedding: Any) -> NDArray[np.float32]:
    """A vector from base64 or a list of numbers; ValueError says why it is none."""
    if isinstance(embedding, str):
        try:
            content = base64.b64decode(embedding, validate=True)
        except binascii.Error:
            raise ValueError("neither base64 nor a list of numbers") from None
        if len(content) % 4:
            raise ValueError("base64 that holds no whole number of floats")
        vector = np.frombuffer(content, dtype="<f4").astype(np.float32, copy=False)
    elif isinstance(embedding, list):
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in embedding):
            raise ValueError("a list with something else than numbers in it")
        with np.errstate(over="ignore"):
            vector = np.array(embedding, dtype=np.float64).astype(np.float32)
    else:
        raise ValueError(f"no vector but {type(embedding).__name__}")
    if not len(vector):
        raise ValueError("an empty vector")
    if not np.isfinite(vector).all():
        raise ValueError("NaN or infinity in the vector")
    if not vector.any():
        raise ValueError("a vector of zeros only")
    return vector
