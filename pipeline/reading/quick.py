"""CSV and TSV at the speed of a machine, for the blocks of a file that leave no doubt.

A block of whole lines is taken when a scan proves that every reader must see the same rows in it: UTF-8, one kind of
line end, no NUL, no empty line, each quote at the edge of its cell, none of them around a line end. Arrow then cuts it
into cells, block by block on several threads, in the order of the file. From the first block on that proves nothing
(a cell of two lines will do, or one bad row) the strict reader of `delimited.py` has the rest of the file: what is
broken is named there, and only there.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 8 << 20
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
    waiting: deque[tuple[int, Future[pa.Table | None]]] = deque()
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
                table = future.result()
                if table is None:
                    return
                for batch in table.combine_chunks().to_batches():
                    yield _numbered(batch, place.lines + 1)
                    place.lines += batch.num_rows
                place.at += size
        finally:
            for _, future in waiting:
                future.cancel()


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Pieces of whole lines. A line that is longer than a piece ends them: it is not for here."""
    rest = b""
    while piece := file.read(size):
        cut = piece.rfind(_LINE_FEED) + 1
        if not cut:
            return
        yield rest + piece[:cut]
        rest = piece[cut:]
    if rest:
        yield rest


def _numbered(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    import numpy as np
    import pyarrow as pa

    rows = pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))
    return pa.record_batch([rows, *batch.columns], ["row", *(f"c{place}" for place in range(batch.num_columns))])


def _parse(block: bytes, layout: Layout) -> pa.Table | None:
    """The cells of a block, or None when there may be two opinions about them."""
    import pyarrow as pa
    from pyarrow import csv

    lines = lines_of(block, layout.delimiter)
    if lines is None:
        return None
    names = [str(place) for place in range(layout.width)]
    wanted = [names[place] for place in layout.wanted]
    try:
        table = csv.read_csv(
            pa.BufferReader(block),
            csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            csv.ParseOptions(delimiter=layout.delimiter, quote_char='"', double_quote=True, escape_char=False),
            csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.large_string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:  # too few or too many cells somewhere: the strict reader says where
        return None
    return table if table.num_rows == lines else None


def lines_of(block: bytes, delimiter: str) -> int | None:
    """How many rows there are in whole lines, if nobody could doubt it; None otherwise."""
    feeds, returns = block.count(_LINE_FEED), block.count(_RETURN)
    if returns and not returns == feeds == block.count(_RETURN + _LINE_FEED):
        return None
    end = _RETURN + _LINE_FEED if returns else _LINE_FEED
    if end + end in block or block.startswith(end) or b"\0" in block or not _is_utf8(block):
        return None
    if _QUOTE in block and not _quotes_are_plain(block, delimiter.encode()):
        return None
    return feeds + (not block.endswith(_LINE_FEED))


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


def _quotes_are_plain(block: bytes, delimiter: bytes) -> bool:
    """Each first of two quotes opens a cell, each second one closes it; a doubled quote is the end of one such pair and the
    beginning of the next. None of them may hold a line end."""
    import numpy as np

    content = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(content == ord(_QUOTE))
    if len(quotes) % 2:
        return False
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
    if not (before.all() and after.all()):
        return False
    feeds = np.flatnonzero(content == ord(_LINE_FEED))
    return not bool((np.searchsorted(quotes, feeds) % 2).any())
