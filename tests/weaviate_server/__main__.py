"""`python -m tests.weaviate_server`: one node or more on loopback until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.weaviate_server import NoServerError, ServerError, WeaviateCluster, binary, build, cached, free_ports


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.weaviate_server",
        description="Run Weaviate on loopback until Ctrl-C; a line with its URL and its gRPC port for each node.",
    )
    made.add_argument("--nodes", type=int, default=1, metavar="N", help="how many (default: %(default)s); each has the next ports")
    made.add_argument("--data", type=Path, metavar="DIR", help="keep the data there (default: a temporary folder)")
    made.add_argument("--port", type=int, default=8080, metavar="N", help="of REST (default: %(default)s)")
    made.add_argument("--grpc-port", type=int, default=50051, metavar="N", help="default: %(default)s")
    made.add_argument("--async-indexing", action="store_true", help="store first, build the vector index behind")
    made.add_argument("--build", action="store_true", help="only build the binary")
    return made


def run(arguments: argparse.Namespace) -> None:
    """Until it is interrupted, or a node ends by itself."""
    if not cached().exists():
        print("Looking for the server; building it takes a few minutes, once.", file=sys.stderr)
    binary()
    ports = [free_ports(arguments.port + number, arguments.grpc_port + number) for number in range(arguments.nodes)]
    environment = {"ASYNC_INDEXING": "true"} if arguments.async_indexing else {}
    with _folder(arguments.data) as folder:
        cluster = WeaviateCluster(folder, size=arguments.nodes, environment=environment, ports=ports)
        with cluster:
            for node in cluster.nodes:
                print(node.url, node.grpc_port, flush=True)
            while all(node.running for node in cluster.nodes):
                time.sleep(0.2)
            raise ServerError("\n".join(node.last_lines() for node in cluster.nodes if not node.running))


@contextlib.contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    if named is None:
        with tempfile.TemporaryDirectory(prefix="weaviate-") as made:
            yield Path(made)
    else:
        yield named


def main() -> int:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.build:
            print(build())
        else:
            run(arguments)
    except KeyboardInterrupt:
        return 130 if arguments.build else 0
    except (NoServerError, ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
