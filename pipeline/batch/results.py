"""Reading result files: each line becomes a vector, a failure for good, or a reason to go again.

A pure function of the files, so a kill costs nothing but the reading. A large file is cut at line ends and read by as
many processes as there are cores; what they found is put together in the order of the lines, so it is the same with
one of them. Vectors lie in scratch files, not in memory: 50,000 of them would be 300 MB. What a row means is not known
here: a line belongs to the job when its custom_id and the CRC32 in it are wanted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.collecting import parse_vector
from pipeline.identity import parse_custom_id
from pipeline.log import event, logger
from pipeline.processes import spread
from pipeline.provider.client import told

Key = tuple[str, int]  # field, row
LONGEST_LINE = 4 << 20  # bytes; twice what a vector of 65,536 numbers takes as text: what is longer is no result
_WORTH_A_PROCESS = 24 << 20  # bytes of a file; less is read sooner than a process begins
_LOOKED_AT = 100
_MOST_SAID = 2048
_REFUSED = range(400, 500)
_MAY_WORK_LATER = {408, 409, 429}
_NOT_REACHED = ("batch_expired", "batch_cancelled")  # no fault of the string, so no attempt of it is spent
_log = logger(__name__)


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


class _Line(msgspec.Struct):
    """What a line may be."""

    custom_id: str | None = None
    response: _Response | None = None
    error: dict[str, Any] | None = None


_good = msgspec.json.Decoder(_GoodLine)


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A line that was read. `slot` is where its vector lies in the scratch file of its piece; without one, `code` and
    `words` say what it is, `again` whether it may go again, `spends` whether that costs an attempt."""

    name: str
    tokens: int = 0
    slot: int = -1
    code: str = ""
    words: str = ""
    again: bool = False
    spends: bool = True


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a file, from line start to line end, and the scratch file for its vectors."""

    path: Path
    start: int
    stop: int
    scratch: Path
    dimensions: int


@dataclass(slots=True)
class Harvest:
    """What the lines of a job say; `slots` is where a row's vector lies: the scratch file's number, and the place in it.
    `paid` is what the service counted for a row, `tokens` for all lines."""

    dimensions: int
    scratch: list[Path] = field(default_factory=list)
    slots: dict[Key, tuple[int, int]] = field(default_factory=dict)
    failed: dict[Key, tuple[str, str]] = field(default_factory=dict)
    again: dict[Key, tuple[str, bool]] = field(default_factory=dict)
    paid: dict[Key, int] = field(default_factory=dict)
    tokens: int = 0
    unknown: int = 0

    def vectors(self, keys: Sequence[Key]) -> NDArray[np.float32]:
        """The vectors of some rows, in their order."""
        matrix = np.empty((len(keys), self.dimensions), "<f4")
        handles = {number: os.open(self.scratch[number], os.O_RDONLY) for number in {self.slots[key][0] for key in keys}}
        try:
            for place, key in enumerate(keys):
                number, slot = self.slots[key]
                os.preadv(handles[number], [matrix[place]], slot * self.dimensions * 4)
        finally:
            for handle in handles.values():
                os.close(handle)
        return matrix


def read_results(
    paths: Sequence[Path],
    wanted: Mapping[Key, str],
    dimensions: int,
    scratch: Path,
    workers: int | None = None,
    worth: int = _WORTH_A_PROCESS,
) -> Harvest:
    """Read the files; `wanted` is the CRC32 of each row's text, `dimensions` 0 when they are to be learned."""
    harvest = Harvest(dimensions or _learn_dimensions(paths, wanted))
    pieces: list[_Piece] = []
    for path in paths:
        for start, stop in cut(path, workers or os.cpu_count() or 1, worth):
            vectors = scratch.with_name(f"{scratch.name}_{len(pieces):03d}.f32")
            pieces.append(_Piece(path, start, stop, vectors, harvest.dimensions))
    harvest.scratch = [piece.scratch for piece in pieces]
    with spread(_read_piece, is_worth_it=len(pieces) > len(paths), cores=workers) as read:
        for number, rows in enumerate(read(pieces)):
            before = harvest.unknown
            for row in rows:
                _sort(row, number, wanted, harvest)
            if harvest.unknown > before:
                event(_log, "results.unknown", file=pieces[number].path.name, count=harvest.unknown - before)
    return harvest


def cut(path: Path, parts: int, worth: int) -> Iterator[tuple[int, int]]:
    """The file in pieces of whole lines, none of them small."""
    size = path.stat().st_size
    parts = max(1, min(parts, size // worth))
    start = 0
    with path.open("rb") as file:
        for number in range(1, parts + 1):
            file.seek(size * number // parts)
            _pass_over(file, LONGEST_LINE)
            stop = size if number == parts else file.tell()
            if stop > start:
                yield start, stop
            start = stop


def _learn_dimensions(paths: Sequence[Path], wanted: Mapping[Key, str]) -> int:
    """The commonest length of the job's first vectors, when it is not known yet: the very first may be a wrong one."""
    lengths: Counter[int] = Counter()
    for path in paths:
        for line in islice(lines_of(path, 0, path.stat().st_size), _LOOKED_AT):
            found = None if line is None else _parse(line)
            if found is not None and _key(found.custom_id or "", wanted) is not None:
                row = _row_of(found, 0)
                if isinstance(row, np.ndarray):
                    lengths[len(row)] += 1
    return lengths.most_common(1)[0][0] if lengths else 0


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


def _read_piece(piece: _Piece) -> list[ReadRow]:
    """Every line of a piece, and its vectors in the piece's scratch file."""
    rows: list[ReadRow] = []
    slot = 0
    with piece.scratch.open("wb", buffering=1 << 20) as vectors, np.errstate(over="ignore"):
        for line in lines_of(piece.path, piece.start, piece.stop):
            name, tokens, read = read_line(line, piece.dimensions)
            if isinstance(read, ReadRow):
                rows.append(read)
                continue
            vectors.write(read.astype("<f4", copy=False).data)
            rows.append(ReadRow(name, tokens, slot))
            slot += 1
    return rows


def read_line(line: bytes | None, dimensions: int) -> tuple[str, int, NDArray[np.float32] | ReadRow]:
    """The custom_id of a line, its tokens, and its vector, or what there is instead."""
    if line is None:
        return "", 0, ReadRow("")
    try:
        good = _good.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        good = None
    if good is not None and good.response.status_code == 200:
        embedding = good.response.body.data[0].embedding
        usage = good.response.body.usage
        vector = np.array(embedding, np.float32) if isinstance(embedding, list) else _of_bytes(embedding)
        if vector is not None and len(vector) == dimensions and np.isfinite(vector).all() and vector.any():
            return good.custom_id, usage.total_tokens if usage is not None else 0, vector
    found = _parse(line)
    if found is None:
        return "", 0, ReadRow("")
    row = _row_of(found, dimensions)
    if isinstance(row, ReadRow):
        return row.name, row.tokens, row
    return found.custom_id or "", _tokens(found), row


def _of_bytes(content: bytes) -> NDArray[np.float32] | None:
    return None if len(content) % 4 else np.frombuffer(content, "<f4")


def _parse(line: bytes) -> _Line | None:
    try:
        return msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        import json

        try:
            return msgspec.convert(json.loads(line), _Line)
        except (ValueError, TypeError, RecursionError):
            return None


def _row_of(line: _Line, dimensions: int) -> NDArray[np.float32] | ReadRow:
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
            return ReadRow(name, code=code, words=f"{status}: {words}")
        return ReadRow(name, code=code, words=f"{code}: {words}", again=True, spends=code not in _NOT_REACHED)
    try:
        data = body.get("data")
        vector = parse_vector(data[0].get("embedding") if isinstance(data, list) and data and isinstance(data[0], dict) else None)
        if dimensions and len(vector) != dimensions:
            raise ValueError(f"{len(vector)} dimensions instead of {dimensions}")
    except ValueError as problem:
        return ReadRow(name, _tokens(line), words=f"bad vector: {problem}", again=True)
    return vector


def _some_of(words: str) -> str:
    """On one line and far more than is kept: what is a secret is known to the parent alone, which cuts behind it."""
    return " ".join(words[: 32 * _MOST_SAID].split())[:_MOST_SAID]


def _tokens(line: _Line) -> int:
    body = line.response.body if line.response is not None else None
    usage = body.get("usage") if isinstance(body, dict) else None
    said = usage.get("total_tokens") if isinstance(usage, dict) else None
    return said if isinstance(said, int) and not isinstance(said, bool) else 0


def _key(name: str, wanted: Mapping[Key, str]) -> Key | None:
    """The row of a custom_id, if the job has it and its text is the one that the name was made of."""
    found = parse_custom_id(name)
    if found is None:
        return None
    key = (found.field, found.index)
    return key if wanted.get(key) == found.crc32 else None


def _sort(row: ReadRow, piece: int, wanted: Mapping[Key, str], harvest: Harvest) -> None:
    """Enter a line. Of a row that stands twice, a vector counts; two that differ are a failure. It was embedded once, so its
    tokens are paid once; those of a line whose name is unknown are paid as well."""
    key = _key(row.name, wanted)
    if key is None:
        harvest.unknown += 1
        harvest.tokens += row.tokens
        return
    before = harvest.paid.get(key, 0)
    if row.tokens > before:
        harvest.paid[key] = row.tokens
        harvest.tokens += row.tokens - before
    if row.slot < 0:
        if key in harvest.slots:
            return
        if row.again:
            harvest.again.setdefault(key, (told(row.words), row.spends))
        else:
            harvest.failed.setdefault(key, (told(row.code), told(row.words)))
        return
    known = harvest.slots.get(key)
    if known is None:
        harvest.slots[key] = (piece, row.slot)
        harvest.again.pop(key, None)
        return
    earlier = harvest.vectors([key])
    harvest.slots[key] = (piece, row.slot)
    same = np.array_equal(earlier, harvest.vectors([key]))
    harvest.slots[key] = known
    if not same:
        harvest.failed[key] = ("two_answers", "the service gave two different vectors for it")
