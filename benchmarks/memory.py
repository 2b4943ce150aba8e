"""Peak memory of each step, with more and more strings: it should not grow with them.

    python -m benchmarks.memory [--sizes 10000,30000,100000] [--folder DIR]      the full sizes: --sizes 100000,1000000,10000000

The steps are preprocessing, counting with the request files that follow, and collecting one job; each in a process of
its own, by the product's own commands and functions. Jobs hold `--requests` strings in every size, so that what is
compared is the catalogue's size alone; the job's result is base64, of 1,536 numbers. Then all strings go through real
time, at a service that answers at once with vectors of a few numbers, into the embedded index, and out again. What is
mapped of the index's file counts as memory, and is not bounded: a search reads it whole. `together` is the peak over the
process and all that it starts, where it starts any. Disk: 20 GB for 10 million strings, and half an hour.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.collecting import write_results
from benchmarks.generated import UNSENT, main_py, opened, preprocess, write_config, write_records
from benchmarks.instant_service import running
from benchmarks.racing import Run, append, calling, run

_DIMENSIONS = 16
_NAME = re.compile(rb'"custom_id":"([^"]+)"')


def end_a_job(name: str) -> None:
    """The first job as if the service were done with it: its result file is downloaded."""
    with opened(Path(name) / "config.yml") as (context, _):
        job = context.ledger.jobs.get(1)
        names = [found[1].decode() for found in _NAME.finditer((context.place.root / job.request_name).read_bytes())]
        write_results(context.place.root / job.result_name, names, "base64")
        context.ledger.jobs.change(1, state="ended", input_file="in", batch="b", status="completed", output_file="out")


def measure(folder: Path, strings: int, requests: int) -> dict[str, Run]:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_records(folder / "records.csv", max(1, strings // 2), max(1, strings // 6), max(1, strings // 3))
    config = write_config(folder, **UNSENT, batch_embedding_size=requests)
    found = {
        "preprocessing": preprocess(config),
        "counting and request files": run(calling("benchmarks.generated:count_and_prepare", folder, "keep")),
    }
    run(calling("benchmarks.memory:end_a_job", folder))
    found["collecting a job"] = run(calling("benchmarks.collecting:collect", folder))
    shutil.rmtree(folder / "checkpoints")
    with running(_DIMENSIONS) as url:
        write_config(
            folder, **UNSENT | {"embedding_service": url, "embedding_dimensions": _DIMENSIONS, "use_batch_embeddings": False}
        )
        preprocess(config)
        found["real time"] = run(main_py(config))
    for step, *typed in (
        ("the embedded index", "--reindex"),
        ("--verify", "--verify"),
        ("--dry-run", "--dry-run"),
        ("--export-embeddings", "--export-embeddings", str(folder / "out.parquet")),
        ("--export-occurrences", "--export-occurrences", str(folder / "out.csv")),
        ("--status", "--status"),
    ):
        found[step] = run(main_py(config, "--set", "vector_store=embedded", *typed))
        print(
            f"  {strings:,} strings, {step}: {found[step].seconds:.1f} s, {found[step].peak_mb:.0f} MB", file=sys.stderr, flush=True
        )
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", default="10000,30000,100000", help="numbers of strings, with commas between")
    options.add_argument("--requests", type=int, default=5000, help="strings in a job")
    options.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    typed = options.parse_args()
    sizes = [int(size) for size in typed.sizes.split(",")]
    found: dict[int, dict[str, Run]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = (typed.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for size in sizes:
            found[size] = measure(folder, size, typed.requests)
    lines = [f"{'':<30}" + "".join(f"{f'{size:,} strings':>22}" for size in sizes)]
    for step in found[sizes[0]]:
        lines.append(f"{step:<30}" + "".join(f"{found[size][step].peak_mb:>19,.0f} MB" for size in sizes))
        if any(found[size][step].together_mb > found[size][step].peak_mb * 1.05 for size in sizes):
            lines.append(f"{'  together':<30}" + "".join(f"{found[size][step].together_mb:>19,.0f} MB" for size in sizes))
    append("Peak memory of each step", lines)


if __name__ == "__main__":
    main()
