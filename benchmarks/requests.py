"""(b) Strings → request files with exact token counts: composites that were never counted before.

    python -m benchmarks.requests [--strings 50000] [--runs 5] [--folder DIR]      the full size: --strings 1000000

The product is what batch mode does before it uploads: preflight, which counts every token and keeps the counts, the
budget, and job after job until nothing is pending, each file durable. It starts from a checkpoint that holds the
strings and nothing else, restored before each run. The floor counts with the same tokenizer in as many processes as
there are cores, writes the very same lines, and does nothing else: no table of counts, no ledger, no fsync. The rival is
the plain way: one text at a time through tiktoken and `json.dumps`, every line in a list until the end.

The files of all three are compared byte by byte. Disk: some 3 GB for a million strings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.generated import UNSENT, copied, preprocess, write_config, write_records
from benchmarks.racing import calling, cpu, race, report, seconds

BAR = 1.3


def contest(folder: Path, strings: int, runs: int) -> None:
    write_records(folder / "records.csv", strings)
    config = write_config(folder, ("composite",), **UNSENT)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    preprocess(config)
    shutil.rmtree(folder / "pristine", ignore_errors=True)
    (folder / "checkpoints").rename(folder / "pristine")

    def product() -> Sequence[str]:
        copied(folder / "pristine", folder / "checkpoints")
        return calling("benchmarks.generated:count_and_prepare", folder, "keep")

    taken = race(
        {
            "product: preflight, then job after job": product,
            "floor: counting and writing alone": lambda: calling("benchmarks.requests_alone:floor", folder),
            "rival: tiktoken, json.dumps and a list": lambda: calling("benchmarks.requests_alone:rival", folder),
        },
        runs,
    )
    _compare(folder)
    said = [json.loads(of_one[-1].said) for of_one in taken.values()]
    if len({one["tokens"] for one in said}) > 1:
        sys.exit(f"the tokens differ: {[one['tokens'] for one in said]}")
    ours, other, plain = (seconds(of_one) for of_one in taken.values())
    computed = [cpu(of_one) for of_one in taken.values()]
    report(
        f"(b) Strings to request files, {said[0]['requests']:,} composites, {said[0]['tokens']:,} tokens, "
        f"{said[0]['bytes'] / 1e6:,.0f} MB in {said[0]['jobs']} files",
        taken,
        [
            f"{ours / other:.2f} x the floor (bar: {BAR}), by seconds computed {computed[0] / computed[1]:.2f} x",
            f"{plain / ours:.2f} x as fast as the rival; all files are the same, byte by byte",
        ],
    )


def _compare(folder: Path) -> None:
    """The same files from all three; else their times say nothing."""
    found = {name: dict(_contents(folder / name)) for name in ("checkpoints", "floor", "rival")}
    for name, files in found.items():
        if list(files) != list(found["checkpoints"]):
            sys.exit(f"{name} wrote {len(files)} files, the product {len(found['checkpoints'])}")
        for file, path in files.items():
            if path.read_bytes() != found["checkpoints"][file].read_bytes():
                sys.exit(f"{path} differs from what the product wrote")


def _contents(folder: Path) -> Iterator[tuple[str, Path]]:
    return ((path.name, path) for path in sorted(folder.glob("batch_requests_*.jsonl")))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--strings", type=int, default=50_000)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    typed = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (typed.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        contest(folder, typed.strings, typed.runs)


if __name__ == "__main__":
    main()
