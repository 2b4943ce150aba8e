"""(c) The result file of a batch job, vectors of 1,536 numbers → vectors on disk.

    python -m benchmarks.collecting [--rows 2000] [--encoding float|base64|both] [--runs 5] [--folder DIR]
                                                                                  the full size: --rows 50000

The product is `collect_job` on a job whose result file is downloaded already: each line proved by its CRC32, each
vector looked at, a durable Parquet file, one ledger commit; only the files at the service, deleted afterwards, are
nobody's. The floor is the bare libraries doing only that work, with the same output: msgspec decodes the lines in as many
processes as there are cores, each vector becomes float32, and pyarrow writes a durable table in the order of the rows;
no check of anything, no hash, no ledger. `bare` beside it stops before the table: raw float32 in the order of the lines,
which the disk may forget. The rival is the plain way, `json.loads` of a file of FLOAT text, whatever the product reads,
a list of arrays and `np.save`.

Lines are in no order, as a service writes them. What product and floor wrote is compared number by number. Memory is
that of the main process, and of all its processes together. Disk: 4 GB for 50,000 rows.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.collecting_alone import WIDTH
from benchmarks.generated import opened, write_config
from benchmarks.racing import calling, peak, race, report, seconds, together
from pipeline.batch.collect import collect_job
from pipeline.ledger import Job, TableFile
from pipeline.provider.batch_client import BatchClient
from pipeline.tables.duck import connect
from pipeline.tables.embeddings import matrix_of

BARS = {"float": 2.5, "base64": 5.0}
_FLOOR_BAR = 1.5
_MEMORY_BAR = 400
_KINDS = 64  # different vectors: as text they take long to make, and the reader does not know
_SEED = 7


def text_of(row: int) -> str:
    return f"Person {row}, of somewhere or other, 1685-1750"


def kinds() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Unit vectors, as a service gives them."""
    vectors = np.random.default_rng(_SEED).standard_normal((_KINDS, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def shown(encoding: str) -> list[bytes]:
    """Each of them as JSON."""
    if encoding == "base64":
        return [b'"%b"' % base64.b64encode(vector.astype("<f4").tobytes()) for vector in kinds()]
    return [json.dumps([float(value) for value in vector]).encode() for vector in kinds()]


def write_results(path: Path, names: Sequence[str], encoding: str) -> None:
    """A result file for these custom_ids, in no order; the vector of the name at place i is kind i modulo their number."""
    vectors = shown(encoding)
    with path.open("wb") as file:
        for place in np.random.default_rng(_SEED + 1).permutation(len(names)).tolist():
            file.write(
                b'{"id": "batch_req_%d", "custom_id": "%b", "response": {"status_code": 200, "request_id": "r", "body": {"object": '
                b'"list", "data": [{"object": "embedding", "index": 0, "embedding": %b}], "model": "text-embedding-3-small", '
                b'"usage": {"prompt_tokens": 12, "total_tokens": 12}}}, "error": null}\n'
                % (place, names[place].encode(), vectors[place % _KINDS])
            )


def make(folder: Path, rows: int) -> None:
    """A checkpoint with the strings of one job that has ended, and its result file in both encodings."""
    config = write_config(
        folder,
        ("person",),
        embedding_service="http://127.0.0.1:9/v1",
        service_name="made",
        embedding_model="text-embedding-3-small",
        vector_store="none",
    )
    texts = [text_of(row) for row in range(rows)]
    with opened(config) as (context, generation):
        ledger, name = context.ledger, "strings_person_000001.parquet"
        pq.write_table(pa.table({"row": pa.array(range(rows), pa.int64()), "text": texts}), context.place.tables / name)
        ledger.add_file(TableFile("strings", "", "person", name, rows, 0, rows, 0, "", 0.0))
        job = Job(1, generation.id, "ended", rows, 0, rows * 12, 0.01, "", 0.0, "in", 0.0, "b", "completed", 0.0, 0.0, "out", None)
        ledger.jobs.add(job, {"person": [(0, rows)]})
    names = [f"{zlib.crc32(text.encode()):08x}_person_{row}" for row, text in enumerate(texts)]
    for encoding in BARS:
        write_results(folder / f"{encoding}.jsonl", names, encoding)


class Nobody(BatchClient):
    """The service of a job that is downloaded already: its files are deleted, and nothing else is asked."""

    def __init__(self) -> None:
        """Nothing to open."""

    def delete(self, file: str) -> str:  # noqa: ARG002
        return "deleted"


def collect(name: str) -> None:
    """Collect the jobs that have ended."""
    with opened(Path(name) / "config.yml") as (context, _):
        duck = connect(context.place.scratch, context.config.memory_limit_gb)
        for job in context.ledger.jobs.all(("ended",)):
            done = collect_job(context, Nobody(), duck, job)
            if (done.state, done.embedded) != ("collected", job.requests):
                sys.exit(f"job {job.id} is {done.state}: {done.embedded} of {job.requests} embedded")
        duck.close()


def contest(folder: Path, rows: int, encoding: str, runs: int) -> None:
    place = folder / "checkpoints"

    def fresh() -> Sequence[str]:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "pristine", place)
        (place / "batch_results_0001.jsonl").hardlink_to(folder / f"{encoding}.jsonl")
        return calling("benchmarks.collecting:collect", folder)

    taken = race(
        {
            "product: collecting the job": fresh,
            "floor: msgspec, float32 and the same table": lambda: calling("benchmarks.collecting_alone:floor", folder, encoding),
            "bare: msgspec, float32, raw and unordered": lambda: calling("benchmarks.collecting_alone:bare", folder, encoding),
            "rival: json.loads of float text": lambda: calling("benchmarks.collecting_alone:rival", folder),
        },
        runs,
    )
    _compare(folder, rows)
    ours, other, raw, plain = taken.values()
    size = (folder / f"{encoding}.jsonl").stat().st_size / 1e6
    ratio, times = seconds(ours) / seconds(other), seconds(plain) / seconds(ours)
    report(
        f"(c) A result file of {rows:,} x {WIDTH:,} as {encoding}, {size:,.0f} MB",
        taken,
        [
            f"{ratio:.2f} x the floor (bar: {_FLOOR_BAR}); {seconds(ours) / seconds(raw):.2f} x the bare one",
            f"{times:.2f} x as fast as the rival (bar: {BARS[encoding]})",
            f"peak memory: main process {peak(ours):.0f} MB, with its processes {together(ours):.0f} MB (bar: {_MEMORY_BAR})",
            "(a page that two of them share is counted for each)",
        ],
    )


def _compare(folder: Path, rows: int) -> None:
    """Product and floor have every vector, and the right one."""
    vectors = kinds()
    tables = {
        "the product": (folder / "checkpoints" / "tables").glob("embeddings_*.parquet"),
        "the floor": (folder / "floor").glob("*.parquet"),
    }
    for whose, paths in tables.items():
        found = 0
        for path in paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(4096):
                    numbers = batch.column("row").to_numpy()
                    found += int((matrix_of(batch.column("vector")) == vectors[numbers % _KINDS]).all(axis=1).sum())
        if found != rows:
            sys.exit(f"{whose} has {found} right vectors of {rows}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("--encoding", choices=[*BARS, "both"], default="both")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    typed = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (typed.folder or Path(made)).resolve()
        for name in ("checkpoints", "pristine"):
            shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, typed.rows)
        (folder / "checkpoints").rename(folder / "pristine")
        for encoding in BARS if typed.encoding == "both" else [typed.encoding]:
            contest(folder, typed.rows, encoding, typed.runs)


if __name__ == "__main__":
    main()
