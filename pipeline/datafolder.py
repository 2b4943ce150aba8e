"""The folder for what is large, apart from the checkpoint folder (`data_dir`): whose it is, and that it is the right one.

A disk that is not mounted looks like an empty folder, and a copied checkpoint folder would sweep away the tables that
the original has paid for. So the folder carries a mark: the catalogue, and the checkpoint folder that uses it. What lies
in it is not known here.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import CheckpointError
from pipeline.files import disk_errors, make_folder_durably, no_symlink, write_durably

if TYPE_CHECKING:
    from pipeline.ledger import Ledger

_MARK = "belongs_to.json"
_PATH = "data_path"
_OURS = {_MARK, "lock", "tables", "store", "scratch", "lost+found"}


@dataclass(frozen=True, slots=True)
class Mark:
    """Which catalogue the folder is of, and which checkpoint folder uses it."""

    catalogue: str
    host: str
    root: str


def make_room(ledger: Ledger, data: Path) -> None:
    """Make the folder, unless it should be there already."""
    no_symlink(data)
    if not data.is_dir():
        if ledger.meta(_PATH) == str(data.resolve()):
            raise CheckpointError(f"{data} is not there. Nothing was changed. {_hint(data)}")
        with disk_errors(data):
            make_folder_durably(data)


def need_mark(data: Path) -> None:
    """Before anything is restored from it."""
    if _read(data) is None:
        raise CheckpointError(f"{data} has no {_MARK}: it was never the data_dir of a checkpoint folder. {_hint(data)}")


def claim(ledger: Ledger, root: Path, data: Path, tables: Path, *, take_over: bool) -> None:
    """Accept the folder as the one of this catalogue, from now on; CheckpointError when it is another's, or not all is in it."""
    now, was = str(data.resolve()), ledger.meta(_PATH) or str(root.resolve())
    if data == root and was == now:
        return
    mine = Mark(ledger.meta("catalogue_id") or "", platform.node(), str(root.resolve()))
    mark = _read(data)
    if mark is not None and mark.catalogue != mine.catalogue:
        raise CheckpointError(f"{data} is the data_dir of another catalogue, that of {mark.root} on {mark.host}. Set another one.")
    if mark is not None and mark != mine and not take_over:
        raise CheckpointError(
            f"{data} is the data_dir of {mark.root} on {mark.host}: the checkpoint folder was moved or copied. Two that use it "
            "would delete each other's tables. Nothing was changed. If only this one is used from now on: python main.py "
            "--take-over"
        )
    if mark is None or was != now:
        _need_all(ledger, Path(was), data, tables)
    if mark is None and data != root:
        foreign = sorted(path.name for path in data.iterdir() if path.name not in _OURS and not path.name.startswith("batch_"))
        if foreign:
            raise CheckpointError(f"{data} holds {foreign[0]!r}, which is none of ours. Set data_dir to a new or empty folder.")
    if mark != mine and data != root:
        with disk_errors(data):
            write_durably(data / _MARK, json.dumps(asdict(mine), indent=1).encode())
    if was != now:
        ledger.set_meta(_PATH, now)


def _need_all(ledger: Ledger, was: Path, data: Path, tables: Path) -> None:
    """Every table that the ledger names, and of the files of jobs those that are still where the data was."""
    gone = [file.name for file in ledger.files() if not _has(tables / file.name, file.bytes)]
    names = (name for job in ledger.jobs.all() for name in (job.request_name, job.result_name, job.error_name))
    left = [name for name in names if was != data and (was / name).exists() and not (data / name).exists()]
    if gone or left:
        raise CheckpointError(
            f"{(gone + left)[0]} and {len(gone + left) - 1:,} other files are not in {data}; the data of this catalogue lay in "
            f"{was}. Nothing was changed. {_hint(data)} To move it: its folders tables and store, and its batch_*.jsonl, into "
            f"{data}."
        )


def _hint(data: Path) -> str:
    return f"Is the disk of {data} mounted?"


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _read(data: Path) -> Mark | None:
    """None when there is none, or none that can be read: then what lies there must prove itself."""
    try:
        return Mark(**json.loads((data / _MARK).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
