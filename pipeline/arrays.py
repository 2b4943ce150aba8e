"""Numbers from NumPy to Arrow and back without a copy, and without pandas.

`pyarrow.array` and `to_numpy` import pandas when it is installed, which takes half a second of each command. What the
numbers mean is not known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


def to_arrow(numbers: NDArray[Any]) -> pa.Array:
    """A column of numbers; none of them is missing."""
    import pyarrow as pa

    flat = np.ascontiguousarray(numbers)
    return pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)])


def to_numpy(column: pa.Array) -> NDArray[Any]:
    """The numbers of a column; none of them may be missing."""
    numbers: NDArray[Any] = np.from_dlpack(column)
    return numbers
