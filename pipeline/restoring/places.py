"""The last steps of a restore: what can't be taken in, and what stood in the ledger's place, is moved aside and kept; then the
draft gets the ledger's name. Killed between any two of them, a further restore goes on."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.checkpoint import Checkpoint
from pipeline.files import disk_errors, fsync_folder, no_symlink, publish
from pipeline.rights import make_folder


def put_in_place(place: Checkpoint, at: float) -> list[str]:
    """Give the finished draft the ledger's name. What stood there is moved aside first, its log too, which must never be
    found beside another ledger; the new names are given back."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(at))
    aside = []
    with disk_errors(place.ledger):
        for path in (*place.logs, place.ledger):
            if path.exists():
                to = _free(place.root / f"ledger.damaged-{stamp}.sqlite{path.name.removeprefix(place.ledger.name)}")
                path.rename(to)
                aside.append(to.name)
        fsync_folder(place.root)
    publish(place.ledger)
    return aside


def set_tables_aside(place: Checkpoint, names: list[str]) -> None:
    """Move table files to where no run sweeps them."""
    if not names:
        return
    no_symlink(place.not_restored)
    with disk_errors(place.not_restored):
        make_folder(place.not_restored)
        for name in names:
            (place.tables / name).rename(_free(place.not_restored / name))
        for folder in (place.not_restored, place.tables):
            fsync_folder(folder)


def _free(wanted: Path) -> Path:
    """The name, or the first one like it that nothing has."""
    number, path = 1, wanted
    while path.exists() or path.is_symlink():
        number += 1
        path = wanted.with_name(f"{wanted.name}.{number}")
    return path
