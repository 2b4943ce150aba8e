"""Rows of a batch in, lines of its output and error files out.

In the output file: rows that were answered. In the error file, as OpenAI has it: rows that were refused (`error`
null, `status_code` 4xx, the reason in the body) and rows that were never executed (`response` null). It doesn't
know files or the state.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from pipeline.local_service import model
from pipeline.local_service.embeddings import Wanted, answer_of, checked
from pipeline.local_service.messages import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.local_service.misbehaviour import Misbehaviours

_UNKNOWN_ID = "../../etc/passwd"
_NEVER_EXECUTED = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "The batch was cancelled before this request was executed.",
}


class Row(NamedTuple):
    """A line of the input file, which was found to be in order, and its number, from 1."""

    number: int
    custom_id: str
    body: dict[str, Any]

    @property
    def inputs(self) -> int:
        texts = self.body.get("input")
        return len(texts) if isinstance(texts, list) else 1


class _Line(msgspec.Struct):
    custom_id: str
    body: dict[str, Any]


class _Name(msgspec.Struct):
    custom_id: str


@dataclass(slots=True)
class Results:
    """What came of some rows."""

    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    completed: int = 0
    failed: int = 0
    texts: list[str] = field(default_factory=list)
    tokens: int = 0


def results(job_id: str, rows: Sequence[Row], wrongs: Misbehaviours) -> Results:
    """Embed the rows, and give their lines in an order that is not theirs, the same each time."""
    found = Results()
    asked = [_checked(row.body, wrongs.of_row(row.number)) for row in rows]
    vectors = _embedded(asked)
    for place in _order(len(rows), rows[0].number):
        row, wanted = rows[place], asked[place]
        name = _name(job_id, row.number)
        if isinstance(wanted, RefusedError):
            found.failed += 1
            body = msgspec.Raw(wanted.answer.body)
            found.errors.append(_encoded(name, row.custom_id, _response(name, wanted.answer.status, body)))
        else:
            found.completed += 1
            found.texts += wanted.texts
            found.tokens += wanted.tokens
            found.output += _answered(name, row.custom_id, wanted, vectors[place], wrongs.of_row(row.number))
    return found


def row_of(number: int, line: bytes) -> Row:
    """A line of the input file, read."""
    found = msgspec.json.decode(line, type=_Line)
    return Row(number, found.custom_id, found.body)


def never_executed(job_id: str, number: int, line: bytes, code: str) -> bytes:
    """The line of a row that a job left behind."""
    custom_id = msgspec.json.decode(line, type=_Name).custom_id
    return _encoded(_name(job_id, number), custom_id, None, {"code": code, "message": _NEVER_EXECUTED[code]})


def _checked(body: dict[str, Any], kinds: frozenset[str]) -> Wanted | RefusedError:
    try:
        if "refused_row" in kinds:
            raise RefusedError("This row is refused because the service was told to.", param="input", code="invalid_value")
        return checked(body)
    except RefusedError as refused:
        return refused


def _embedded(asked: Sequence[Wanted | RefusedError]) -> dict[int, NDArray[np.float32]]:
    """The vectors of each place, made together for those of the same dimensions: one by one is slow."""
    found: dict[int, NDArray[np.float32]] = {}
    groups: dict[int, list[tuple[int, Wanted]]] = {}
    for place, wanted in enumerate(asked):
        if isinstance(wanted, Wanted):
            groups.setdefault(wanted.dimensions, []).append((place, wanted))
    for dimensions, group in groups.items():
        whole = model.embed([text for _, wanted in group for text in wanted.texts], dimensions)
        start = 0
        for place, wanted in group:
            found[place] = whole[start : start + len(wanted.texts)]
            start += len(wanted.texts)
    return found


def _order(count: int, seed: int) -> list[int]:
    places: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return places[::-1] if places == list(range(count)) else places


def _answered(name: str, custom_id: str, wanted: Wanted, vectors: NDArray[np.float32], kinds: frozenset[str]) -> list[bytes]:
    if "missing_row" in kinds:
        return []
    shown: str | None = _UNKNOWN_ID if "unknown_custom_id" in kinds else custom_id
    if "null_custom_id" in kinds:
        shown = None
    if "status_zero" in kinds:
        return [_encoded(name, shown, _response("", 0, {}))]
    if "wrong_dimensions" in kinds:
        vectors = vectors[:, :-1]
    if "nan" in kinds:
        vectors = vectors.copy()
        vectors[0, 0] = np.nan
    body = answer_of(wanted, vectors)
    if "nan" in kinds and not wanted.base64:
        body = msgspec.json.decode(msgspec.json.encode(body))  # where the NaN is null
        body["data"][0]["embedding"] = _with_nan(body["data"][0]["embedding"])
    if "empty_data" in kinds:
        body["data"] = []
    lines = [_encoded(name, shown, _response(name, 200, body))]
    if "duplicate_row" in kinds:
        lines *= 2
    if "differing_duplicate" in kinds:
        lines.append(_encoded(name, shown, _response(name, 200, answer_of(wanted, -vectors))))
    return lines


def _with_nan(values: list[float | None]) -> msgspec.Raw:
    """As some services write it, and strict JSON doesn't."""
    return msgspec.Raw(b",".join(b"NaN" if value is None else msgspec.json.encode(value) for value in values).join((b"[", b"]")))


def _name(job_id: str, number: int) -> str:
    return hashlib.blake2b(f"{job_id} {number}".encode(), digest_size=16).hexdigest()


def _response(request_id: str, status: int, body: object) -> dict[str, object]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _encoded(name: str, custom_id: str | None, response: object, error: object = None) -> bytes:
    return msgspec.json.encode({"id": f"batch_req_{name}", "custom_id": custom_id, "response": response, "error": error}) + b"\n"
