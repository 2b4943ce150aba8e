"""`--prune`: what left the catalogue leaves the index and nothing else, and comes back at no cost."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stores import StoredString, Written
from pipeline.stores.embedded import EmbeddedStore
from tests.stores.test_registry import memory, opened  # noqa: F401  # a second store
from tests.tools import Catalogue, Ran, record_texts

ROWS = [("1", "Bach", "Fugue"), ("2", "Mozart", "Requiem"), ("3", "Bach", "Toccata"), ("4", "Haydn", "Requiem")]
ALL = {("person", "Bach"), ("person", "Mozart"), ("person", "Haydn"), *(("title", row[2]) for row in ROWS)}
LEFT = ROWS[:1]  # Mozart, Haydn, Requiem and Toccata leave
GONE = ALL - {("person", "Bach"), ("title", "Fugue")}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS)
    well(made.run())
    return made


def well(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def change(catalogue: Catalogue, rows: Sequence[Sequence[str]]) -> Ran:
    """The catalogue has other records now."""
    catalogue.write(rows)
    return well(catalogue.run("--accept-new-input", "--json"))


def in_index(catalogue: Catalogue, *settings: str) -> set[tuple[str, str]]:
    """What the files of the index hold, whatever the ledger says."""
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
    assert generation is not None
    store = EmbeddedStore(catalogue.checkpoint / "store", generation.id, generation.dimensions)
    found = {(string.field, string.text) for string in store.get(list(store.uuids())).values()}
    assert store.count() == len(found)
    store.close()
    return found


def fields(catalogue: Catalogue, key: str) -> dict[str, int]:
    found = catalogue.run("--status", "--json").document["fields"]
    return {name: found[name][key] for name in ("person", "title")}


def test_prune_leaves_exactly_what_is_present_and_a_second_one_does_nothing(catalogue: Catalogue) -> None:
    change(catalogue, LEFT)
    assert in_index(catalogue) == ALL, "before it, what left stays"
    assert fields(catalogue, "to_index") == {"person": 0, "title": 0}
    ran = well(catalogue.run("--prune"))
    assert "4 strings that left the catalogue are out of the index, which holds 2 strings now." in ran.out
    assert in_index(catalogue) == ALL - GONE
    assert (fields(catalogue, "indexed"), fields(catalogue, "to_index")) == ({"person": 1, "title": 1}, {"person": 0, "title": 0})
    assert fields(catalogue, "embedded") == {"person": 3, "title": 3}
    assert set(catalogue.embedded("person")) | set(catalogue.embedded("title")) == {text for _, text in ALL}
    assert catalogue.run("--prune", "--json").document == {"pruned": 0, "removed": 0, "indexed": 0, "in_index": 2}
    assert "Nothing in the index has left the catalogue." in catalogue.run("--prune").out
    assert "Nothing is pending." in catalogue.run("--status").out
    assert catalogue.run("--verify", "--json").document["is_well_now"] is True


def test_prune_takes_away_only_what_is_gone_from_its_own_field(catalogue: Catalogue) -> None:
    change(catalogue, [*LEFT, ("5", "Requiem", "Mozart")])
    catalogue.run("--prune")
    assert in_index(catalogue) == {("person", "Bach"), ("title", "Fugue"), ("person", "Requiem"), ("title", "Mozart")}


def test_what_comes_back_is_indexed_again_without_a_call_and_leaves_again_only_by_a_prune(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(catalogue, LEFT)
    well(catalogue.run("--prune"))
    asked = record_texts(monkeypatch)
    back = change(catalogue, ROWS[:2]).document["stages"]["embedding_and_indexing"]
    assert (back["embedded"], back["indexed"], back["index_mended"]) == (0, 2, False)
    assert in_index(catalogue) == ALL - GONE | {("person", "Mozart"), ("title", "Requiem")}
    change(catalogue, LEFT)
    assert in_index(catalogue) == ALL - GONE | {("person", "Mozart"), ("title", "Requiem")}, "it left again: not pruned yet"
    assert catalogue.run("--prune", "--json").document["removed"] == 2
    assert in_index(catalogue) == ALL - GONE
    assert asked == []


def test_what_came_back_before_the_index_was_written_is_not_pruned_any_more(catalogue: Catalogue) -> None:
    change(catalogue, LEFT)
    well(catalogue.run("--prune"))
    catalogue.write(ROWS)
    well(catalogue.run("--end", "preprocessing"))
    assert fields(catalogue, "to_index") == {"person": 3, "title": 2}, "and one that occurs more often"
    assert "To index 5 strings that the index lacks: python main.py" in catalogue.run("--status").out
    well(catalogue.run("--set", "index_later=true"))
    catalogue.write(LEFT)
    well(catalogue.run("--accept-new-input", "--end", "preprocessing"))
    well(catalogue.run())
    assert in_index(catalogue) == ALL


def test_where_nothing_was_read_no_trial_is_spoken_of(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure()
    ran = catalogue.run("--prune")
    assert (ran.code, "Nothing is preprocessed yet. First: python main.py" in ran.err) == (2, True)


def test_where_only_a_trial_was_read_nobody_knows_what_left(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure()
    catalogue.write(ROWS)
    well(catalogue.run("--limit", "2"))
    before = in_index(catalogue)
    ran = catalogue.run("--prune")
    assert (ran.code, "Only a trial was read (--limit)" in ran.err) == (2, True)
    assert in_index(catalogue) == before != set()


@pytest.mark.parametrize("rebuild", [("--reindex",), ("--reset", "embedding_and_indexing"), ("lost",), ("--verify",)])
def test_however_the_index_is_built_again_what_was_pruned_stays_out(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, rebuild: tuple[str, ...]
) -> None:
    change(catalogue, LEFT)
    well(catalogue.run("--prune"))
    asked = record_texts(monkeypatch)
    if rebuild == ("lost",):
        for path in (catalogue.checkpoint / "store").iterdir():
            path.unlink()
    else:
        well(catalogue.run(*rebuild))
    well(catalogue.run())
    assert in_index(catalogue) == ALL - GONE
    assert asked == []


def test_what_was_pruned_stays_out_of_another_store_too(catalogue: Catalogue) -> None:
    memory_too = ("--set", "vector_store=memory")
    well(catalogue.run(*memory_too))
    assert opened(catalogue).count() == len(ALL)
    change(catalogue, LEFT)
    well(catalogue.run("--prune"))
    assert opened(catalogue).count() == len(ALL), "it is not open"
    status = catalogue.run("--status", "--json", *memory_too).document["fields"]
    assert {name: status[name]["to_index"] for name in status} == {"person": 1, "title": 0}
    ran = well(catalogue.run("--json", *memory_too)).document["stages"]["embedding_and_indexing"]
    assert (ran["removed_from_index"], ran["indexed"]) == (4, 1), "one occurs less often now"
    store = opened(catalogue)
    assert {(string.field, string.text) for string in store.get(list(store.uuids())).values()} == ALL - GONE


def test_a_store_that_joins_after_a_prune_never_sees_what_left(catalogue: Catalogue) -> None:
    change(catalogue, LEFT)
    well(catalogue.run("--prune"))
    well(catalogue.run("--set", "vector_store=memory"))
    assert opened(catalogue).count() == len(ALL - GONE)


def test_what_left_before_another_model_is_out_of_the_first_ones_index_as_well(catalogue: Catalogue) -> None:
    other = ("--set", "embedding_dimensions=64")
    first = in_index(catalogue)
    change(catalogue, LEFT)
    well(catalogue.run(*other))
    assert in_index(catalogue) == first - GONE, "the other model never saw what left"
    well(catalogue.run("--prune", *other))
    ran = well(catalogue.run("--json")).document["stages"]["embedding_and_indexing"]
    assert ran["removed_from_index"] == 4
    assert in_index(catalogue) == ALL - GONE


def test_a_run_tells_what_it_took_out_for_an_earlier_prune(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    change(catalogue, LEFT)
    with monkeypatch.context() as broken:
        broken.setattr(EmbeddedStore, "delete", _interrupted)
        assert catalogue.run("--prune").code == 130
    assert in_index(catalogue) == ALL
    assert "Indexing: 4 strings that left the catalogue and were pruned are out of the index." in well(catalogue.run()).out
    assert in_index(catalogue) == ALL - GONE


def test_a_prune_finds_also_what_the_index_was_to_write_anew(catalogue: Catalogue) -> None:
    """All of these occur less often now, which no run has told the index yet."""
    catalogue.write(LEFT)
    well(catalogue.run("--accept-new-input", "--end", "preprocessing"))
    assert catalogue.run("--prune", "--json").document == {"pruned": 4, "removed": 4, "indexed": 1, "in_index": 2}
    assert in_index(catalogue) == ALL - GONE


def test_a_prune_finds_also_what_a_killed_run_was_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue, real = Catalogue(tmp_path), EmbeddedStore.upsert
    catalogue.configure()
    catalogue.write(ROWS)

    def killed_when_it_is_stored(self: EmbeddedStore, strings: Sequence[StoredString]) -> Written:
        real(self, strings)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(EmbeddedStore, "upsert", killed_when_it_is_stored)
        assert catalogue.run().code == 130
    assert in_index(catalogue)
    catalogue.write(LEFT)
    well(catalogue.run("--accept-new-input", "--end", "preprocessing"))
    well(catalogue.run("--prune"))
    assert in_index(catalogue) == ALL - GONE


def test_embeddings_that_were_dropped_leave_nothing_in_another_store(catalogue: Catalogue) -> None:
    memory_too = ("--set", "vector_store=memory")
    well(catalogue.run(*memory_too))
    well(catalogue.run("--drop-embeddings", "--yes"))
    change(catalogue, LEFT)
    well(catalogue.run(*memory_too))
    assert opened(catalogue).count() == len(ALL - GONE), "what left has no embedding any more"


def _interrupted(*_: object) -> int:
    raise KeyboardInterrupt


_NAMES = [f"name {number}" for number in range(6)]
_steps = st.one_of(
    st.sets(st.sampled_from(_NAMES), min_size=1), st.sampled_from(["--prune", "--reindex", "--verify", "lose", "none", "later"])
)


@settings(max_examples=8, deadline=None)
@given(st.lists(_steps, min_size=2, max_size=6))
def test_after_any_sequence_the_index_holds_what_is_present_and_what_left_unpruned(steps: list[set[str] | str]) -> None:
    """The model: a set of names that belong, to which a reading adds and from which a prune takes."""
    with tempfile.TemporaryDirectory() as folder:
        catalogue = Catalogue(Path(folder))
        catalogue.configure(fields={"person": "person"}, vector_store="embedded")
        numbers = itertools.count()
        present: set[str] = set(_NAMES[:2])
        belonging = set(present)
        _read(catalogue, present, numbers)
        for step in steps:
            if isinstance(step, set):
                present = step
                belonging |= present
                _read(catalogue, present, numbers)
            elif step == "lose":
                for path in (catalogue.checkpoint / "store").iterdir():
                    path.unlink()
            elif step in ("none", "later"):
                key = "vector_store=none" if step == "none" else "index_later=true"
                well(catalogue.run("--accept-new-input", "--set", key))
            else:
                well(catalogue.run(step))
                if step == "--prune":
                    belonging = set(present)
        well(catalogue.run())
        assert {text for _, text in in_index(catalogue)} == belonging
        assert catalogue.run("--verify", "--json").document["is_well_now"] is True


def _read(catalogue: Catalogue, names: Iterable[str], numbers: Iterable[int]) -> None:
    catalogue.write([(str(next(iter(numbers))), name, "x") for name in sorted(names)])
    well(catalogue.run("--accept-new-input"))
