"""The checkpoint folder: what lies where, whose it is, and who may write.

One writer at a time; readers never wait. The folder knows its catalogue, host and path: a copy of it used beside the
original would pay for everything twice, so a folder that was moved or copied stops until `--take-over`. How a lock is held
is not known here, nor what a table or the ledger says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.datafolder import claim, make_room, need_mark
from pipeline.errors import CheckpointError
from pipeline.files import disk_errors, fsync_folder, make_folder_durably, no_symlink, write_durably
from pipeline.ledger import Ledger, is_sound, open_for_reading, open_for_writing
from pipeline.locking import locked
from pipeline.rights import make_folder, set_rights

# What may stand in a folder that has no ledger yet: a first run may have been killed before it had one. The folders
# are empty then: one with something in it is somebody else's of the same name.
_OURS = {"ledger.sqlite.tmp", "ledger.sqlite.tmp-journal", "lock", "tables", "spool", "store", "scratch"}
_TABLE = re.compile(r"(records|strings|occurrences|frequencies|tokens|embeddings)_(?:.*_)?(?P<number>[0-9]{6,})\.parquet")
_REQUESTS = re.compile(r"batch_requests_(?P<number>[0-9]{4,})\.jsonl")
_JOB_FILE = re.compile(r"batch_(requests|results|errors)_(?P<number>[0-9]{4,})\.jsonl")
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The places in a checkpoint folder, and in the folder for what is large, if that is another one (`data_dir`)."""

    root: Path
    apart: Path | None = None

    @property
    def data(self) -> Path:
        """Where tables, the embedded index, scratch, and the files of jobs are."""
        return self.apart or self.root

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def logs(self) -> tuple[Path, ...]:
        """What SQLite keeps beside the ledger: its write-ahead log, and the log's index."""
        return tuple(self.ledger.with_name(self.ledger.name + end) for end in ("-wal", "-shm"))

    @property
    def copy(self) -> Path:
        """The safe copy of the ledger, made after each step of a command that changed much, and after each command."""
        return self.root / "ledger.copy.sqlite"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def tables(self) -> Path:
        """Parquet: records, strings, occurrences, embeddings."""
        return self.data / "tables"

    @property
    def not_restored(self) -> Path:
        """Table files that a restored ledger could not take in: kept, and never read."""
        return self.tables / "not_restored"

    @property
    def spool(self) -> Path:
        """Answers of the service that are not yet in a table."""
        return self.root / "spool"

    @property
    def store(self) -> Path:
        """The embedded index."""
        return self.data / "store"

    @property
    def local_service(self) -> Path:
        """What the local service keeps: its files and batches, so that a job outlives the command that created it."""
        return self.root / "local_service"

    @property
    def scratch(self) -> Path:
        """What a step needs while it runs; emptied at the start of each run."""
        return self.data / "scratch"

    @property
    def rejected_rows(self) -> Path:
        return self.root / "rejected_rows.csv"

    @property
    def import_rejected(self) -> Path:
        return self.root / "import_rejected.csv"

    @property
    def failures(self) -> Path:
        return self.root / "failures.csv"

    @property
    def possibly_paid_twice(self) -> Path:
        return self.root / "possibly_paid_twice.csv"

    @property
    def report_page(self) -> Path:
        """Where the catalogue stands, for people."""
        return self.root / "report.html"

    @property
    def report_numbers(self) -> Path:
        """The same for programs."""
        return self.root / "report.json"

    def exists(self) -> bool:
        with contextlib.suppress(OSError):  # a name that no disk takes, say; whoever makes the folder says what is wrong
            return self.ledger.exists()
        return False


@contextlib.contextmanager
def writing(place: Checkpoint, command: str, *, take_over: bool = False, group: int | None = None) -> Iterator[Ledger]:
    """Hold the lock, and open the ledger to change it. A new folder gets its identity here. `group` may use it as well."""
    _make_folder(place)
    with ExitStack() as held:
        held.enter_context(locked(place.lock, command))
        set_rights(place.root, group)
        _make_folders(place.spool)
        ledger = open_for_writing(place.ledger, place.copy)
        held.callback(ledger.close)
        _identify(ledger, place, take_over=take_over)
        if place.apart is not None:
            make_room(ledger, place.apart)
            held.enter_context(locked(place.apart / place.lock.name, command))
        claim(ledger, place.root, place.data, place.tables, take_over=take_over)
        set_rights(place.data, group)
        _make_folders(place.tables, place.store, place.scratch)
        _refuse_an_older_ledger(ledger, place)
        _sweep(ledger, place)
        yield ledger


@contextlib.contextmanager
def restoring(place: Checkpoint, command: str, *, group: int | None = None) -> Iterator[None]:
    """Hold the lock of a folder whose ledger is gone or damaged; CheckpointError when there is nothing to restore, or nothing
    to restore from."""
    no_symlink(place.root)
    if not place.root.is_dir() or not any(place.root.iterdir()):
        raise CheckpointError(f"{place.root}: nothing is here yet, so there is nothing to restore. To begin: python main.py")
    if not (place.copy.exists() or place.exists() or _lost(place)):
        raise CheckpointError(f"{place.root} is not a checkpoint folder of ours: there is nothing to restore.")
    for path in (place.ledger, *place.logs, place.copy):
        no_symlink(path)
    with ExitStack() as held:
        held.enter_context(locked(place.lock, command))
        if place.apart is not None:
            need_mark(place.apart)
            held.enter_context(locked(place.apart / place.lock.name, command))
        if is_sound(place.ledger, place.copy):
            raise CheckpointError(f"{place.ledger} is there and sound: nothing to restore. To look closer: python main.py --verify")
        if not place.copy.exists():
            raise CheckpointError(
                f"There is no safe copy of the ledger in {place.root}. Nothing was changed. Bring {place.copy.name} back from a "
                "backup (an older one will do: what is newer is taken from the other files), and type the same again."
            )
        for folder in {place.root, place.data}:
            set_rights(folder, group)
        _make_folders(place.spool, place.tables, place.store, place.scratch)
        _empty_scratch(place)
        yield


@contextlib.contextmanager
def reading(place: Checkpoint) -> Iterator[Ledger | None]:
    """The ledger without the lock; None when there is nothing yet."""
    if place.root.exists() and not place.root.is_dir():
        raise CheckpointError(f"{place.root} is a file, not a folder; set checkpoint_dir to a folder.")
    for path in (place.ledger, *place.logs):
        no_symlink(path)
    if not place.exists():
        if words := _lost(place):
            raise CheckpointError(words)
        yield None
        return
    ledger = open_for_reading(place.ledger, place.copy)
    try:
        yield ledger
    finally:
        ledger.close()


def _make_folder(place: Checkpoint) -> None:
    """Make the folder, or accept one that is empty or ours; say no to anything else."""
    root = place.root
    try:
        no_symlink(root)
        if root.exists() and not root.is_dir():
            raise CheckpointError(f"{root} is a file, not a folder; set checkpoint_dir to a folder.")
        make_folder_durably(root)
        foreign = sorted(path.name for path in root.iterdir() if path.name not in _OURS or (path.is_dir() and any(path.iterdir())))
    except OSError as problem:
        if problem.errno in _NO_PLACE:
            raise CheckpointError(f"{root}: {problem.strerror}; set checkpoint_dir to a folder that you may write.") from problem
        with disk_errors(root):
            raise
    for path in (place.ledger, *place.logs):
        no_symlink(path)
    if foreign and not place.exists():
        raise CheckpointError(
            _lost(place)
            or f"{root} is not a checkpoint folder of ours: it holds {foreign[0]!r} and no ledger. Nothing was changed. Set "
            "checkpoint_dir to a new or empty folder."
        )
    if not os.access(root, os.W_OK | os.X_OK):
        raise CheckpointError(f"{root} can't be written; set checkpoint_dir to a folder that you may write.")


def _lost(place: Checkpoint) -> str:
    """What to say of a folder that had a ledger and has none now; empty when it never had one."""
    gone = f"{place.root} has lost its ledger, {place.ledger.name}. Nothing was changed."
    if place.copy.exists():
        return (
            f"{gone} The last safe copy is {place.copy}. To bring it up to date from the other files and put it in place: "
            "python main.py --restore-ledger"
        )
    if place.tables.is_dir() and any(_TABLE.fullmatch(path.name) for path in place.tables.iterdir()):
        return (
            f"{gone} There is no safe copy of it either: bring {place.copy.name} back from a backup (an older one will do), and "
            "then: python main.py --restore-ledger"
        )
    return ""


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        no_symlink(folder)
        with disk_errors(folder):
            if not folder.is_dir():
                make_folder(folder)
                fsync_folder(folder.parent)


def _identify(ledger: Ledger, place: Checkpoint, *, take_over: bool) -> None:
    host, path = platform.node(), str(place.root.resolve())
    if ledger.meta("catalogue_id") is None:
        with ledger.transaction():
            ledger.set_meta("catalogue_id", uuid.uuid4().hex)
            ledger.set_meta("host", host)
            ledger.set_meta("path", path)
        ledger.save_copy(place.copy)  # from the first moment on there is one that knows whose folder this is
        return
    was = (ledger.meta("host"), ledger.meta("path"))
    if was == (host, path):
        return
    if not take_over:
        raise CheckpointError(
            f"{path} on {host} belongs to {was[1]} on {was[0]}: the folder was moved or copied. Used in two places, "
            "everything would be paid twice. Nothing was changed. If it is used only here from now on: python main.py "
            "--take-over"
        )
    with ledger.transaction():
        ledger.set_meta("host", host)
        ledger.set_meta("path", path)


def _refuse_an_older_ledger(ledger: Ledger, place: Checkpoint) -> None:
    """An older ledger in the place of a newer one would sweep what was paid for, and write over the requests of open jobs.

    What a killed run leaves looks otherwise: embeddings that no commit named lie beside what they were made of, in the
    spool or in a job that has ended; and of request files there is one at most without its job.
    """
    newer = [path for path in place.data.glob("batch_requests_*.jsonl") if _number(path, _REQUESTS) > ledger.jobs.next_number()]
    if not any(place.spool.iterdir()) and not ledger.jobs.all(("ended",)):
        named, following = {file.name for file in ledger.files()}, ledger.next_file_number()
        unnamed = [path for path in place.tables.glob("embeddings_*") if path.name not in named]
        newer += [path for path in unnamed if _number(path, _TABLE) >= following]
    if newer:
        raise CheckpointError(
            f"{place.ledger} is older than {min(newer)}, which it does not know: it was put in the place of a newer ledger. "
            f"Nothing was changed. Move it (and its -wal and -shm, if there) out of {place.root}, and: python main.py "
            "--restore-ledger"
        )


def _number(path: Path, pattern: re.Pattern[str]) -> int:
    found = pattern.fullmatch(path.name)
    return int(found["number"]) if found is not None else 0


def _empty_scratch(place: Checkpoint) -> None:
    shutil.rmtree(place.scratch, ignore_errors=True)
    with disk_errors(place.scratch):
        make_folder(place.scratch)


def _sweep(ledger: Ledger, place: Checkpoint) -> None:
    """Remove what an interrupted run left: scratch, drafts, and tables, indexes and files of jobs that no commit names."""
    _empty_scratch(place)
    named = {file.name for file in ledger.files()}
    for path in place.tables.iterdir():
        if path.name not in named and (path.is_symlink() or not path.is_dir()):  # a notebook server makes folders
            path.unlink()
    for generation in ledger.generations():
        vectors = place.store / f"{generation.id}.f32"
        is_empty = vectors.exists() and not vectors.stat().st_size  # opened, and nothing was written yet
        if not is_empty and not ledger.has_any(generation.id, f"embedded:{generation.id}"):
            delete_index_files(place, generation.id)
    known, following = {job.id for job in ledger.jobs.all()}, ledger.jobs.next_number()
    for path in place.data.glob("batch_*.jsonl"):
        if 0 < _number(path, _JOB_FILE) < following and _number(path, _JOB_FILE) not in known:
            path.unlink()
    # Of requests, results, lists and the index too: no later run writes each of them again.
    drafts = {path for folder in (place.root, place.data, place.store) for path in folder.glob("*.tmp")}
    for draft in drafts:
        if draft.is_symlink() or not draft.is_dir():
            draft.unlink()


def delete_index_files(place: Checkpoint, generation: str) -> None:
    """Delete the embedded index of a generation that the ledger has just forgotten; whoever searches it keeps what is open."""
    found = list(place.store.glob(f"{generation}.*"))
    for path in found:
        path.unlink(missing_ok=True)
    if found:
        fsync_folder(place.store)


def delete_tables(place: Checkpoint, names: list[str]) -> None:
    """Delete files that the ledger has just forgotten; what a kill leaves, the next run sweeps."""
    for name in names:
        (place.tables / name).unlink(missing_ok=True)
    if names:
        fsync_folder(place.tables)


def write_list(path: Path, content: bytes | None) -> None:
    """Write one of the lists for people (`failures.csv` and the like), or remove it when there is nothing to list."""
    no_symlink(path)
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_durably(path, content)
