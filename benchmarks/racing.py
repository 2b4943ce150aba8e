"""What benchmarks share: contestants are processes, run in turn; wall time and peak memory of each, medians, ratios.

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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results.md")


@dataclass(frozen=True, slots=True)
class Run:
    """One process: its wall time, and the most memory that it held at a time."""

    seconds: float
    peak_mb: float


def run(command: Sequence[str]) -> Run:
    """A process to its end, in the project's folder; its output is shown when it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT) as process:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\n{said.read().decode(errors='replace')}")
    return Run(seconds, used.ru_maxrss / 1024)  # in kB here; macOS tells bytes


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


def report(title: str, taken: dict[str, list[Run]], notes: Iterable[str]) -> None:
    """Print the medians, and append them to the results. The first contestant is the product."""
    product = seconds(next(iter(taken.values())))
    lines = [f"{'':<42}{'median':>10}{'peak':>10}{'product takes':>16}"]
    for name, runs in taken.items():
        lines.append(f"{name:<42}{seconds(runs):>8.2f} s{peak(runs):>7.0f} MB{product / seconds(runs):>14.2f} x")
    append(title, [*lines, *notes])


def append(title: str, lines: Iterable[str]) -> None:
    text = "\n".join(lines)
    print(f"\n{title}\n{text}")
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(f"\n## {title}\n\n{when}, {machine()}, `{' '.join(sys.orig_argv[1:])}`\n\n```\n{text}\n```\n")


def machine() -> str:
    """In the system's words; nothing that would name it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"
