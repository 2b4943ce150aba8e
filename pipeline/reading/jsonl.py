"""JSON Lines: one object a line, UTF-8. Keys may be missing from a row, but not from the whole file.

Numbers and true/false become their JSON text; a list of such becomes one text joined by "; ". msgspec reads; a line
that it refuses is tried once more by the lenient standard parser, so that an odd value costs nothing but itself.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from pipeline.errors import InputError
from pipeline.reading.rows import Cells, Reader, Rejected
from pipeline.reading.sources import Source

_LONGEST = 64 << 20
_KEYS_REMEMBERED = 1000


def read(source: Source, reader: Reader) -> Iterator[tuple[int, Cells]]:
    """(line, its cells in the order of `reader.columns`)."""
    never_seen = set(reader.columns)
    keys: dict[str, None] = {}
    for number, line in _lines(source):
        row = _parse(source, number, line)
        if not isinstance(row, dict):
            reader.reject(Rejected(source.name, number, "", row))
            continue
        if never_seen:
            never_seen.difference_update(row)
            if len(keys) < _KEYS_REMEMBERED:
                keys.update(dict.fromkeys(row))
        try:
            yield number, [_text(column, row.get(column)) for column in reader.columns]
        except ValueError as problem:
            reader.reject(Rejected(source.name, number, "", str(problem)))
    for column in reader.columns if keys else ():  # of no objects at all, the rows or their lack say more
        if column in never_seen:
            raise reader.missing(source, column, list(keys))


def _lines(source: Source) -> Iterator[tuple[int, bytes]]:
    with source.path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if len(line) == _LONGEST and not line.endswith(b"\n"):
                raise InputError(f"{source.name}: line {number} has more than 64 MB; this is not JSON Lines.")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line


def _parse(source: Source, number: int, line: bytes) -> dict[str, Any] | str:
    """The row, or the reason why it is none."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as problem:
            raise InputError(
                f"{source.name}: line {number} is not UTF-8 at its byte {problem.start}, as JSON Lines must be. Convert the "
                "file to UTF-8."
            ) from None
        except (ValueError, RecursionError) as problem:
            return f"not JSON: {problem}"
    return row if isinstance(row, dict) else f"not a JSON object but a {type(row).__name__}"


def _text(column: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{column!r} holds an unpaired surrogate, which no text may")
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return "; ".join(part for part in (_text(column, part) for part in value) if part)
    raise ValueError(f"{column!r} is a {'list of lists or objects' if isinstance(value, list) else 'JSON object'}, not a text")
