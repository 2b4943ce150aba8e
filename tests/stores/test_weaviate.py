"""The Weaviate store keeps the contract on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pipeline.config import Config
from pipeline.ledger import Generation
from pipeline.stores.weaviate import WeaviateStore
from tests.stores.contract import MakeStore, StoreContract, closing

if TYPE_CHECKING:
    from tests.weaviate_server import WeaviateServer


def config_of(server: WeaviateServer, **keys: object) -> Config:
    return replace(Config(vector_store="weaviate", weaviate_url=server.url, weaviate_grpc_port=server.grpc_port), **keys)  # type: ignore[arg-type]


class TestWeaviateStore(StoreContract):
    @pytest.fixture
    def make_store(self, weaviate_server: WeaviateServer) -> Iterator[MakeStore]:
        config = config_of(weaviate_server)

        made: dict[str, WeaviateStore] = {}

        def make(generation: str, dimensions: int) -> WeaviateStore:
            made[generation] = WeaviateStore(config, "a-catalogue", Generation(generation, "some-model", None, dimensions))
            return made[generation]

        with closing(make) as opened:
            yield opened
            for store in made.values():
                store.clear()
