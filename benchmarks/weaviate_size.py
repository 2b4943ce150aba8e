"""What a Weaviate server needs for each string: memory and disk, with and without quantization.

    python -m benchmarks.weaviate_size [--objects 50000] [--dimensions 1536] [--quantizers rq8 rq1 none]

A fresh server for each quantizer, filled through the store as a run does. Memory is the server's own (anonymous) resident
size less that of the empty server, a restart later; files that it maps are left to the system's cache. The floor is the
bare vectors (objects × dimensions × 4 bytes).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.ledger import Generation
from pipeline.stores import StoredString
from pipeline.stores.weaviate import WeaviateStore
from tests.weaviate_server import WeaviateServer

CHUNK = 500


def strings(count: int, dimensions: int) -> Iterator[list[StoredString]]:
    chance = np.random.default_rng(1)
    for start in range(0, count, CHUNK):
        vectors = chance.standard_normal((min(CHUNK, count - start), dimensions)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield [_string(start + place, vector) for place, vector in enumerate(vectors)]


def _string(number: int, vector: NDArray[np.float32]) -> StoredString:
    text = f"Name {number}, of a catalogue"
    return StoredString(uuid.uuid5(uuid.NAMESPACE_DNS, text), "person", text, "00000000", 1, "some-model", vector)


def resident(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def measure(quantizer: str, objects: int, dimensions: int) -> tuple[int, int]:
    """Bytes of memory and of disk for all objects together."""
    with tempfile.TemporaryDirectory() as folder, WeaviateServer(Path(folder), environment={"GOMEMLIMIT": "12GiB"}) as server:
        empty = resident(server.pid)
        config = replace(
            Config(vector_store="weaviate", weaviate_url=server.url, weaviate_grpc_port=server.grpc_port),
            weaviate_quantizer=quantizer,
        )
        generation = Generation("bench", "some-model", None, dimensions)
        store = WeaviateStore(config, "bench", generation)
        store.prepare()
        for chunk in strings(objects, dimensions):
            if len((written := store.upsert(chunk)).confirmed) < len(chunk):
                raise SystemExit(f"not all was confirmed: {written.trouble}")
        server.stop()
        disk = on_disk(server.data)
        server.restart()
        store.close()
        store = WeaviateStore(config, "bench", generation)
        if store.count() != objects:
            raise SystemExit(f"{objects} were confirmed, {store.count()} are there")
        for chunk in strings(min(objects, 20 * CHUNK), dimensions):  # what searches touch is loaded then
            store.search(chunk[0].vector, 10)
        store.close()
        return resident(server.pid) - empty, disk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=1536)
    parser.add_argument("--quantizers", nargs="+", default=["rq8", "rq1", "none"])
    asked = parser.parse_args()
    floor = asked.objects * asked.dimensions * 4
    print(f"{asked.objects:,} objects of {asked.dimensions} dimensions; the bare vectors: {floor / 1e6:,.0f} MB")
    for quantizer in asked.quantizers:
        memory, disk = measure(quantizer, asked.objects, asked.dimensions)
        print(
            f"  {quantizer:<5} memory {_words(memory, asked.objects, floor)}; disk {_words(disk, asked.objects, floor)}", flush=True
        )


def _words(size: int, objects: int, floor: int) -> str:
    return f"{size / 1e6:>7,.0f} MB, {size / objects:>7,.0f} bytes a string, {size / floor:.2f} x the vectors"


if __name__ == "__main__":
    main()
