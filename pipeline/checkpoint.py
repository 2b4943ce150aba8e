"""The checkpoint folder: what lies where, whose it is, and who may write.

One writer at a time by a kernel lock (flock), which a killed process gives back by itself; the words in the lock file
are for people. Readers never wait. The folder knows its catalogue, host and path: a copy of it used beside the
original would pay for everything twice, so a folder that was moved or copied stops until `--take-over`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CheckpointError, LockedError
from pipeline.files import disk_errors, fsync_folder, no_symlink, temporary, write_durably
from pipeline.ledger import Ledger, open_for_reading, open_for_writing

# What may stand in a folder that has no ledger yet: a first run may have been killed before it had one. The folders
# are empty then: one with something in it is somebody else's of the same name.
_OURS = {"ledger.sqlite.tmp", "ledger.sqlite.tmp-journal", "lock", "tables", "spool", "store", "scratch"}
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The places in a checkpoint folder."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def logs(self) -> tuple[Path, ...]:
        """What SQLite keeps beside the ledger: its write-ahead log, and the log's index."""
        return tuple(self.ledger.with_name(self.ledger.name + end) for end in ("-wal", "-shm"))

    @property
    def copy(self) -> Path:
        """The safe copy of the ledger, made after each command that changed something."""
        return self.root / "ledger.copy.sqlite"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def tables(self) -> Path:
        """Parquet: records, strings, occurrences, embeddings."""
        return self.root / "tables"

    @property
    def spool(self) -> Path:
        """Answers of the service that are not yet in a table."""
        return self.root / "spool"

    @property
    def store(self) -> Path:
        """The embedded index."""
        return self.root / "store"

    @property
    def local_service(self) -> Path:
        """What the local service keeps: its files and batches, so that a job outlives the command that created it."""
        return self.root / "local_service"

    @property
    def scratch(self) -> Path:
        """What a step needs while it runs; emptied at the start of each run."""
        return self.root / "scratch"

    @property
    def rejected_rows(self) -> Path:
        return self.root / "rejected_rows.csv"

    @property
    def failures(self) -> Path:
        return self.root / "failures.csv"

    @property
    def possibly_paid_twice(self) -> Path:
        return self.root / "possibly_paid_twice.csv"

    def exists(self) -> bool:
        return self.ledger.exists()


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds the lock, as they wrote it down."""

    pid: int
    host: str
    command: str


@contextlib.contextmanager
def writing(place: Checkpoint, command: str, *, take_over: bool = False) -> Iterator[Ledger]:
    """Hold the lock, and open the ledger to change it. A new folder gets its identity here."""
    _make_folder(place)
    with _locked(place, command):
        for folder in (place.tables, place.spool, place.store, place.scratch):
            no_symlink(folder)
            with disk_errors(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
        ledger = open_for_writing(place.ledger, place.copy)
        try:
            _identify(ledger, place, take_over=take_over)
            _sweep(ledger, place)
            yield ledger
        finally:
            ledger.close()


@contextlib.contextmanager
def reading(place: Checkpoint) -> Iterator[Ledger | None]:
    """The ledger without the lock; None when there is nothing yet."""
    if place.root.exists() and not place.root.is_dir():
        raise CheckpointError(f"{place.root} is a file, not a folder; set checkpoint_dir to a folder.")
    for path in (place.ledger, *place.logs):
        no_symlink(path)
    if not place.exists():
        yield None
        return
    ledger = open_for_reading(place.ledger, place.copy)
    try:
        yield ledger
    finally:
        ledger.close()


def lock_holder(place: Checkpoint) -> LockHolder | None:
    """Who is writing now; None when the lock is free. It asks the kernel, not the file."""
    try:
        handle = os.open(place.lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder(handle)
    finally:
        os.close(handle)
    return None


def _holder(handle: int) -> LockHolder:
    words = os.pread(handle, 4096, 0)
    try:
        said = json.loads(words)
        return LockHolder(int(said["pid"]), str(said["host"]), str(said["command"]))
    except (ValueError, KeyError, TypeError):
        return LockHolder(0, "?", "?")


def _make_folder(place: Checkpoint) -> None:
    """Make the folder, or accept one that is empty or ours; say no to anything else."""
    root = place.root
    try:
        no_symlink(root)
        if root.exists() and not root.is_dir():
            raise CheckpointError(f"{root} is a file, not a folder; set checkpoint_dir to a folder.")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        foreign = sorted(path.name for path in root.iterdir() if path.name not in _OURS or (path.is_dir() and any(path.iterdir())))
    except OSError as problem:
        if problem.errno in _NO_PLACE:
            raise CheckpointError(f"{root}: {problem.strerror}; set checkpoint_dir to a folder that you may write.") from problem
        with disk_errors(root):
            raise
    for path in (place.ledger, *place.logs):
        no_symlink(path)
    if foreign and not place.exists():
        if place.copy.name in foreign:
            raise CheckpointError(
                f"{root} has lost its ledger, {place.ledger.name}. Nothing was changed. Bring it back from a backup; or put the "
                f"last safe copy, {place.copy}, in its place, which does not know what was embedded after it was made."
            )
        raise CheckpointError(
            f"{root} is not a checkpoint folder of ours: it holds {foreign[0]!r} and no ledger. Nothing was changed. Set "
            "checkpoint_dir to a new or empty folder."
        )
    if not os.access(root, os.W_OK | os.X_OK):
        raise CheckpointError(f"{root} can't be written; set checkpoint_dir to a folder that you may write.")


@contextlib.contextmanager
def _locked(place: Checkpoint, command: str) -> Iterator[None]:
    try:
        handle = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            no_symlink(place.lock)
        with disk_errors(place.lock):
            if problem.errno in (errno.EACCES, errno.EPERM):
                raise CheckpointError(f"{place.lock}: {problem.strerror}; is the folder yours to write?") from problem
            raise
    try:
        if not _take(handle):
            holder = _holder(handle)
            raise LockedError(
                f"Another run is at work on {place.root} (process {holder.pid} on {holder.host}: {holder.command}). Nothing "
                "was changed; wait for it, or look with: python main.py --status"
            )
        with disk_errors(place.lock):
            os.ftruncate(handle, 0)
            words = {"pid": os.getpid(), "host": platform.node(), "command": command}
            os.pwrite(handle, json.dumps(words).encode(), 0)
        yield
    finally:
        os.close(handle)  # closing gives the lock back; the file stays, since removing it would let two runs hold two locks


def _take(handle: int) -> bool:
    """Take the lock. A `--status` holds it for an instant to see whether it is free: that is worth a second look."""
    for _ in range(3):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.02)
    return False


def _identify(ledger: Ledger, place: Checkpoint, *, take_over: bool) -> None:
    host, path = platform.node(), str(place.root.resolve())
    if ledger.meta("catalogue_id") is None:
        with ledger.transaction():
            ledger.set_meta("catalogue_id", uuid.uuid4().hex)
            ledger.set_meta("host", host)
            ledger.set_meta("path", path)
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


def _sweep(ledger: Ledger, place: Checkpoint) -> None:
    """Remove what an interrupted run left: scratch, and table files that no commit ever named."""
    shutil.rmtree(place.scratch, ignore_errors=True)
    with disk_errors(place.scratch):
        place.scratch.mkdir(mode=0o700)
    named = {file.name for file in ledger.files()}
    for path in place.tables.iterdir():
        if path.name not in named and (path.is_symlink() or not path.is_dir()):  # a notebook server makes folders
            path.unlink()
    for path in (temporary(place.copy), temporary(place.ledger)):
        path.unlink(missing_ok=True)


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
