"""Comparing an index with what belongs in it, mending it, and judging whether its search finds what is stored."""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import spans as span_sets
from pipeline.checkpoint import Checkpoint, writing
from pipeline.config import load_config
from pipeline.identity import uuid_of
from pipeline.indexing import Index, index_pending, open_index, start_over
from pipeline.retry import POLICY, SystemClock
from pipeline.stores import STORES, Hit, StoredString, Wanted
from pipeline.stores.embedded import EmbeddedStore
from pipeline.tables.duck import connect
from pipeline.verifying import Comparison, _blocks, _take_over, compare, forget_missing, judge_search, notice_loss
from tests.clock import FakeClock
from tests.stores.contract import same, stored
from tests.tools import Catalogue, record_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

PEOPLE = [f"Bach, Johann {number}" for number in range(40)]
ROWS = [(str(number), name, f"Fugue {number % 3}") for number, name in enumerate(PEOPLE)]
STRINGS = len(PEOPLE) + 3


class _Silent:
    def advance(self, count: int) -> None:
        """Nobody looks."""


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS)
    ran = made.run()
    assert ran.code == 0, ran.err
    return made


@contextlib.contextmanager
def opened(catalogue: Catalogue, clock: FakeClock | None = None) -> Iterator[Index]:
    """The index as a command opens it."""
    config, place = load_config(catalogue.config, ()), Checkpoint(catalogue.checkpoint)
    with writing(place, "a test") as ledger:
        generation = ledger.current_generation()
        assert generation is not None
        index = open_index(place, ledger, config, generation, clock or FakeClock(), POLICY)
        try:
            yield index
        finally:
            index.close()


def rows_of(index: Index, field: str, texts: Sequence[str], catalogue: Catalogue) -> list[tuple[int, int]]:
    known = {text: row for row, text in catalogue.strings(field).items()}
    return span_sets.of_rows(sorted(known[text] for text in texts))


def whole(index: Index) -> dict[uuid.UUID, StoredString]:
    return index.store.get(list(index.store.uuids()))


# Comparing


def test_of_an_index_that_is_well_all_is_expected_there_and_compared(catalogue: Catalogue) -> None:
    with opened(catalogue) as index:
        report = compare(index, None)
        assert report.is_well
        assert report == Comparison(expected=STRINGS, there=STRINGS, compared=STRINGS)
        assert compare(index, None) == report, "a second comparison begins anew"


def test_what_is_missing_changed_or_unexpected_is_found_by_its_row_and_mended(catalogue: Catalogue) -> None:
    with opened(catalogue) as index:
        before = whole(index)
        people = [uuid_of("person", name) for name in PEOPLE]
        lost = [PEOPLE[3], PEOPLE[4], PEOPLE[30]]
        index.store.delete([uuid_of("person", name) for name in lost])
        other = before[people[7]]
        index.store.upsert([
            replace(other, vector=np.roll(other.vector, 1)),
            replace(before[people[8]], text="another text"),
            replace(before[people[9]], frequency=77),
            replace(before[people[10]], crc32="00000000"),
            replace(before[people[11]], model="another model"),
            replace(before[people[12]], field="title"),
            stored("a stranger", other.vector), stored("another stranger", other.vector, "title"),
        ])  # fmt: skip
        report = compare(index, None)
        assert not report.is_well
        assert report.missing == {"person": rows_of(index, "person", lost, catalogue)}
        assert report.changed == {"person": rows_of(index, "person", PEOPLE[7:13], catalogue)}
        assert (report.unexpected, report.expected, report.there) == (2, STRINGS, STRINGS - 3 + 2)
        assert report.compared == STRINGS - 3
        forget_missing(index, report)
        assert index.todo() == 9
        index_pending(index, _Silent())
        assert compare(index, None).is_well
        after = whole(index)
        assert after.keys() == before.keys()
        assert all(same(after[key], before[key]) for key in before)


def test_vectors_that_differ_by_one_bit_are_other_vectors(catalogue: Catalogue) -> None:
    with opened(catalogue) as index:
        string = whole(index)[uuid_of("person", PEOPLE[0])]
        bits = string.vector.view(np.uint32).copy()
        bits[-1] ^= 1
        index.store.upsert([replace(string, vector=bits.view(np.float32))])
        assert compare(index, None).changed == {"person": rows_of(index, "person", PEOPLE[:1], catalogue)}


def test_without_vectors_all_uuids_are_still_compared(catalogue: Catalogue) -> None:
    with opened(catalogue) as index:
        string = whole(index)[uuid_of("person", PEOPLE[0])]
        index.store.upsert([replace(string, vector=np.roll(string.vector, 1)), stored("a stranger", string.vector)])
        index.store.delete([uuid_of("title", "Fugue 1")])
        report = compare(index, 0)
        assert (report.compared, report.changed, report.unexpected, list(report.missing)) == (0, {}, 1, ["title"])


def test_what_the_index_refused_is_neither_expected_nor_missing(catalogue: Catalogue) -> None:
    from pipeline.ledger import Failure

    with opened(catalogue) as index:
        rows = rows_of(index, "person", PEOPLE[:2], catalogue)
        index.store.delete([uuid_of("person", name) for name in PEOPLE[:2]])
        index.ledger.add_failures(
            Failure(index.scope, "person", row, "index", "refused", "why", 1.0) for row in span_sets.rows_of(rows)
        )
        report = compare(index, None)
        assert (report.is_well, report.refused, report.expected) == (True, 2, STRINGS - 2)


def test_an_empty_store_lacks_everything_and_an_empty_ledger_expects_nothing(catalogue: Catalogue) -> None:
    with opened(catalogue) as index:
        index.store.clear()
        assert compare(index, None).missing == {"person": [(0, 40)], "title": [(0, 3)]}
        assert notice_loss(index)
        assert index.todo() == STRINGS
        start_over(index)
        assert not notice_loss(index), "nothing is confirmed, so nothing is lost"


def test_a_loss_is_noticed_by_the_count_and_only_what_is_lost_goes_again(catalogue: Catalogue) -> None:
    with opened(catalogue) as index:
        assert not notice_loss(index)
        index.store.delete([uuid_of("person", PEOPLE[5])])
        assert notice_loss(index)
        assert index.pending("person") == rows_of(index, "person", [PEOPLE[5]], catalogue)
        assert index.pending("title") == []


# How many vectors


@pytest.mark.parametrize(("asked", "compared"), [(0, 0), (1, 2), (10, 13), (None, STRINGS), (1000, STRINGS)])
def test_the_config_says_how_many_vectors_of_each_field_are_compared(
    catalogue: Catalogue, asked: int | None, compared: int
) -> None:
    catalogue.configure(verify_vectors=asked)
    assert catalogue.run("--verify", "--json").document["vectors_compared"] == compared
    ran = catalogue.run("--verify")
    assert f"The index is well: {STRINGS} strings, {compared} vectors compared, all equal." in ran.out


def test_what_is_compared_lies_all_over_the_index(catalogue: Catalogue) -> None:
    """Of 40 every fourth: the same ones each time, so that a mended index is compared where it was broken."""
    with opened(catalogue) as index:
        for name in PEOPLE:
            string = whole(index)[uuid_of("person", name)]
            index.store.upsert([replace(string, vector=np.roll(string.vector, 1))])
        assert compare(index, 10).changed == {"person": [(row, row + 1) for row in range(0, 40, 4)]}


_spans = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=30).map(
    lambda steps: [(start, past) for start, past in _walk(steps)]
)


def _walk(steps: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    at = 0
    for gap, length in steps:
        yield at + gap, at + gap + length
        at += gap + length


@settings(deadline=None, max_examples=300)
@given(_spans, st.integers(0, 700))
def test_a_sample_is_at_most_so_many_rows_in_runs_evenly_over_any_spans(spans: list[tuple[int, int]], most: int) -> None:
    found = _blocks(spans, most)
    rows, chosen = list(span_sets.rows_of(spans)), list(span_sets.rows_of(found))
    assert found == span_sets.union(found)
    assert set(chosen) <= set(rows)
    if len(rows) <= most:
        assert chosen == rows
        return
    length = max(1, most // 50)
    pieces = most // length
    assert len(chosen) == pieces * length
    assert most - len(chosen) < length
    if not pieces:
        return
    places = [rows.index(row) for row in chosen]
    starts = places[::length]
    assert all(
        places[start : start + length] == list(range(at, at + length))
        for start, at in zip(range(0, len(places), length), starts, strict=True)
    )
    gaps = [after - before for before, after in zip(starts, [*starts[1:], len(rows)], strict=True)]
    assert starts[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_a_sample_of_very_many_rows_is_found_without_going_through_them() -> None:
    found = _blocks([(0, 45_000_000)], 10_000)
    assert (len(found), span_sets.count(found)) == (50, 10_000)
    assert found[-1][0] == 49 * 900_000


# Whether a search finds what is stored


class _Graph(EmbeddedStore):
    """As a server: a search may miss what is stored, and what is written becomes searchable later."""

    is_exact = False

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted.folder, wanted.generation.id, wanted.generation.dimensions)
        self.queue: Callable[[], int] = lambda: 0
        self.misses: Callable[[int], bool] = lambda _number: False
        self.searches = 0

    def unsearchable(self) -> int:
        return self.queue()

    def search(self, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        self.searches += 1
        hits = super().search(vector, limit + 1, field)
        return hits[1:] if self.misses(self.searches) else hits[:limit]


def use_graph(monkeypatch: pytest.MonkeyPatch, **habits: Callable[..., Any]) -> None:
    def make(wanted: Wanted) -> _Graph:
        made = _Graph(wanted)
        for name, habit in habits.items():
            setattr(made, name, habit)
        return made

    monkeypatch.setitem(STORES, "embedded", make)


def test_an_exact_store_is_not_asked(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedStore, "search", _never)
    with opened(catalogue) as index:
        report = compare(index, None)
        judge_search(index, report)
    assert (report.searched, report.is_searchable) == (0, True)


def _never(*_: object) -> list[Hit]:
    raise AssertionError("nobody asked for this")


def test_a_search_by_its_own_vector_is_judged_for_each_field(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    use_graph(monkeypatch)
    document = catalogue.run("--verify", "--json").document
    assert (document["searched"], document["found"], document["not_searchable_yet"]) == (STRINGS, STRINGS, 0)
    assert f"A search by its own vector finds {STRINGS} of {STRINGS} strings." in catalogue.run("--verify").out


@pytest.mark.parametrize(("every", "code"), [(5, 1), (11, 0)])
def test_a_recall_below_nine_in_ten_fails_with_a_way_out_and_some_misses_do_not(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, every: int, code: int
) -> None:
    use_graph(monkeypatch, misses=lambda number: number % every == 0)
    missed = STRINGS // every
    ran = catalogue.run("--verify")
    assert ran.code == code, ran.err
    assert f"A search by its own vector finds {STRINGS - missed} of {STRINGS} strings." in ran.out
    assert ("That is too few: the server's index is not sound." in ran.out) == bool(code)
    assert ("python main.py --reindex" in ran.out) == bool(code)


def test_strings_with_the_same_vector_push_each_other_out_and_count_as_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty spellings that the model can't tell apart: there are ten places, and one's own need not be among them."""
    catalogue = Catalogue(tmp_path)
    catalogue.configure(fields={"title": "title"})
    catalogue.write([(str(number), "x", f"Die{' ' * number}Fuge") for number in range(1, 31)])
    assert catalogue.run().code == 0
    use_graph(monkeypatch)
    with opened(catalogue) as index:
        strings = whole(index).values()
        assert len({string.vector.tobytes() for string in strings}) == 1
        first_ten = {hit.uuid for hit in index.store.search(next(iter(strings)).vector, 10)}
        report = Comparison()
        judge_search(index, report)
    assert (report.searched, report.found, len(first_ten)) == (30, 30, 10)


def test_a_queue_that_empties_is_waited_for_however_long_it_takes(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([100, 100, *range(99, 0, -1), 0])
    use_graph(monkeypatch, queue=lambda: next(left))
    clock, report = FakeClock(), Comparison()
    with opened(catalogue, clock) as index:
        judge_search(index, report)
    assert clock.slept == 101 * 5
    assert (report.unsearchable, report.searched, report.found) == (0, STRINGS, STRINGS)


@pytest.mark.parametrize("looks", [[7], [9, 8, 7, 9, 8]], ids=["stands still", "grows again"])
def test_a_queue_that_does_not_empty_is_told_after_two_minutes_without_progress(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    left = iter(looks)
    use_graph(monkeypatch, queue=lambda: next(left, 7))
    clock, report = FakeClock(), Comparison()
    with opened(catalogue, clock) as index:
        judge_search(index, report)
    assert (report.unsearchable, report.searched) == (7, 0)
    assert clock.slept == (24 + looks.index(7)) * 5
    assert report.is_searchable, "nobody can say yet"


def test_verify_tells_of_a_queue_and_is_no_failure(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    use_graph(monkeypatch, queue=lambda: 7)
    monkeypatch.setattr(SystemClock, "sleep", lambda _clock, _seconds: None)
    ran = catalogue.run("--verify")
    assert ran.code == 0, ran.err
    assert "7 strings are stored, and the server has yet to make them searchable: look again later." in ran.out
    assert "A search by its own vector" not in ran.out


def test_a_search_is_judged_by_a_hundred_strings_of_a_field_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure(fields={"person": "person"})
    catalogue.write([(str(number), f"name {number}", "x") for number in range(260)])
    assert catalogue.run().code == 0
    use_graph(monkeypatch)
    assert catalogue.run("--verify", "--json").document["searched"] == 100


# What is not mended, and what it costs


def test_an_index_that_keeps_losing_is_told_to_be_broken(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    real = EmbeddedStore.uuids
    monkeypatch.setattr(EmbeddedStore, "uuids", lambda self: iter(sorted(real(self))[1:]))
    ran = catalogue.run("--verify")
    assert ran.code == 1
    assert "The index was not well: 1 " in ran.out
    assert "It could not be mended whole" in ran.out


def test_mending_asks_nothing_of_the_service(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = record_texts(monkeypatch)
    with opened(catalogue) as index:
        index.store.delete([uuid_of("person", name) for name in PEOPLE[:10]])
    assert catalogue.run("--verify", "--json").document["missing"] == 10
    assert asked == []


def test_hundreds_of_thousands_of_uuids_are_never_held_at_once() -> None:
    many = 300_000
    with tempfile.TemporaryDirectory() as folder:
        duck = connect(Path(folder), 0.25)
        duck.execute("CREATE TABLE there (uuid UUID)")
        tracemalloc.start()
        try:
            assert _take_over(duck, (uuid.UUID(int=number) for number in range(many))) == many
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert duck.execute("SELECT count(DISTINCT uuid), max(uuid) FROM there").fetchone() == (many, uuid.UUID(int=many - 1))
        duck.close()
    assert peak < many * 100 / 2, f"{peak / many:.0f} bytes for each"
