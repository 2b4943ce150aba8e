"""How fast batches are worked on, and how many are taken: the service's settings, each with its default.

Plain values; it knows nothing of how they are kept to.
"""

from __future__ import annotations

import msgspec

DAY = 86_400
MONTH = 30 * DAY
MAX_FILE_BYTES = 512 << 20
MAX_BATCH_FILE_BYTES = 200 << 20


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long each part of a job's life lasts, in seconds of the clock; kept with the job from its creation.

    As it comes, a job is done by its creation's second, and its rows are worked on by the first request that
    looks at it.
    """

    validating: float = 0.0
    working: float = 0.0  # for a whole job, whatever its size
    requests_per_second: float | None = None  # adds to `working`
    finalizing: float = 0.0
    cancelling: float = 0.0

    def __post_init__(self) -> None:
        for name in ("validating", "working", "finalizing", "cancelling"):
            if not 0 <= getattr(self, name) <= 10 * MONTH:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to {10 * MONTH} seconds.")
        if self.requests_per_second is not None and not 0 < self.requests_per_second < float("inf"):
            raise ValueError(f"requests_per_second is {self.requests_per_second}; it must be above 0.")


class BatchLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a job may hold and how many there may be: OpenAI's figures, or none where it names none.

    Of enqueued tokens it has a figure for each account and model; the default is its highest.
    """

    requests: int = 50_000  # in one file
    inputs: int = 50_000  # in one file, summed over its requests
    file_bytes: int = MAX_BATCH_FILE_BYTES
    enqueued_requests: int = 1_000_000
    enqueued_tokens: int = 4_000_000_000
    active: int | None = None
    created_per_hour: int = 2_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")


AT_ONCE, AS_REAL = Pace(), BatchLimits()
