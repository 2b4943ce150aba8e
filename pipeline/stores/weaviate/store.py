"""The index of a generation in Weaviate: one collection, named after it, under an alias for whoever reads.

Writing is confirmed by UUID, and a chunk whose answer did not come is in doubt (`Written`). How often a thing is tried,
and when, is decided by the caller. `connection.py` knows the server, `collections.py` and
`schema.py` the collection.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from weaviate.classes.config import ConsistencyLevel
from weaviate.classes.data import DataObject
from weaviate.classes.query import Filter
from weaviate.exceptions import WeaviateInsertManyAllFailedError

from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.ledger import Generation
from pipeline.stores.contract import Hit, StoredString, Written
from pipeline.stores.weaviate import connection
from pipeline.stores.weaviate.collections import Home, name_of
from pipeline.stores.weaviate.objects import hit_of, string_of
from pipeline.stores.weaviate.schema import TRIGRAM, Marks

if TYPE_CHECKING:
    import weaviate
    from numpy.typing import NDArray
    from weaviate.collections import Collection

MOST_BYTES = 8 << 20  # of one request
_KEYS_A_QUERY = 500
_MOST_RESULTS = 10_000  # the server's own limit for one search
_ONE_MORE = 64  # so many more than asked for are fetched: the server's order is of quantized vectors, ours is exact
_KEYS_A_PAGE = 2000
_OTHER_BYTES = 300  # what an object takes beside text and vector
# What the server says of one object when it, and not the object, is to blame.
_passing = re.compile(
    r"(?i)timeout|deadline|unavailable|replica|consistency|connection|memory|not ready|shut|cancel|leader|overload"
)
_read_only = re.compile(r"(?i)read.?only")
_too_large = re.compile(r"(?i)larger than max|message too large|exceeds.*(size|limit)")


class WeaviateStore:
    """One generation's collection. Every call may be made from several threads."""

    is_exact = False

    def __init__(self, config: Config, catalogue: str, generation: Generation) -> None:
        self._config = config
        self._generation = generation
        self._marks = Marks(catalogue, generation.id, generation.dimensions, config.hybrid_fields)
        self.name = name_of(config, generation)
        self.workers = config.weaviate_workers
        self.chunk = config.weaviate_chunk
        self._seen = False

    @cached_property
    def client(self) -> weaviate.WeaviateClient:
        """Connected at the first use, so that what needs no server does not ask for one."""
        return connection.connect(self._config)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()

    @cached_property
    def _home(self) -> Home:
        return Home(self.client, self._config, self._marks, self._generation)

    def look(self) -> None:
        self._home.look()

    def try_out(self) -> Iterator[str]:
        yield from self._home.try_out()

    def prepare(self) -> None:
        self._home.prepare()

    def publish(self) -> None:
        self._home.publish()

    def clear(self) -> None:
        self._home.clear()
        self._seen = False

    @cached_property
    def _collection(self) -> Collection[Any, Any]:
        found = self.client.collections.use(self.name)
        return found.with_consistency_level(ConsistencyLevel.QUORUM) if self._config.weaviate_replication > 1 else found

    def _is_there(self) -> bool:
        """Whether there is a collection, and it is ours: asked until there is one."""
        self._seen = self._seen or self._home.description() is not None
        return self._seen

    # Writing

    def upsert(self, strings: Sequence[StoredString]) -> Written:
        last = list({string.uuid: string for string in strings}.values())
        wrong = {string.vector.shape for string in last} - {(self._marks.dimensions,)}
        if wrong:
            raise StoreError(f"vectors of {wrong.pop()[-1]} dimensions do not belong into an index of {self._marks.dimensions}")
        confirmed: set[uuid.UUID] = set()
        refused: dict[uuid.UUID, str] = {}
        for part in _parts(last, self.chunk):
            written = self._insert(part)
            confirmed |= written.confirmed
            refused |= written.refused
            if written.trouble:
                return Written(frozenset(confirmed), refused, written.trouble)
        return Written(frozenset(confirmed), refused)

    def _insert(self, part: Sequence[StoredString]) -> Written:
        """One request; halved while the server refuses it whole, so that each object gets its own reason."""
        objects = self._objects(part)
        with connection.blind_retries() as retried:
            try:
                answer = self._collection.data.insert_many(objects)
            except WeaviateInsertManyAllFailedError as problem:
                if connection.is_forbidden(problem):
                    raise connection.told(self._config, f"write into {self.name}", problem) from problem
                return self._all_refused(part, problem.message.removeprefix("Every object failed during insertion. "))
            except connection.CLIENT_ERRORS as problem:
                if connection.is_forbidden(problem):
                    raise connection.told(self._config, f"write into {self.name}", problem) from problem
                if _too_large.search(str(problem)):
                    return self._all_refused(part, connection.words(problem))
                return Written(frozenset(), {}, connection.words(problem))
        if retried:
            return Written(frozenset(), {}, "the connection broke, and the client sent the chunk twice")
        confirmed = frozenset(answer.uuids.values()) & {string.uuid for string in part}
        refused = {part[place].uuid: error.message for place, error in answer.errors.items()}
        passing = [message for message in refused.values() if self._is_passing(message)]
        return Written(
            confirmed,
            {key: message for key, message in refused.items() if not self._is_passing(message)},
            passing[0] if passing else "" if len(confirmed) + len(refused) == len(part) else "not all of it was confirmed",
        )

    def _all_refused(self, part: Sequence[StoredString], message: str) -> Written:
        if self._is_passing(message):
            return Written(frozenset(), {}, message)
        if len(part) == 1:
            return Written(frozenset(), {part[0].uuid: message.removeprefix("Here is the set of all errors: ")})
        middle = len(part) // 2
        first, second = self._insert(part[:middle]), self._insert(part[middle:])
        return Written(first.confirmed | second.confirmed, {**first.refused, **second.refused}, first.trouble or second.trouble)

    def _is_passing(self, message: str) -> bool:
        """Whether the server is to blame, and not the object. A read-only server waits for a person."""
        if _read_only.search(message):
            raise self._home.read_only()
        return _passing.search(message) is not None

    def _objects(self, part: Sequence[StoredString]) -> list[DataObject[Any, Any]]:
        # As lists: the client takes them for certain, whatever it makes of arrays.
        vectors = np.stack([string.vector for string in part]).tolist()
        return [
            DataObject(uuid=string.uuid, properties=self._properties(string), vector=vector)
            for string, vector in zip(part, vectors, strict=True)
        ]

    def _properties(self, string: StoredString) -> dict[str, Any]:
        found = {
            "text": string.text, "field": string.field, "crc32": string.crc32, "frequency": string.frequency,
            "model": string.model,
        }  # fmt: skip
        if string.field in self._marks.hybrid_fields:
            found[TRIGRAM] = string.text
        return found

    def delete(self, uuids: Sequence[uuid.UUID]) -> int:
        keys = list(dict.fromkeys(uuids))
        if not keys or not self._is_there():
            return 0
        deleted = 0
        with connection.errors_told(self._config, f"delete from {self.name}"):
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                answer = self._collection.data.delete_many(where=Filter.by_id().contains_any(some))
                if answer.failed:
                    raise StoreError(f"The Weaviate server could not delete {answer.failed} of {len(some)} strings of {self.name}.")
                deleted += answer.successful
        return deleted

    # Reading

    def get(self, uuids: Sequence[uuid.UUID]) -> dict[uuid.UUID, StoredString]:
        keys = list(dict.fromkeys(uuids))
        found: dict[uuid.UUID, StoredString] = {}
        if not keys or not self._is_there():
            return found
        with connection.errors_told(self._config, f"read from {self.name}"):
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                query = Filter.by_id().contains_any(some)
                for entry in self._collection.query.fetch_objects(filters=query, limit=len(some), include_vector=True).objects:
                    found[entry.uuid] = string_of(entry)
        return found

    def count(self, field: str | None = None) -> int:
        if not self._is_there():
            return 0
        with connection.errors_told(self._config, f"count in {self.name}"):
            return int(self._collection.aggregate.over_all(total_count=True, filters=_of_field(field)).total_count or 0)

    def uuids(self) -> Iterator[uuid.UUID]:
        if not self._is_there():
            return
        with connection.errors_told(self._config, f"list {self.name}"):
            for entry in self._collection.iterator(return_properties=[], cache_size=_KEYS_A_PAGE):
                yield entry.uuid

    def unsearchable(self) -> int:
        with connection.errors_told(self._config, "tell the state of its nodes"):
            nodes = self.client.cluster.nodes(collection=self.name, output="verbose")
        return sum(shard.vector_queue_length for node in nodes for shard in node.shards or [])

    def search(self, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        query = self._direction(vector)

        def ask(most: int) -> Any:
            return self._collection.query.near_vector(
                query.tolist(), limit=most, filters=_of_field(field), include_vector=True, return_properties=_SHOWN
            )

        hits = self._hits(ask, query, limit, _ONE_MORE + limit)
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.uuid))[:limit]  # equal ones in a fixed order

    def search_hybrid(self, text: str, vector: NDArray[np.float32], limit: int, field: str | None = None) -> list[Hit]:
        if not self._marks.hybrid_fields or (field is not None and field not in self._marks.hybrid_fields):
            raise StoreError(
                f"{'No field is' if field is None else f'The field {field} is not'} searched by letters: name it in "
                "hybrid_fields, and build the index anew, at no cost: python main.py --reindex"
            )
        query = self._direction(vector)

        def ask(most: int) -> Any:
            return self._collection.query.hybrid(
                text, vector=query.tolist(), query_properties=[TRIGRAM], limit=most, filters=_of_field(field),
                include_vector=True, return_properties=_SHOWN,
            )  # fmt: skip

        return self._hits(ask, query, limit, limit)

    def _direction(self, vector: NDArray[np.float32]) -> NDArray[np.float64]:
        query = np.asarray(vector, dtype=np.float64)
        length = float(np.linalg.norm(query))
        if query.shape != (self._marks.dimensions,) or not np.isfinite(length) or length == 0.0:
            raise StoreError(f"a search needs a vector of {self._marks.dimensions} finite numbers that are not all zero")
        return query / length

    def _hits(self, ask: Callable[[int], Any], query: NDArray[np.float64], limit: int, most: int) -> list[Hit]:
        if limit < 1 or not self._is_there():
            return []
        with connection.errors_told(self._config, f"search {self.name}"):
            entries = ask(min(most, max(limit, _MOST_RESULTS))).objects
        return [hit_of(entry, query) for entry in entries]


_SHOWN = ["text", "field", "frequency"]


def _parts(strings: Sequence[StoredString], most: int) -> Iterator[list[StoredString]]:
    """In slices of bounded number and size; a string that is larger by itself goes alone."""
    part: list[StoredString] = []
    size = 0
    for string in strings:
        more = len(string.text.encode()) + string.vector.nbytes + _OTHER_BYTES
        if part and (len(part) == most or size + more > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(string)
        size += more
    if part:
        yield part


def _of_field(field: str | None) -> Any:
    return None if field is None else Filter.by_property("field").equal(field)
