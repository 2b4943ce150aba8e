"""Sending objects: the request behind the client's `insert_many`, answered object by object, and sent once.

The client itself sends it again when the connection breaks, and says so only in its log; and when every object is refused
it gives one text for all of them. So the client's own messages go over a channel of ours; what was not refused is confirmed,
which is all that the UUIDs in the client's answer say. What an answer means for a string is `store.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value  # type: ignore[import-untyped]
from weaviate.proto.v1 import base_pb2, batch_pb2, weaviate_pb2_grpc

from pipeline.config import Config
from pipeline.stores.contract import StoredString
from pipeline.stores.weaviate import connection
from pipeline.stores.weaviate.schema import TRIGRAM


class Sender:
    """Writes into one collection; may be used by several threads."""

    def __init__(self, config: Config, collection: str, hybrid_fields: Iterable[str]) -> None:
        self._collection = collection
        self._hybrid_fields = frozenset(hybrid_fields)
        self._timeout = config.weaviate_timeout_seconds
        self._metadata = [("authorization", f"Bearer {config.weaviate_api_key}")] if config.weaviate_api_key else []
        self._level = base_pb2.CONSISTENCY_LEVEL_QUORUM if config.weaviate_replication > 1 else None
        self._channel = connection.open_channel(config)
        self._stub: Any = weaviate_pb2_grpc.WeaviateStub(self._channel)  # type: ignore[no-untyped-call]

    def send(self, strings: Sequence[StoredString]) -> dict[int, str]:
        """The server's reasons for what it refused, by place; grpc.RpcError when there was no answer."""
        request = batch_pb2.BatchObjectsRequest(objects=map(self._object, strings), consistency_level=self._level)
        reply = self._stub.BatchObjects(request, timeout=self._timeout, metadata=self._metadata)
        return {error.index: error.error for error in reply.errors}

    def close(self) -> None:
        self._channel.close()

    def _object(self, string: StoredString) -> Any:
        return batch_pb2.BatchObject(
            collection=self._collection,
            uuid=str(string.uuid),
            vector_bytes=string.vector.astype("<f4", copy=False).tobytes(),
            properties=batch_pb2.BatchObject.Properties(non_ref_properties=Struct(fields=self._properties(string))),
        )

    def _properties(self, string: StoredString) -> dict[str, Any]:
        known = {name: Value(string_value=getattr(string, name)) for name in ("text", "field", "crc32", "model")}
        known["frequency"] = Value(number_value=string.frequency)
        if string.field in self._hybrid_fields:
            known[TRIGRAM] = known["text"]
        return known
