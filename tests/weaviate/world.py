"""What tests of the store under faults share: a catalogue whose index is a real server, and what that server holds.

The truth is what a client of the tests' own reads from the server, object by object, and the tables of embeddings; never
the ledger. A command is run as it is typed.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import weaviate
from weaviate.classes.config import Configure, DataType, Property, VectorDistances
from weaviate.classes.init import Auth
from weaviate.classes.query import Filter, MetadataQuery

from pipeline.identity import uuid_of
from pipeline.ledger import Generation
from pipeline.stores.weaviate.schema import Marks, description_of, properties
from tests.tools import Catalogue, Ran
from tests.weaviate_server import WeaviateServer

NEAR = 10  # a stored string is among so many nearest to its own vector


@contextlib.contextmanager
def connected(server: WeaviateServer) -> Iterator[weaviate.WeaviateClient]:
    """A client with nothing of ours in it."""
    with weaviate.connect_to_custom(
        http_host="127.0.0.1",
        http_port=server.ports.http,
        http_secure=False,
        grpc_host="127.0.0.1",
        grpc_port=server.grpc_port,
        grpc_secure=False,
        auth_credentials=Auth.api_key(server.api_key) if server.api_key else None,
        skip_init_checks=True,
    ) as client:
        yield client


@dataclass
class World:
    """One catalogue with an alias of its own at a server that may be shared."""

    folder: Path
    server: WeaviateServer
    alias: str = field(default_factory=lambda: f"T{uuid.uuid4().hex[:12]}")
    keys: dict[str, object] = field(default_factory=dict)

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.folder)

    def configure(self, **keys: object) -> None:
        """Write the config: one field, the local service, this server, what was given before and what is given now."""
        self.keys = {
            "fields": {"title": "title"}, "vector_store": "weaviate", "weaviate_url": self.server.url, "collection": self.alias,
            "weaviate_grpc_port": self.server.grpc_port, "max_rejected_rows": 0, **self.keys, **keys,
        }  # fmt: skip
        self.catalogue.configure(**self.keys)

    def write(self, titles: Sequence[str]) -> None:
        self.catalogue.write([(str(number), "", title) for number, title in enumerate(titles)])

    def run(self, *arguments: str) -> Ran:
        ran = self.catalogue.run(*arguments)
        assert "Traceback" not in ran.err or "--debug" in arguments, ran.err
        return ran

    def done(self, *arguments: str) -> dict[str, Any]:
        """A run that must end well; what it says of embedding and indexing."""
        ran = self.run(*arguments, "--json")
        assert ran.code == 0, ran.err
        found: dict[str, Any] = ran.document["stages"]["embedding_and_indexing"]
        return found

    def generation(self) -> Generation:
        with self.catalogue.ledger() as ledger:
            (found,) = ledger.generations()
        return found

    @property
    def name(self) -> str:
        """The collection's own."""
        return f"{self.alias}_{self.generation().id}"

    def wanted(self, titles: Sequence[str] | None = None) -> dict[uuid.UUID, bytes]:
        """UUID and vector of each embedded string, from the tables, read with nothing of the indexing code."""
        found = {}
        for name in self.keys["fields"]:  # type: ignore[attr-defined]
            texts = self.catalogue.strings(name)
            for row in self.catalogue.table("embeddings", field=name):
                if titles is None or texts[row["row"]] in titles:
                    found[uuid_of(name, texts[row["row"]])] = np.array(row["vector"], np.float32).tobytes()
        return found

    def confirmed(self) -> int:
        """How many strings the ledger says are confirmed; 0 while there is no ledger. It may be asked while a run writes."""
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(self._database()) as database:
            query = "SELECT coalesce(sum(past - first), 0) FROM span WHERE state = 'indexed'"
            return int(database.execute(query).fetchone()[0])
        return 0

    def confirmed_keys(self) -> set[uuid.UUID]:
        """Which they are."""
        scope = f"weaviate:{self.generation().id}"
        fields: list[str] = list(self.keys["fields"])  # type: ignore[call-overload]
        return {
            uuid_of(name, text)
            for name in fields
            for texts in [self.catalogue.strings(name)]
            for text in map(texts.__getitem__, self.catalogue.rows("indexed", scope, name))
        }

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.catalogue.checkpoint / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)

    # What the server holds

    def held(self, server: WeaviateServer | None = None, name: str | None = None, page: int = 100) -> dict[uuid.UUID, bytes]:
        """UUID and vector of every object; each is there once, under its UUID, and the server's own count is their number."""
        with connected(server or self.server) as client:
            found = client.collections.use(name or self.name)
            objects = list(found.iterator(include_vector=True, return_properties=["text", "field"], cache_size=page))
            count = found.aggregate.over_all(total_count=True).total_count
        assert all(one.uuid == uuid_of(str(one.properties["field"]), str(one.properties["text"])) for one in objects)
        vectors = {one.uuid: np.array(one.vector["default"], np.float32).tobytes() for one in objects}
        assert len(vectors) == len(objects) == count
        return vectors

    def times(self) -> dict[uuid.UUID, dt.datetime | None]:
        """When each object was last written, by the server's clock."""
        with connected(self.server) as client:
            found = client.collections.use(self.name)
            asked = found.iterator(return_properties=[], return_metadata=MetadataQuery(last_update_time=True))
            return {one.uuid: one.metadata.last_update_time for one in asked}

    def count(self) -> int:
        with connected(self.server) as client:
            return client.collections.use(self.name).aggregate.over_all(total_count=True).total_count or 0

    def filtered(self) -> int:
        """How many strings the server finds by their fields: what a crash left half stored is not among them."""
        with connected(self.server) as client:
            found = client.collections.use(self.name)
            given = Filter.by_property("field").contains_any(list(self.keys["fields"]))  # type: ignore[call-overload]
            return found.aggregate.over_all(total_count=True, filters=given).total_count or 0

    def exists(self, name: str | None = None) -> bool:
        with connected(self.server) as client:
            return client.collections.exists(name or self.name)

    def failures(self) -> dict[str, str]:
        """Text and reason of each string that is listed as failed."""
        path = self.catalogue.checkpoint / "failures.csv"
        if not path.exists():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {row["text"]: row["reason"] for row in csv.DictReader(file, strict=True)}

    def delete(self, keys: Sequence[uuid.UUID]) -> None:
        """Behind our back."""
        with connected(self.server) as client:
            answer = client.collections.use(self.name).data.delete_many(where=Filter.by_id().contains_any(list(keys)))
        assert (answer.successful, answer.failed) == (len(keys), 0)

    def not_found(self, wanted: dict[uuid.UUID, bytes], every: int = 1, name: str | None = None) -> int:
        """How many of the strings (every n-th) a search by their own vector does not find among the nearest."""
        missed = 0
        with connected(self.server) as client:
            query = client.collections.use(name or self.name).query
            for key, vector in list(wanted.items())[::every]:
                near = query.near_vector(np.frombuffer(vector, np.float32).tolist(), limit=NEAR, return_properties=[])
                missed += key not in {hit.uuid for hit in near.objects}
        return missed


def create(
    client: weaviate.WeaviateClient,
    name: str,
    marks: tuple[Marks, Generation] | None,
    *,
    distance: VectorDistances = VectorDistances.COSINE,
    vectorizer: Any = None,
) -> None:
    """A collection made by hand: of somebody else's, or with our mark."""
    index = Configure.VectorIndex.hnsw(
        distance_metric=distance,
        ef_construction=128,
        max_connections=32,
        quantizer=Configure.VectorIndex.Quantizer.rq(bits=8),
    )
    client.collections.create(
        name,
        description=description_of(*marks) if marks else "somebody else's",
        properties=properties() if marks else [Property(name="text", data_type=DataType.TEXT)],
        vector_config=vectorizer or Configure.Vectors.self_provided(vector_index_config=index),
    )


def add(client: weaviate.WeaviateClient, name: str, vectors: dict[uuid.UUID, list[float]]) -> None:
    """Objects of no string of ours."""
    properties: dict[str, Any] = {"text": "?", "field": "title", "crc32": "0", "frequency": 1, "model": "?"}
    for key, vector in vectors.items():
        client.collections.use(name).data.insert(properties, uuid=key, vector=vector)


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do this in another thread, beside the block; what it raises is raised at the end."""
    with ThreadPoolExecutor(1) as another:
        beside = another.submit(work)
        yield
        beside.result(120)


def wait_until(there: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)
