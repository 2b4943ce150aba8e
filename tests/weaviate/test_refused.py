"""Strings that the real server refuses, each with its own reason; and a server that does not let us in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.stores import StoredString
from pipeline.stores.weaviate.sending import Sender
from tests.weaviate.conftest import Calls
from tests.weaviate.world import World
from tests.weaviate_server import WeaviateServer

TITLES = [f"{'bad' if number in {4, 5, 6, 7, 9} else 'good'}{number}" for number in range(12)]
BAD = [title for title in TITLES if title.startswith("bad")]
WRITER, READER, WRONG = "sk-canary-of-the-writer", "sk-canary-of-the-reader", "sk-canary-that-is-wrong"
_properties = Sender._properties


class Spoiler:
    """While it is on, strings that begin with `bad` go to the server with a property that its schema does not have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_on = True

        def spoiled(sender: Sender, string: StoredString) -> dict[str, Any]:
            known = _properties(sender, string)
            return known | {string.text: known["text"]} if self.is_on and string.text.startswith("bad") else known

        monkeypatch.setattr(Sender, "_properties", spoiled)


@pytest.fixture
def spoiler(monkeypatch: pytest.MonkeyPatch) -> Spoiler:
    return Spoiler(monkeypatch)


def test_refused_strings_are_listed_with_the_servers_reason_and_the_others_are_indexed(
    world: World, asked: list[str], calls: Calls, spoiler: Spoiler
) -> None:
    """The second chunk is refused whole, of the third one string."""
    world.write(TITLES)
    world.configure(weaviate_chunk=4)
    ran = world.run()
    assert ran.code == 1
    assert "5 strings refused by the weaviate index" in ran.out
    assert "python main.py --retry-failed" in ran.out
    assert list(world.failures()) == BAD
    for text, reason in world.failures().items():
        assert f"no such prop with name '{text}' found in class" in reason
    good = world.wanted([title for title in TITLES if title not in BAD])
    assert len(good) == 7
    assert world.held() == good

    upserts = calls.upserts
    again = world.run()
    assert again.code == 0, "what is listed is not tried again by itself"
    assert calls.upserts == upserts
    assert "7 strings compared" in world.run("--verify").out or world.run("--verify").code == 0

    ran = world.run("--retry-failed")
    assert ran.code == 1
    assert "5 strings that had failed will be tried again" in ran.out
    assert calls.upserts > upserts
    assert list(world.failures()) == BAD

    spoiler.is_on = False
    assert world.run("--retry-failed").code == 0
    assert world.held() == world.wanted()
    assert world.failures() == {}
    assert sorted(asked) == sorted(TITLES)


def test_a_server_that_refuses_everything_stops_the_run_and_no_string_is_blamed(
    world: World, asked: list[str], spoiler: Spoiler
) -> None:
    titles = [f"bad{number}" for number in range(12)]
    world.write(titles)
    world.configure(weaviate_chunk=4)
    ran = world.run()
    assert ran.code == 1
    assert "something else is wrong: no such prop with name 'bad" in " ".join(ran.err.split())
    assert (world.failures(), world.confirmed(), world.held()) == ({}, 0, {})
    spoiler.is_on = False
    assert world.done()["indexed"] == 12
    assert world.held() == world.wanted()
    assert sorted(asked) == sorted(titles)


def test_a_string_that_is_too_large_for_one_message_is_refused_and_chunks_are_halved_until_they_fit(
    weaviate_binary: Path, tmp_path: Path, asked: list[str]
) -> None:
    small, large = [f"Sonata {number}" for number in range(30)], "x" * 25_000
    with WeaviateServer(tmp_path / "server", environment={"GRPC_MAX_MESSAGE_SIZE": "20000"}) as server:
        world = World(tmp_path, server)
        world.write([*small[:15], large, *small[15:]])
        world.configure()
        ran = world.run("--quiet")  # whose taste of the index would not fit into such a message either
        assert ran.code == 1
        assert ran.err == ""
        (reason,) = world.failures().values()
        assert "message larger than max" in reason
        assert len(asked) == 31
        assert world.held(page=5) == world.wanted(small)
        assert len(world.wanted(small)) == 30
        assert world.run("--quiet").code == 0


# Keys


@pytest.fixture
def guarded(weaviate_binary: Path, tmp_path: Path) -> Iterator[WeaviateServer]:
    """A server that wants keys."""
    with WeaviateServer(tmp_path / "server", api_key=WRITER, reader_key=READER) as server:
        yield server


def test_a_server_that_does_not_let_us_in_stops_the_run_and_no_key_is_ever_shown(
    guarded: WeaviateServer, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEAVIATE_API_KEY", raising=False)
    world = World(tmp_path, guarded)
    world.write(["Fugue", "Mass"])
    world.configure()
    shown: list[str] = []

    def tried(key: str | None, *arguments: str) -> str:
        if key:
            monkeypatch.setenv("WEAVIATE_API_KEY", key)
        ran = world.run(*arguments, "--debug")
        shown.extend((ran.out, ran.err))
        assert ran.code == 1, ran.out
        return ran.err

    assert f"The Weaviate server at {guarded.url} did not allow us. It wants a key: WEAVIATE_API_KEY." in tried(None)
    assert "did not allow us. The key in WEAVIATE_API_KEY has no right to this." in tried(WRONG)
    assert asked == [], "whoever is not let in pays nothing"
    assert "did not allow us to create the collection" in tried(READER)
    assert not world.exists()

    monkeypatch.setenv("WEAVIATE_API_KEY", WRITER)
    ran = world.run("--debug")
    shown += [ran.out, ran.err]
    assert ran.code == 0, ran.err
    assert world.held() == world.wanted()
    world.write(["Fugue", "Mass", "Suite"])
    assert "did not allow us to write into" in tried(READER)
    assert len(world.held()) == 2
    for wrong in (WRONG, READER):
        tried(wrong, "--reindex")
    assert len(world.held()) == 2

    monkeypatch.setenv("WEAVIATE_API_KEY", WRITER)
    assert world.done()["indexed"] == 1
    assert world.held() == world.wanted()
    assert sorted(asked) == ["Fugue", "Mass", "Suite"]
    state = b"".join(path.read_bytes() for path in world.catalogue.checkpoint.rglob("*") if path.is_file())
    for key in (WRITER, READER, WRONG):
        assert key not in "".join(shown)
        assert key.encode() not in state
