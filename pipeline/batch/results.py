"""Reading result files: each line becomes a vector, a failure for good, or a reason to go again.

A pure function of the files, so a kill costs nothing but the reading. A large file is cut at line ends and read by as
many processes as there are cores (`lines.py`); what they found is put together in the order of the lines, so it is the
same with one of them. Vectors lie in scratch files, not in memory: 50,000 of them would be 300 MB. What a row means is
not known here: a line belongs to the job when its custom_id, with the CRC32 in it, is wanted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.batch.lines import OddLine, Piece, ReadPiece, cut, judge_line, lines_of, parse_line, read_piece
from pipeline.log import event, logger
from pipeline.processes import spread
from pipeline.provider.client import told

Key = tuple[str, int]  # field, row
Wanted = Mapping[str, Key]  # custom_id → the string that it names
PIECE_BYTES = 16 << 20  # a smaller file is read sooner than a process begins
_LOOKED_AT = 100
_log = logger(__name__)


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

    def pay(self, key: Key, tokens: int) -> None:
        """A row that stands twice was embedded once, so its tokens are paid once."""
        before = self.paid.get(key, 0)
        if tokens > before:
            self.paid[key] = tokens
            self.tokens += tokens - before

    def vectors(self, keys: Sequence[Key]) -> NDArray[np.float32]:
        """The vectors of some rows, in their order."""
        matrix = np.empty((len(keys), self.dimensions), "<f4")
        slots = [self.slots[key] for key in keys]
        handles = {number: os.open(self.scratch[number], os.O_RDONLY) for number in {number for number, _ in slots}}
        try:
            for place, (number, slot) in enumerate(slots):
                os.preadv(handles[number], [matrix[place]], slot * self.dimensions * 4)
        finally:
            for handle in handles.values():
                os.close(handle)
        return matrix


def read_results(
    paths: Sequence[Path],
    find_wanted: Callable[[], Wanted],
    dimensions: int,
    scratch: Path,
    cores: int | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Harvest:
    """Read the files. What is wanted is found out while they are read; `dimensions` is 0 when they are to be learned."""
    wanted = None if dimensions else find_wanted()
    harvest = Harvest(dimensions if wanted is None else _learn_dimensions(paths, wanted))
    pieces: list[Piece] = []
    for path in paths:
        for start, stop in cut(path, piece_bytes):
            vectors = scratch.with_name(f"{scratch.name}_{len(pieces):03d}.f32")
            pieces.append(Piece(path, start, stop, vectors, harvest.dimensions))
    harvest.scratch = [piece.scratch for piece in pieces]
    odd: list[OddLine] = []
    with spread(read_piece, is_worth_it=len(pieces) > len(paths), cores=cores) as read:
        results = read(pieces)
        if wanted is None:
            wanted = find_wanted()
        for number, found in enumerate(results):
            unknown = _enter_vectors(found, number, wanted, harvest)
            odd += found.odd
            if unknown:
                event(_log, "results.unknown", file=pieces[number].path.name, count=unknown)
    _enter_odd(odd, wanted, harvest)
    return harvest


def _learn_dimensions(paths: Sequence[Path], wanted: Wanted) -> int:
    """The commonest length of the job's first vectors, when it is not known yet: the very first may be a wrong one."""
    lengths: Counter[int] = Counter()
    for path in paths:
        for line in islice(lines_of(path, 0, path.stat().st_size), _LOOKED_AT):
            found = None if line is None else parse_line(line)
            if found is not None and found.custom_id in wanted:
                vector = judge_line(found, 0)
                if isinstance(vector, np.ndarray):
                    lengths[len(vector)] += 1
    return lengths.most_common(1)[0][0] if lengths else 0


def _enter_vectors(found: ReadPiece, piece: int, wanted: Wanted, harvest: Harvest) -> int:
    """Of a row that stands twice, the first vector counts; two that differ are a failure. How many lines are not wanted: they are
    paid as well."""
    unknown = 0
    for slot, (name, tokens) in enumerate(zip(found.names, found.tokens, strict=True)):
        key = wanted.get(name)
        if key is None:
            unknown += 1
            harvest.tokens += tokens
            continue
        harvest.pay(key, tokens)
        if key in harvest.slots and not _is_same(key, (piece, slot), harvest):
            harvest.failed[key] = ("two_answers", "the service gave two different vectors for it")
        harvest.slots.setdefault(key, (piece, slot))
    harvest.unknown += unknown
    return unknown


def _is_same(key: Key, place: tuple[int, int], harvest: Harvest) -> bool:
    other = Harvest(harvest.dimensions, harvest.scratch, {key: place})
    return np.array_equal(harvest.vectors([key]), other.vectors([key]))


def _enter_odd(odd: Iterable[OddLine], wanted: Wanted, harvest: Harvest) -> None:
    """The lines without a vector; a row that has one elsewhere is none of them."""
    for line in odd:
        key = wanted.get(line.name)
        if key is None:
            harvest.unknown += 1
            harvest.tokens += line.tokens
            continue
        harvest.pay(key, line.tokens)
        if key in harvest.slots:
            continue
        if line.again:
            harvest.again.setdefault(key, (told(line.words), line.spends))
        else:
            harvest.failed.setdefault(key, (told(line.code), told(line.words)))
