"""CSV and TSV, read strictly: what is not well formed is named, never guessed.

A quote in the wrong place within one line costs that row. A quote that is still open at the end of the file, or that
meets a second quote lines later, may have swallowed rows: that stops, naming the line where it opened. Python's own
`csv` does the reading; DuckDB's was tried and passes over an unclosed quote in a large file, losing rows silently. What
comes before the first doubt is read by `quick.py`.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol, TextIO

from pipeline.errors import InputError
from pipeline.reading.quick import Place
from pipeline.reading.rows import Cells, Reader, Rejected
from pipeline.reading.sources import Source

_LONGEST = 64 << 20  # of a line or cell while reading; far above what is accepted, so that only a broken file meets it
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


class _Lines(Protocol):
    """What `csv.reader` gives: rows, and the number of the last line that it took."""

    line_num: int

    def __next__(self) -> list[str]: ...
    def __iter__(self) -> Iterator[list[str]]: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A file whose header was read; `rows` is where its rows begin, when that is a byte of UTF-8 that anybody could find."""

    encoding: str
    delimiter: str
    width: int
    wanted: tuple[int, ...]
    rows: Place | None


def open_(source: Source, reader: Reader) -> Opened:
    """Read the header."""
    encoding = _encoding_of(source, reader.encoding)
    delimiter = reader.delimiter or ("\t" if source.kind == "tsv" else ",")
    csv.field_size_limit(_LONGEST)
    with source.path.open(encoding=encoding, errors="strict", newline="") as file:
        lines = csv.reader(_lines(source, file), delimiter=delimiter, strict=True)
        try:
            header = _header(source, lines)
        except UnicodeError:  # utf-16 without a byte-order mark is a UnicodeError, everything else a UnicodeDecodeError
            raise _undecodable(source, encoding) from None
    rows = _behind_first_line(source) if encoding in ("utf-8", "utf-8-sig") and lines.line_num == 1 else None
    return Opened(encoding, delimiter, len(header), _places(source, reader, header), rows)


def read(source: Source, reader: Reader, opened: Opened, place: Place | None) -> Iterator[tuple[int, Cells]]:
    """(line where the row begins, its cells in the order of `reader.columns`), from a place on; None: from behind the header."""
    encoding = opened.encoding if place is None else "utf-8"
    with source.path.open("rb") as raw:
        raw.seek(0 if place is None else place.at)
        file = io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="")
        lines = csv.reader(_lines(source, file), delimiter=opened.delimiter, strict=True)
        try:
            if place is None:
                next(lines)  # the header
            yield from _rows(source, reader, opened, lines, 0 if place is None else place.lines)
        except UnicodeError:
            raise _undecodable(source, encoding) from None


def _behind_first_line(source: Source) -> Place | None:
    with source.path.open("rb") as file:
        first = file.readline(_LONGEST)
    return None if b"\r" in first.rstrip(b"\r\n") or not first.endswith(b"\n") else Place(len(first), 1)


def _rows(source: Source, reader: Reader, opened: Opened, lines: _Lines, before: int) -> Iterator[tuple[int, Cells]]:
    """`before`: how many lines of the file lie before these."""
    pick = _picker(opened.wanted)
    while True:
        line = before + lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as problem:
            _judge(source, reader, line, before + lines.line_num, problem)
            continue
        if len(cells) == opened.width:
            yield line, pick(cells)
        elif cells:
            last = before + lines.line_num
            reach = f"; it reaches to line {last}: is a quote in the wrong place?" if last > line else ""
            reader.reject(Rejected(source.name, line, "", f"has {len(cells)} cells, the header has {opened.width}{reach}"))


def _judge(source: Source, reader: Reader, line: int, last: int, problem: csv.Error) -> None:
    """A stray quote within a line costs the row; a quote that reached further may have swallowed others."""
    words = str(problem)
    if "unexpected end of data" in words or "field limit" in words or last > line:
        raise InputError(
            f"{source.name}: the quote that opens in the row of line {line} is not closed properly (looked as far as line "
            f"{last}); the rows between them can't be told apart. Close it, or double each quote that belongs to a text. If "
            "the file uses another separator or no quotes at all, check input_delimiter."
        ) from problem
    reader.reject(Rejected(source.name, line, "", f"a quote in the wrong place ({words})"))


def _header(source: Source, lines: _Lines) -> list[str]:
    try:
        header = next(lines)
    except StopIteration:
        raise InputError(f"{source.name}: the file holds no header.") from None
    except csv.Error as problem:
        raise InputError(f"{source.name}: the header can't be read: {problem}.") from None
    if not header:
        raise InputError(f"{source.name}: the first line is empty; it must be the header. Mend the file, or the key 'input'.")
    if any("\0" in name for name in header):
        raise InputError(f"{source.name}: NUL bytes in the header: this is a binary file, or its encoding is not input_encoding.")
    return header


def _places(source: Source, reader: Reader, header: list[str]) -> tuple[int, ...]:
    """Where the wanted columns stand."""
    for column in reader.columns:
        if column not in header:
            raise reader.missing(source, column, header)
        if header.count(column) > 1:
            raise reader.repeated(source, column, header.count(column))
    return tuple(header.index(column) for column in reader.columns)


def _picker(places: tuple[int, ...]) -> Callable[[list[str]], Cells]:
    """A quick function from a row's cells to the wanted ones."""
    if len(places) == 1:
        only = places[0]
        return lambda cells: (cells[only],)  # itemgetter of one place would give the bare cell, not a row
    return itemgetter(*places)


def _lines(source: Source, file: TextIO) -> Iterator[str]:
    """The lines of the file; one without an end would fill the memory, so it is refused."""
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST and not line.endswith(("\n", "\r")):
            raise InputError(f"{source.name}: a line of more than 64 million characters; this is not {source.kind.upper()}.")
        yield line


def _encoding_of(source: Source, configured: str) -> str:
    """A byte-order mark says more than the config."""
    with source.path.open("rb") as file:
        start = file.read(4)
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    return configured


def _undecodable(source: Source, encoding: str) -> InputError:
    """Find the very byte: read again, decoding piece by piece."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    read = 0
    with source.path.open("rb") as file:
        while True:
            piece = file.read(1 << 20)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as problem:
                # What the decoder was given ends where the piece ends; it may begin before it, or behind a byte-order mark.
                place = read + len(piece) - len(problem.object) + problem.start
                found = f"0x{problem.object[problem.start]:02x}"
                break
            except UnicodeError as problem:
                place, found = 0, str(problem)
                break
            if not piece:
                place, found = read, "?"
                break
            read += len(piece)
    return InputError(
        f"{source.name}: not {encoding} at byte {place:,} ({found}). Set input_encoding in the config to what the file is "
        "(cp1252 and iso8859-1 are usual for older exports), or, if it is no text at all, mend the key 'input'."
    )
