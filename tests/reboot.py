"""What a power cut would leave of a folder: a model of a disk that keeps only what was fsynced.

    disk = Disk(folder)
    monkeypatch.setattr(os, "fsync", disk.fsync(before=take_a_picture))
    disk.leave(target, names="durable")

A file has the content that it had at its own last fsync (nothing, if there was none), a folder the names that it had at
its last fsync. A real disk may keep more: `names="now"` is the other end, all names and lengths as they are now, and zeros
where content was not fsynced. SQLite writes and fsyncs in C, unseen here; its database and its log are taken as they stand,
because SQLite itself drops what no commit made durable. Its drafts get their names from us, and so are held to the rule as
any file. What was written through a mapping, or on macOS by `F_FULLFSYNC`, is not seen either.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Names = Literal["durable", "now"]
_SQLITE = re.compile(r"(?!ledger\.copy).*\.sqlite(-wal|-journal)?")
_MADE_BY_US = {"ledger.sqlite"}  # SQLite's own, but its name is given by our rename
_IN_MEMORY = "-shm"  # the log's index: SQLite makes it anew


class Disk:
    """One folder and all below it, from a moment at which everything in it is durable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, os.stat_result]] = {}
        self._kept: list[int] = []  # open handles: an inode that is deleted must not be given away again
        for path in (folder, *folder.rglob("*")):
            self._note(path)

    def close(self) -> None:
        for handle in self._kept:
            os.close(handle)

    def fsync(self, before: Callable[[], None]) -> Callable[[int], None]:
        """In the place of `os.fsync`: the power may be cut before it has an effect."""
        real = os.fsync

        def fsync(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if path == self._folder or self._folder in path.parents:
                before()
                real(handle)
                self._note(Path(f"/proc/self/fd/{handle}"))
            else:
                real(handle)

        return fsync

    def _note(self, path: Path) -> None:
        """All that is there now is durable."""
        handle = os.open(path, os.O_RDONLY)
        self._kept.append(handle)
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = _listing(path)
        else:
            self._contents[found.st_ino] = path.read_bytes()

    def leave(self, target: Path, names: Names) -> None:
        """Write what a reboot would leave into a new folder."""
        self._leave(self._folder, self._folder.stat().st_ino, target, names)

    def _leave(self, now: Path, inode: int, target: Path, names: Names) -> None:
        target.mkdir(mode=0o700)
        there = _listing(now) if now.is_dir() else {}
        durable = self._names.get(inode, {}) if names == "durable" else there
        kept = {name: found for name, found in durable.items() if not name.endswith(_IN_MEMORY)}
        kept |= {name: found for name, found in there.items() if _SQLITE.fullmatch(name) and name not in _MADE_BY_US}
        for name, found in kept.items():
            if stat.S_ISDIR(found.st_mode):
                self._leave(now / name, found.st_ino, target / name, names)
            elif _SQLITE.fullmatch(name) and name in there:
                (target / name).write_bytes((now / name).read_bytes())
            else:
                content = self._contents.get(found.st_ino, b"")
                if names == "now":
                    content = content[: found.st_size].ljust(found.st_size, b"\0")
                (target / name).write_bytes(content)


def _listing(folder: Path) -> dict[str, os.stat_result]:
    return {path.name: path.stat() for path in folder.iterdir()}
