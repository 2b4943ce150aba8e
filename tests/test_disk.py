"""A disk that fails or fills up at any moment of a run: told in a sentence, nothing lost, and nothing paid twice unseen.

Each point is a catalogue of its own: the run meets the trouble there, ends with 1, and is typed again without it. Real
disks that are full are small tmpfs mounts, which need root. A power cut is `test_reboot.py`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.test_stops import mounted
from tests.batch.world import Maker, World
from tests.crash import zygote
from tests.crash.judge import judge
from tests.crash.scenarios import SCENARIOS, Scenario, write
from tests.crash.served import ENVIRONMENT, ROOT, service
from tests.tools import Catalogue

TITLES = ["Fugue", "Mass", "Suite", "Toccata", "Partita"]
REAL_TIME: dict[str, Any] = {"max_concurrent_requests": 1, "max_inputs_per_request": 2}
BATCH: dict[str, Any] = {"use_batch_embeddings": True, "batch_embedding_size": 3}
MODES = pytest.mark.parametrize("keys", [REAL_TIME, BATCH], ids=["real time", "batch"])
FULL_BYTES = 16 << 20
POINTS = (5, 26, 40, 54)  # in the making of the ledger, in the tables' scratch, in its commits, in the index


@pytest.fixture
def worlds(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Iterator[World]]]:
    """One world after the other in the same folder, as many as are asked for; the service is on another disk."""
    makers: list[Maker] = []

    def make(keys: dict[str, Any], home: Path) -> Iterator[World]:
        home.mkdir(exist_ok=True)
        for number in range(200):
            shutil.rmtree(home / "checkpoints", ignore_errors=True)
            (elsewhere := quick_path / str(number)).mkdir()
            makers.append(Maker(home, monkeypatch, elsewhere=elsewhere))
            yield makers[-1](titles=TITLES, **keys)

    yield make
    for maker in makers:
        for state in maker.states:
            state.close()


def assert_recovers(world: World, keys: dict[str, Any], said: str) -> None:
    """The same command, typed again, does the rest; the service says what was paid."""
    ran = world.main()
    assert ran.code == 0, f"{said}\n{ran.err}"
    assert world.embedded() == sorted(TITLES), said
    if "use_batch_embeddings" in keys:
        assert world.twice() == 0, said
        assert len(world.batches()) == 2, said
    else:
        assert {text for text in TITLES if world.times(text) > 1} <= _listed(world), said


def _listed(world: World) -> set[str]:
    path = world.catalogue.checkpoint / "possibly_paid_twice.csv"
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {row["text"] for row in csv.DictReader(file)}


# fsync says no


class Failing:
    """In the place of `os.fsync`: one call answers EIO. What it was about is remembered, and whether it was tried again."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.tried_again = at, 0, False
        self._failed: os.stat_result | None = None
        self._kept: int | None = None  # so that its inode is not given away
        self._real = os.fsync

    def __call__(self, handle: int) -> None:
        self.calls += 1
        found = os.fstat(handle)
        if self.calls == self.at:
            self._failed, self._kept = found, os.dup(handle)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        # A folder has no other way; the vectors of the index are written once more, in their place, before they are synced.
        is_other = stat.S_ISDIR(found.st_mode) or Path(f"/proc/self/fd/{handle}").readlink().suffix == ".f32"
        self.tried_again |= self._failed is not None and not is_other and os.path.samestat(found, self._failed)
        self._real(handle)

    def close(self) -> None:
        if self._kept is not None:
            os.close(self._kept)


@pytest.mark.skipif(sys.platform != "linux", reason="what a handle stands for is read from /proc")
@MODES
def test_an_fsync_that_fails_anywhere_ends_the_run_in_a_sentence_and_the_next_goes_on(
    worlds: Callable[..., Iterator[World]], quick_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """And the same file is never asked again whether it is durable: the kernel would say yes."""
    for at, world in enumerate(worlds(keys, quick_path / "home"), start=1):
        failing = Failing(at)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing)
            ran = world.main()
        failing.close()
        if failing.calls < at:
            break
        said = f"fsync {at}: {ran.code} {ran.err}"
        assert ran.code == (0 if "The report was not written" in ran.err else 1), said
        assert "Input/output error" in ran.err, said
        assert str(world.catalogue.folder) in ran.err, said
        assert not failing.tried_again, said
        assert_recovers(world, keys, said)
    assert at > 20, "a run with so few fsyncs proves nothing"


@pytest.mark.skipif(not zygote.HAS_STRACE, reason="strace is not here, or may not trace")
@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[1]], ids=lambda scenario: scenario.name)
def test_a_disk_that_fails_under_sqlite_or_duckdb_is_told_and_the_next_run_goes_on(tmp_path: Path, scenario: Scenario) -> None:
    """The ledger's commits and copies, the tables' scratch, the index: a sample of their fsyncs. Some that fail cost nothing."""
    failed = 0
    with zygote.Zygote(tmp_path) as forks:
        for at in POINTS:
            (its_own := tmp_path / f"{at}-service").mkdir()
            with service(its_own, 0) as served:
                made = write(tmp_path / str(at), f"{at}", scenario, served.url, "")
                # Only SQLite and DuckDB call it.
                aim = zygote.Aim("fdatasync", at, effect="error=EIO")
                ran = forks.run("main.py", ["--config", str(made.config)], aim)
                assert "Traceback" not in ran.err, ran.err
                if ran.code:
                    failed += 1
                    assert ran.code == 1, ran.err
                    assert f"{made.checkpoint}/" in ran.err, "an exit code without a word"
                    assert "could not be written" in ran.err
                assert forks.run("main.py", ["--config", str(made.config)]).code == 0
                judge(forks, made, scenario, served, set(), None)
    assert failed >= len(POINTS) / 2, "a disk that never fails proves nothing"


# The disk is full


@contextlib.contextmanager
def full(folder: Path) -> Iterator[Callable[[], None]]:
    """A function that fills the disk under a folder to its last byte; there is room again afterwards."""
    filler = folder / "filler"

    def fill() -> None:
        with filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    try:
        yield fill
    finally:
        filler.unlink(missing_ok=True)


def _at(world: World, at: int, fill: Callable[[], None]) -> None:
    if len(world.wire.requests) == at:
        fill()


@MODES
def test_a_disk_that_fills_up_at_any_request_ends_the_run_in_a_sentence_and_the_next_goes_on(
    tmp_path: Path, worlds: Callable[..., Iterator[World]], keys: dict[str, Any]
) -> None:
    """From the n-th answer on nothing more can be written: the spool, a download, a table, the ledger, whatever comes next."""
    stopped = 0
    with mounted(tmp_path / "home", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "tmpfs"):
        for at, world in enumerate(worlds(keys, tmp_path / "home")):
            with full(world.catalogue.folder) as fill:
                if at == 0:
                    assert world.main("--end", "preprocessing").code == 0
                    world.catalogue.write([(str(number), "", title) for number, title in enumerate([*TITLES, ""])])
                    fill()
                world.wire.after_each = partial(_at, world, at, fill)
                ran = world.main()
                world.wire.after_each = lambda: None
            if len(world.wire.requests) < at:
                break
            said = f"full from request {at} on, {world.wire.requests[at - 1 : at]}: {ran.code} {ran.err}"
            assert ran.code in (0, 1), said
            if ran.code:
                stopped += 1
                assert str(world.catalogue.checkpoint) in ran.err, said
                assert any(
                    words in ran.err for words in ("No space left", "is full", "no room", "the disk has", "disk I/O error")
                ), said
            assert_recovers(world, keys, said)
    assert at > 3
    assert stopped > at / 2, "the disk was not full enough for this test to mean anything"


@pytest.mark.parametrize("left", [0, 131_072])
def test_the_embedded_service_shares_a_full_disk_with_us(tmp_path: Path, left: int) -> None:
    """As shipped the service keeps its state in the checkpoint folder: batch mode survives that too."""
    home = tmp_path / "home"
    with mounted(home, "-t", "tmpfs", "-o", "size=24m", "tmpfs"):
        catalogue = Catalogue(home)
        catalogue.configure(use_batch_embeddings=True, batch_poll_interval=1, batch_embedding_size=100)
        catalogue.write([("1", "Bach", "Fugue")])
        assert _run(catalogue).returncode == 0
        catalogue.write([(str(row), f"person {row}", f"title {row}") for row in range(300)])
        with full(home) as fill:
            fill()
            os.truncate(home / "filler", max(0, (home / "filler").stat().st_size - left))
            ran = _run(catalogue)
        assert "Traceback" not in ran.stderr
        assert ran.returncode == 1
        assert str(home) in ran.stderr
        assert _run(catalogue).returncode == 0
        assert len(catalogue.embedded("title")) == 301
        assert _run(catalogue, "--verify").returncode == 0


def _run(catalogue: Catalogue, *flags: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the service in this one would keep the disk busy."""
    command = [sys.executable, str(ROOT / "main.py"), "--config", str(catalogue.config), "--quiet", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
