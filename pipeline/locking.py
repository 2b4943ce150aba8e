"""The lock of a folder: one writer at a time, by the kernel (flock), which a killed process gives back by itself.

The words in the lock file are for people. What the folder is for is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CheckpointError, LockedError
from pipeline.files import disk_errors, no_symlink
from pipeline.rights import file_mode


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds the lock, as they wrote it down."""

    pid: int
    host: str
    command: str


def lock_holder(lock: Path) -> LockHolder | None:
    """Who is writing now; None when the lock is free. It asks the kernel, not the file."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
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


@contextlib.contextmanager
def locked(lock: Path, command: str) -> Iterator[None]:
    """Hold it; LockedError says who does."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, file_mode(lock.parent))
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            no_symlink(lock)
        with disk_errors(lock):
            if problem.errno in (errno.EACCES, errno.EPERM):
                raise CheckpointError(f"{lock}: {problem.strerror}; is the folder yours to write?") from problem
            raise
    try:
        if not _take(handle):
            holder = _holder(handle)
            raise LockedError(
                f"Another run is at work on {lock.parent} (process {holder.pid} on {holder.host}: {holder.command}). Nothing "
                "was changed; wait for it, or look with: python main.py --status"
            )
        with disk_errors(lock):
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
