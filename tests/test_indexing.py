"""The index holds exactly what is embedded; what it lost is noticed and mended from the tables, at no cost."""

from __future__ import annotations

import shutil
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.identity import uuid_of
from pipeline.ledger import Generation
from pipeline.retry import POLICY, SystemClock
from pipeline.stores import STORES, StoredString, VectorStore, Wanted, Written
from pipeline.stores.embedded import EmbeddedStore
from tests.stores.contract import same, stored
from tests.tools import Catalogue, Ran, record_texts

ROWS = [
    ("1", "Bach, Johann Sebastian", "Die Kunst der Fuge"),
    ("2", "Bach, J. S.", "Die Kunst der Fuge"),
    ("3", "Mozart, Wolfgang Amadeus", "Requiem"),
    ("4", "Requiem", "plumless"),
    ("5", "Bach, Johann Sebastian", "buckeroo"),
    ("6", "", "line\nbreak \u2028 and 𝄞"),
]
STRINGS = 4 + 5  # the empty person is never embedded
ATTEMPTS = POLICY.attempts


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "sleep", lambda _clock, _seconds: None)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS)
    return made


@pytest.fixture
def done(catalogue: Catalogue) -> Catalogue:
    """After a run."""
    ran = catalogue.run()
    assert ran.code == 0, ran.err
    return catalogue


def generation_of(catalogue: Catalogue) -> Generation:
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
    assert generation is not None
    return generation


def open_store(catalogue: Catalogue) -> VectorStore:
    generation = generation_of(catalogue)
    return EmbeddedStore(catalogue.checkpoint / "store", generation.id, generation.dimensions)


def content(catalogue: Catalogue) -> dict[uuid.UUID, tuple[str, str, str, int, str, bytes]]:
    """Everything in the index."""
    store = open_store(catalogue)
    found = store.get(list(store.uuids()))
    store.close()
    return {key: (s.field, s.text, s.crc32, s.frequency, s.model, s.vector.tobytes()) for key, s in found.items()}


def in_the_tables(catalogue: Catalogue) -> dict[uuid.UUID, bytes]:
    """The UUID of each embedded string and its stored vector, read with nothing of the indexing code."""
    found = {}
    for field in ("person", "title"):
        texts = catalogue.strings(field)
        for row in catalogue.table("embeddings", field=field):
            found[uuid_of(field, texts[row["row"]])] = np.array(row["vector"], np.float32).tobytes()
    return found


def indexed(catalogue: Catalogue) -> int:
    scope = f"embedded:{generation_of(catalogue).id}"
    return sum(len(catalogue.rows("indexed", scope, field)) for field in ("person", "title"))


def stage(ran: Ran) -> dict[str, object]:
    assert ran.code == 0, ran.err
    found: dict[str, object] = ran.document["stages"]["embedding_and_indexing"]
    return found


def test_the_index_is_exactly_the_embedded_strings_with_their_stored_vectors(done: Catalogue) -> None:
    index = content(done)
    assert {key: values[-1] for key, values in index.items()} == in_the_tables(done)
    assert len(index) == STRINGS == indexed(done)
    assert uuid_of("person", "") not in index


def test_the_index_keeps_field_text_label_frequency_and_model(done: Catalogue) -> None:
    index = content(done)
    assert index[uuid_of("person", "Bach, Johann Sebastian")][:5] == (
        "person", "Bach, Johann Sebastian", f"{zlib.crc32(b'Bach, Johann Sebastian'):08x}", 2, "local-lexical-384",
    )  # fmt: skip
    assert index[uuid_of("title", "line\nbreak \u2028 and 𝄞")][1] == "line\nbreak \u2028 and 𝄞"
    labels = {text: index[uuid_of("title", text)][2] for text in ("plumless", "buckeroo")}
    assert labels == {"plumless": "4ddb0c25", "buckeroo": "4ddb0c25"}


def test_what_left_the_catalogue_stays_in_the_index_and_frequencies_follow(
    done: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = record_texts(monkeypatch)
    done.write([*ROWS[:4], ("7", "Mozart, Wolfgang Amadeus", "Requiem")])
    assert stage(done.run("--json"))["embedded"] == 0
    index = content(done)
    assert len(index) == STRINGS
    assert index[uuid_of("person", "Mozart, Wolfgang Amadeus")][3] == 2
    assert index[uuid_of("title", "buckeroo")][3] == 0
    assert asked == []


class _Forgetful:
    """A store that confirms all but the last string of each chunk of more than one field, however often it is asked."""

    upserts = 0

    def __init__(self, wanted: Wanted) -> None:
        self._store = EmbeddedStore(wanted.folder, wanted.generation.id, wanted.generation.dimensions)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def upsert(self, strings: Sequence[StoredString]) -> Written:
        type(self).upserts += 1
        if type(self).upserts == 1 or type(self).upserts > ATTEMPTS + 1:
            return self._store.upsert(strings)
        return self._store.upsert(strings[:-1])


def test_a_string_that_the_store_does_not_confirm_stops_the_run_and_is_written_by_the_next(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Forgetful, "upserts", 0)
    monkeypatch.setitem(STORES, "embedded", _Forgetful)
    ran = catalogue.run()
    assert ran.code == 1
    assert "did not confirm 1 of 5 strings of title" in ran.err
    assert indexed(catalogue) == STRINGS - 1, "only what was confirmed counts"
    status = catalogue.run("--status")
    assert "To index 1 string that the index lacks: python main.py" in status.out
    assert "Nothing is pending" not in status.out
    asked = record_texts(monkeypatch)
    again = stage(catalogue.run("--json"))
    assert (again["embedded"], again["indexed"]) == (0, 1)
    assert {key: values[-1] for key, values in content(catalogue).items()} == in_the_tables(catalogue)
    assert asked == []
    assert "Nothing is pending." in catalogue.run("--status").out


def test_what_a_store_confirms_beyond_what_it_was_given_counts_for_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EmbeddedStore.upsert

    def boasts(store: EmbeddedStore, strings: Sequence[StoredString]) -> Written:
        real(store, strings)
        return Written(frozenset(uuid.uuid4() for _ in strings))

    monkeypatch.setattr(EmbeddedStore, "upsert", boasts)
    assert catalogue.run().code == 1
    assert indexed(catalogue) == 0


@pytest.mark.parametrize("lost", ["*", "*.f32", "*.sqlite*"])
def test_store_files_that_were_deleted_are_noticed_by_the_next_run_and_made_again(
    done: Catalogue, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    before, asked = content(done), record_texts(monkeypatch)
    for path in (done.checkpoint / "store").glob(lost):
        path.unlink()
    ran = done.run()
    assert ran.code == 0, ran.err
    assert "The index had lost strings behind our back" in ran.out
    assert content(done) == before
    assert asked == []
    assert "Nothing was left to do" in done.run().out


def test_a_vector_file_that_was_cut_is_noticed_by_the_next_run_and_mended(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = content(done), record_texts(monkeypatch)
    (vectors,) = (done.checkpoint / "store").glob("*.f32")
    with vectors.open("r+b") as file:
        file.truncate(vectors.stat().st_size // 2 + 3)
    search = done.run("--search", "Requiem")
    assert search.code == 1
    assert "--reindex" in search.err, "an index that lacks rows does not answer as if it had all"
    assert stage(done.run("--json"))["index_mended"] is True
    assert content(done) == before
    assert asked == []


def test_a_store_folder_that_was_deleted_is_made_again(done: Catalogue) -> None:
    before = content(done)
    shutil.rmtree(done.checkpoint / "store")
    assert stage(done.run("--json"))["indexed"] == STRINGS
    assert content(done) == before


def test_a_store_that_is_garbage_is_told_with_a_way_out_that_works(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = content(done), record_texts(monkeypatch)
    for path in (done.checkpoint / "store").glob("*.sqlite"):
        path.write_bytes(b"garbage" * 2000)
    ran = done.run()
    assert ran.code == 1
    assert f"delete the folder {done.checkpoint / 'store'} and run python main.py --reindex" in ran.err
    shutil.rmtree(done.checkpoint / "store")
    assert done.run("--reindex").code == 0
    assert content(done) == before
    assert asked == []


# --verify


def test_verify_of_an_index_that_is_well_compares_every_vector_and_changes_nothing(done: Catalogue) -> None:
    before = content(done)
    assert done.run("--verify", "--json").document == {
        "expected": STRINGS, "vectors_compared": STRINGS,
        "missing": 0, "changed": 0, "unexpected": 0, "refused": 0, "written": 0, "is_well_now": True,
        "searched": 0, "found": 0, "not_searchable_yet": 0,
    }  # fmt: skip
    assert f"The index is well: {STRINGS} strings, {STRINGS} vectors compared, all equal." in done.run("--verify").out
    assert content(done) == before


def test_verify_mends_what_lacks_what_changed_and_what_does_not_belong(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = content(done), record_texts(monkeypatch)
    store = open_store(done)
    requiem, fugue = uuid_of("title", "Requiem"), uuid_of("title", "Die Kunst der Fuge")
    store.delete([requiem, uuid_of("person", "Requiem")])
    wrong = store.get([fugue])[fugue]
    store.upsert([stored(wrong.text, np.roll(wrong.vector, 1), "title")])
    store.upsert([stored("a stranger", wrong.vector), stored("another", wrong.vector), stored("a third", wrong.vector)])
    store.close()
    ran = done.run("--verify")
    assert ran.code == 0, ran.err
    assert "2 missing, 1 other than stored, 3 that did not belong. It was mended: 9 strings" in ran.out
    assert content(done) == before
    assert done.run("--verify", "--json").document["missing"] == 0
    assert asked == []


def test_a_stranger_that_hides_a_loss_from_a_run_is_found_by_verify(done: Catalogue) -> None:
    before, store = content(done), open_store(done)
    key = uuid_of("title", "Requiem")
    kept = store.get([key])[key]
    store.delete([key])
    store.upsert([stored("a stranger", kept.vector)])
    store.close()
    document = done.run("--verify", "--json").document
    assert (document["missing"], document["unexpected"], document["is_well_now"]) == (1, 1, True)
    assert content(done) == before


@pytest.mark.parametrize("kind", ["embeddings", "strings", "frequencies", "records"])
@pytest.mark.parametrize("damage", ["gone", "a byte", "half", "empty", "the head"])
def test_verify_names_a_damaged_table_and_leaves_the_index_alone(done: Catalogue, kind: str, damage: str) -> None:
    store = open_store(done)
    store.delete([uuid_of("title", "Requiem")])
    store.close()
    before = content(done)
    path = max((done.checkpoint / "tables").glob(f"{kind}_*"))
    _damage(path, damage)
    ran = done.run("--verify")
    assert ran.code == 1
    assert path.name in ran.out
    assert "The index was not touched." in ran.out
    assert "Traceback" not in ran.err
    assert done.run("--verify", "--json").document == {"tables_damaged": [path.name]}
    assert content(done) == before


def _damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
        return
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    damaged = {"a byte": flipped, "half": whole[:middle], "empty": b"", "the head": b"\0" * 300 + whole[300:]}
    path.write_bytes(damaged[how])


@pytest.mark.parametrize("damage", ["gone", "half", "empty", "the head"])
@pytest.mark.parametrize("kind", ["embeddings", "strings"])
@pytest.mark.parametrize("command", [("--reindex",), ("--search", "Requiem"), ("--export-embeddings", "out.parquet")])
def test_a_command_that_meets_a_damaged_table_says_so_in_a_sentence(
    done: Catalogue, tmp_path: Path, kind: str, damage: str, command: tuple[str, ...]
) -> None:
    for path in (done.checkpoint / "tables").glob(f"{kind}_*"):
        _damage(path, damage)
    ran = done.run(*(str(tmp_path / word) if word.endswith(".parquet") else word for word in command))
    if (kind, command[0]) == ("embeddings", "--search"):
        assert ran.code == 0, "a search needs the index only"
        return
    assert ran.code == 2
    assert "can't be read" in ran.err
    assert "--verify" in ran.err
    assert not (tmp_path / "out.parquet").exists()


def test_verify_before_anything_is_embedded_says_what_to_do(catalogue: Catalogue) -> None:
    ran = catalogue.run("--verify")
    assert ran.code == 2
    assert "Nothing is embedded yet" in ran.err


# --reindex


def test_reindex_gives_the_same_content_and_asks_nothing_of_the_service(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = content(done), record_texts(monkeypatch)
    ran = done.run("--reindex", "--json")
    assert ran.document == {"indexed": STRINGS, "refused": 0}
    assert content(done) == before
    assert asked == []
    assert stage(done.run("--json"))["indexed"] == 0


def test_a_reindex_that_stops_halfway_is_finished_by_the_next_run(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = content(done), EmbeddedStore.upsert
    calls = []

    def stops_at_the_second(self: EmbeddedStore, strings: Sequence[StoredString]) -> Written:
        calls.append(len(strings))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, strings)

    monkeypatch.setattr(EmbeddedStore, "upsert", stops_at_the_second)
    assert done.run("--reindex").code == 130
    monkeypatch.undo()
    assert 0 < indexed(done) == len(content(done)) < STRINGS
    assert stage(done.run("--json"))["indexed"] == STRINGS - calls[0]
    assert content(done) == before


# vector_store: none


def test_without_a_store_everything_is_embedded_and_a_store_that_comes_later_costs_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue.configure(vector_store="none")
    first = stage(catalogue.run("--json"))
    assert (first["embedded"], first["indexed"]) == (STRINGS, 0)
    assert list((catalogue.checkpoint / "store").iterdir()) == []
    assert "Nothing is pending." in catalogue.run("--status").out
    for command in (("--search", "Bach"), ("--verify",), ("--reindex",)):
        ran = catalogue.run(*command)
        assert ran.code == 2
        assert "vector_store is none" in ran.err
    asked = record_texts(monkeypatch)
    catalogue.configure()
    later = stage(catalogue.run("--json"))
    assert (later["embedded"], later["indexed"]) == (0, STRINGS)
    assert {key: values[-1] for key, values in content(catalogue).items()} == in_the_tables(catalogue)
    assert asked == []


def test_embeddings_dropped_without_a_store_are_not_taken_for_indexed_later(catalogue: Catalogue) -> None:
    catalogue.run()
    before, store = content(catalogue), open_store(catalogue)
    (old,) = store.get([uuid_of("title", "Requiem")]).values()
    store.upsert([stored(old.text, np.roll(old.vector, 1), "title")])  # as if the service answered otherwise back then
    store.close()
    catalogue.configure(vector_store="none")
    assert catalogue.run("--drop-embeddings", "--yes").code == 0
    catalogue.configure()
    assert stage(catalogue.run("--json"))["indexed"] == STRINGS
    assert content(catalogue) == before


def test_a_store_under_another_vector_is_the_very_one_of_the_table(done: Catalogue) -> None:
    """Not the model's answer of today: what is stored is what is indexed, byte by byte."""
    store = open_store(done)
    key = uuid_of("title", "Requiem")
    found = store.get([key])[key]
    store.close()
    again = stored("Requiem", np.frombuffer(in_the_tables(done)[key], np.float32), "title", model="local-lexical-384")
    assert same(found, again)
