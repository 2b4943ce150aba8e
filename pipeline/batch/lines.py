"""The lines of a result file: what each of them is, a vector, a reason to go again, or a failure for good.

This is what the processes run that share a large file, so it imports little. To which row of which job a line belongs,
and what becomes of it, is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.vectors import parse_vector

LONGEST_LINE = 4 << 20  # bytes; twice what a vector of 65,536 numbers takes as text: what is longer is no result
_MOST_SAID = 2048
_REFUSED = range(400, 500)
_MAY_WORK_LATER = {408, 409, 429}
_NOT_REACHED = ("batch_expired", "batch_cancelled")  # no fault of the string, so no attempt of it is spent


class _Embedding(msgspec.Struct):
    """Base64 is decoded by msgspec: as strict as Python's own, and four times as fast."""

    embedding: list[float] | bytes


class _Usage(msgspec.Struct):
    total_tokens: int = 0


class _GoodBody(msgspec.Struct):
    data: tuple[_Embedding]
    usage: _Usage | None = None


class _GoodResponse(msgspec.Struct):
    status_code: int
    body: _GoodBody


class _GoodLine(msgspec.Struct):
    """What nearly every line is."""

    custom_id: str
    response: _GoodResponse
    error: None = None


class _Response(msgspec.Struct):
    status_code: int = 0
    body: Any = None


class Line(msgspec.Struct):
    """What a line may be."""

    custom_id: str | None = None
    response: _Response | None = None
    error: dict[str, Any] | None = None


_good = msgspec.json.Decoder(_GoodLine)


@dataclass(frozen=True, slots=True)
class OddLine:
    """A line without a usable vector: its name, what is wrong with it, whether it may go again, and whether that costs an attempt.
    One that can't be read at all has no name."""

    name: str
    tokens: int = 0
    code: str = ""
    words: str = ""
    again: bool = False
    spends: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file, from line start to line end, and the scratch file for its vectors."""

    path: Path
    start: int
    stop: int
    scratch: Path
    dimensions: int


@dataclass(slots=True)
class ReadPiece:
    """Names and tokens of the lines with a vector, in the order of the vectors in the scratch file; and the other lines."""

    names: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    odd: list[OddLine] = field(default_factory=list)


def cut(path: Path, about: int) -> Iterator[tuple[int, int]]:
    """The file in pieces of whole lines, each of about so many bytes."""
    size = path.stat().st_size
    parts = max(1, size // about)
    start = 0
    with path.open("rb") as file:
        for number in range(1, parts + 1):
            file.seek(size * number // parts)
            _pass_over(file, LONGEST_LINE)
            stop = size if number == parts else file.tell()
            if stop > start:
                yield start, stop
            start = stop


def lines_of(path: Path, start: int, stop: int, longest: int = LONGEST_LINE) -> Iterator[bytes | None]:
    """The lines that hold something."""
    return (line for _, line in numbered_lines(path, start, stop, longest) if line is None or line.strip())


def numbered_lines(path: Path, start: int, stop: int, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes | None]]:
    """Every line between two line ends, counted from 1. Split on the newline byte only: titles hold other things that a text
    splitter takes for line ends. A line beyond `longest` is None: it is passed over in pieces, since even to parse its beginning
    could take all memory."""
    with path.open("rb") as file:
        file.seek(start)
        number = 0
        while file.tell() < stop and (line := file.readline(longest)):
            number += 1
            if len(line) == longest and not line.endswith(b"\n"):
                _pass_over(file, longest)
                yield number, None
            else:
                yield number, line


def _pass_over(file: Any, longest: int) -> None:
    while (rest := file.readline(longest)) and not rest.endswith(b"\n"):
        pass


def read_piece(piece: Piece) -> ReadPiece:
    """Every line of a piece, and its vectors in the piece's scratch file."""
    read = ReadPiece()
    with piece.scratch.open("wb", buffering=1 << 20) as vectors, np.errstate(over="ignore", invalid="ignore"):
        for line in lines_of(piece.path, piece.start, piece.stop):
            name, tokens, found = read_line(line, piece.dimensions)
            if isinstance(found, OddLine):
                read.odd.append(found)
                continue
            vectors.write(found.astype("<f4", copy=False).data)
            read.names.append(name)
            read.tokens.append(tokens)
    return read


def read_line(line: bytes | None, dimensions: int) -> tuple[str, int, NDArray[np.float32] | OddLine]:
    """The custom_id of a line, its tokens, and its vector, or what there is instead."""
    if line is None:
        return "", 0, OddLine("")
    try:
        good = _good.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        good = None
    if good is not None and good.response.status_code == 200:
        embedding = good.response.body.data[0].embedding
        usage = good.response.body.usage
        vector = np.array(embedding, np.float32) if isinstance(embedding, list) else _of_bytes(embedding)
        # A sum of squares that is a number says at once that all are numbers, and not all of them 0.
        if vector is not None and len(vector) == dimensions and 0 < float(vector @ vector) < math.inf:
            return good.custom_id, usage.total_tokens if usage is not None else 0, vector
    found = parse_line(line)
    if found is None:
        return "", 0, OddLine("")
    row = judge_line(found, dimensions)
    if isinstance(row, OddLine):
        return row.name, row.tokens, row
    return found.custom_id or "", tokens_of(found), row


def _of_bytes(content: bytes) -> NDArray[np.float32] | None:
    return None if len(content) % 4 else np.frombuffer(content, "<f4")


def parse_line(line: bytes) -> Line | None:
    """What msgspec refuses (NaN, a lone surrogate) is read leniently, by itself."""
    try:
        return msgspec.json.decode(line, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        import json

        try:
            return msgspec.convert(json.loads(line), Line)
        except (ValueError, TypeError, RecursionError):
            return None


def judge_line(line: Line, dimensions: int) -> NDArray[np.float32] | OddLine:
    """A vector of the right length (of any, when that is 0), or what there is instead."""
    status = line.response.status_code if line.response else 0
    body = line.response.body if line.response and isinstance(line.response.body, dict) else {}
    name = line.custom_id or ""
    if line.error is not None or status != 200:
        said = line.error or body.get("error") or {}
        code = str(said.get("code") or said.get("type") or status) if isinstance(said, dict) else str(status)
        words = str(said.get("message") or code) if isinstance(said, dict) else code
        code, words = _some_of(code), _some_of(words)
        if status in _REFUSED and status not in _MAY_WORK_LATER:
            return OddLine(name, code=code, words=f"{status}: {words}")
        return OddLine(name, code=code, words=f"{code}: {words}", again=True, spends=code not in _NOT_REACHED)
    try:
        data = body.get("data")
        vector = parse_vector(data[0].get("embedding") if isinstance(data, list) and data and isinstance(data[0], dict) else None)
        if dimensions and len(vector) != dimensions:
            raise ValueError(f"{len(vector)} dimensions instead of {dimensions}")
    except ValueError as problem:
        return OddLine(name, tokens_of(line), words=f"bad vector: {problem}", again=True)
    return vector


def _some_of(words: str) -> str:
    """On one line and far more than is kept: what is a secret is known to the parent alone, which cuts behind it."""
    return " ".join(words[: 32 * _MOST_SAID].split())[:_MOST_SAID]


def tokens_of(line: Line) -> int:
    """What the service says that it counted; 0 when it says nothing."""
    body = line.response.body if line.response is not None else None
    usage = body.get("usage") if isinstance(body, dict) else None
    said = usage.get("total_tokens") if isinstance(usage, dict) else None
    return said if isinstance(said, int) and not isinstance(said, bool) else 0
