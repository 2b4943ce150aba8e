"""(h) Very many strings through preprocessing, preflight and prepare: does it end, in what memory, on what disk?

    python -m benchmarks.large --folder DIR [--strings 100000] [--reuse]      the full size: --strings 45000000
    python -m benchmarks.large --folder DIR --small-disk                  a disk that is too small; needs root, for a tmpfs

Each step is a process of its own, so that its peak memory is its own. Limits are lifted (`openai_tier`,
`max_enqueued_*`), tokens are counted exactly as for OpenAI, nothing is uploaded: each request file is measured and
deleted as soon as it is written, and the next is prepared. Of the strings a sixth are persons, a third titles and half
composites; the input is made first, as a stream, and is in no figure. Disk is what the folder of the checkpoint took
beyond what it took when the step began, looked at twice a second. With --reuse the input that lies in the folder is
taken.

Needs for 45 million strings: 4 GB of disk for the input and 8 GB beside it, and a quarter of an hour. There is no floor
here: (a) and (b) have them.

The small disk: a tmpfs of some megabytes holds the checkpoint, the input lies outside. Jobs are really opened at the
local service, and their results need room: the run is to stop with the reason while there is still room.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.generated import UNSENT, main_py, write_config, write_records
from benchmarks.racing import ROOT, Run, append, calling, run
from benchmarks.watching import occupied

_MEMORY_BAR_GB = 4.0


def whole(folder: Path, strings: int, *, reuse: bool) -> None:
    records = folder / "records.csv"
    if not (reuse and records.exists()):
        write_records(records, max(1, strings // 2), max(1, strings // 6), max(1, strings // 3))
    config = write_config(folder, **UNSENT)
    place = folder / "checkpoints"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    steps = {
        "preprocessing": main_py(config, "--end", "preprocessing"),
        "preflight, with exact counts": calling("benchmarks.generated:count_alone", folder),
        "prepare": calling("benchmarks.generated:prepare_alone", folder),
    }
    lines = [f"{'':<32}{'time':>12}{'computed':>12}{'peak':>11}{'together':>11}{'disk at peak':>14}{'disk after':>13}"]
    done: dict[str, Run] = {}
    for name, command in steps.items():
        done[name] = found = run(command, place)
        print(f"  {name}: {found.seconds:,.0f} s", file=sys.stderr, flush=True)
        lines.append(
            f"{name:<32}{found.seconds:>10,.1f} s{found.cpu:>10,.1f} s{found.peak_mb:>8,.0f} MB{found.together_mb:>8,.0f} MB"
            f"{found.disk_mb:>11,.0f} MB{occupied(place) / 2**20:>10,.0f} MB"
        )
    told = json.loads(done["prepare"].said)
    highest = max(one.together_mb for one in done.values()) / 1024
    sent, largest, read = (size / 1e6 for size in (told["bytes"], told["largest_file"], records.stat().st_size))
    lines.append(
        f"{told['requests']:,} requests and {told['tokens']:,} tokens in {told['jobs']:,} jobs; files: {sent:,.0f} MB in all, "
        f"the largest {largest:,.0f} MB; input: {read:,.0f} MB"
    )
    lines.append(
        f"{sum(one.seconds for one in done.values()):,.0f} s in all; peak memory {highest:.2f} GB (bar: {_MEMORY_BAR_GB:g})"
    )
    append(f"(h) {told['requests']:,} strings through preprocessing, preflight and prepare", lines)


def small_disk(folder: Path, strings: int) -> None:
    """The checkpoint on a disk that the results of its jobs do not fit on."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        print("--small-disk: skipped: it mounts a tmpfs, which only root may do.")
        return
    write_records(folder / "records.csv", max(1, strings // 2), max(1, strings // 6), max(1, strings // 3))
    lines: list[str] = []
    # What the tables need is known from a disk with room. Then there is room for them and not for every result; then for
    # less and less of the tables.
    needed = _needed(folder)
    for name, size in (
        ("room for the tables, not for the results", needed * 3 + (32 << 20)),
        *((f"{share:g} times what the tables take in the end", int(needed * share)) for share in (4, 3, 2, 1)),
    ):
        place = folder / "small"
        place.mkdir(exist_ok=True)
        # Such a service is asked for nothing else than room: results of 384 numbers.
        config = write_config(folder, checkpoint_dir="small/checkpoints", use_batch_embeddings=True, batch_embedding_size=2000)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)  # noqa: S607
        try:
            lines += _tried(name, config, place, size)
        finally:
            subprocess.run(["umount", str(place)], check=True)  # noqa: S607
    append(f"(h) A disk that is too small, {strings:,} strings", lines)


def _needed(folder: Path) -> int:
    config = write_config(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    run(main_py(config, "--end", "preprocessing"))
    return occupied(folder / "checkpoints")


def _tried(name: str, config: Path, place: Path, size: int) -> list[str]:
    """What the commands say one after the other, until one stops; how little room there ever was."""
    lines = [f"{name}: {size / 2**20:,.0f} MB"]
    manager = [sys.executable, str(ROOT / "batch_manager.py"), "--config", str(config), "--quiet", "--create"]
    for command in (main_py(config, "--end", "preprocessing"), manager):
        found = run(command, place, may_end=(0, 1))
        free = shutil.disk_usage(place).free
        said = re.sub(r"\s+", " ", found.said).replace(str(place), "…").strip()
        stopped = [sentence for sentence in found.said.splitlines() if re.search(r"disk|space|written", sentence)]
        lines.append(
            f"  {Path(command[1]).name}: {'stopped' if stopped else 'went through'}; never less than {found.free_mb:,.1f} MB free, "
            f"{free / 2**20:,.1f} MB afterwards"
        )
        if stopped:
            lines.append(f"    {said[-400:]}")
            break
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--strings", type=int, default=100_000)
    options.add_argument("--folder", type=Path, required=True, help="where to work, on a disk with room")
    options.add_argument("--reuse", action="store_true", help="take the input that an earlier run left in the folder")
    options.add_argument("--small-disk", action="store_true", help="the second part, instead of the first")
    typed = options.parse_args()
    folder = typed.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if typed.small_disk:
        small_disk(folder, typed.strings)
    else:
        whole(folder, typed.strings, reuse=typed.reuse)


if __name__ == "__main__":
    main()
