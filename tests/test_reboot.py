"""The power is cut at every fsync of a run: nothing that the ledger names is lost, and the same command ends as if nothing was.

One undisturbed run is made, and before each of its fsyncs a picture is taken of what a reboot would leave then
(`tests/reboot.py`), beside what the service, which stays up, knew at that moment. Each picture is put in the place of the
checkpoint folder, the same command is typed again, and the service is asked what was paid. What SQLite does between its own
fsyncs is SQLite's to test; `test_disk.py` lets those fail.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import files
from pipeline.files import sha256_of
from pipeline.local_service import State
from tests.batch.world import Maker, World
from tests.reboot import Disk, Names

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a handle stands for is read from /proc")

TITLES = ["Fugue", "Mass", "Suite", "Toccata", "Partita"]
REAL_TIME: dict[str, Any] = {"max_concurrent_requests": 1, "max_inputs_per_request": 2}
BATCH: dict[str, Any] = {"use_batch_embeddings": True, "batch_embedding_size": 3}


@dataclass(frozen=True)
class Picture:
    """What a reboot leaves of the catalogue's folder, and what the service knew then."""

    home: Path
    service: Path


@dataclass
class Machine:
    """A world whose checkpoint folder can be put back to what a reboot would have left of it at each moment of a run."""

    world: World
    folder: Path
    album: Path
    pictures: list[Picture] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Pictures are taken of all that happens in here, and one at the end: the run said "done", and then it is dark."""
        disk = Disk(self.world.catalogue.folder)

        def take() -> None:
            self._take(disk, "durable")
            self._take(disk, "now")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", disk.fsync(before=take))
            yield
        take()
        disk.close()

    def _take(self, disk: Disk, names: Names) -> None:
        place = self.album / str(len(self.pictures))
        place.mkdir()
        disk.leave(place / "home", names)
        (said := hashlib.sha256()).update(repr(self.world.wire.requests).encode())
        for path in sorted(place.rglob("*")):
            said.update(str(path.relative_to(place)).encode() + (path.read_bytes() if path.is_file() else b"/"))
        if said.hexdigest() in self._seen:  # nothing became durable since the one before
            shutil.rmtree(place)
            return
        self._seen.add(said.hexdigest())
        _copy_state(self.folder / "service.sqlite", place / "service.sqlite")
        self.pictures.append(Picture(place / "home", place / "service.sqlite"))

    @contextlib.contextmanager
    def up_again(self, picture: Picture) -> Iterator[World]:
        """After the reboot."""
        shutil.rmtree(self.world.catalogue.checkpoint, ignore_errors=True)
        left = picture.home / "checkpoints"
        if left.exists():
            shutil.copytree(left, self.world.catalogue.checkpoint)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, _state(picture.service, Path(folder)) as state:
            self.world.mount(state)
            yield self.world


def _state(picture: Path, folder: Path) -> State:
    """The service as it was; the picture stays as it is."""
    _copy_state(picture, folder / "service.sqlite")
    return State(folder / "service.sqlite", record=True)


def _copy_state(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as of, contextlib.closing(sqlite3.connect(target)) as to:
        of.backup(to)
    if (files_of_service := Path(f"{source}.files")).exists():
        shutil.copytree(files_of_service, f"{target}.files")


def vectors(world: World) -> dict[str, list[float]]:
    """text → its vector, as the tables have it; each once."""
    strings = world.catalogue.strings("title")
    rows = world.catalogue.table("embeddings")
    assert len({row["row"] for row in rows}) == len(rows)
    return {strings[row["row"]]: row["vector"] for row in rows}


def assert_what_is_named_is_there(world: World) -> None:
    """Each table that the ledger names, with its content, and the request file of each job that waits or is open."""
    place = world.catalogue.checkpoint
    if not (place / "ledger.sqlite").exists():
        return
    with world.catalogue.ledger() as ledger:
        named = {place / "tables" / file.name: file.sha256 for file in ledger.files()}
        named |= {place / job.request_name: job.sha256 for job in ledger.jobs.all(("prepared", "uploaded", "creating", "open"))}
    for path, sha256 in named.items():
        assert path.exists(), f"{path.name} is named and not there"
        assert sha256_of(path) == sha256, f"{path.name} is not what the ledger says"


def listed_as_doubtful(world: World) -> set[str]:
    path = world.catalogue.checkpoint / "possibly_paid_twice.csv"
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {row["text"] for row in csv.DictReader(file)}


@pytest.fixture
def machine(tmp_path: Path, quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    (quick_path / "home").mkdir()
    maker = Maker(quick_path / "home", monkeypatch, elsewhere=quick_path)
    yield Machine(maker(titles=TITLES[:3]), quick_path, tmp_path)
    for state in maker.states:
        state.close()


def give(world: World, titles: list[str]) -> None:
    world.catalogue.write([(str(number), "", title) for number, title in enumerate(titles)])


@pytest.mark.parametrize("keys", [REAL_TIME, BATCH], ids=["real time", "batch"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first run", "more input"])
def test_after_a_power_cut_at_any_fsync_the_same_command_ends_as_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], is_first: bool
) -> None:
    world = machine.world
    world.catalogue.configure(fields={"title": "title"}, **keys)
    if not is_first:
        assert world.main().code == 0
    give(world, TITLES)
    with machine.watched(monkeypatch):
        assert world.main().code == 0
    expected, batches = vectors(world), len(world.batches())
    assert sorted(expected) == sorted(TITLES)
    assert len(machine.pictures) > 20, "a run with so few fsyncs proves nothing"
    # The second run is the first one over again but for what it replaces: every other moment of it will do.
    for number, picture in list(enumerate(machine.pictures))[:: 1 if is_first else 2]:
        with machine.up_again(picture):
            assert_what_is_named_is_there(world)
            ran = world.main()
            told = f"picture {number} of {len(machine.pictures)}: {ran.err}"
            assert ran.code == 0, told
            assert vectors(world) == expected, told
            if "use_batch_embeddings" in keys:
                assert world.twice() == 0, told
                assert len(world.batches()) == batches, told
            else:
                twice = {text for text in TITLES if world.times(text) > 1}
                assert twice <= listed_as_doubtful(world), told
                assert len(twice) <= keys["max_inputs_per_request"], f"more than was on the wire: {told}"
            found = world.main("--verify", "--json").document
            assert (found["missing"], found["changed"], found["unexpected"], found["written"]) == (0, 0, 0, 0), told
    with machine.up_again(machine.pictures[-1]):
        assert world.main().code == 0
        assert world.wire.requests == [], "what was said to be done was not durable"


@pytest.mark.parametrize("forgotten", ["fsync_handle", "fsync_folder"])
def test_a_forgotten_fsync_would_be_noticed(machine: Machine, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    """The model can fail: without the fsync of a table's content, or of the folder of tables, a reboot loses what is named."""
    real = getattr(files, forgotten)

    def forgetful(what: Any) -> None:
        if isinstance(what, Path) and what.name != "tables":
            real(what)

    with machine.watched(monkeypatch), monkeypatch.context() as patched:
        patched.setattr(files, forgotten, forgetful)
        assert machine.world.main("--end", "preprocessing").code == 0
    with pytest.raises(AssertionError, match=r"is named and not there|is not what the ledger says"):
        _look_at_all(machine)


def _look_at_all(machine: Machine) -> None:
    for picture in machine.pictures:
        with machine.up_again(picture) as world:
            assert_what_is_named_is_there(world)
