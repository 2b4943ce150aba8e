"""CSV and TSV at the speed of a machine, for the blocks of a file that leave no doubt.

A block of whole rows is taken when a scan proves that every reader must see the same rows in it: UTF-8, one kind of
line end, no NUL, no empty line, each quote at the edge of its cell. Arrow then cuts it into cells, block by block on
several threads, in the order of the file. From the first block on that leaves a doubt (one row of another width will
do) the strict reader of `delimited.py` has the rest of the file: what is broken is named there, and only there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pipeline.arrays import to_arrow

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

BLOCK = 2 << 20  # of 8 MB, a file took half as long again: each block was new memory. A longer row is one for the strict reader
_QUOTE, _LINE_FEED, _RETURN = b'"', b"\n", b"\r"


@dataclass(frozen=True, slots=True)
class Layout:
    """How wide a row is, and which of its cells are wanted."""

    delimiter: str
    width: int
    wanted: tuple[int, ...]


@dataclass(slots=True)
class Place:
    """A byte of a file where a row begins, and how many lines lie before it."""

    at: int
    lines: int


def read(path: Path, layout: Layout, place: Place, block: int = BLOCK) -> Iterator[pa.RecordBatch]:
    """The rows of the blocks that leave no doubt, in order, from a place on; it moves to where the doubt begins."""
    workers = max(1, min(os.cpu_count() or 1, 4))
    waiting: deque[tuple[int, Future[_Parsed | None]]] = deque()
    with path.open("rb") as file, ThreadPoolExecutor(workers, "quick-csv") as pool:
        file.seek(place.at)
        blocks = _blocks(file, block)
        try:
            while True:
                while len(waiting) <= workers and (piece := next(blocks, None)) is not None:
                    waiting.append((len(piece), pool.submit(_parse, piece, layout)))
                if not waiting:
                    return
                size, future = waiting.popleft()
                parsed = future.result()
                if parsed is None:
                    return
                yield from _numbered(parsed, place.lines)
                place.at += size
                place.lines += parsed.rows.lines
        finally:
            for _, future in waiting:
                future.cancel()


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a block begin: the lines of it that lie before each of them; and how many lines it has."""

    before: NDArray[np.int64]
    lines: int


@dataclass(frozen=True, slots=True)
class _Parsed:
    rows: Rows
    cells: pa.Table


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Pieces of whole rows. A row that is longer than a piece ends them: it is not for here."""
    rest = b""
    while piece := file.read(size):
        data = rest + piece
        cut = _last_row_end(data)
        if not cut:
            return
        yield data[:cut]
        rest = data[cut:]
    if rest:
        yield rest


def _last_row_end(data: bytes) -> int:
    """Behind the last line end that no quote surrounds; 0 when there is none."""
    cut = data.rfind(_LINE_FEED)
    if _QUOTE not in data:
        return cut + 1
    quotes = _places(data, _QUOTE)
    while cut >= 0 and (before := int(np.searchsorted(quotes, cut))) % 2:
        cut = data.rfind(_LINE_FEED, 0, int(quotes[before - 1]))
    return cut + 1


def _numbered(parsed: _Parsed, lines: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    names = ["row", *(f"c{place}" for place in range(parsed.cells.num_columns))]
    numbers = to_arrow(parsed.rows.before + (lines + 1))
    return iter(pa.table([numbers, *parsed.cells.columns], names).combine_chunks().to_batches())


def _parse(block: bytes, layout: Layout) -> _Parsed | None:
    """The cells of a block, or None when there may be two opinions about them."""
    import pyarrow as pa
    from pyarrow import csv

    rows = rows_of(block, layout.delimiter)
    if rows is None:
        return None
    names = [str(place) for place in range(layout.width)]
    wanted = [names[place] for place in layout.wanted]
    try:
        table = csv.read_csv(
            pa.BufferReader(block),
            csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True),
            csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.large_string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:  # too few or too many cells somewhere: the strict reader says where
        return None
    return _Parsed(rows, table) if table.num_rows == len(rows.before) else None


def rows_of(block: bytes, delimiter: str) -> Rows | None:
    """Where the rows begin in a block of whole rows, if nobody could doubt it; None otherwise."""
    if b"\0" in block or not _is_utf8(block):
        return None
    content = np.frombuffer(block, np.uint8)
    feeds = _places(block, _LINE_FEED)
    ends = feeds  # those line ends that end a row
    if _QUOTE in block:
        quotes = _places(block, _QUOTE)
        if len(quotes) % 2 or not _at_edges(content, quotes, delimiter.encode()):
            return None
        ends = feeds[np.searchsorted(quotes, feeds) % 2 == 0]
    returns = _places(block, _RETURN) if _RETURN in block else ends[:0]
    after_return = (ends > 0) & (content[ends - 1] == ord(_RETURN))
    if len(returns) and not (returns[-1] + 1 < len(block) and (content[returns + 1] == ord(_LINE_FEED)).all()):
        return None
    if after_return.any() and not after_return.all():
        return None
    width = 2 if after_return.any() else 1
    if (np.diff(ends, prepend=-1) == width).any():  # an empty line
        return None
    is_open = not block.endswith(_LINE_FEED)  # the last line of a file may lack its end
    starts = np.searchsorted(feeds, ends[: None if is_open else -1]) + 1
    return Rows(np.concatenate((np.zeros(1, np.int64), starts.astype(np.int64))), len(feeds) + is_open)


def _places(block: bytes, mark: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(block, np.uint8) == ord(mark))


def _is_utf8(block: bytes) -> bool:
    import pyarrow as pa

    if block.isascii():
        return True
    ends = pa.py_buffer(len(block).to_bytes(8, "little").rjust(16, b"\0"))
    try:
        pa.LargeStringArray.from_buffers(1, ends, pa.py_buffer(block)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _at_edges(content: NDArray[np.uint8], quotes: NDArray[np.int64], delimiter: bytes) -> bool:
    """Each first of two quotes opens a cell, each second one closes it; a doubled quote is the end of one such pair and the
    beginning of the next."""
    opens, closes = quotes[::2], quotes[1::2]
    doubled = closes[:-1] + 1 == opens[1:]
    edges = np.zeros(256, bool)
    edges[[ord(_LINE_FEED), ord(_RETURN), ord(delimiter)]] = True
    before = np.ones(len(opens), bool)
    before[opens > 0] = edges[content[opens[opens > 0] - 1]]
    before[1:] |= doubled
    after = np.ones(len(closes), bool)
    inside = closes < len(content) - 1
    after[inside] = edges[content[closes[inside] + 1]]
    after[:-1] |= doubled
    return bool(before.all() and after.all())
