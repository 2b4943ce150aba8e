"""What a collection of ours looks like, how ours is recognised, and how an existing one differs from what is wanted.

Nothing is asked of a server here: this module makes what is sent and judges what came back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from weaviate.classes.config import Configure, DataType, Property, Tokenization, VectorDistances

from pipeline.config import Config
from pipeline.ledger import Generation

TRIGRAM = "text_trigram"
MARK = "Namesake "
_BITS = {"rq8": 8, "rq1": 1}


@dataclass(frozen=True, slots=True)
class Marks:
    """What the description of a collection of ours says: whose it is and what it holds."""

    catalogue: str
    generation: str
    dimensions: int
    hybrid_fields: tuple[str, ...] = ()


def marks_of(description: str | None) -> Marks | None:
    """The marks of a collection; None for one that is not ours."""
    if not description or not description.startswith(MARK):
        return None
    try:
        found = json.loads(description.removeprefix(MARK))
        return Marks(found["catalogue"], found["generation"], int(found["dimensions"]), tuple(found["hybrid_fields"]))
    except (ValueError, KeyError, TypeError):
        return None


def description_of(marks: Marks, generation: Generation) -> str:
    """The marks, and for people the service and the model."""
    facts = {
        "catalogue": marks.catalogue, "generation": marks.generation, "service": generation.service, "model": generation.model,
        "dimensions": marks.dimensions, "hybrid_fields": marks.hybrid_fields,
    }  # fmt: skip
    return MARK + json.dumps(facts)


def properties() -> list[Property]:
    """What is kept of a string. The exact copy is filtered by; a search by letters has a copy of its own, for the fields in
    `hybrid_fields` only, because it costs as much as the vector."""
    return [
        _label("text"),
        Property(
            name=TRIGRAM, data_type=DataType.TEXT, tokenization=Tokenization.TRIGRAM, index_filterable=False,
            index_searchable=True, text_analyzer=Configure.text_analyzer(ascii_fold=True),
        ),
        _label("field"),
        _label("crc32"),
        Property(name="frequency", data_type=DataType.INT),
        _label("model"),
    ]  # fmt: skip


def _label(name: str) -> Property:
    """A text that is filtered by as a whole."""
    return Property(name=name, data_type=DataType.TEXT, tokenization=Tokenization.FIELD, index_searchable=False)


def definition(config: Config, marks: Marks, generation: Generation) -> dict[str, Any]:
    """The arguments of `collections.create`, but for the name. Every vector is ours: the server embeds nothing."""
    bits = _BITS.get(config.weaviate_quantizer)
    quantizer = Configure.VectorIndex.Quantizer.rq(bits=bits) if bits else Configure.VectorIndex.Quantizer.none()
    index = Configure.VectorIndex.hnsw(
        distance_metric=VectorDistances.COSINE, ef_construction=config.weaviate_ef_construction,
        max_connections=config.weaviate_max_connections, quantizer=quantizer,
    )  # fmt: skip
    copies = config.weaviate_replication
    return {
        "description": description_of(marks, generation),
        "properties": properties(),
        "vector_config": Configure.Vectors.self_provided(vector_index_config=index),
        "replication_config": Configure.replication(factor=copies, async_enabled=copies > 1),
        "sharding_config": Configure.sharding(desired_count=config.weaviate_shards) if config.weaviate_shards else None,
    }


def differences(config: Config, marks: Marks, found: dict[str, Any]) -> list[str]:
    """How a collection of ours, as the server describes it, differs from what the config asks for."""
    there = marks_of(found.get("description"))
    vectors: dict[str, Any] = next(iter(found.get("vectorConfig", {}).values()), {})
    index: dict[str, Any] = vectors.get("vectorIndexConfig", {})
    pairs = [
        ("dimensions", there.dimensions if there else None, marks.dimensions or (there.dimensions if there else None)),
        ("hybrid_fields", sorted(there.hybrid_fields) if there else None, sorted(marks.hybrid_fields)),
        ("vectorizer", next(iter(vectors.get("vectorizer", {})), None), "none"),
        ("vector index", vectors.get("vectorIndexType"), "hnsw"),
        ("distance", index.get("distanceMetric"), "cosine"),
        ("weaviate_quantizer", _quantizer_of(index), config.weaviate_quantizer),
        ("weaviate_ef_construction", index.get("efConstruction"), config.weaviate_ef_construction),
        ("weaviate_max_connections", index.get("maxConnections"), config.weaviate_max_connections),
        ("weaviate_replication", found.get("replicationConfig", {}).get("factor"), config.weaviate_replication),
    ]
    if config.weaviate_shards:
        pairs.append(("weaviate_shards", found.get("shardingConfig", {}).get("desiredCount"), config.weaviate_shards))
    told = [f"{name} is {have}, wanted {want}" for name, have, want in pairs if have != want]
    kinds = {entry["name"]: (entry.get("dataType"), entry.get("tokenization")) for entry in found.get("properties", [])}
    for entry in properties():
        wanted = ([entry.dataType.value], entry.tokenization.value if entry.tokenization else None)
        if kinds.get(entry.name) != wanted:
            told.append(f"property {entry.name} is {'of another kind' if entry.name in kinds else 'missing'}")
    return told


def _quantizer_of(index: dict[str, Any]) -> str:
    """The name that the config has for what the server quantizes by; any other by the server's own."""
    for kind in ("rq", "bq", "pq", "sq"):
        found = index.get(kind) or {}
        if found.get("enabled"):
            return f"{kind}{found['bits']}" if kind == "rq" and found.get("bits") else kind
    return "none"
