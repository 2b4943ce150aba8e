"""What every store must do, as tests: a subclass brings `make_store`, and pytest runs all of it on that store.

Not collected by itself. `MakeStore` opens the store of a generation; opened again, it is the same store. The fixture
closes what it opened.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.identity import crc32_of, uuid_of
from pipeline.stores import StoredString, VectorStore

if TYPE_CHECKING:
    from uuid import UUID

    from numpy.typing import NDArray

MakeStore = Callable[[str, int], VectorStore]
Vector = Sequence[float]

ODD_TEXTS = {
    "newlines": "one\ntwo\r\nthree\rfour",
    "line separator": "a\u2028b\u2029c\u0085d",
    "emoji": "🎼 𝄞 👩‍👧‍👦",
    "quotes": "it's \"quoted\", `so` 'it' \\ is; -- DROP",
    "only spaces": " \t ",
    "empty": "",
    "formula": "=1+1",
    "template": "{person} %s %(x)s ${y} ?",
    "composed": "Dvořák",
    "decomposed": "Dvor\u030ca\u0301k",
    "right to left": "\u202eabc\u202c مرحبا",
    "byte order mark": "\ufeffx",
    "control": "\x01\x1f\x7f",
    "noncharacter": "\uffff",
    "100 kB": "Bach, é\n" * 12_000,
}
# `make_store` is of the whole test, whose examples begin with `clear`; and every store runs this same function.
_ONE_TEST_FOR_MANY_STORES = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
_NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


def stored(
    text: str, vector: Vector | NDArray[np.float32], field: str = "person", *, frequency: int = 1, model: str = "some-model"
) -> StoredString:
    """A string as the pipeline gives it to a store."""
    return StoredString(uuid_of(field, text), field, text, crc32_of(text), frequency, model, np.array(vector, np.float32))


def random_strings(count: int, dimensions: int, seed: int = 1, field: str = "person") -> list[StoredString]:
    """Strings with random vectors of any length."""
    matrix = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return [stored(f"text {number}", matrix[number], field) for number in range(count)]


def nearest(strings: Sequence[StoredString], query: Vector | NDArray[np.float32]) -> list[tuple[UUID, float]]:
    """Every UUID with its cosine, nearest first, by brute force."""
    asked = np.array(query, np.float64)
    scored = [
        (string.uuid, float(string.vector.astype(np.float64) @ asked / np.linalg.norm(string.vector.astype(np.float64))))
        for string in strings
    ]
    length = float(np.linalg.norm(asked))
    return sorted(((key, score / length) for key, score in scored), key=lambda pair: (-pair[1], pair[0]))


def same(found: StoredString, given_: StoredString) -> bool:
    """Equal in everything, the vector byte by byte."""
    plain = [(s.uuid, s.field, s.text, s.crc32, s.frequency, s.model, s.vector.tobytes()) for s in (found, given_)]
    return plain[0] == plain[1] and found.vector.dtype == np.float32


class StoreContract:
    """The tests. `store` is a store of three dimensions."""

    @pytest.fixture
    def store(self, make_store: MakeStore) -> VectorStore:
        return make_store("0000aaaa", 3)

    # Writing and getting

    def test_upsert_confirms_exactly_the_uuids_given(self, store: VectorStore) -> None:
        strings = [stored("a", [1, 0, 0]), stored("b", [0, 1, 0])]
        assert store.upsert(strings).confirmed == {string.uuid for string in strings}
        assert store.upsert(strings[:1]).confirmed == {strings[0].uuid}

    def test_upsert_of_nothing_confirms_nothing(self, store: VectorStore) -> None:
        assert store.upsert([]).confirmed == set()
        assert store.count() == 0

    def test_get_gives_back_the_string_whole_and_the_very_bytes_of_its_vector(self, store: VectorStore) -> None:
        odd = [np.float32(0.1), np.float32(-0.0), np.nextafter(np.float32(1), np.float32(2))]
        string = stored("Bach", odd, "title", frequency=70_000, model="m-1")
        store.upsert([string])
        assert same(store.get([string.uuid])[string.uuid], string)

    def test_unknown_uuids_are_absent_from_what_get_gives(self, store: VectorStore) -> None:
        store.upsert([stored("a", [1, 0, 0])])
        known, unknown = uuid_of("person", "a"), uuid_of("person", "b")
        assert set(store.get([unknown, known, unknown])) == {known}
        assert store.get([]) == {}

    def test_a_second_upsert_replaces_text_frequency_model_and_vector(self, store: VectorStore) -> None:
        old = stored("a", [1, 0, 0])
        store.upsert([old, stored("b", [0, 1, 0])])
        new = StoredString(old.uuid, "title", "another text", "00000000", 9, "m-2", np.array([0, 0, 1], np.float32))
        assert store.upsert([new]).confirmed == {old.uuid}
        assert same(store.get([old.uuid])[old.uuid], new)
        assert store.count() == 2
        assert store.search(np.array([0, 0, 1], np.float32), 1)[0].text == "another text"
        assert (store.count("person"), store.count("title")) == (1, 1)

    def test_a_vector_that_differs_in_the_sign_of_a_zero_is_replaced_too(self, store: VectorStore) -> None:
        store.upsert([stored("a", [1.0, 0.0, 0.0])])
        new = stored("a", [1.0, -0.0, 0.0])
        store.upsert([new])
        assert same(store.get([new.uuid])[new.uuid], new)

    def test_of_duplicates_in_one_call_the_last_wins(self, store: VectorStore) -> None:
        first, last = stored("a", [1, 0, 0], frequency=1), stored("a", [0, 1, 0], frequency=2)
        assert store.upsert([first, stored("b", [0, 0, 1]), last]).confirmed == {first.uuid, uuid_of("person", "b")}
        assert store.count() == 2
        assert same(store.get([first.uuid])[first.uuid], last)

    @pytest.mark.parametrize("name", ODD_TEXTS)
    def test_an_odd_text_comes_back_equal(self, store: VectorStore, name: str) -> None:
        string = stored(ODD_TEXTS[name], [1, 0, 0])
        store.upsert([string])
        assert same(store.get([string.uuid])[string.uuid], string)
        assert store.search(np.array([1, 0, 0], np.float32), 1)[0].text == ODD_TEXTS[name]

    def test_two_strings_of_one_crc32_are_both_stored_and_found(self, store: VectorStore) -> None:
        assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
        pair = [stored("plumless", [1, 0, 0]), stored("buckeroo", [0, 1, 0])]
        store.upsert(pair)
        assert store.count() == 2
        assert [hit.text for hit in store.search(np.array([1, 0.5, 0], np.float32), 5)] == ["plumless", "buckeroo"]

    def test_the_same_text_in_two_fields_is_two_strings(self, store: VectorStore) -> None:
        store.upsert([stored("Faust", [1, 0, 0], "person"), stored("Faust", [0, 1, 0], "title")])
        assert store.count() == 2
        store.delete([uuid_of("person", "Faust")])
        assert [hit.field for hit in store.search(np.array([1, 1, 0], np.float32), 5)] == ["title"]

    def test_a_chunk_of_a_thousand_and_more_is_stored_whole(self, make_store: MakeStore) -> None:
        store, strings = make_store("0000bbbb", 4), random_strings(1500, 4)
        assert store.upsert(strings).confirmed == {string.uuid for string in strings}
        found = store.get([string.uuid for string in strings])
        assert all(same(found[string.uuid], string) for string in strings)

    @pytest.mark.parametrize("sizes", [(2,), (4,), (3, 2), (2, 3)], ids=str)
    def test_vectors_of_other_dimensions_are_refused_and_nothing_is_written(
        self, store: VectorStore, sizes: tuple[int, ...]
    ) -> None:
        store.upsert([stored("before", [1, 0, 0])])
        with pytest.raises(StoreError, match="dimensions"):
            store.upsert([stored(f"text {size}", [1.0] * size) for size in sizes])
        assert set(store.uuids()) == {uuid_of("person", "before")}

    # Counting, listing, removing

    def test_an_empty_store_is_empty_in_every_way(self, store: VectorStore) -> None:
        assert store.count() == store.count("person") == 0
        assert list(store.uuids()) == []
        assert store.search(np.array([1, 0, 0], np.float32), 5) == []
        assert store.delete([uuid_of("person", "a")]) == 0
        store.clear()

    def test_count_is_of_all_or_of_one_field_exactly(self, store: VectorStore) -> None:
        store.upsert([stored("a", [1, 0, 0]), stored("b", [1, 0, 0]), stored("c", [1, 0, 0], "person_2")])
        assert [store.count(), store.count("person"), store.count("person_2"), store.count("per%")] == [3, 2, 1, 0]

    def test_uuids_are_each_listed_once(self, store: VectorStore) -> None:
        strings = [stored(text, [1, 0, 0]) for text in _NAMES]
        store.upsert(strings)
        store.upsert(strings[2:4])
        assert sorted(store.uuids()) == sorted(string.uuid for string in strings)

    def test_delete_says_how_many_were_there_and_they_are_found_no_more(self, store: VectorStore) -> None:
        strings = [stored("a", [1, 0, 0]), stored("b", [0.9, 0.1, 0]), stored("c", [0, 0, 1])]
        store.upsert(strings)
        gone = [strings[0].uuid, uuid_of("person", "never there"), strings[0].uuid, strings[2].uuid]
        assert store.delete(gone) == 2
        assert store.delete(gone) == 0
        assert store.get([strings[0].uuid]) == {}
        assert store.count() == 1
        assert [hit.text for hit in store.search(np.array([1, 0, 0], np.float32), 5)] == ["b"]

    def test_what_was_deleted_can_be_written_again(self, store: VectorStore) -> None:
        strings = [stored(text, np.eye(3)[place]) for place, text in enumerate(("a", "b", "c"))]
        store.upsert(strings)
        store.delete([strings[0].uuid, strings[2].uuid])
        again = stored("c", [1, 1, 1])
        store.upsert([again, stored("d", [2, 0, 0])])
        assert same(store.get([again.uuid])[again.uuid], again)
        assert same(store.get([strings[1].uuid])[strings[1].uuid], strings[1])
        assert store.count() == 3

    def test_scrubbing_leaves_everything_that_is_there(self, store: VectorStore) -> None:
        strings = [stored(text, np.eye(3)[place]) for place, text in enumerate(("a", "b", "c"))]
        store.upsert(strings)
        store.delete([strings[1].uuid])
        for _ in range(2):
            store.scrub()
        assert same(store.get([strings[2].uuid])[strings[2].uuid], strings[2])
        assert [hit.text for hit in store.search(np.array([0, 1, 2], np.float32), 1)] == ["c"]
        store.upsert([stored("d", [1, 1, 1])])
        assert store.count() == 3

    def test_clear_removes_everything_and_the_store_can_be_filled_again(self, store: VectorStore) -> None:
        store.upsert([stored("a", [1, 0, 0]), stored("b", [2, 0, 0], "title")])
        store.clear()
        assert (store.count(), list(store.uuids()), store.search(np.ones(3, np.float32), 5)) == (0, [], [])
        store.prepare()
        string = stored("b", [0, 1, 0], "title")
        store.upsert([string])
        assert same(store.get([string.uuid])[string.uuid], string)

    def test_everything_is_there_after_closing_and_opening(self, make_store: MakeStore) -> None:
        strings, store = random_strings(50, 5), make_store("0000cccc", 5)
        store.upsert(strings)
        store.delete([strings[7].uuid])
        store.close()
        again = make_store("0000cccc", 5)
        found = again.get([string.uuid for string in strings])
        assert len(found) == again.count() == 49
        assert all(same(found[string.uuid], string) for string in strings if string.uuid in found)

    def test_two_generations_do_not_mix(self, make_store: MakeStore) -> None:
        one, two = make_store("0000dddd", 3), make_store("0000eeee", 2)
        one.upsert([stored("a", [1, 0, 0])])
        two.upsert([stored("a", [0, 1]), stored("b", [1, 0])])
        assert (one.count(), two.count()) == (1, 2)
        two.clear()
        assert (one.count(), two.count()) == (1, 0)
        assert [hit.text for hit in one.search(np.ones(3, np.float32), 5)] == ["a"]

    # Searching

    def test_the_nearest_come_first_and_no_more_than_asked_for(self, make_store: MakeStore) -> None:
        store, strings = make_store("0000ffff", 8), random_strings(300, 8)
        store.upsert(strings)
        query = random_strings(1, 8, seed=2)[0].vector
        expected = nearest(strings, query)
        for limit in (1, 7, 300):
            hits = store.search(query, limit)
            assert [hit.uuid for hit in hits] == [key for key, _ in expected[:limit]]
            assert [hit.similarity for hit in hits] == pytest.approx([score for _, score in expected[:limit]], abs=1e-5)

    def test_a_limit_above_the_number_of_strings_gives_them_all(self, store: VectorStore) -> None:
        store.upsert([stored("a", [1, 0, 0]), stored("b", [0, 1, 0])])
        assert len(store.search(np.ones(3, np.float32), 100)) == 2

    def test_a_hit_tells_field_text_and_frequency(self, store: VectorStore) -> None:
        store.upsert([stored("Bach", [1, 0, 0], "title", frequency=12)])
        (hit,) = store.search(np.array([5, 0, 0], np.float32), 1)
        assert (hit.uuid, hit.field, hit.text, hit.frequency) == (uuid_of("title", "Bach"), "title", "Bach", 12)
        assert hit.similarity == pytest.approx(1.0, abs=1e-6)

    def test_a_field_filter_lets_through_that_field_alone_and_all_of_it(self, store: VectorStore) -> None:
        people = [stored(f"p{number}", [1, number, 0], "person") for number in range(5)]
        others = [stored(f"t{number}", [1, 0, 0], "person_2") for number in range(20)]
        store.upsert([*others, *people])
        hits = store.search(np.array([1, 0, 0], np.float32), 10, "person")
        assert [hit.text for hit in hits] == [f"p{number}" for number in range(5)]
        assert store.search(np.ones(3, np.float32), 10, "title") == []

    @pytest.mark.parametrize("limit", [1, 3, 8])
    def test_equal_ones_come_in_a_fixed_order_however_they_were_written(self, make_store: MakeStore, limit: int) -> None:
        ways = []
        for generation, order in (("00001111", 1), ("00002222", -1)):
            store = make_store(generation, 3)
            for text in _NAMES[::order]:
                store.upsert([stored(text, [0.3, 0.4, 0.5])])
            ways.append([hit.text for hit in store.search(np.array([1, 2, 3], np.float32), limit)])
        assert ways[0] == ways[1] == sorted(_NAMES, key=lambda text: uuid_of("person", text))[:limit]

    @pytest.mark.parametrize("count", [37, 1025])
    def test_one_vector_gets_one_similarity_wherever_it_stands(self, make_store: MakeStore, count: int) -> None:
        """Matrix products round differently at the edge of a block: equal ones must not look unequal for that."""
        store, vector = make_store("00003333", 33), np.random.default_rng(5).standard_normal(33).astype(np.float32)
        store.upsert([stored(f"text {number}", vector) for number in range(count)])
        hits = store.search(np.random.default_rng(6).standard_normal(33).astype(np.float32), count)
        assert len({hit.similarity for hit in hits}) == 1
        assert [hit.uuid for hit in hits] == sorted(hit.uuid for hit in hits)

    def test_the_cosine_is_right_for_vectors_of_any_length(self, store: VectorStore) -> None:
        store.upsert([stored("long", [300, 0, 0]), stored("short", [0.003, 0.004, 0]), stored("against", [-2, 0, 0])])
        hits = {hit.text: hit.similarity for hit in store.search(np.array([20, 0, 0], np.float32), 3)}
        assert hits == pytest.approx({"long": 1.0, "short": 0.6, "against": -1.0}, abs=1e-6)

    def test_a_length_near_one_is_no_reason_for_a_wrong_order(self, store: VectorStore) -> None:
        nearer, farther = np.array([1, 0, 0]) * 0.9995, np.array([0.9998, 0.02, 0]) * 1.0005
        store.upsert([stored("nearer", nearer.tolist()), stored("farther", farther.tolist())])
        hits = store.search(np.array([1, 0, 0], np.float32), 2)
        assert [hit.text for hit in hits] == ["nearer", "farther"]
        assert [hit.similarity for hit in hits] == pytest.approx([1.0, 0.99980], abs=1e-5)
        assert store.search(np.array([1, 0, 0], np.float32), 1)[0].text == "nearer"

    @pytest.mark.parametrize(
        "query", [[0, 0, 0], [np.nan, 1, 0], [np.inf, 0, 0], [1, 0], [1, 0, 0, 0]], ids=["zero", "nan", "inf", "short", "long"]
    )
    def test_a_query_without_a_direction_or_of_other_dimensions_is_refused(self, store: VectorStore, query: Vector) -> None:
        store.upsert([stored("a", [1, 0, 0])])
        with pytest.raises(StoreError, match="3 finite numbers"):
            store.search(np.array(query, np.float32), 1)

    # Before and after writing

    def test_looking_changes_nothing_and_preparing_and_publishing_twice_is_as_once(self, store: VectorStore) -> None:
        for _ in range(2):
            store.look()
            assert all(store.try_out())
            store.prepare()
            store.publish()
        string = stored("a", [1, 0, 0])
        store.upsert([string])
        store.look()
        store.prepare()
        assert same(store.get([string.uuid])[string.uuid], string)

    def test_a_refusal_or_a_doubt_is_none_where_all_went_well(self, store: VectorStore) -> None:
        written = store.upsert([stored("a", [1, 0, 0])])
        assert (dict(written.refused), written.trouble) == ({}, "")

    def test_what_is_stored_becomes_searchable(self, store: VectorStore) -> None:
        store.upsert([stored("a", [1, 0, 0])])
        assert store.unsearchable() in (0, 1)
        assert store.workers >= 1
        assert store.chunk >= 1

    # Anything, in any order

    @settings(max_examples=40, deadline=None, suppress_health_check=_ONE_TEST_FOR_MANY_STORES)
    @given(st.data())
    def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(self, make_store: MakeStore, data: st.DataObject) -> None:
        store, model = make_store("00004444", 3), dict[str, StoredString]()
        store.clear()
        store.prepare()
        numbers = st.floats(-100, 100, width=32).map(lambda value: value if abs(value) > 1e-3 else 0.0)
        vectors = st.tuples(numbers, numbers, numbers).filter(any)
        strings = st.builds(
            lambda text, vector, field, frequency: stored(text, vector, field, frequency=frequency),
            st.sampled_from(_NAMES), vectors, st.sampled_from(("person", "title")), st.integers(0, 2**40),
        )  # fmt: skip
        steps = st.one_of(
            st.lists(strings, max_size=6),
            st.lists(st.tuples(st.sampled_from(("person", "title")), st.sampled_from(_NAMES)), max_size=4).map(tuple),
            st.just("clear"), st.just("reopen"),
        )  # fmt: skip
        for step in data.draw(st.lists(steps, min_size=1, max_size=8)):
            if step == "clear":
                store.clear()
                store.prepare()
                model.clear()
            elif step == "reopen":
                store.close()
                store = make_store("00004444", 3)
            elif isinstance(step, tuple):
                keys = {str(uuid_of(field, text)) for field, text in step}
                assert store.delete([uuid_of(*pair) for pair in step]) == len(keys & set(model))
                model = {key: string for key, string in model.items() if key not in keys}
            else:
                assert isinstance(step, list)
                assert store.upsert(step).confirmed == {string.uuid for string in step}
                model.update({str(string.uuid): string for string in step})
            _agree(store, list(model.values()), np.array(data.draw(vectors), np.float32))


def _agree(store: VectorStore, model: Sequence[StoredString], query: NDArray[np.float32]) -> None:
    """The store holds the model and finds in it what brute force finds."""
    assert sorted(store.uuids()) == sorted(string.uuid for string in model)
    assert store.count() == len(model)
    found = store.get([string.uuid for string in model])
    assert all(same(found[string.uuid], string) for string in model)
    for field in (None, "title"):
        wanted = [string for string in model if field in (None, string.field)]
        assert store.count(field) == len(wanted)
        expected = nearest(wanted, query)
        for limit in (1, 3, 20):
            hits = store.search(query, limit, field)
            # Ranks may differ where the cosines do by less than rounding; the cosines themselves may not.
            assert [hit.similarity for hit in hits] == pytest.approx([score for _, score in expected[:limit]], abs=1e-5)
            exact = dict(expected)
            assert [hit.similarity for hit in hits] == pytest.approx([exact[hit.uuid] for hit in hits], abs=1e-5)
            assert len({hit.uuid for hit in hits}) == len(hits)


@contextmanager
def closing(open_store: MakeStore) -> Iterator[MakeStore]:
    """A `make_store` that closes, at the end, what it opened."""
    opened: list[VectorStore] = []

    def make(generation: str, dimensions: int) -> VectorStore:
        opened.append(open_store(generation, dimensions))
        opened[-1].prepare()
        return opened[-1]

    try:
        yield make
    finally:
        for store in opened:
            store.close()
