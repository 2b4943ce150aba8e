"""How many objects a second get into a real Weaviate, confirmed: by us, by its client alone, and by langchain-weaviate.

    python -m benchmarks.weaviate_index [--objects 20000] [--dimensions 1536] [--repeats 3] [--async-indexing]
    python -m benchmarks.weaviate_index --memory [--objects 20000] [--times 10] [--async-indexing]

All write the same strings with the same vectors into one server on loopback, in turn, each time into a new collection
that is deleted afterwards; the next one starts when the server has come to rest. What is timed is the same for all: from
connecting, through creating the collection, to the last object that is confirmed. Ours begins with a checkpoint whose
strings are embedded, reads the tables, and ends with each UUID booked in the ledger; the others have all in memory.

--memory: the peak of a process that does nothing but index (`main.py`), for few objects and for many.
langchain-weaviate is no dependency: pip install -r requirements-dev.txt -r benchmarks/requirements.txt
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401  # here, so that no run is the one that loads it
import pyarrow.parquet  # noqa: F401
import weaviate
from weaviate.classes.data import DataObject

from benchmarks.catalogue import ROOT, make
from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.main import main as run_command
from pipeline.config import Config, load_config
from pipeline.indexing import Index, index_pending, open_index, start_over, strings_of
from pipeline.ledger import Generation, Ledger
from pipeline.retry import POLICY, SystemClock
from pipeline.stores import StoredString
from pipeline.stores.weaviate.connection import connect
from pipeline.stores.weaviate.schema import Marks, definition
from tests.weaviate_server import VERSION, WeaviateServer

INSTALL = "pip install -r requirements-dev.txt -r benchmarks/requirements.txt"
OURS, INSERT_MANY, DYNAMIC, LANGCHAIN = "ours", "(a) insert_many", "(b) batch.dynamic", "(c) langchain-weaviate"
GOALS = {INSERT_MANY: 0.9, DYNAMIC: 0.9, LANGCHAIN: 1.15}
ASYNC_GOALS = {INSERT_MANY: 0.9}
MEMORY_GOAL = 1.1
_CHUNK, _THREADS = 500, 2
_WARM_UP = 2000
_REST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What all contenders stand on."""

    server: WeaviateServer
    config: Config
    place: Checkpoint
    ledger: Ledger
    generation: Generation
    strings: list[StoredString]

    @property
    def schema(self) -> dict[str, Any]:
        marks = Marks(self.ledger.meta("catalogue_id") or "", self.generation.id, self.generation.dimensions)
        return definition(self.config, marks, self.generation)


@dataclass(frozen=True, slots=True)
class Run:
    """One contender, once. `cpu`: seconds that this process computed, which a busy machine changes less."""

    confirmed: int
    stored: int
    seconds: float
    cpu: float


class _NoBar:
    def advance(self, count: int) -> None:
        """Nobody watches."""


def opened(ground: Ground) -> Index:
    return open_index(ground.place, ground.ledger, ground.config, ground.generation, SystemClock(), POLICY)


# The contenders: each writes into a collection of its own, and gives back how many objects are confirmed.


def ours(ground: Ground, _name: str) -> int:
    with contextlib.closing(opened(ground)) as index:
        index_pending(index, _NoBar())
        return index.confirmed()


def by_insert_many(ground: Ground, name: str) -> int:
    with contextlib.closing(connect(ground.config)) as client:
        collection = client.collections.create(name, **ground.schema)

        def insert(part: Sequence[StoredString]) -> int:
            objects = [
                DataObject(uuid=string.uuid, properties=properties_of(string), vector=string.vector.tolist()) for string in part
            ]
            return len(collection.data.insert_many(objects).uuids)

        with ThreadPoolExecutor(_THREADS) as pool:
            parts = [ground.strings[start : start + _CHUNK] for start in range(0, len(ground.strings), _CHUNK)]
            return sum(pool.map(insert, parts))


def by_dynamic_batch(ground: Ground, name: str) -> int:
    with contextlib.closing(connect(ground.config)) as client:
        collection = client.collections.create(name, **ground.schema)
        with collection.batch.dynamic() as batch:
            for string in ground.strings:
                batch.add_object(uuid=string.uuid, properties=properties_of(string), vector=string.vector.tolist())
        return len(ground.strings) - len(collection.batch.failed_objects)


def by_langchain(ground: Ground, name: str) -> int:
    store = importlib.import_module("langchain_weaviate").WeaviateVectorStore
    vectors = [string.vector for string in ground.strings]
    with contextlib.closing(connect(ground.config)) as client:
        store.from_texts(
            [string.text for string in ground.strings],
            _Known(vectors),
            client=client,
            index_name=name,
            metadatas=[{key: value for key, value in properties_of(string).items() if key != "text"} for string in ground.strings],
            uuids=[str(string.uuid) for string in ground.strings],
        )
        return len(ground.strings) - len(client.batch.failed_objects)


class _Known:
    """LangChain's Embeddings, of texts that are embedded already."""

    def __init__(self, vectors: list[Any]) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for _, vector in zip(texts, self._vectors, strict=True)]


def properties_of(string: StoredString) -> dict[str, Any]:
    return {
        "text": string.text, "field": string.field, "crc32": string.crc32, "frequency": string.frequency, "model": string.model,
    }  # fmt: skip


CONTENDERS: dict[str, Callable[[Ground, str], int]] = {
    OURS: ours,
    INSERT_MANY: by_insert_many,
    DYNAMIC: by_dynamic_batch,
    LANGCHAIN: by_langchain,
}


# Measuring


def timed(contender: str, ground: Ground) -> Run:
    """One run, and then the server as if it had not been."""
    name = f"{ground.config.collection}_{ground.generation.id}" if contender == OURS else "Contender"
    start, cpu = time.perf_counter(), time.process_time()
    confirmed = CONTENDERS[contender](ground, name)
    taken, computed = time.perf_counter() - start, time.process_time() - cpu
    with contextlib.closing(connect(ground.config)) as client:
        stored = client.collections.use(name).aggregate.over_all(total_count=True).total_count or 0
        if contender == OURS:
            with contextlib.closing(opened(ground)) as index:
                start_over(index)
            client.alias.delete(alias_name=ground.config.collection)
        else:
            client.collections.delete(name)  # and with it what waits in its queue to be indexed
        wait_for_rest(client, ground.server.pid)
    return Run(confirmed, stored, taken, computed)


def wait_for_rest(client: weaviate.WeaviateClient, pid: int) -> None:
    """Until nothing waits to be indexed, and the server does next to nothing."""
    deadline = time.monotonic() + _REST_SECONDS
    while time.monotonic() < deadline:
        before = _computed(pid)
        time.sleep(1)
        queued = sum(shard.vector_queue_length for node in client.cluster.nodes(output="verbose") for shard in node.shards or [])
        if not queued and _computed(pid) - before < 0.1:
            return
    sys.exit(f"The server does not come to rest in {_REST_SECONDS:g} s.")


def _computed(pid: int) -> float:
    """The seconds that a process has computed; nothing where the kernel does not tell."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(folder: Path, *, async_indexing: bool) -> Iterator[WeaviateServer]:
    """Weaviate with its defaults for what costs time. LangChain leaves the schema to the server, so that is on for all."""
    environment = {"AUTOSCHEMA_ENABLED": "true", "GOMEMLIMIT": "8GiB", "ASYNC_INDEXING": str(async_indexing).lower()}
    with WeaviateServer(folder / "server", environment=environment) as server:
        yield server


def settings_for(server: WeaviateServer) -> list[str]:
    return [f"weaviate_url={server.url}", f"weaviate_grpc_port={server.grpc_port}"]


@contextlib.contextmanager
def ground_of(folder: Path, server: WeaviateServer, objects: int, dimensions: int) -> Iterator[Ground]:
    config = load_config(make(folder, objects, dimensions, settings_for(server)))
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with writing(place, "benchmarks.weaviate_index") as ledger:
        (generation,) = ledger.generations()
        ground = Ground(server, config, place, ledger, generation, [])
        with contextlib.closing(opened(ground)) as index:
            for field in index.fields():
                for _, strings in strings_of(index, field, index.pending(field)):
                    ground.strings.extend(strings)
        yield ground


def compare_speed(objects: int, dimensions: int, repeats: int, *, async_indexing: bool) -> None:
    contenders = [name for name in CONTENDERS if name != LANGCHAIN or importlib.util.find_spec("langchain_weaviate")]
    if LANGCHAIN in contenders:
        logging.disable(logging.WARNING)  # it turns on a log of its own, and misses what it does not need here
        importlib.import_module("langchain_weaviate")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), async_indexing=async_indexing) as server,
        ground_of(Path(folder) / "catalogue", server, objects, dimensions) as ground,
    ):
        few = Ground(server, ground.config, ground.place, ground.ledger, ground.generation, ground.strings[:_WARM_UP])
        for name in contenders:
            if name != OURS:
                timed(name, few)
        runs: dict[str, list[Run]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name in contenders:
                runs[name].append(timed(name, ground))
                told = runs[name][-1]
                print(f"{name:<24}{told.confirmed:,} in {told.seconds:.1f} s", file=sys.stderr, flush=True)  # it takes a while
        lengths = [len(string.text) for string in ground.strings]
    print(
        f"{objects:,} objects of {dimensions:,} dimensions, texts of {min(lengths)} to {max(lengths)} characters (mean "
        f"{statistics.mean(lengths):.0f}); Weaviate {VERSION}, weaviate-client {weaviate.__version__},\n"
        f"ASYNC_INDEXING={str(async_indexing).lower()}; {os.cpu_count()} cores for server and client together; medians of "
        f"{repeats} runs in turn"
    )
    print_speed(runs, objects, ASYNC_GOALS if async_indexing else GOALS)


def print_speed(runs: dict[str, list[Run]], objects: int, goals: dict[str, float]) -> None:
    rates = {name: statistics.median(run.confirmed / run.seconds for run in found) for name, found in runs.items()}
    print(f"\n{'':<24}{'objects/s':>10}{'min':>8}{'max':>8}{'client CPU':>12}{'confirmed':>11}   stored")
    for name in CONTENDERS:
        if name not in runs:
            print(f"{name:<24}not installed: {INSTALL}")
            continue
        each = [run.confirmed / run.seconds for run in runs[name]]
        cpu = statistics.median(run.cpu for run in runs[name])
        print(
            f"{name:<24}{rates[name]:>10,.0f}{min(each):>8,.0f}{max(each):>8,.0f}{cpu:>10.1f} s"
            f"{_all_of([run.confirmed for run in runs[name]]):>11}   {_all_of([run.stored for run in runs[name]])}"
        )
    print()
    for name in list(rates)[1:]:
        ratio, goal = rates[OURS] / rates[name], goals.get(name)
        judged = f"   goal >= {goal:.2f}: {_judged(ratio >= goal)}" if goal else ""
        print(f"{f'ours / {name}':<32}{ratio:>6.2f}{judged}")
    if any(run.confirmed != objects or run.stored != objects for found in runs.values() for run in found):
        sys.exit("Not every object is confirmed and stored: this is no comparison.")


def _all_of(counts: list[int]) -> str:
    return f"{counts[0]:,}" if len(set(counts)) == 1 else " ".join(f"{count:,}" for count in counts)


def _judged(met: bool) -> str:
    return "met" if met else "MISSED"


# Memory


def compare_memory(objects: int, dimensions: int, times: int, *, async_indexing: bool) -> None:
    print(
        f"peak memory of a process that indexes {dimensions:,} dimensions (`main.py`, all embedded before); Weaviate {VERSION}, "
        f"ASYNC_INDEXING={str(async_indexing).lower()}"
    )
    peaks = []
    for count in (objects, objects * times):
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), async_indexing=async_indexing) as server:
            config = make(Path(folder) / "catalogue", count, dimensions, settings_for(server))
            start = time.perf_counter()
            child = [sys.executable, "-m", "benchmarks.weaviate_index", "--index", str(config)]
            found = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout)
            taken = time.perf_counter() - start
            with contextlib.closing(connect(load_config(config))) as client:
                alias = load_config(config).collection
                stored = client.collections.use(alias).aggregate.over_all(total_count=True).total_count
        if stored != count:
            sys.exit(f"{stored} of {count} are stored.")
        peaks.append(found["peak_mb"])
        print(f"{count:>10,} objects  {found['peak_mb']:>8.1f} MB  {taken:>8.1f} s  {stored:,} stored", flush=True)
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f}   goal <= {MEMORY_GOAL:.2f}: {_judged(ratio <= MEMORY_GOAL)}")


def index_and_tell(config: Path) -> None:
    """What the process does whose memory is measured."""
    if code := run_command(["--config", str(config), "--quiet", "--start", "embedding_and_indexing"]):
        sys.exit(code)
    print(json.dumps({"peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Of this process since its exec; `getrusage` would tell the parent's peak, if that was higher."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    words = status.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in words if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--objects", type=int, default=20_000)
    options.add_argument("--dimensions", type=int, default=1536)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--async-indexing", action="store_true", help="the server stores first and indexes behind")
    options.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    options.add_argument("--times", type=int, default=10, help="with --memory: how many times the objects are many")
    options.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    typed = options.parse_args()
    if typed.index:
        index_and_tell(typed.index)
    elif typed.memory:
        compare_memory(typed.objects, typed.dimensions, typed.times, async_indexing=typed.async_indexing)
    else:
        compare_speed(typed.objects, typed.dimensions, typed.repeats, async_indexing=typed.async_indexing)


if __name__ == "__main__":
    main()
