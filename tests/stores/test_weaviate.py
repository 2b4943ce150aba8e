"""The Weaviate store keeps the contract on a real server.

On three nodes: `NAMESAKE_NODES=3 python -m pytest tests/stores/test_weaviate.py`
"""

from __future__ import annotations

import os
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


@pytest.mark.usefixtures("weaviate_binary")
class TestWeaviateStore(StoreContract):
    @pytest.fixture
    def make_store(self, request: pytest.FixtureRequest) -> Iterator[MakeStore]:
        if os.environ.get("NAMESAKE_NODES") == "3":
            config = config_of(request.getfixturevalue("weaviate_cluster").nodes[0], weaviate_replication=3)
        else:
            config = config_of(request.getfixturevalue("weaviate_server"))
        made: dict[str, WeaviateStore] = {}

        def make(generation: str, dimensions: int) -> WeaviateStore:
            made[generation] = WeaviateStore(config, "a-catalogue", Generation(generation, "some-model", None, dimensions))
            return made[generation]

        with closing(make) as opened:
            yield opened
            for store in made.values():
                store.clear()
