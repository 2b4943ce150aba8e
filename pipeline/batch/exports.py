"""What batch mode leaves for people: two pickles for notebooks, and request and result files for audit, up to a size.

The pickles hold plain Python values, are written for others and are never read back: nothing in this program loads a
pickle. Result files beyond `keep_results_gb` go, the oldest first, once their vectors are safe in the tables; their
sha256 stays in the ledger. The request file of a job that is not collected is never dropped.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from pipeline import spans as span_sets
from pipeline.checkpoint import write_list
from pipeline.context import Context
from pipeline.files import sha256_of
from pipeline.identity import custom_id
from pipeline.indexing import string_files
from pipeline.ledger import Generation, Job
from pipeline.log import event, logger
from pipeline.tables.duck import connect
from pipeline.tables.strings import read_strings

MOST_HASHES = 1_000_000  # beyond, the cost of a command would grow with all that was ever done
_log = logger(__name__)


def write_exports(context: Context, generation: Generation, *, embedded_more: bool) -> None:
    """`batch_jobs.pkl`, and `batch_processed_hashes.pkl` when it changed and is small enough; a stale one is removed."""
    root = context.place.root
    columns = [column.name for column in fields(Job)]  # not `asdict`, which copies each value deeply: 100 ms for 900 jobs
    jobs = [{name: getattr(job, name) for name in columns} for job in context.ledger.jobs.all()]
    write_list(root / "batch_jobs.pkl", pickle.dumps(jobs, protocol=4))
    hashes = root / "batch_processed_hashes.pkl"
    count = sum(span_sets.count(context.ledger.spans("embedded", generation.id, name)) for name in context.ledger.fields())
    if count > MOST_HASHES:
        write_list(hashes, None)
    elif embedded_more or not hashes.exists():
        write_list(hashes, pickle.dumps(sorted(_names(context, generation)), protocol=4))


def _names(context: Context, generation: Generation) -> Iterator[str]:
    """The custom_id of each embedded string: CRC32, field and row number."""
    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    try:
        for name in context.ledger.fields():
            embedded = context.ledger.spans("embedded", generation.id, name)
            for batch in read_strings(duck, string_files(context.place, context.ledger, name), embedded):
                for row, text in zip(batch.column("row").to_pylist(), batch.column("text").to_pylist(), strict=True):
                    yield custom_id(name, row, text)
    finally:
        duck.close()


def drop_old_results(context: Context) -> int:
    """Keep the files of collected jobs up to `keep_results_gb`; how many were dropped."""
    kept = [(job, path) for job in context.ledger.jobs.all(("collected", "returned")) for path in _files(context, job)]
    over = sum(path.stat().st_size for _, path in kept) - context.config.keep_results_gb * 1e9
    dropped = 0
    for job, path in kept:
        if over <= 0:
            break
        over -= path.stat().st_size
        context.ledger.set_meta(f"sha256 of {path.name}", sha256_of(path))
        path.unlink()
        dropped += 1
        event(_log, "audit.dropped", job=job.id, file=path.name)
    return dropped


def _files(context: Context, job: Job) -> list[Path]:
    named = (job.request_name, job.result_name, job.error_name)
    return [path for name in named if (path := context.place.data / name).exists()]
