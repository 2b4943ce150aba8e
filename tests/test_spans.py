"""Spans are sets of row numbers: held to Python's own sets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import spans as span_sets
from pipeline.spans import Span, Spans

UNHURRIED = settings(deadline=None)  # the machine may be busy
ROWS = st.sets(st.integers(0, 60))
LOOSE = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)))


def normal(rows: set[int]) -> Spans:
    """The spans of a set, made the slow and obvious way."""
    spans: Spans = []
    for row in sorted(rows):
        if row - 1 in rows:
            spans[-1] = (spans[-1][0], row + 1)
        else:
            spans.append((row, row + 1))
    return spans


def rows(spans: list[Span]) -> set[int]:
    return {row for first, past in spans for row in range(first, past)}


@UNHURRIED
@given(st.lists(LOOSE, max_size=4))
def test_union_is_the_union_of_sets_and_makes_any_list_normal(lists: list[list[Span]]) -> None:
    """Overlaps, neighbours, empty and reversed spans all come out as one sorted list in which nothing touches."""
    assert span_sets.union(*lists) == normal(set().union(*map(rows, lists)))


@UNHURRIED
@given(ROWS, ROWS)
def test_subtract_is_the_difference_of_sets(some: set[int], away: set[int]) -> None:
    """What is left is again normal, wherever the spans taken away begin and end."""
    assert span_sets.subtract(normal(some), normal(away)) == normal(some - away)


@UNHURRIED
@given(ROWS, ROWS)
def test_intersect_is_the_intersection_of_sets(some: set[int], other: set[int]) -> None:
    """Both orders of the arguments give the same normal list."""
    assert span_sets.intersect(normal(some), normal(other)) == normal(some & other)
    assert span_sets.intersect(normal(other), normal(some)) == normal(some & other)


@UNHURRIED
@given(ROWS)
def test_count_rows_of_and_of_rows_go_together(some: set[int]) -> None:
    """A set becomes spans and comes back whole, ascending."""
    spans = span_sets.of_rows(sorted(some))
    assert spans == normal(some)
    assert list(span_sets.rows_of(spans)) == sorted(some)
    assert span_sets.count(spans) == len(some)


@UNHURRIED
@given(st.lists(st.integers(0, 30)))
def test_repeated_rows_count_once(some: list[int]) -> None:
    """`of_rows` takes a sorted list with repeats as the set that it is."""
    assert span_sets.of_rows(sorted(some)) == normal(set(some))


def test_rows_that_fall_back_are_a_program_error() -> None:
    """Descending rows would give a list that is not normal, so they are refused."""
    with pytest.raises(ValueError, match=r"rows must ascend, but 3 comes after \(7, 8\)"):
        span_sets.of_rows([7, 3])


@UNHURRIED
@given(ROWS, st.integers(1, 20))
def test_windows_cut_the_same_rows_into_full_slices(some: set[int], most: int) -> None:
    """Each slice is normal and full, but for the last; together they hold each row once, ascending."""
    slices = list(span_sets.windows(normal(some), most))
    assert [row for slice_ in slices for row in span_sets.rows_of(slice_)] == sorted(some)
    assert all(slice_ == normal(rows(slice_)) for slice_ in slices)
    sizes = [span_sets.count(slice_) for slice_ in slices]
    assert sizes[:-1] == [most] * (len(sizes) - 1)
    assert not sizes or 0 < sizes[-1] <= most


def test_a_catalogue_of_45_million_is_cut_without_counting_its_rows() -> None:
    """The arithmetic goes by spans: large numbers cost nothing."""
    whole = [(0, 45_000_000)]
    assert span_sets.count(span_sets.subtract(whole, [(7, 8)])) == 44_999_999
    assert next(span_sets.windows(whole, 50_000)) == [(0, 50_000)]
