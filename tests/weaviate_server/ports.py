"""Ports on loopback that a server gets, and still gets when it is started again."""

from __future__ import annotations

import random
import socket
import threading
from dataclasses import dataclass

_RANGE = range(20_000, 32_000, 2)  # below those that the kernel gives to clients: a restart finds its own still free
_random = random.SystemRandom()  # a seed that a test sets must not give two processes the same ports
_taken: set[int] = set()
_taking = threading.Lock()


@dataclass(frozen=True, slots=True)
class Ports:
    """Of one node. Its data port must be gossip + 1, raft's own calls raft + 1: others find them by that alone."""

    http: int
    grpc: int
    gossip: int
    raft: int

    def in_use(self) -> list[int]:
        """Those that a server would not get."""
        return [
            port for port in (self.http, self.grpc, self.gossip, self.gossip + 1, self.raft, self.raft + 1) if not _is_free(port)
        ]


def free_ports(http: int | None = None, grpc: int | None = None) -> Ports:
    """Ports that are free now and that no other call has been given; or those that are named, free or not."""
    return Ports(http or _free_pair(), grpc or _free_pair(), _free_pair(), _free_pair())


def _free_pair() -> int:
    with _taking:
        for _ in range(1000):
            port = _random.choice(_RANGE)
            if port not in _taken and _is_free(port) and _is_free(port + 1):
                _taken.add(port)
                return port
    raise OSError(f"no free ports between {_RANGE.start} and {_RANGE.stop}")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):  # gossip is both
        with socket.socket(socket.AF_INET, kind) as tried:
            if kind == socket.SOCK_STREAM:
                tried.setsockopt(
                    socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
                )  # what a server's clients left in TIME_WAIT is no hindrance
            try:
                tried.bind(("", port))  # gRPC is bound on every interface
            except OSError:
                return False
    return True
