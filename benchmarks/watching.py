"""A process from outside while it runs: its peak memory, that of all its processes together, and what its folder takes.

Memory is what the kernel counts as resident. The peak of the process itself is the kernel's own mark (VmHWM); the sum
over it and its children is looked at twenty times a second, and counts a page that two of them share for each. Where
the kernel has no /proc, only the first is known. Disk is what the files of a folder occupy, hidden ones of DuckDB
included.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 0.05
_LOOKS_A_WALK = 10  # a folder is walked through more seldom: that costs a call for each file


@dataclass(slots=True)
class Seen:
    """The highest of what was seen, in bytes, and the least that the folder's disk had free. `before` is what the folder took
    when the watch began."""

    own: int = 0
    together: int = 0
    disk: int = 0
    before: int = 0
    free: int = 0


class Watch:
    """A thread that looks until it is stopped."""

    def __init__(self, pid: int, folder: Path | None = None) -> None:
        before = occupied(folder) if folder is not None else 0
        free = shutil.disk_usage(folder).free if folder is not None else 0
        self.seen = Seen(before=before, disk=before, free=free)
        self._pid = pid
        self._folder = folder
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> Seen:
        self._stopped.set()
        self._thread.join()
        return self.seen

    def _look(self) -> None:
        number = 0
        while True:
            own, _ = _memory(self._pid)
            self.seen.own = max(self.seen.own, own)
            self.seen.together = max(self.seen.together, sum(_memory(pid)[1] for pid in _family(self._pid)))
            if self._folder is not None:
                self.seen.free = min(self.seen.free, shutil.disk_usage(self._folder).free)
                if number % _LOOKS_A_WALK == 0:
                    self.seen.disk = max(self.seen.disk, occupied(self._folder))
            number += 1
            if self._stopped.wait(_LOOK_SECONDS):
                return


def own_peak() -> int:
    """The most that this process held, in bytes."""
    return _memory(os.getpid())[0] or _of_usage(resource.getrusage(resource.RUSAGE_SELF))


def peak_of(used: resource.struct_rusage, seen: Seen) -> int:
    """The peak of a process that has ended. What the kernel says then is exact, but inherits the peak of the process that
    started it: where that is higher, what was seen counts."""
    said = _of_usage(used)
    return said if said > own_peak() * 1.05 or not seen.own else seen.own


def _of_usage(used: resource.struct_rusage) -> int:
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory(pid: int) -> tuple[int, int]:
    """(highest, now) of a process, in bytes; nothing of one that is gone."""
    try:
        words = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: line.split()[1] for line in words.splitlines() if line.startswith(("VmHWM", "VmRSS"))}
    return int(found.get("VmHWM", 0)) * 1024, int(found.get("VmRSS", 0)) * 1024


def _family(pid: int) -> Iterator[int]:
    """A process and what it started, and what that started."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                yield from _family(int(child))


def occupied(folder: Path) -> int:
    """What the files of a folder occupy on disk, in bytes."""
    total = 0
    with contextlib.suppress(OSError):  # a folder that goes meanwhile
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += occupied(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
