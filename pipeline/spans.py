"""Sets of row numbers as sorted spans `(first, past)`: the arithmetic under all state.

A span holds the rows first, first + 1, …, past - 1. Every function takes and gives normal lists: sorted, without
overlaps, without neighbours that touch, without empty spans. A catalogue of 45 million strings is then a handful of
pairs, and what is pending is found without looking at what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Span = tuple[int, int]
Spans = list[Span]


def union(*lists: Iterable[Span]) -> Spans:
    """All rows that are in any of the lists (which need not be normal: this also makes a list normal)."""
    merged: Spans = []
    for first, past in sorted(span for spans in lists for span in spans):
        if first >= past:
            continue
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], past))
        else:
            merged.append((first, past))
    return merged


def subtract(spans: Sequence[Span], away: Sequence[Span]) -> Spans:
    """The rows of `spans` that are not in `away`."""
    left: Spans = []
    position = 0
    for first, past in spans:
        while position < len(away) and away[position][1] <= first:
            position += 1
        start, at = first, position
        while at < len(away) and away[at][0] < past:
            if away[at][0] > start:
                left.append((start, away[at][0]))
            start = max(start, away[at][1])
            at += 1
        if start < past:
            left.append((start, past))
    return left


def intersect(spans: Sequence[Span], other: Sequence[Span]) -> Spans:
    """The rows that are in both."""
    return subtract(spans, subtract(spans, other))


def count(spans: Iterable[Span]) -> int:
    """How many rows."""
    return sum(past - first for first, past in spans)


def of_rows(rows: Iterable[int]) -> Spans:
    """The spans of ascending row numbers; repeats are allowed."""
    spans: Spans = []
    for row in rows:
        if spans and row == spans[-1][1]:
            spans[-1] = (spans[-1][0], row + 1)
        elif not spans or row > spans[-1][1]:
            spans.append((row, row + 1))
        elif row < spans[-1][0]:
            raise ValueError(f"rows must ascend, but {row} comes after {spans[-1]}")
    return spans


def rows_of(spans: Iterable[Span]) -> Iterator[int]:
    """Each row number, ascending."""
    for first, past in spans:
        yield from range(first, past)


def windows(spans: Sequence[Span], most_rows: int) -> Iterator[Spans]:
    """The same rows in slices of at most `most_rows`, so that no step holds them all."""
    slice_: Spans = []
    room = most_rows
    for first, past in spans:
        start = first
        while start < past:
            end = min(past, start + room)
            slice_.append((start, end))
            room -= end - start
            start = end
            if room == 0:
                yield slice_
                slice_, room = [], most_rows
    if slice_:
        yield slice_
