"""The README's chapter on Weaviate, word for word, against a server of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import README, between
from tests.tools import run
from tests.weaviate_server import WeaviateServer

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
WALK = "<!-- output of the Weaviate walk-through -->\n```\n"


@pytest.fixture(scope="module")
def server(weaviate_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeaviateServer]:
    with WeaviateServer(tmp_path_factory.mktemp("readme")) as started:
        yield started


def commands(block: str) -> Iterator[tuple[list[str], list[str]]]:
    """Each command of a block, and what is shown of its output; … stands for any lines."""
    for part in re.split(r"^\$ python main\.py ?", block, flags=re.MULTILINE)[1:]:
        typed, *shown = part.splitlines()
        yield shlex.split(typed), [line for line in shown if line.strip() != "…"]


def test_the_walk_through_prints_what_the_readme_shows(server: WeaviateServer, tmp_path: Path) -> None:
    settings = {
        "vector_store": "weaviate", "weaviate_url": server.url, "weaviate_grpc_port": server.grpc_port,
        "checkpoint_dir": tmp_path / "checkpoints",
    }  # fmt: skip
    _, block, _ = between(TEXT, WALK, "```\n")
    for typed, shown in commands(block):
        ran = run(ROOT / "config.yml", *typed, *(f"--set={key}={value}" for key, value in settings.items()))
        printed = ran.out.replace(server.url, "http://localhost:8080").splitlines()
        assert ran.code == 0, (typed, ran.err)
        places = [printed.index(line) for line in shown]
        assert places == sorted(places), typed
    snippet = re.search(r"```python\n(import weaviate\n.*?)```", TEXT, re.DOTALL)
    assert snippet is not None
    exec(snippet[1].replace("connect_to_local(", f"connect_to_local(port={server.ports.http}, grpc_port={server.grpc_port}, "), {})  # noqa: S102
