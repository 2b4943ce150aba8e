"""Three nodes that know each other, each of them to be stopped and killed by itself."""

from __future__ import annotations

import http.client
import time
from typing import TYPE_CHECKING, Self

from tests.weaviate_server.node import IN_USE, START_SECONDS, TRIES, ServerError, WeaviateServer
from tests.weaviate_server.ports import Ports, free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class WeaviateCluster:
    """Nodes that know each other; each is a `WeaviateServer`, to be stopped and killed by itself."""

    def __init__(
        self, folder: Path, *, size: int = 3, environment: Mapping[str, str] | None = None, ports: Sequence[Ports] | None = None
    ) -> None:
        self._folder, self._size, self._environment = folder, size, dict(environment or {})
        self._may_move = ports is None
        self.nodes = self._made(ports or [free_ports() for _ in range(size)])

    def _made(self, ports: Sequence[Ports]) -> list[WeaviateServer]:
        peers = {f"weaviate-{number}": ports[number] for number in range(self._size)}
        return [
            WeaviateServer(self._folder / name, environment=self._environment, ports=own, name=name, peers=peers)
            for name, own in peers.items()
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def start(self) -> None:
        """Start those that do not run, and wait until each knows all others to be well."""
        for left in reversed(range(TRIES)):
            try:
                for node in self.nodes:
                    if not node.running:
                        node.launch()
                for node in self.nodes:
                    node.wait_until_ready()
                self.wait_until_joined()
            except ServerError as error:
                if not (left and self._may_move and IN_USE in str(error)):
                    self.kill()
                    raise
                self.kill()
                self.nodes = self._made([free_ports() for _ in range(self._size)])
            else:
                self._may_move = False
                return

    def wait_until_joined(self, seconds: float = START_SECONDS) -> None:
        """Until each node that runs knows all that run to be well, and no other."""
        deadline = time.monotonic() + seconds
        running = [node for node in self.nodes if node.running]
        names = sorted(node.name for node in running)
        while not all(_members(node) == names for node in running):
            if time.monotonic() > deadline:
                logs = "\n".join(f"{node.name}:\n{node.last_lines(5)}" for node in running)
                raise ServerError(f"the nodes did not find each other in {seconds:g} s; the ends of their logs:\n{logs}")
            time.sleep(0.05)

    def stop(self) -> None:
        """All of them, at once."""
        for node in self.nodes:
            node.ask_to_stop()
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def _members(node: WeaviateServer) -> list[str]:
    try:
        return sorted(node.members())
    except (OSError, http.client.HTTPException):
        return []
