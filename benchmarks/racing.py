"""What benchmarks share: contestants are processes, run in turn; wall time and peak memory of each, medians, ratios.

The peak is that of the process itself; where it starts others, also that of all together (`watching.py`).

Every figure is printed beside what it is measured against in the same run, and appended to `results.md` with the date
and the machine.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.watching import Seen, Watch, peak_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results.md")


@dataclass(frozen=True, slots=True)
class Run:
    """One process: its wall time, the most memory that it held at a time, and that it held with all that it started; the
    seconds that all of them computed; and of a folder, the most that it took meanwhile beyond what it took before, and the
    least that its disk had left."""

    seconds: float
    peak_mb: float
    together_mb: float = 0.0
    cpu: float = 0.0
    disk_mb: float = 0.0
    free_mb: float = 0.0
    said: str = ""


def run(command: Sequence[str], folder: Path | None = None, may_end: Sequence[int] = (0,)) -> Run:
    """A process to its end, in the project's folder; its output is shown when it fails. A folder is watched if given."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT) as process:
            watch = Watch(process.pid, folder)
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            seen: Seen = watch.stop()
        said.seek(0)
        words = said.read().decode(errors="replace")
        if process.returncode not in may_end:
            sys.exit(f"{' '.join(command)}\n{words}")
    peak = peak_of(used, seen)
    return Run(
        seconds,
        peak / 2**20,
        max(peak, seen.together) / 2**20,
        used.ru_utime + used.ru_stime,
        (seen.disk - seen.before) / 2**20,
        seen.free / 2**20,
        words,
    )


def calling(function: str, *arguments: object) -> list[str]:
    """The command that calls `module:function` with some texts. Not by `-m`: a process that it starts would import that module
    too, which is none of the work."""
    call = "import importlib, sys; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])"
    return [sys.executable, "-c", call, *function.split(":"), *map(str, arguments)]


def race(contestants: dict[str, Callable[[], Sequence[str]]], runs: int) -> dict[str, list[Run]]:
    """Each in turn, so often, so that a machine that gets slower meanwhile does so for all. A contestant is a function that
    clears what its last run left and gives the command."""
    taken: dict[str, list[Run]] = {name: [] for name in contestants}
    for number in range(runs):
        for name, prepare in contestants.items():
            taken[name].append(run(prepare()))
            print(f"  run {number + 1}: {name} {taken[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
    return taken


def seconds(runs: Iterable[Run]) -> float:
    return statistics.median(one.seconds for one in runs)


def peak(runs: Iterable[Run]) -> float:
    return max(one.peak_mb for one in runs)


def together(runs: Iterable[Run]) -> float:
    return max(one.together_mb for one in runs)


def cpu(runs: Iterable[Run]) -> float:
    return statistics.median(one.cpu for one in runs)


def report(title: str, taken: dict[str, list[Run]], notes: Iterable[str]) -> None:
    """Print the medians, and append them to the results. The first contestant is the product."""
    product = seconds(next(iter(taken.values())))
    lines = [f"{'':<42}{'median':>10}{'computed':>11}{'peak':>10}{'together':>10}{'product takes':>16}"]
    for name, runs in taken.items():
        lines.append(
            f"{name:<42}{seconds(runs):>8.2f} s{cpu(runs):>9.2f} s{peak(runs):>7.0f} MB{together(runs):>7.0f} MB"
            f"{product / seconds(runs):>14.2f} x"
        )
    append(title, [*lines, *notes])


def append(title: str, lines: Iterable[str]) -> None:
    text = "\n".join(lines)
    print(f"\n{title}\n{text}")
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(f"\n## {title}\n\n{when}, {machine()}, `{_command()}`\n\n```\n{text}\n```\n")


def _command() -> str:
    """As it was typed, but for the folder: that is a place on somebody's machine."""
    words = sys.orig_argv[1:]
    return " ".join("DIR" if before == "--folder" else word for before, word in zip(["", *words], words, strict=False))


def machine() -> str:
    """In the system's words; nothing that would name it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"
