"""What (c) is measured against: decoding and writing alone, and the plain way. Each is called in a process of its own."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np


class _Embedding(msgspec.Struct):
    embedding: list[float] | str


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
            if isinstance(embedding, str):
                out.write(base64.b64decode(embedding))
            else:
                out.write(np.array(embedding, "<f4").data)
            rows.append(int(result.custom_id.rpartition("_")[2]))
    return rows


def floor(name: str, encoding: str) -> None:
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
    shutil.rmtree(folder / "floor", ignore_errors=True)
    (folder / "floor").mkdir()
    targets = [folder / "floor" / f"{number}.f32" for number in range(cores)]
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        pieces = list(pool.map(_decode, [source] * cores, edges, edges[1:], targets))
    for target, rows in zip(targets, pieces, strict=True):
        np.save(target.with_suffix(".npy"), np.array(rows, np.int64))


def rival(name: str) -> None:
    """The plain way: float text, one line after the other, all in memory."""
    folder, vectors = Path(name), []
    with (folder / "float.jsonl").open(encoding="utf-8") as file:
        for line in file:
            result = json.loads(line)
            vectors.append(np.array(result["response"]["body"]["data"][0]["embedding"], dtype=np.float32))
    np.save(folder / "rival.npy", np.array(vectors))
