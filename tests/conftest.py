"""The real Weaviate that tests share: built in the background while other tests run, started at its first use.

Without a binary its tests are skipped with the reason; with REQUIRE_WEAVIATE=1 in the environment they fail by it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weaviate_server import NoServerError, WeaviateCluster, WeaviateServer, binary, start_building

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it runs in the background ignore Ctrl-C, and the programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_REASON = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Files in their order. By xdist's own the largest come first: one worker would wait for the server's build, and the few tests
    that take longest would come last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # when what is deselected has gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The build of the server begins now, when there are tests of it to run. They come when it should be ready, and not last: one
    worker runs them all, for minutes, and the others had nothing left to do meanwhile."""
    at_server = [item for item in items if _needs_a_server(item)]
    others = [item for item in items if not _needs_a_server(item)]
    ready = len(others) * 6 // 10
    items[:] = others[:ready] + at_server + others[ready:]
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    if at_server and not config.option.collectonly:
        start_building()


def _needs_a_server(item: pytest.Item) -> bool:
    return "weaviate_binary" in getattr(item, "fixturenames", ())


def _group(item: pytest.Item) -> str:
    """Tests that one worker runs, when several do (`-n`): a file; or all that share the server, or the cluster."""
    names = getattr(item, "fixturenames", ())
    if "weaviate_cluster" in names:
        return "cluster"
    return "server" if "weaviate_binary" in names else str(item.path)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The reason once more, whole, as the last line: the summary cuts it off."""
    if reason := config.stash.get(_REASON, None):
        print(reason)


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for tests that wait for a disk thousands of times and do not ask it."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="namesake-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def weaviate_binary(pytestconfig: pytest.Config) -> Path:
    """For tests that start servers of their own."""
    try:
        return binary()
    except NoServerError as error:
        if os.environ.get("REQUIRE_WEAVIATE") == "1":
            pytestconfig.stash[_REASON] = f"REQUIRE_WEAVIATE=1, but {error}"
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def weaviate_server(weaviate_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeaviateServer]:
    """One node for all; a test keeps to collections of its own, and one that kills or wipes starts another."""
    server = WeaviateServer(tmp_path_factory.mktemp("weaviate"))
    server.start()
    yield server
    server.kill()
    server.wipe()


@pytest.fixture(scope="session")
def weaviate_cluster(weaviate_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeaviateCluster]:
    """Three nodes for all; a test that stops one starts it again."""
    cluster = WeaviateCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.kill()
    for node in cluster.nodes:
        node.wipe()
