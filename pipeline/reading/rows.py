"""What every format is asked for: which columns, and where a row goes that can't be read.

A row that can't be read is given to `reject` with its reason and the reading goes on; what is structurally broken is
an InputError. What makes a readable row a bad one (no id, an id that stands twice, NUL, a cell too large) is decided
later, in one place for all formats: `tables/snapshot.py`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.reading.sources import Source

BATCH_ROWS = 16_384
Cells = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was left out: where it begins, and why."""

    file: str
    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reader:
    """What to read and how; `named_by` says which config key asked for a column, for the messages."""

    columns: tuple[str, ...]
    named_by: dict[str, str]
    encoding: str
    delimiter: str | None
    reject: Callable[[Rejected], None]

    def missing(self, source: Source, column: str, known: Sequence[str]) -> InputError:
        """The sentence for a column that is not there."""
        near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if len(known) == 1 and (other := [mark for mark in "|;\t," if mark in known[0]]):
            hint = f" The cells seem to be separated by {other[0]!r}: set input_delimiter: {json.dumps(other[0])}."
        return InputError(
            f"{source.name}: there is no column {column!r}, which {self.named_by.get(column, 'fields')} names.{hint} "
            f"It has: {', '.join(map(repr, known[:20]))}{' …' if len(known) > 20 else ''}."
        )

    def repeated(self, source: Source, column: str, times: int) -> InputError:
        """The sentence for a column that stands there more than once."""
        named_by = self.named_by.get(column, "fields")
        return InputError(
            f"{source.name}: the column {column!r}, which {named_by} names, stands {times} times in the header; rename all but one."
        )
