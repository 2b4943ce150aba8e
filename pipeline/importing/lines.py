"""Reading the lines of a source: requests into texts, results and rows into vectors, each bad line with its reason.

Files are cut into pieces of some thousand lines, read by as many processes as there are cores, and put together in
the order of the source, so it is the same with one of them. Vectors go into scratch files, one a piece, or are looked at and let
go when nothing will be imported. Which text belongs to which string is not known here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.batch.lines import OddLine, cut, numbered_lines, read_line
from pipeline.importing.sources import Columns, Source
from pipeline.vectors import parse_vector

PIECE_BYTES = 32 << 20
SLOT_BITS = 32  # where a vector lies: the number of its piece, and behind it the place in there
_UNIT = 1e-3  # so far from 1 a length may be and still count as 1
_LOOKED_AT = 100
_SHOWN = 200


class _Asked(msgspec.Struct):
    model: str | None = None
    input: Any = None


class _Request(msgspec.Struct):
    custom_id: str
    body: _Asked


class _Embedding(msgspec.Struct):
    embedding: list[float] | str
    index: int = 0


class _Body(msgspec.Struct):
    data: list[_Embedding]


class _Response(msgspec.Struct):
    status_code: int
    body: _Body


class _Result(msgspec.Struct):
    """What nearly every result is; one that is otherwise is read by `batch/lines.py`."""

    custom_id: str
    response: _Response
    error: None = None


_request = msgspec.json.Decoder(_Request)
_result = msgspec.json.Decoder(_Result)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line, or a vector of it, that is of no use: its custom_id or text, and why."""

    line: int
    what: str
    reason: str


@dataclass(slots=True)
class Read:
    """What a piece gave: of requests (line, custom_id, place, text), of results (line, custom_id, place, at, digest), of rows
    (line, field, text, at, digest)."""

    lines: int = 0
    found: list[tuple[Any, ...]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    lengths: Counter[int] = field(default_factory=Counter)  # of vectors that have another length than is wanted
    not_unit: int = 0


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a vector must be, and where it is kept: `scratch` None keeps none."""

    dimensions: int
    scratch: Path | None

    def path(self, piece: int) -> Path:
        return (self.scratch or Path()) / f"vectors_{piece:06d}.f32"

    def read(self, ats: Iterable[int]) -> NDArray[np.float32]:
        """The vectors at some places, in their order. One file is open at a time: there may be thousands."""
        places = np.fromiter(ats, np.int64)
        matrix = np.empty((len(places), self.dimensions), "<f4")
        pieces, slots = places >> SLOT_BITS, places & ((1 << SLOT_BITS) - 1)
        for piece in np.unique(pieces).tolist():
            wanted = np.flatnonzero(pieces == piece)
            mapped = np.memmap(self.path(piece), "<f4", "r").reshape(-1, self.dimensions)
            matrix[wanted] = mapped[slots[wanted]]
        return matrix


class Sink:
    """Takes the vectors of a piece one by one; ValueError says why one is of no use."""

    def __init__(self, vectors: Vectors, piece: int, read: Read) -> None:
        self._vectors = vectors
        self._next = piece << SLOT_BITS
        self._read = read

    @cached_property
    def _file(self) -> BinaryIO | None:
        piece = self._next >> SLOT_BITS
        return None if self._vectors.scratch is None else self._vectors.path(piece).open("wb", buffering=1 << 20)

    @np.errstate(over="ignore")
    def take(self, vector: NDArray[np.float32]) -> tuple[int, int]:
        """Where it lies now, and a number that two different vectors do not share."""
        if len(vector) != self._vectors.dimensions:
            self._read.lengths[len(vector)] += 1
            raise ValueError(f"the vector has {len(vector):,} numbers instead of {self._vectors.dimensions:,}")
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(vector).all() or not np.isfinite(norm):
            raise ValueError("NaN or infinity in the vector")
        if not norm:
            raise ValueError("a vector of zeros only")
        content = vector.astype("<f4", copy=False).tobytes()
        if self._file is not None:
            self._file.write(content)
        self._read.not_unit += abs(norm - 1) > _UNIT
        at, self._next = self._next, self._next + 1
        return at, int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)

    def close(self) -> None:
        if "_file" in self.__dict__ and self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of a file. `file` is its number in the source, `number` that of the piece."""

    number: int
    file: int
    path: Path
    start: int
    stop: int
    model: str
    columns: Columns | None
    vectors: Vectors


def pieces_of(source: Source, model: str, columns: Columns, vectors: Vectors, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Everything that is to be read of a source of lines, in its order."""
    number = 0
    for file, path in enumerate(source.files()):
        for start, stop in cut(path, piece_bytes):
            yield Piece(number, file, path, start, stop, model, None if source.pairs else columns, vectors)
            number += 1


def read_piece(piece: Piece) -> Read:
    """Every line of a piece, in one of the processes."""
    read = Read()
    if piece.columns is None and piece.file % 2 == 0:
        for read.lines, line in numbered_lines(piece.path, piece.start, piece.stop):
            if line is None or line.strip():
                _read_request(read, line, piece.model)
        return read
    sink = Sink(piece.vectors, piece.number, read)
    try:
        for read.lines, line in numbered_lines(piece.path, piece.start, piece.stop):
            if line is not None and not line.strip():
                continue
            if piece.columns is None:
                _read_result(read, line, sink)
            else:
                _read_row(read, line, sink, piece.columns)
    finally:
        sink.close()
    return read


def _read_request(read: Read, line: bytes | None, model: str) -> None:
    """The texts of a request. What its custom_id means to others is not asked."""
    request = _parse(_request, line)
    if not isinstance(request, _Request):
        read.rejected.append(Rejected(read.lines, "", "not a request: no JSON, cut off, or without custom_id and body"))
        return
    asked = request.body
    if asked.model is not None and asked.model != model:
        read.rejected.append(Rejected(read.lines, request.custom_id, f"the request is for the model {asked.model[:_SHOWN]}"))
        return
    texts = asked.input if isinstance(asked.input, list) else [asked.input]
    if not texts or not all(isinstance(text, str) and _is_text(text) for text in texts):
        read.rejected.append(Rejected(read.lines, request.custom_id, "its input is no text (numbers of tokens are not read)"))
        return
    read.found += [(read.lines, request.custom_id, place, text) for place, text in enumerate(texts)]


def _is_text(text: str) -> bool:
    """Whether any string could hold it: not an unpaired surrogate."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _read_result(read: Read, line: bytes | None, sink: Sink) -> None:
    """The vectors of a result; a request may have had several texts."""
    result = _parse(_result, line)
    if isinstance(result, _Result) and result.response.status_code == 200 and result.response.body.data:
        for entry in result.response.body.data:
            try:
                _keep(read, sink, result.custom_id, entry.index, vector_of(entry.embedding))
            except ValueError as problem:
                read.rejected.append(Rejected(read.lines, result.custom_id, str(problem)))
        return
    name, _, odd = read_line(line, 0)
    if isinstance(odd, OddLine):
        reason = odd.words or "not a result: no JSON, cut off, or without custom_id"
        read.rejected.append(Rejected(read.lines, name, reason[:_SHOWN]))
        return
    try:
        _keep(read, sink, name, 0, odd)
    except ValueError as problem:
        read.rejected.append(Rejected(read.lines, name, str(problem)))


def _keep(read: Read, sink: Sink, name: str, place: int, vector: NDArray[np.float32]) -> None:
    read.found.append((read.lines, name, place, *sink.take(vector)))


@np.errstate(over="ignore")  # what is beyond float32 becomes infinity, and is refused as that
def vector_of(content: Any) -> NDArray[np.float32]:
    """A vector as JSON, a cell or a column holds it: numbers, base64, or a JSON list of numbers as text."""
    if isinstance(content, str) and content.lstrip().startswith("["):
        try:
            content = msgspec.json.decode(content, type=list[float])
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise ValueError("neither base64 nor a list of numbers") from None
    if isinstance(content, list):
        try:
            vector = np.array(content, np.float32)
        except (ValueError, TypeError, OverflowError):
            vector = np.empty((0, 0), np.float32)
        if vector.ndim != 1:
            raise ValueError("a list with something else than numbers in it")
        return vector
    return parse_vector(content)


def _read_row(read: Read, line: bytes | None, sink: Sink, columns: Columns) -> None:
    """A row of JSON Lines."""
    row = _parse(msgspec.json, line)
    if not isinstance(row, dict):
        read.rejected.append(Rejected(read.lines, "", "not a JSON object, or cut off"))
        return
    keep_row(read, sink, row.get(columns.text), None if columns.field is None else row.get(columns.field), row.get(columns.vector))


def keep_row(read: Read, sink: Sink, text: object, named: object, content: object) -> None:
    """A row of any table, if it has a text and a vector; an empty field is one that is not told."""
    try:
        if not isinstance(text, str) or not _is_text(text):
            raise ValueError("no text")
        vector = content if isinstance(content, np.ndarray) else vector_of(content)
        read.found.append((read.lines, named if isinstance(named, str) and named else None, text, *sink.take(vector)))
    except ValueError as problem:
        read.rejected.append(Rejected(read.lines, text[:_SHOWN] if isinstance(text, str) else "", str(problem)))


def _parse(decoder: Any, line: bytes | None) -> Any:
    """What a line says, or None; nothing of a line that is too long."""
    try:
        return None if line is None else decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def learn_dimensions(source: Source, columns: Columns) -> int:
    """The commonest length of the first vectors of a source of lines: the very first may be a wrong one."""
    lengths: Counter[int] = Counter()
    files = [pair.results for pair in source.pairs] or [source.path]
    for path in files:
        read = Read()
        sink = Sink(Vectors(0, None), 0, read)
        for _, line in numbered_lines(path, 0, path.stat().st_size):
            if source.pairs:
                _read_result(read, line, sink)
            else:
                _read_row(read, line, sink, columns)
            read.rejected.clear()
            if read.lengths.total() >= _LOOKED_AT:
                break
        lengths.update(read.lengths)
        if lengths.total() >= _LOOKED_AT:
            break
    del lengths[0]
    return lengths.most_common(1)[0][0] if lengths else 0
