"""Every command against a real server: what is typed, what it says, and what the server holds afterwards."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import weaviate
from weaviate.classes.config import DataType, Property
from weaviate.classes.query import MetadataQuery

from pipeline.errors import StoreError
from pipeline.identity import uuid_of
from pipeline.stores import StoredString, Written
from pipeline.stores.weaviate import WeaviateStore
from tests.tools import Catalogue, Ran, record_texts
from tests.weaviate.world import connected
from tests.weaviate_server import WeaviateServer

ROWS = [
    ("1", "Bach, Johann Sebastian", "Die Kunst der Fuge"),
    ("2", "Bach, J. S.", "Die Kunst der Fuge"),
    ("3", "Mozart, Wolfgang Amadeus", "Requiem"),
    ("4", "Händel, Georg Friedrich", "Messiah"),
    ("5", "Bach, Johann Sebastian", "line\nbreak \u2028 and 𝄞"),
]
STRINGS = 4 + 4


class At(Catalogue):
    """A catalogue at the server that all tests share, with names of its own there."""

    @property
    def alias(self) -> str:
        return f"T{uuid.uuid5(uuid.NAMESPACE_URL, str(self.folder)).hex[:12]}"

    def at(self, server: WeaviateServer, **keys: object) -> None:
        known = {"vector_store": "weaviate", "weaviate_url": server.url, "weaviate_grpc_port": server.grpc_port}
        self.configure(**{**known, "collection": self.alias, **keys})

    def name(self, **asked: int) -> str:
        """The collection of a generation."""
        with self.ledger() as ledger:
            (found,) = [entry for entry in ledger.generations() if entry.asked == asked.get("dimensions")]
        return f"{self.alias}_{found.id}"


@pytest.fixture
def client(weaviate_server: WeaviateServer) -> Iterator[weaviate.WeaviateClient]:
    with connected(weaviate_server) as opened:
        yield opened


@pytest.fixture
def catalogue(tmp_path: Path, weaviate_server: WeaviateServer, client: weaviate.WeaviateClient) -> Iterator[At]:
    made = At(tmp_path)
    made.at(weaviate_server)
    made.write(ROWS)
    yield made
    for alias in client.alias.list_all():
        if alias.startswith(made.alias):
            client.alias.delete(alias_name=alias)
    client.collections.delete([name for name in client.collections.list_all() if name.startswith(made.alias)])


@pytest.fixture
def done(catalogue: At) -> At:
    """After a run."""
    well(catalogue.run())
    return catalogue


def well(ran: Ran) -> Ran:
    assert ran.code == 0, ran.out + ran.err
    return ran


def stage(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = well(ran).document["stages"]["embedding_and_indexing"]
    return found


def times(client: weaviate.WeaviateClient, name: str) -> dict[uuid.UUID, dt.datetime | None]:
    """When each object was last written, by the server's own account."""
    asked = MetadataQuery(last_update_time=True)
    found = client.collections.use(name).iterator(return_metadata=asked, return_properties=[])
    return {entry.uuid: entry.metadata.last_update_time for entry in found}


def points_to(client: weaviate.WeaviateClient, alias: str) -> str | None:
    found = client.alias.get(alias_name=alias)
    return None if found is None else found.collection


def texts(client: weaviate.WeaviateClient, name: str) -> set[tuple[object, object]]:
    """Field and text of all that is there; also through an alias."""
    return {(entry.properties["field"], entry.properties["text"]) for entry in client.collections.use(name).iterator()}


ALL = {("person", row[1]) for row in ROWS} | {("title", row[2]) for row in ROWS}


# From run to search


def test_a_run_fills_the_collection_and_the_alias_and_a_second_one_writes_nothing(
    catalogue: At, client: weaviate.WeaviateClient, weaviate_server: WeaviateServer
) -> None:
    first = well(catalogue.run()).out
    assert first.startswith(f"Service: local; free; nothing leaves this machine. Index: Weaviate at {weaviate_server.url}.\n")
    assert f"Indexing: {STRINGS} strings written to the weaviate index, and each one confirmed." in first
    assert "A taste of the index" in first
    assert points_to(client, catalogue.alias) == catalogue.name()
    assert texts(client, catalogue.alias) == ALL
    before = times(client, catalogue.name())
    assert len(before) == STRINGS
    assert None not in before.values()
    assert "Nothing was left to do" in well(catalogue.run()).out
    assert catalogue.run("--verify", "--json").document == {
        "expected": STRINGS, "vectors_compared": STRINGS, "missing": 0, "changed": 0, "unexpected": 0, "refused": 0, "written": 0,
        "is_well_now": True, "searched": STRINGS, "found": STRINGS, "not_searchable_yet": 0,
    }  # fmt: skip
    assert times(client, catalogue.name()) == before


def test_frequencies_follow_by_writing_what_changed_and_nothing_else(
    done: At, client: weaviate.WeaviateClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = times(client, done.name()), record_texts(monkeypatch)
    done.write([*ROWS, ("6", "Mozart, Wolfgang Amadeus", "Requiem")])
    assert stage(done.run("--json"))["indexed"] == 2
    changed = {uuid_of("person", "Mozart, Wolfgang Amadeus"), uuid_of("title", "Requiem")}
    after = times(client, done.name())
    assert {key for key in before if before[key] != after[key]} == changed
    found = client.collections.use(done.name()).query.fetch_objects_by_ids(list(changed)).objects
    assert [entry.properties["frequency"] for entry in found] == [2, 2]
    assert asked == []


def test_verify_mends_what_was_changed_at_the_server(done: At, client: weaviate.WeaviateClient) -> None:
    there, key = client.collections.use(done.name()), uuid_of("title", "Messiah")
    there.data.delete_by_id(uuid_of("title", "Requiem"))
    there.data.update(key, properties={"frequency": 99})
    there.data.insert({"text": "a stranger", "field": "title"}, vector=[1.0] * 384)
    found = well(done.run("--verify", "--json")).document
    assert {key: found[key] for key in ("missing", "changed", "unexpected", "is_well_now", "found")} == {
        "missing": 1, "changed": 1, "unexpected": 1, "is_well_now": True, "found": STRINGS,
    }  # fmt: skip
    assert texts(client, done.name()) == ALL
    assert done.run("--verify", "--json").document["missing"] == 0


def test_a_search_finds_by_vector_in_one_field_or_in_all(done: At) -> None:
    found = done.run("--search", "Bach, Johann Sebastian", "--json").document["results"]
    assert [result["text"] for result in found[:2]] == ["Bach, Johann Sebastian", "Bach, J. S."]
    assert (found[0]["similarity"], found[0]["frequency"], found[0]["first_record_ids"]) == (1.0, 2, ["1", "5"])
    titles = done.run("--search", "Bach, Johann Sebastian", "--field", "title", "--json").document["results"]
    assert {(result["field"], result["text"]) for result in titles} == {pair for pair in ALL if pair[0] == "title"}


def test_a_search_by_letters_too_finds_a_misspelt_name_in_the_fields_that_have_them(
    catalogue: At, weaviate_server: WeaviateServer
) -> None:
    catalogue.at(weaviate_server, hybrid_fields=["person"])
    well(catalogue.run())
    for misspelt in ("Haendel Georg", "handel, georg fridrich"):
        found = well(catalogue.run("--search", misspelt, "--hybrid", "--field", "person", "--json")).document["results"]
        assert found[0]["text"] == "Händel, Georg Friedrich", misspelt
    assert {result["field"] for result in catalogue.run("--search", "Bach", "--hybrid", "--json").document["results"]} >= {"person"}
    ran = catalogue.run("--search", "Messia", "--hybrid", "--field", "title")
    assert ran.code == 1
    assert "The field title is not searched by letters: name it in hybrid_fields" in ran.err
    assert catalogue.run("--verify", "--json").document["is_well_now"] is True


def test_a_search_by_letters_where_there_are_none_says_what_is_needed(
    done: At, tmp_path: Path, weaviate_server: WeaviateServer
) -> None:
    ran = done.run("--search", "Bach", "--hybrid")
    assert (ran.code, "No field is searched by letters: name it in hybrid_fields" in ran.err) == (1, True)
    done.configure()
    well(done.run())
    ran = done.run("--search", "Bach", "--hybrid")
    assert (ran.code, "hybrid search comes with vector_store: weaviate" in ran.err) == (1, True)


# What does not fit


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"weaviate_quantizer": "none"}, "weaviate_quantizer is rq8, wanted none"),
        ({"weaviate_ef_construction": 64}, "weaviate_ef_construction is 128, wanted 64"),
        ({"hybrid_fields": ["person"]}, "hybrid_fields is [], wanted ['person']"),
    ],
)
def test_each_run_says_that_the_collection_differs_and_a_reindex_makes_it_as_the_config_asks(
    done: At, client: weaviate.WeaviateClient, weaviate_server: WeaviateServer, monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, object], said: str,
) -> None:  # fmt: skip
    asked, before = record_texts(monkeypatch), times(client, done.name())
    done.at(weaviate_server, **keys)
    for rows in (ROWS, [*ROWS, ("6", "somebody new", "something new")]):
        done.write(rows)
        for command in ((), ("--check",)):
            ran = done.run(*command)
            assert ran.code == 1
            assert said in ran.out + ran.err
            assert "python main.py --reindex" in ran.out + ran.err
    assert "Nothing was sent to be embedded." in done.run().err
    assert set(asked) <= {""}, "--check asks whether it might"
    asked.clear()
    assert times(client, done.name()) == before
    ran = well(done.run("--reindex"))
    assert f"The index was built anew from stored embeddings: {STRINGS} strings, each confirmed. It cost nothing." in ran.out
    assert asked == []
    assert points_to(client, done.alias) == done.name()
    assert stage(done.run("--json"))["indexed"] == 2
    assert asked == ["somebody new", "something new"]
    assert done.run("--verify", "--json").document["is_well_now"] is True


def test_a_collection_of_somebody_else_with_the_name_of_the_alias_is_left_alone(
    catalogue: At, client: weaviate.WeaviateClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = record_texts(monkeypatch)
    theirs = client.collections.create(catalogue.alias, properties=[Property(name="text", data_type=DataType.TEXT)])
    theirs.data.insert({"text": "theirs"})
    ran = catalogue.run()
    assert ran.code == 1
    assert f"has a collection {catalogue.alias}, from an older pipeline perhaps" in ran.err
    assert "Choose another name (collection: in the config)" in ran.err
    assert "Nothing was sent to be embedded. To embed now and index later: index_later: true" in ran.err
    assert theirs.aggregate.over_all(total_count=True).total_count == 1
    assert asked == []


def test_two_catalogues_at_one_server_need_two_names(
    done: At, tmp_path: Path, weaviate_server: WeaviateServer, client: weaviate.WeaviateClient
) -> None:
    (tmp_path / "other").mkdir()
    other = At(tmp_path / "other")
    other.write([("1", "Somebody", "Else")])
    other.at(weaviate_server, collection=done.alias)
    for command in ((), ("--check",)):
        ran = other.run(*command)
        assert ran.code == 1
        assert "It is left alone. Choose another name" in ran.out + ran.err
        assert "collection: in the config" in ran.out + ran.err
    assert texts(client, done.alias) == ALL
    other.at(weaviate_server, collection=f"{done.alias}B")
    well(other.run())
    assert texts(client, f"{done.alias}B") == {("person", "Somebody"), ("title", "Else")}
    assert texts(client, done.alias) == ALL
    well(done.run())


def test_another_name_is_another_index_that_is_filled_at_no_cost_and_dropping_the_old_one_leaves_it_alone(
    done: At, client: weaviate.WeaviateClient, weaviate_server: WeaviateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, old = record_texts(monkeypatch), done.name()
    done.at(weaviate_server, collection=f"{done.alias}C")
    assert stage(done.run("--json"))["indexed"] == STRINGS
    assert texts(client, f"{done.alias}C") == texts(client, done.alias) == ALL
    well(done.run("--drop-index", old, "--yes"))
    assert not client.collections.exists(old)
    assert stage(done.run("--json"))["indexed"] == 0
    assert texts(client, f"{done.alias}C") == ALL
    assert asked == []


# --drop-index


def test_drop_index_says_what_it_would_delete_deletes_it_with_a_yes_and_the_next_run_fills_it_at_no_cost(
    done: At, client: weaviate.WeaviateClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, before, asked = done.name(), times(client, done.name()), record_texts(monkeypatch)
    words = f"{name}: {STRINGS} strings of this catalogue, local local-lexical-384; the alias {done.alias} points to it"
    ran = done.run("--drop-index", name)
    assert (ran.code, f"This would delete {words}. Nothing was deleted; to do it: --drop-index {name} --yes" in ran.err) == (
        2,
        True,
    )
    assert times(client, name) == before
    assert f"Deleted: {words}. Embeddings are kept." in well(done.run("--drop-index", name, "--yes")).out
    assert not client.collections.exists(name)
    assert "To index 8 strings that the index lacks: python main.py" in done.run("--status").out
    assert done.run("--search", "Bach").code == 2
    assert stage(done.run("--json"))["indexed"] == STRINGS
    assert texts(client, done.alias) == ALL
    assert asked == []


def test_drop_index_deletes_nothing_that_is_not_ours(done: At, client: weaviate.WeaviateClient) -> None:
    theirs = f"{done.alias}_theirs"
    client.collections.create(theirs, description="Namesake of somebody")
    for name in (theirs, done.alias, "Nothing"):
        ran = done.run("--drop-index", name, "--yes")
        assert (ran.code, f"has no collection {name} that Namesake made; it has" in ran.err) == (2, True)
        assert done.name() in ran.err
    assert client.collections.exists(theirs)
    assert texts(client, done.alias) == ALL
    done.configure()
    assert "it needs vector_store: weaviate" in done.run("--drop-index", theirs, "--yes").err


def test_drop_index_deletes_what_a_catalogue_left_that_is_no_more(
    done: At, tmp_path: Path, weaviate_server: WeaviateServer
) -> None:
    (tmp_path / "other").mkdir()
    other = At(tmp_path / "other")
    other.at(weaviate_server, collection=done.alias)
    with done.ledger() as ledger:
        whose = ledger.meta("catalogue_id")
    assert f"8 strings of the catalogue {whose}" in well(other.run("--drop-index", done.name(), "--yes")).out


# Another model


def test_the_alias_goes_to_another_model_when_all_of_it_is_there_and_back_again(
    done: At, client: weaviate.WeaviateClient, weaviate_server: WeaviateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real = done.name(), WeaviateStore.upsert
    done.at(weaviate_server, embedding_dimensions=64, weaviate_chunk=2, weaviate_workers=1)
    well(done.run("--limit", "2"))
    assert points_to(client, done.alias) == first, "a trial is not the whole"
    well(done.run("--fields", "person"))
    assert points_to(client, done.alias) == first, "nor is one field"
    calls: list[int] = []

    def breaks_at_the_second(self: WeaviateStore, strings: Sequence[StoredString]) -> Written:
        calls.append(len(strings))
        if len(calls) == 2:
            raise StoreError("The server is gone.")
        return real(self, strings)

    with monkeypatch.context() as broken:
        broken.setattr(WeaviateStore, "upsert", breaks_at_the_second)
        done.write([*ROWS, *((f"n{number}", f"name {number}", "Requiem") for number in range(5))])
        ran = done.run()
    assert (ran.code, "The server is gone." in ran.err) == (1, True)
    assert "are embedded and not indexed yet; the next run goes on with them." in ran.out
    assert points_to(client, done.alias) == first, "and not what a broken run left"
    assert texts(client, done.alias) == ALL
    well(done.run())
    second = done.name(dimensions=64)
    assert points_to(client, done.alias) == second
    assert texts(client, done.alias) == ALL | {("person", f"name {number}") for number in range(5)}
    (one,) = client.collections.use(done.alias).query.fetch_objects(limit=1, include_vector=True).objects
    assert len(next(iter(one.vector.values()))) == 64
    done.at(weaviate_server)
    well(done.run())
    assert points_to(client, done.alias) == first
    assert len(texts(client, done.alias)) == STRINGS + 5
    assert client.collections.exists(second), "until it is dropped by name"
    assert "local local-lexical-384." in done.run("--drop-index", second).err, "no alias points there"


# index_later, --prune, --reset


def test_what_is_embedded_now_may_be_indexed_later_and_needs_no_server_until_then(
    catalogue: At, client: weaviate.WeaviateClient, weaviate_server: WeaviateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue.at(weaviate_server, index_later=True, weaviate_url="http://127.0.0.1:9")
    ran = well(catalogue.run())
    assert f"Indexing: index_later is true; {STRINGS} strings wait." in ran.out
    assert f"index_later is true; {STRINGS} strings wait. To index them: index_later: false" in catalogue.run("--status").out
    asked = record_texts(monkeypatch)
    catalogue.at(weaviate_server)
    assert stage(catalogue.run("--json"))["indexed"] == STRINGS
    assert texts(client, catalogue.alias) == ALL
    assert asked == []


def test_what_is_pruned_or_reset_goes_from_the_server(done: At, client: weaviate.WeaviateClient) -> None:
    done.write(ROWS[:3])
    well(done.run())
    assert texts(client, done.name()) == ALL
    well(done.run("--prune"))
    present = {pair for row in ROWS[:3] for pair in (("person", row[1]), ("title", row[2]))}
    assert texts(client, done.name()) == present
    well(done.run("--reset", "embedding_and_indexing"))
    assert not client.collections.exists(done.name())
    well(done.run())
    assert texts(client, done.alias) == present


def test_forgotten_strings_leave_the_collection_and_nothing_else_does(done: At, client: weaviate.WeaviateClient) -> None:
    """A server that is down stops it; typed again when it is up, it is finished."""
    before = texts(client, done.alias)
    done.write([row for row in ROWS if row[0] != "4"])
    well(done.run("--end", "preprocessing"))
    names = done.folder / "names.txt"
    names.write_text("Händel, Georg Friedrich\nMessiah\n", encoding="utf-8")
    ran = done.run("--forget-text", str(names), "--yes", "--set", "weaviate_url=http://127.0.0.1:1")
    assert ran.code == 1
    assert "was cut off: type" in done.run("--status").out
    well(done.run("--forget-text", str(names), "--yes"))
    assert texts(client, done.alias) == before - {("person", "Händel, Georg Friedrich"), ("title", "Messiah")}
    assert "The index is well" in well(done.run("--verify")).out
    assert "Nothing was left to do" in well(done.run()).out


def test_another_model_is_verified_before_and_after_it_takes_over_and_the_old_one_is_dropped_by_name(
    done: At, client: weaviate.WeaviateClient, weaviate_server: WeaviateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search, and whoever reads by the alias, get the first until the second is whole. What is dropped leaves the server too."""
    first, short = done.name(), {"embedding_dimensions": 64}
    done.at(weaviate_server, **short)
    well(done.run("--fields", "person"))
    second = done.name(dimensions=64)
    assert "The index is well: 4 strings, 4 vectors compared, all equal." in well(done.run("--verify")).out
    found = well(done.run("--search", "Messiah", "--json")).document
    assert (f"{done.alias}_{found['generation']}", found["results"][0]["text"]) == (first, "Messiah")
    assert points_to(client, done.alias) == first
    # The alias is not switched to an index that lacks what it once confirmed.
    client.collections.use(second).data.delete_by_id(uuid_of("person", "Bach, J. S."))
    client.collections.use(second).data.insert({"text": "a stranger", "field": "title"}, vector=[1.0] * 64)
    with monkeypatch.context() as unsound:
        unsound.setattr("pipeline.verifying._wait_for_queue", lambda _: 3)
        ran = done.run()
    assert (ran.code, "is not sound yet (3 strings not searchable" in ran.err) == (1, True), ran.err
    assert points_to(client, done.alias) == first
    switched = well(done.run()).out
    assert f"Verified: {STRINGS} strings in the index, {STRINGS} vectors compared, all equal. From now on" in switched
    assert points_to(client, done.alias) == second
    assert texts(client, done.alias) == ALL
    assert f"The index is well: {STRINGS} strings" in well(done.run("--verify")).out
    before, kept = times(client, second), well(done.run("--status", "--json")).document["generations"]
    old = first.rpartition("_")[2]
    assert [one["indexed"] for one in kept] == [STRINGS, STRINGS]
    assert done.run("--drop-embeddings", old).code == 2
    assert done.run("--drop-embeddings", old, "--yes", "--set", "weaviate_url=http://127.0.0.1:1").code == 1
    assert client.collections.exists(first), "the server was not reached, so nothing is dropped"
    assert well(done.run("--status", "--json")).document["generations"] == kept
    well(done.run("--drop-embeddings", old, "--yes"))
    assert not client.collections.exists(first)
    assert times(client, second) == before
    assert points_to(client, done.alias) == second
    assert len(well(done.run("--status", "--json")).document["generations"]) == 1
    assert "Nothing was left to do" in well(done.run()).out
