"""Files that are there after a power cut: write to a temporary name, fsync, rename, fsync the folder.

A file written here exists for the rest of the program only once the ledger names it. This module knows nothing of
what is in a file. A full or failing disk becomes a `DiskError` that names the path; after a failed fsync the same
file is never fsynced again, because the kernel may have dropped the pages and would answer "done".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import CheckpointError, DiskError

DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}
NETWORK_FILE_SYSTEMS = frozenset((
    "nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "glusterfs",
    "lustre", "gpfs", "vboxsf", "drvfs", "webdav", "afpfs",
))  # fmt: skip


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, failing or read-only disk into a sentence; anything else passes through."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in DISK_TROUBLE:
            raise
        raise disk_error(path, problem) from problem


def disk_error(path: Path, problem: BaseException) -> DiskError:
    """The sentence for a write that the disk refused."""
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return DiskError(
        f"{path}: could not be written: {reason}. What was saved before stays valid. Free some space (or choose "
        "another checkpoint_dir) and run the same command again: it goes on from there."
    )


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with disk_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder_durably(folder: Path) -> None:
    """Make a folder, and those above it, for its owner alone; a name of each that was not there is durable."""
    if not folder.is_dir():
        make_folder_durably(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(folder.parent)


def fsync_handle(handle: int) -> None:
    """Make a file's content durable; macOS needs to be asked harder."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    else:
        os.fsync(handle)


def temporary(final: Path) -> Path:
    """Where a file is written before it gets its name; what is left under such a name is never read."""
    return final.with_name(final.name + ".tmp")


def publish(final: Path) -> None:
    """Give a finished temporary file its name, durably."""
    with disk_errors(final):
        handle = os.open(temporary(final), os.O_RDWR)
        try:
            fsync_handle(handle)
        finally:
            os.close(handle)
        temporary(final).replace(final)
        fsync_folder(final.parent)


def publish_table(final: Path) -> tuple[int, str]:
    """Publish a finished file; its size and hash, worked out while the disk is at work."""
    with temporary(final).open("rb") as file, ThreadPoolExecutor(1, "hash") as beside:
        hashed = beside.submit(_hash_of, file)
        publish(final)
        return final.stat().st_size, hashed.result()


def write_durably(final: Path, content: bytes) -> None:
    """Write a whole small file so that either the old content or the new is there, never a part."""
    with disk_errors(final):
        # Always a new file: what an earlier attempt left may be a link, or have failed its fsync.
        temporary(final).unlink(missing_ok=True)
        with temporary(final).open("xb") as file:
            file.write(content)
    publish(final)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, read in pieces."""
    with path.open("rb") as file:
        return _hash_of(file)


def _hash_of(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered file reads into what it is given


def no_symlink(path: Path) -> None:
    """Refuse state behind a symbolic link: somebody else could choose what we overwrite."""
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a symbolic link; state must be a real file or folder. Remove the link, or set checkpoint_dir "
            "to the place that it points to."
        )


def free_bytes(folder: Path) -> int:
    """What the disk under a folder has left for us; of a folder that is not there yet, its nearest parent's."""
    while not os.access(folder, os.F_OK):  # unlike exists(), it takes a folder that may not be looked into as not there
        folder = folder.parent
    return shutil.disk_usage(folder).free


def need_room(folder: Path, needed: int) -> None:
    """Stop before the disk is full, not when it is: others live on it too. DiskError when it has less left than is needed."""
    free = free_bytes(folder)
    if free < needed:
        raise disk_error(
            folder, OSError(errno.ENOSPC, f"some {_mb(needed)} more are needed on this disk, and {_mb(free)} are free")
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def file_system_of(folder: Path) -> str:
    """The kind of file system under a folder, in the system's words; `unknown` when it does not tell."""
    while not os.access(folder, os.F_OK):  # unlike exists(), it takes a folder that may not be looked into as not there
        folder = folder.parent
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    target = str(folder.resolve())
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split(" ")
        point = words[1].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, words[2]
    return kind


_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")


def spreadsheet_safe(text: str) -> str:
    """A cell that a spreadsheet will show, not calculate: a leading quote where it would take it for a formula."""
    return "'" + text if text.startswith(_FORMULA_STARTS) else text
