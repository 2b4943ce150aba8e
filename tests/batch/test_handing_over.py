"""The README's chapter on backup and restore, typed word for word: a disk is lost, and an older backup brought to another folder.

The service's own record is the judge of what was paid. The backup is also made in the middle of a run, at any of its requests.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.local_service.settings import Pace
from tests.batch.world import Maker, World
from tests.docs import README, between
from tests.tools import Catalogue, Ran

TEXT = README.read_text(encoding="utf-8")
TITLES = ["Fugue", "Mass", "Suite", "Toccata", "Partita", "Sonata"]
LATER = [*TITLES, "Requiem", "Messiah"]
BLANK = "  "
DISKS: dict[str, Any] = {"checkpoint_dir": "checkpoints", "data_dir": "data"}
SLOW = Pace(working=5400.0)


def type_block(world: World, name: str) -> list[Ran]:
    """Each line of a block of the README, in the folder of the catalogue; what the program's own commands said."""
    _, block, _ = between(TEXT, f"<!-- typed: {name} -->\n```\n", "```\n")
    said = []
    for line in block.splitlines():
        typed = re.sub(r"\s{2,}# .*", "", line)
        if typed.startswith("python main.py"):
            said.append(world.main(*typed.split()[2:]))
            assert said[-1].code == 0, (typed, said[-1].out, said[-1].err)
        else:
            subprocess.run(typed, shell=True, cwd=world.catalogue.folder, check=True, timeout=60)  # noqa: S602
    return said


def elsewhere(world: World, folder: Path, *brought: str) -> World:
    """Another machine: what is brought there, and nothing else; the old disk is gone."""
    folder.mkdir()
    for name in (*brought, "records.csv"):
        shutil.move(world.catalogue.folder / name, folder / name)
    shutil.rmtree(world.catalogue.folder)
    return dataclasses.replace(world, catalogue=Catalogue(folder))


def write(world: World, titles: list[str]) -> None:
    world.catalogue.write([(str(number), "", title) for number, title in enumerate([*titles[:7], BLANK, *titles[7:]])])


def numbers(world: World) -> dict[int, str]:
    """row → text of every string."""
    found = (world.catalogue.folder / "data" / "tables").glob("strings_title_*.parquet")
    return {row["row"]: row["text"] for path in found for row in pq.read_table(path).to_pylist()}


def at_request(world: World, number: int, do: Callable[[], object]) -> None:
    """Do it once, in the middle of a command: when its n-th request from now was answered."""
    before, done = len(world.wire.requests), list[bool]()

    def look() -> None:
        if len(world.wire.requests) - before >= number and not done:
            done.append(True)
            do()

    world.wire.after_each = look


def go_on(world: World) -> None:
    """Two jobs are collected, the input has grown by two strings and a blank one, and two more jobs are open."""
    write(world, LATER)
    for _ in range(2):
        world.clock.sleep(3600)
        assert world.run("--advance").code == 0


def finish(world: World) -> None:
    for _ in range(6):
        world.clock.sleep(7200)
        world.run("--advance")
    assert "The index is well: 8 strings, 8 vectors compared" in world.main("--verify").out


def begun(make: Maker, folder: Path, **keys: object) -> World:
    """Two jobs of two strings are open; two strings wait."""
    make.folder, make.elsewhere = folder / "here", folder
    make.folder.mkdir()
    known: dict[str, Any] = {**DISKS, "batch_embedding_size": 2, "max_active_batches": 2, **keys}
    world = make(titles=TITLES, pace=SLOW, **known)
    assert world.run("--create").code == 0
    return world


@pytest.mark.parametrize("moment", [None, 4, 10])
def test_batch_mode_pays_nothing_twice_when_a_disk_is_lost(make: Maker, tmp_path: Path, moment: int | None) -> None:
    """The backup knows neither the last jobs nor their strings: both come back from the service."""
    world = begun(make, tmp_path, keep_remote_hours=48)
    if moment is None:
        type_block(world, "backup")
    else:
        at_request(world, moment, lambda: type_block(world, "backup"))
    go_on(world)
    assert [job.state for job in world.jobs()] == ["collected", "collected", "open", "open"]
    before = numbers(world)
    world = elsewhere(world, tmp_path / "there", "backup")
    type_block(world, "restore")
    finish(world)
    assert [world.times(title) for title in LATER] == [1] * len(LATER)
    assert world.doubts() == 0
    assert all(job.state == "collected" for job in world.jobs())
    assert numbers(world).items() >= {(row, text) for row, text in before.items() if text != BLANK}, "for life"


def test_without_keep_remote_hours_what_came_home_after_the_backup_is_paid_again_on_a_yes_and_nothing_else_is(
    make: Maker, tmp_path: Path
) -> None:
    world = begun(make, tmp_path)
    type_block(world, "backup")
    go_on(world)
    world = elsewhere(world, tmp_path / "there", "backup")
    type_block(world, "restore")
    world.clock.sleep(7200)
    assert world.run("--advance").code == 1
    lost = world.main("--status").out
    assert "Jobs 1, 2 are lost at the service, perhaps paid. If another copy of this folder collected them" in lost
    assert (
        "If not, to send their strings again, booked as possibly paid twice: python batch_manager.py --retry-failed --yes" in lost
    )
    assert [world.times(title) for title in LATER] == [1] * 8
    world.run("--retry-failed", "--yes")
    finish(world)
    assert [world.times(title) for title in LATER] == [2] * 4 + [1] * 4
    assert world.doubts() == 4, "and it is in the books"


def test_a_colleague_takes_over_both_folders_with_open_jobs(make: Maker, tmp_path: Path) -> None:
    world = begun(make, tmp_path)
    folder = tmp_path / "there"
    world = elsewhere(world, folder, "config.yml", "checkpoints", "data")
    refused = world.run("--advance")
    assert (refused.code, "python main.py --config" in refused.err, "--take-over" in refused.err) == (2, True, True)
    assert "At the service" in type_block(world, "hand over")[1].out
    write(world, LATER)
    finish(world)
    assert [world.times(title) for title in LATER] == [1] * 8


@pytest.mark.parametrize("answered", [2, 5])
def test_real_time_pays_again_what_was_answered_after_the_backup_and_nothing_else(
    make: Maker, tmp_path: Path, answered: int
) -> None:
    """The backup is made in the middle of a run, with answers in the spool."""
    make.folder, make.elsewhere = tmp_path / "here", tmp_path
    make.folder.mkdir()
    world = make(titles=LATER, **DISKS, max_inputs_per_request=1, max_concurrent_requests=1)
    at_request(world, answered, lambda: type_block(world, "backup"))
    assert world.main().code == 0
    world = elsewhere(world, tmp_path / "there", "backup")
    type_block(world, "restore")
    assert "The index is well: 8 strings, 8 vectors compared" in world.main("--verify").out
    times = [world.times(title) for title in LATER]
    assert times == [1] * (answered - 1) + [2] * (8 - answered + 1)
