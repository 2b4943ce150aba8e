"""The collections of ours at a server, of whichever catalogue and model: told apart from others', and deleted by name."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.stores.weaviate import connection
from pipeline.stores.weaviate.schema import MARK, marks_of


@dataclass(frozen=True, slots=True)
class Found:
    """A collection of ours; `alias` is the one that points to it, if any."""

    catalogue: str
    generation: str
    service: str
    model: str
    strings: int
    alias: str


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
