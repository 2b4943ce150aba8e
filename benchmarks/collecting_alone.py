"""What (c) is measured against: decoding and writing alone, and the plain way. Each is called in a process of its own.

Processes that decode import this module: what they have no use for is imported where it is used.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

WIDTH = 1536
_ROWS = 4096


class _Embedding(msgspec.Struct):
    embedding: list[float] | bytes  # msgspec decodes base64 four times as fast as Python's own module


class _Body(msgspec.Struct):
    data: list[_Embedding]


class _Response(msgspec.Struct):
    body: _Body


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response


def _decode(source: Path, start: int, stop: int, target: Path) -> list[int]:
    """In a process of its own: a piece of the file as raw float32, and the rows in its order."""
    decoder = msgspec.json.Decoder(_Line)
    rows = []
    with source.open("rb") as file, target.open("wb", buffering=1 << 20) as out:
        file.seek(start)
        while start < stop:
            line = file.readline()
            start += len(line)
            result = decoder.decode(line)
            embedding = result.response.body.data[0].embedding
            out.write(embedding if isinstance(embedding, bytes) else np.array(embedding, "<f4").data)
            rows.append(int(result.custom_id.rpartition("_")[2]))
    return rows


def bare(name: str, encoding: str, into: str = "bare") -> None:
    """Every vector as raw float32, in the order of the lines, in a file for each core; the disk may forget it."""
    folder, cores = Path(name), os.cpu_count() or 1
    source = folder / f"{encoding}.jsonl"
    size = source.stat().st_size
    edges = [0]
    with source.open("rb") as file:
        for number in range(1, cores):
            file.seek(size * number // cores)
            file.readline()
            edges.append(file.tell())
    edges.append(size)
    shutil.rmtree(folder / into, ignore_errors=True)
    (folder / into).mkdir()
    targets = [folder / into / f"{number}.f32" for number in range(cores)]
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        pieces = list(pool.map(_decode, [source] * cores, edges, edges[1:], targets))
    for target, rows in zip(targets, pieces, strict=True):
        np.save(target.with_suffix(".npy"), np.array(rows, np.int64))


def floor(name: str, encoding: str) -> None:
    """The same, and then the product's own output: a Parquet table in the order of the rows, and durable."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    bare(name, encoding, "floor")
    folder = Path(name) / "floor"
    rows = np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
    raw = [np.memmap(path, "<f4", "r").reshape(-1, WIDTH) for path in sorted(folder.glob("*.f32"))]
    starts = np.cumsum([0, *(len(piece) for piece in raw)])
    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), WIDTH))])
    target = folder / "embeddings.parquet"
    order = np.argsort(rows)
    with pq.ParquetWriter(target, schema, compression="none", use_dictionary=False, write_statistics=["row"]) as writer:
        for first in range(0, len(order), _ROWS):
            places = order[first : first + _ROWS]
            vectors = np.empty((len(places), WIDTH), "<f4")
            for piece, start, past in zip(raw, starts, starts[1:], strict=False):
                there = (places >= start) & (places < past)
                vectors[there] = piece[places[there] - start]
            column = pa.FixedSizeListArray.from_arrays(_arrow(vectors.reshape(-1)), WIDTH)
            writer.write_batch(pa.record_batch([_arrow(rows[places]), column], schema=schema))
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _arrow(numbers: np.ndarray) -> object:
    """Without a copy, and without the import of pandas that `pa.array` brings."""
    import pyarrow as pa  # noqa: PLC0415

    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def rival(name: str) -> None:
    """The plain way: float text, one line after the other, all in memory."""
    folder, vectors = Path(name), []
    with (folder / "float.jsonl").open(encoding="utf-8") as file:
        for line in file:
            result = json.loads(line)
            vectors.append(np.array(result["response"]["body"]["data"][0]["embedding"], dtype=np.float32))
    np.save(folder / "rival.npy", np.array(vectors))
