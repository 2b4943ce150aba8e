"""The README's chapter on backup and restore, typed word for word: the disk is lost, and an older backup is brought to another folder.

The service's own record is the judge of what was paid. The backup is also made in the middle of a run, at any of its requests.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.local_service.settings import Pace
from tests.batch.world import Maker, World
from tests.docs import README, between
from tests.tools import Catalogue, Ran

TEXT = README.read_text(encoding="utf-8")
TITLES = ["Fugue", "Mass", "Suite", "Toccata", "Partita", "Sonata"]
LATER = [*TITLES, "Requiem", "Messiah"]
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
            subprocess.run(typed, shell=True, cwd=world.catalogue.folder, check=True, timeout=60)
    return said


def elsewhere(world: World, folder: Path, *brought: str) -> World:
    """Another machine: what is brought there, and nothing else; the old disk is gone."""
    folder.mkdir()
    for name in (*brought, "records.csv"):
        shutil.move(world.catalogue.folder / name, folder / name)
    shutil.rmtree(world.catalogue.folder)
    return dataclasses.replace(world, catalogue=Catalogue(folder))


def write(world: World, titles: list[str]) -> None:
    world.catalogue.write([(str(number), "", title) for number, title in enumerate(titles)])


def at_request(world: World, number: int, do: Callable[[], object]) -> None:
    """Do it once, in the middle of a command: when its n-th request from now was answered."""
    before, done = len(world.wire.requests), list[bool]()

    def look() -> None:
        if len(world.wire.requests) - before >= number and not done:
            done.append(True)
            do()

    world.wire.after_each = look


def go_on(world: World) -> None:
    """Two jobs are collected, and two more are open."""
    for _ in range(2):
        world.clock.sleep(3600)
        assert world.run("--advance").code == 0


def finish(world: World) -> None:
    for _ in range(6):
        world.clock.sleep(7200)
        world.run("--advance")
    assert "The index is well: 8 strings, 8 vectors compared" in world.main("--verify").out


@pytest.mark.parametrize("moment", [None, 1, 4, 7, 10, 13])
def test_batch_mode_pays_nothing_twice_when_a_disk_is_lost(make: Maker, tmp_path: Path, moment: int | None) -> None:
    make.folder, make.elsewhere = tmp_path / "here", tmp_path
    make.folder.mkdir()
    keys = {"checkpoint_dir": "checkpoints", "data_dir": "data", "batch_embedding_size": 2, "max_active_batches": 2}
    world = make(titles=LATER, pace=SLOW, **keys, keep_remote_hours=48)
    assert world.run("--create").code == 0
    if moment is None:
        type_block(world, "backup")
    else:
        at_request(world, moment, lambda: type_block(world, "backup"))
    go_on(world)
    assert [job.state for job in world.jobs()] == ["collected", "collected", "open", "open"]
    assert (world.catalogue.folder / "backup").exists(), "no backup was made"
    world = elsewhere(world, tmp_path / "there", "backup")
    type_block(world, "restore")
    finish(world)
    assert [world.times(title) for title in LATER] == [1] * len(LATER)
    assert world.doubts() == 0
    assert all(job.state == "collected" for job in world.jobs())


def test_without_keep_remote_hours_what_came_home_after_the_backup_is_asked_about_and_no_more(make: Maker, tmp_path: Path) -> None:
    make.folder, make.elsewhere = tmp_path / "here", tmp_path
    make.folder.mkdir()
    keys = {"checkpoint_dir": "checkpoints", "data_dir": "data", "batch_embedding_size": 2, "max_active_batches": 2}
    world = make(titles=LATER, pace=SLOW, **keys)
    assert world.run("--create").code == 0
    type_block(world, "backup")
    go_on(world)
    world = elsewhere(world, tmp_path / "there", "backup")
    said = type_block(world, "restore")
    print(said[0].out, said[2].out, said[2].err)
    for _ in range(6):
        world.clock.sleep(7200)
        ran = world.run("--advance")
    print(ran.out, ran.err, [(j.id, j.state, j.reason) for j in world.jobs()])
    print(world.run("--retry-failed", "--yes").out)
    finish(world)
    print([world.times(title) for title in LATER])
    assert 0
