"""What the tests of this folder share: a server that may be killed, a world at it, and clocks that run faster."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.retry import SystemClock
from pipeline.stores import StoredString, Written
from pipeline.stores.weaviate import WeaviateStore
from tests.tools import record_texts
from tests.weaviate.world import World
from tests.weaviate_server import WeaviateServer

_real_upsert, _real_delete = WeaviateStore.upsert, WeaviateStore.delete


@dataclass
class Pace:
    """How long our own waits between two attempts last, and the client's blind ones: 1 is as they are."""

    ours: float = 0.0
    client: float = 1.0


class Calls:
    """What the product asked of the store, and got: to count with, and never the judge of what is stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.upserts = self.in_doubt = 0
        self.written: Counter[uuid.UUID] = Counter()
        self.deleted: list[uuid.UUID] = []

        def upsert(store: WeaviateStore, strings: Sequence[StoredString]) -> Written:
            written = _real_upsert(store, strings)
            self.upserts += 1
            self.in_doubt += bool(written.trouble)
            self.written.update(string.uuid for string in strings)
            return written

        def delete(store: WeaviateStore, uuids: Sequence[uuid.UUID]) -> int:
            count = _real_delete(store, uuids)  # one that fails has deleted nothing
            self.deleted += uuids
            return count

        monkeypatch.setattr(WeaviateStore, "upsert", upsert)
        monkeypatch.setattr(WeaviateStore, "delete", delete)

    def rewritten(self) -> int:
        """Strings that were deleted, and written more than once."""
        return sum(self.written[key] > 1 for key in set(self.deleted))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each text that the service is asked to embed."""
    return record_texts(monkeypatch)


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    made = Pace()
    monkeypatch.setattr(SystemClock, "sleep", lambda _clock, seconds: time.sleep(seconds * made.ours))
    monkeypatch.setattr("weaviate.retry.time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * made.client)))
    return made


@pytest.fixture(scope="package")
def mortal(weaviate_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeaviateServer]:
    """A server that tests kill and wipe. It has modules that embed, as a server of others may."""
    server = WeaviateServer(tmp_path_factory.mktemp("mortal"), environment={"API_BASED_MODULES_DISABLED": "false"})
    yield server
    server.kill()
    server.wipe()


@pytest.fixture
def mortal_world(mortal: WeaviateServer, tmp_path: Path) -> World:
    """A catalogue at it, whatever the test before has left of it."""
    if not mortal.running:
        mortal.start()
    return World(tmp_path, mortal)


@pytest.fixture
def world(weaviate_server: WeaviateServer, tmp_path: Path) -> World:
    """A catalogue at the server that all tests share, which stays alive."""
    return World(tmp_path, weaviate_server)
