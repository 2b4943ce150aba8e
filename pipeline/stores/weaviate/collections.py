"""The collections of ours at a server: the one of a generation with its alias, and any of them looked up and deleted by name.

What is somebody else's is told by its description and left alone.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import StoreError, UserError
from pipeline.ledger import Generation
from pipeline.stores.weaviate import connection
from pipeline.stores.weaviate.objects import vector_of
from pipeline.stores.weaviate.schema import MARK, Marks, definition, differences, marks_of

if TYPE_CHECKING:
    import weaviate


@dataclass(frozen=True, slots=True)
class Found:
    """A collection of ours; `alias` is the one that points to it, if any."""

    catalogue: str
    generation: str
    service: str
    model: str
    strings: int
    alias: str


class Home:
    """The collection of one generation, and the alias by which others read it."""

    def __init__(self, client: weaviate.WeaviateClient, config: Config, marks: Marks, generation: Generation) -> None:
        self._client = client
        self._config = config
        self._marks = marks
        self._generation = generation
        self.name = name_of(config, generation)

    def look(self) -> None:
        """Nothing is changed; StoreError when what is there does not fit."""
        self._fitting()
        self._check_alias()

    def try_out(self) -> Iterator[str]:
        """A sentence for each thing that a run needs; StoreError for what fails."""
        with connection.errors_told(self._config, "tell about itself"):
            version, nodes = self._client.get_meta()["version"], self._client.cluster.nodes()
        count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        yield f"Weaviate {version} at {self._config.weaviate_url}, {count}, answers on both ports"
        if len(nodes) < self._config.weaviate_replication:
            raise StoreError(
                f"weaviate_replication is {self._config.weaviate_replication}, more than the server has nodes: {len(nodes)}."
            )
        self.look()
        state = "can be made" if self.description() is None else "is there and fits"
        yield f"{self.name} {state}; the alias is {self._config.collection}"
        trial = f"{self._config.collection}_check_{uuid.uuid4().hex[:8]}"
        with connection.errors_told(self._config, "create and delete a collection and an alias, for a trial"):
            self._client.collections.create(trial, **definition(self._config, self._marks, self._generation))
            try:
                self._client.alias.create(alias_name=f"{trial}_alias", target_collection=trial)
                self._client.alias.delete(alias_name=f"{trial}_alias")
            finally:
                self._client.collections.delete(trial)
        yield "collections and aliases may be created and deleted"

    def prepare(self) -> None:
        """Look, and make what is missing."""
        target = self._check_alias()
        if not self._fitting():
            arguments = definition(self._config, self._marks, self._generation)
            with connection.errors_told(self._config, f"create the collection {self.name}"):
                self._client.collections.create(self.name, **arguments)
        if target is None:  # the first model's index can be read from its first string on
            self.publish()

    def _fitting(self) -> bool:
        """Whether there is a collection; StoreError when it is not as the config asks for, or can't be written."""
        found = self.description()
        if found is None:
            return False
        if told := differences(self._config, self._marks, found):
            raise StoreError(
                f"The collection {self.name} at {self._config.weaviate_url} is not as the config asks for: {'; '.join(told)}. "
                "Nothing was written. Set the keys back, or build the index anew, at no cost: python main.py --reindex"
            )
        self._check_vectors()
        self._check_writable()
        return True

    def publish(self) -> None:
        """The alias points here from now on."""
        alias, target = self._config.collection, self._check_alias()
        with connection.errors_told(self._config, f"point the alias {alias} to {self.name}"):
            if target is None:
                self._client.alias.create(alias_name=alias, target_collection=self.name)
            elif target != self.name:
                self._client.alias.update(alias_name=alias, new_target_collection=self.name)

    def clear(self) -> None:
        """The collection goes, with all that is in it."""
        if self.description() is not None:
            with connection.errors_told(self._config, f"delete the collection {self.name}"):
                self._client.collections.delete(self.name)

    def description(self) -> dict[str, Any] | None:
        """The collection as the server has it; None when there is none; StoreError when it is not ours."""
        with connection.errors_told(self._config, "describe its collections"):
            if not self._client.collections.exists(self.name):
                return None
            found: dict[str, Any] = self._client.collections.use(self.name).config.get().to_dict()
        marks = marks_of(found.get("description"))
        if marks is None or (marks.catalogue, marks.generation) != (self._marks.catalogue, self._marks.generation):
            whose = (
                "was not made by Namesake and belongs elsewhere" if marks is None else f"belongs to the catalogue {marks.catalogue}"
            )
            other = "" if marks is None else f", or remove it: python main.py --drop-index {self.name} --yes"  # ours only
            raise StoreError(
                f"The collection {self.name} at {self._config.weaviate_url} {whose}, not to this one "
                f"({self._marks.catalogue or 'which has no checkpoint folder yet'}). It is left alone. Choose another name: "
                f"collection: in the config{other or '.'}"
            )
        return found

    def _check_alias(self) -> str | None:
        """What the alias points to; None when there is no such alias. A collection of that name is somebody's data."""
        alias = self._config.collection
        with connection.errors_told(self._config, f"look up the alias {alias}"):
            found = self._client.alias.get(alias_name=alias)
            if found is None and self._client.collections.exists(alias):
                raise StoreError(
                    f"The server at {self._config.weaviate_url} has a collection {alias}, from an older pipeline perhaps, where "
                    f"this one needs an alias of that name. It is left alone. Choose another name (collection: in the config); or, "
                    "once nobody needs the old one, delete it."
                )
            if found is None or found.collection == self.name or not self._client.collections.exists(found.collection):
                return None if found is None else found.collection
            marks = marks_of(self._client.collections.use(found.collection).config.get().description)
        if marks is None or marks.catalogue != self._marks.catalogue:
            raise StoreError(
                f"The alias {alias} at {self._config.weaviate_url} points to {found.collection}, which is not of this "
                "catalogue. It is left alone. Choose another name: collection: in the config."
            )
        return found.collection

    def _check_vectors(self) -> None:
        """One object tells how long the vectors really are."""
        with connection.errors_told(self._config, f"read from {self.name}"):
            found = (
                self._client.collections.use(self.name)
                .query.fetch_objects(limit=1, include_vector=True, return_properties=[])
                .objects
            )
        length = len(vector_of(found[0])) if found else self._marks.dimensions
        if self._marks.dimensions and length != self._marks.dimensions:
            raise StoreError(
                f"The collection {self.name} holds vectors of {length} dimensions, wanted {self._marks.dimensions}. Nothing was "
                "written. Build the index anew, at no cost: python main.py --reindex"
            )

    def _check_writable(self) -> None:
        with connection.errors_told(self._config, f"look at the shards of {self.name}"):
            shards = self._client.collections.use(self.name).config.get_shards()
        if any(shard.status == "READONLY" for shard in shards):
            raise self.read_only()

    def read_only(self) -> StoreError:
        """What to tell when the server takes no writes."""
        return StoreError(
            f"The Weaviate server at {self._config.weaviate_url} is read-only for {self.name}: its disk is nearly full, most "
            "often. What was embedded is safe. Give it room, set its shards to READY, and run the same command again."
        )


def name_of(config: Config, generation: Generation) -> str:
    """What the collection of a generation is called."""
    return f"{config.collection}_{generation.id}"


def look_up(config: Config, name: str) -> Found:
    """What a collection of ours holds; UserError when there is none of that name, or it is not ours."""
    client = connection.connect(config)
    try:
        with connection.errors_told(config, f"look at {name}"):
            aliases = {alias.alias: alias.collection for alias in client.alias.list_all().values()}
            ours = {key: entry.description for key, entry in client.collections.list_all().items() if marks_of(entry.description)}
            if name not in ours:
                there = ", ".join(sorted(ours)) or "none"
                raise UserError(f"{config.weaviate_url} has no collection {name} that Namesake made; it has {there}.")
            facts = json.loads((ours[name] or "").removeprefix(MARK))
            total = client.collections.use(name).aggregate.over_all(total_count=True).total_count or 0
    finally:
        client.close()
    alias = next((key for key, target in aliases.items() if target == name), "")
    return Found(facts["catalogue"], facts["generation"], facts["service"], facts["model"], total, alias)


def drop(config: Config, name: str) -> None:
    """Delete a collection, by its own name: through an alias the server deletes nothing, and says nothing."""
    client = connection.connect(config)
    try:
        with connection.errors_told(config, f"delete {name}"):
            client.collections.delete(name)
    finally:
        client.close()
