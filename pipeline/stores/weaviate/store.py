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
from weaviate.classes.query import Filter

from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.ledger import Generation
from pipeline.stores.contract import Hit, StoredString, Written
from pipeline.stores.weaviate import connection
from pipeline.stores.weaviate.collections import Home, name_of
from pipeline.stores.weaviate.objects import hit_of, string_of
from pipeline.stores.weaviate.schema import TRIGRAM, Marks
from pipeline.stores.weaviate.sending import Sender

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
_gone = re.compile(r"(?i)not present in schema|could not find class")
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

    @cached_property
    def _sender(self) -> Sender:
        return Sender(self._config, self.name, self._marks.hybrid_fields)

    def close(self) -> None:
        if "_sender" in self.__dict__:
            self._sender.close()
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
            written = self._lasting(part, self._insert(part))
            confirmed |= written.confirmed
            refused |= written.refused
            if written.trouble:
                return Written(frozenset(confirmed), refused, written.trouble)
        return Written(frozenset(confirmed), refused)

    def _insert(self, part: Sequence[StoredString]) -> Written:
        """One request. One that is too large for the server is halved, down to the string that is too large by itself."""
        try:
            reasons = self._sender.send(part)
        except connection.CLIENT_ERRORS as problem:
            if connection.is_forbidden(problem):
                raise connection.told(self._config, f"write into {self.name}", problem) from problem
            if _too_large.search(str(problem)):
                return self._halved(part, connection.words(problem))
            return Written(frozenset(), {}, connection.words(problem))
        return self._judged(part, reasons)

    def _judged(self, part: Sequence[StoredString], reasons: dict[int, str]) -> Written:
        """Confirmed is what the server did not refuse in its answer; a refusal may be about the server and not the string."""
        refused: dict[uuid.UUID, str] = {}
        passing = ""
        for place, reason in reasons.items():
            if connection.speaks_of_rights(reason):
                raise connection.told(self._config, f"write into {self.name}", StoreError(reason))
            if self._is_passing(reason):
                passing = reason
            else:
                refused[part[place].uuid] = reason
        confirmed = frozenset(string.uuid for place, string in enumerate(part) if place not in reasons)
        return Written(confirmed, refused, passing)

    def _lasting(self, part: Sequence[StoredString], written: Written) -> Written:
        """The same, once it would outlive a crash. The server answers when the vectors are in its graph, and the graph's log
        leaves its memory with the next request only; so some of the strings are sent once more, which changes nothing."""
        stored = [string for string in part if string.uuid in written.confirmed]
        if written.trouble or not stored:
            return written
        again = self._insert(stored[-self._touching :])
        if len(again.confirmed) == len(stored[-self._touching :]):
            return written
        return Written(frozenset(), written.refused, again.trouble or "what was written could not be written once more")

    @cached_property
    def _touching(self) -> int:
        """So many strings have one of every shard among them, as good as certainly."""
        with connection.errors_told(self._config, f"describe {self.name}"):
            sharding = self._collection.config.get().sharding_config
        shards = sharding.actual_count if sharding else 1
        return 1 if shards == 1 else 32 * shards

    def _halved(self, part: Sequence[StoredString], message: str) -> Written:
        if len(part) == 1:
            return Written(frozenset(), {part[0].uuid: message})
        middle = len(part) // 2
        first, second = self._insert(part[:middle]), self._insert(part[middle:])
        return Written(first.confirmed | second.confirmed, {**first.refused, **second.refused}, first.trouble or second.trouble)

    def _is_passing(self, message: str) -> bool:
        """Whether the server is to blame, and not the object. A read-only server, or a lost collection, waits for a person."""
        if _read_only.search(message):
            raise self._home.read_only()
        if _gone.search(message):
            raise StoreError(
                f"The collection {self.name} at {self._config.weaviate_url} went away while it was written ({message}). What was "
                "embedded is safe; run the same command again, and it is made anew."
            )
        return _passing.search(message) is not None

    def scrub(self) -> None:
        """The server takes what is deleted out of its files in its own time."""

    def delete(self, uuids: Sequence[uuid.UUID]) -> int:
        keys = list(dict.fromkeys(uuids))
        if not keys or not self._is_there():
            return 0
        deleted = 0
        with connection.errors_told(self._config, f"delete from {self.name}"):
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                answer = self._collection.data.delete_many(where=Filter.by_id().contains_any(some), verbose=True)
                if answer.failed:
                    raise StoreError(f"The Weaviate server could not delete {answer.failed} of {len(some)} strings of {self.name}.")
                deleted += answer.successful
                # What a crash has left half stored is found by no filter, and written over it would stay so: it goes by itself.
                for key in {*some}.difference(found.uuid for found in answer.objects or ()):
                    self._collection.data.delete_by_id(key)
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
