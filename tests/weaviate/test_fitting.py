"""What stands in our place at the server and is not as it must be: a run stops before it writes or pays, and names a way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import weaviate
from weaviate.classes.config import Configure, VectorDistances

from pipeline.identity import uuid_of
from pipeline.ledger import Generation
from pipeline.stores.weaviate.schema import Marks
from tests.weaviate.world import World, add, connected, create

TITLES = ["Fugue", "Mass", "Suite", "Toccata"]
Ours = tuple[Marks, Generation]
Maker = Callable[[weaviate.WeaviateClient, World, Ours], object]


def ready(world: World) -> Ours:
    """Four strings are embedded and one is not; nothing is indexed. What a collection of ours would be marked with."""
    world.write(TITLES)
    world.configure(index_later=True)
    world.done()
    world.write([*TITLES, "Vespers"])
    world.configure(index_later=False)
    generation = world.generation()
    with world.catalogue.ledger() as ledger:
        catalogue = ledger.meta("catalogue_id") or ""
    return Marks(catalogue, generation.id, generation.dimensions), generation


def everything(client: weaviate.WeaviateClient) -> dict[str, Any]:
    """The collections with their definitions and contents, and where each alias points."""
    found: dict[str, Any] = {
        name: (config.to_dict(), sorted(str(one.uuid) for one in client.collections.use(name).iterator(return_properties=[])))
        for name, config in client.collections.list_all(simple=False).items()
    }
    return found | {f"alias {name}": alias.collection for name, alias in client.alias.list_all().items()}


def of_wrong_vectors(client: weaviate.WeaviateClient, world: World, ours: Ours) -> None:
    create(client, world.name, ours)
    add(client, world.name, {uuid_of("title", "Fugue"): [1.0, 0.0, 0.0]})


def points_elsewhere(client: weaviate.WeaviateClient, world: World, ours: Ours) -> None:
    create(client, f"{world.alias}_other", (replace(ours[0], catalogue="another-one"), ours[1]))
    client.alias.create(alias_name=world.alias, target_collection=f"{world.alias}_other")


IN_OUR_PLACE: dict[str, tuple[Maker, str, str]] = {
    "another distance": (
        lambda client, world, ours: create(client, world.name, ours, distance=VectorDistances.L2_SQUARED),
        "distance is l2-squared, wanted cosine", "python main.py --reindex",
    ),
    "vectors of another length": (of_wrong_vectors, "holds vectors of 3 dimensions, wanted 384", "python main.py --reindex"),
    "marked with another length": (
        lambda client, world, ours: create(client, world.name, (replace(ours[0], dimensions=3), ours[1])),
        "dimensions is 3, wanted 384", "python main.py --reindex",
    ),
    "somebody else's": (
        lambda client, world, _: create(client, world.name, None), "was not made by Namesake", "Choose another name",
    ),
    "another catalogue's": (
        lambda client, world, ours: create(client, world.name, (replace(ours[0], catalogue="another-one"), ours[1])),
        "belongs to the catalogue another-one", "python main.py --drop-index",
    ),
    "a collection where the alias should be": (
        lambda client, world, _: create(client, world.alias, None),
        "from an older pipeline perhaps", "Choose another name",
    ),
    "an alias of another catalogue": (points_elsewhere, "which is not of this catalogue", "Choose another name"),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_OUR_PLACE)
def test_what_does_not_fit_stops_the_run_before_anything_is_written_or_paid(world: World, asked: list[str], what: str) -> None:
    made, words, way_out = IN_OUR_PLACE[what]
    ours = ready(world)
    with connected(world.server) as client:
        made(client, world, ours)
        before = everything(client)
        ran = world.run()
        assert ran.code == 1
        assert words in ran.err
        assert way_out in ran.err
        assert "Nothing was sent to be embedded" in ran.err
        assert everything(client) == before
        assert asked == TITLES
        if "--reindex" in way_out:
            assert world.run("--reindex").code == 0
        elif "--drop-index" in way_out:
            assert world.run("--drop-index", world.name, "--yes").code == 0
        else:
            assert "--drop-index" not in ran.err, "that would not work here"
            world.alias += "_2"
            world.configure(collection=world.alias)
        assert world.done()["embedded"] == 1
        assert world.held() == world.wanted()
        assert len(world.wanted()) == 5
        assert client.alias.get(alias_name=world.alias).collection == world.name  # type: ignore[union-attr]


def test_a_collection_that_embeds_by_itself_stops_the_run_before_anything_is_written_or_paid(
    mortal_world: World, asked: list[str]
) -> None:
    ours = ready(mortal_world)
    with connected(mortal_world.server) as client:
        create(client, mortal_world.name, ours, vectorizer=Configure.Vectors.text2vec_openai())
    ran = mortal_world.run()
    assert ran.code == 1
    assert "vectorizer is text2vec-openai, wanted none" in ran.err
    assert "python main.py --reindex" in ran.err
    assert mortal_world.count() == 0
    assert asked == TITLES


def test_an_alias_whose_collection_is_gone_is_pointed_to_ours(world: World) -> None:
    ready(world)
    with connected(world.server) as client:
        create(client, f"{world.alias}_old", None)
        client.alias.create(alias_name=world.alias, target_collection=f"{world.alias}_old")
        client.collections.delete(f"{world.alias}_old")
        assert client.alias.get(alias_name=world.alias).collection == f"{world.alias}_old"  # type: ignore[union-attr]
        assert world.done()["indexed"] == 5
        assert client.alias.get(alias_name=world.alias).collection == world.name  # type: ignore[union-attr]
        assert len(list(client.collections.use(world.alias).iterator(return_properties=[]))) == 5
