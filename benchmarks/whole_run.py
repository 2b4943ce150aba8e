"""(g) Whole runs, CSV to embeddings and index, in both modes, against a service that answers at once.

    python -m benchmarks.whole_run [--records 2000] [--dimensions 1536] [--runs 3] [--folder DIR]
                                                                            the full size: --records 100000

The product is `main.py` on a fresh checkpoint: real time with `vector_store` none and embedded, then batch mode with
both. Tokens are counted exactly, as for OpenAI. The service (`benchmarks/instant_service.py`) is another process of
this machine. The floor of real time is the SDK alone, with as many threads, the same requests and nothing else: the
vectors are thrown away. That of batch mode uploads the same request files, creates the batches and reads the results
to their end, one after the other. Automatic mode looks at its jobs once a second here, the shortest that it knows:
that second of waiting, once a round, is in its time.

Two unique strings a record. Disk: 8 GB for 100,000 records.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

from benchmarks.generated import UNSENT, main_py, opened, write_config, write_records
from benchmarks.instant_service import running
from benchmarks.racing import append, calling, peak, race, seconds
from pipeline import spans as span_sets
from pipeline.indexing import string_files
from pipeline.realtime import pack
from pipeline.tables.duck import connect, parquet

_MODEL = str(UNSENT["embedding_model"])


def floor_realtime(name: str, url: str) -> None:
    """The requests of real time by the SDK alone, in as many threads as the product's."""
    client = openai.OpenAI(api_key="none", base_url=url, max_retries=0)
    with opened(Path(name) / "config.yml", batches=False) as (context, _):
        duck = connect(context.place.scratch, context.config.memory_limit_gb)
        workers = context.config.max_concurrent_requests

        def ask(texts: Sequence[str]) -> int:
            answer = client.embeddings.with_raw_response.create(model=_MODEL, input=list(texts), encoding_format="base64")
            return len(answer.http_response.content)

        sent = 0
        with ThreadPoolExecutor(workers) as pool:
            for field in context.fields:
                files = string_files(context.place, context.ledger, field)
                tokens = [context.place.tables / file.name for file in context.ledger.files("tokens", field=field)]
                query = f"SELECT row, text, tokens FROM {parquet(files)} JOIN {parquet(tokens)} counted USING (row) ORDER BY row"
                strings = iter(duck.execute(query).fetchall())
                chunks = pack(field, strings, context.config.max_inputs_per_request)
                sent += sum(1 for _ in pool.map(ask, (chunk.texts for chunk in chunks)))
        duck.close()
    print(sent)


def floor_batch(name: str, url: str) -> None:
    """The same request files up, and their results down."""
    client = openai.OpenAI(api_key="none", base_url=url, max_retries=0)
    for path in sorted((Path(name) / "checkpoints").glob("batch_requests_*.jsonl")):
        with path.open("rb") as file:
            sent = client.files.create(file=(path.name, file, "application/jsonl"), purpose="batch")
        made = client.batches.create(input_file_id=sent.id, endpoint="/v1/embeddings", completion_window="24h")
        found = client.batches.retrieve(made.id)
        with client.files.with_streaming_response.content(found.output_file_id or "") as response:
            for _ in response.iter_bytes(1 << 20):
                pass


def contest(folder: Path, records: int, dimensions: int, runs: int, url: str) -> None:
    write_records(folder / "records.csv", records)
    contestants: dict[str, Callable[[], Sequence[str]]] = {}

    def product(name: str, config: Path) -> Callable[[], Sequence[str]]:
        def fresh() -> Sequence[str]:
            shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)
            return main_py(config)

        return fresh

    for mode in ("realtime", "batch"):
        for store in ("none", "embedded"):
            (folder / f"{mode}-{store}").mkdir(exist_ok=True)
            settings = {
                **UNSENT,
                "input": str(folder / "records.csv"),
                "embedding_service": url,
                "embedding_dimensions": dimensions,
                "use_batch_embeddings": mode == "batch",
                "batch_poll_interval": 1,
                "vector_store": store,
            }
            contestants[f"product: {mode}, index {store}"] = product(
                f"{mode}-{store}", write_config(folder / f"{mode}-{store}", **settings)
            )
    # After the product: it left the strings and the request files that these need.
    for mode in ("realtime", "batch"):
        function = f"benchmarks.whole_run:floor_{mode}"
        contestants[f"floor: {mode}, the SDK alone"] = lambda f=function, m=mode: calling(f, folder / f"{m}-none", url)  # type: ignore[misc]
    taken = race(contestants, runs)
    strings = {
        _embedded(folder / f"{mode}-{store}" / "config.yml") for mode in ("realtime", "batch") for store in ("none", "embedded")
    }
    if len(strings) > 1:
        sys.exit(f"not every run embedded the same: {strings}")
    (count,) = strings
    lines = [f"{'':<36}{'median':>10}{'strings/s':>12}{'peak':>10}{'x its floor':>14}"]
    for name, of_one in taken.items():
        floor = seconds(taken[f"floor: {'batch' if 'batch' in name else 'realtime'}, the SDK alone"])
        taking = seconds(of_one)
        lines.append(f"{name:<36}{taking:>8.2f} s{count / taking:>12,.0f}{peak(of_one):>7.0f} MB{taking / floor:>12.2f} x")
    append(f"(g) Whole runs, {records:,} records, {count:,} strings, {dimensions:,} dimensions", lines)


def _embedded(config: Path) -> int:
    with opened(config) as (context, generation):
        ledger = context.ledger
        return sum(span_sets.count(ledger.spans("embedded", generation.id, name)) for name in context.fields)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--records", type=int, default=2000)
    options.add_argument("--dimensions", type=int, default=1536)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    typed = options.parse_args()
    with tempfile.TemporaryDirectory() as made, running(typed.dimensions) as url:
        folder = (typed.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        contest(folder, typed.records, typed.dimensions, typed.runs, url)


if __name__ == "__main__":
    main()
