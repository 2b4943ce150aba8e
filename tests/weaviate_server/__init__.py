"""A real Weaviate on loopback, for tests, benchmarks and people without Docker: one node or three, never left behind.

    with WeaviateServer(folder, environment={"ASYNC_INDEXING": "true"}) as server:
        server.kill()
        server.restart()  # the same data on the same ports

    python -m tests.weaviate_server [--nodes 3] [--data DIR] [--port N] [--grpc-port N] [--async-indexing]

Go builds it once into the user's cache, unless `WEAVIATE_SERVER` names a binary.
"""

from tests.weaviate_server.binary import VERSION, NoServerError, binary, build, cached, start_building
from tests.weaviate_server.cluster import WeaviateCluster
from tests.weaviate_server.node import SETTINGS, ServerError, WeaviateServer, self_signed
from tests.weaviate_server.ports import Ports, free_ports

__all__ = [
    "SETTINGS",
    "VERSION",
    "NoServerError",
    "Ports",
    "ServerError",
    "WeaviateCluster",
    "WeaviateServer",
    "binary",
    "build",
    "cached",
    "free_ports",
    "self_signed",
    "start_building",
]
