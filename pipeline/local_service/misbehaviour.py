"""What the service can be told to do wrong, and when: a table of names, for tests and rehearsals.

    State(misbehaviours=[Misbehaviour(kind="lose_reply", create=2), Misbehaviour(kind="nan", row=7)])

`create` counts the well-formed creations of batches that the state has seen, refused ones too, from 1; None
means each of them. What a job does wrong is settled at its creation and kept with it, whichever process
works on it. It doesn't know how any of this is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Kind = Literal[
    # The creation itself.
    "lose_reply",  # the batch is made, and the connection ends without an answer
    "insufficient_quota",  # 429, no batch
    "unauthorized",  # 401, no batch
    "input_not_found",  # the batch is made and then fails: the file can't be found
    # What is seen of the batch, for `seconds` from its creation, or for ever.
    "hide",  # not in the list; its id works
    "vanish",  # 404 by its id, and not in the list
    "unknown_status",  # `status` instead of the real word
    "no_counts",  # `request_counts` is null
    # Its life.
    "stuck",  # it stops at `share` of its rows and never ends, not even by expiring
    "end",  # it ends as `status` (failed, expired, cancelled) at `share` of its rows
    # Its files.
    "output_gone",  # the output file is named, and 404
    "empty_error_file",  # an error file of 0 bytes, when there was no error
    "empty_error_file_id",  # "" instead of null, when there was no error
    "no_last_newline",  # in both files
    # The result of `row` (from 1, in the order of the input; None: every row).
    "refused_row",  # status 400, in the error file
    "null_custom_id",
    "unknown_custom_id",
    "missing_row",  # in neither file; it was embedded, and billed
    "duplicate_row",
    "differing_duplicate",  # a second time with another vector
    "status_zero",  # status 0 and an empty body, in the output file
    "nan",
    "wrong_dimensions",  # one too few
    "empty_data",  # no embedding at all
]
ROW_KINDS = frozenset(
    {
        "refused_row",
        "null_custom_id",
        "unknown_custom_id",
        "missing_row",
        "duplicate_row",
        "differing_duplicate",
        "status_zero",
        "nan",
        "wrong_dimensions",
        "empty_data",
    }
)
End = Literal["failed", "expired", "cancelled"]
_ENDS: dict[str, End] = {"failed": "failed", "expired": "expired", "cancelled": "cancelled"}


class Misbehaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that goes wrong."""

    kind: Kind
    create: int | None = None
    row: int | None = None
    seconds: float | None = None
    share: float = 0.5
    status: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be from 0 to 1.")
        if self.kind == "end" and self.status not in _ENDS:
            raise ValueError(f"status is '{self.status}'; a job can be told to end as {', '.join(_ENDS)}.")
        if self.kind == "unknown_status" and not self.status:
            raise ValueError("status is missing: the word to show.")
        if self.row is not None and self.kind not in ROW_KINDS:
            raise ValueError(f"row is {self.row}, and {self.kind} is of no row.")

    @property
    def end(self) -> End:
        """How it makes the job end."""
        return _ENDS[self.status]


class Misbehaviours(msgspec.Struct, frozen=True):
    """Those of one job, or all that were asked for."""

    every: tuple[Misbehaviour, ...] = ()

    def of_create(self, number: int) -> Misbehaviours:
        return Misbehaviours(tuple(one for one in self.every if one.create in (None, number)))

    def of_row(self, row: int) -> frozenset[str]:
        """The kinds that a row's result is to show."""
        return frozenset(one.kind for one in self.every if one.kind in ROW_KINDS and one.row in (None, row))

    def find(self, kind: Kind, age: float = 0.0) -> Misbehaviour | None:
        """The first of a kind that still holds when the job is so many seconds old."""
        return next(
            (one for one in self.every if one.kind == kind and (one.seconds is None or age < one.seconds)),
            None,
        )


def load_misbehaviours(path: Path) -> Sequence[Misbehaviour]:
    """A JSON file: an array of objects with the fields of `Misbehaviour`. OSError or ValueError if it isn't."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Misbehaviour, ...])
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
