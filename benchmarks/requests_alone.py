"""What (b) is measured against: counting and writing alone, and the plain way. Each is called in a process of its own."""

from __future__ import annotations

import base64
import json
import os
import shutil
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import msgspec
import pyarrow.parquet as pq
import tiktoken

MODEL = "text-embedding-3-small"
_VOCABULARY = Path(__file__).resolve().parent.parent / "pipeline" / "provider" / "vocabulary" / "cl100k_base.tiktoken"
_REQUESTS_A_FILE = 50_000
_BYTES_A_FILE = 200_000_000


class _Body(msgspec.Struct):
    model: str
    input: str
    encoding_format: str = "base64"


class _Request(msgspec.Struct):
    """The keys in the product's order."""

    custom_id: str
    method: str
    url: str
    body: _Body


@cache
def _encoding() -> tiktoken.Encoding:
    """The product's vocabulary, read without a check of it."""
    lines = _VOCABULARY.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    words = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    return tiktoken.Encoding("cl100k_base", pat_str=words, mergeable_ranks=ranks, special_tokens={})


class _Files:
    """Request files, cut where the product's limits of one job cut."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._folder = folder
        self._number = self._requests = self._bytes = 0
        self._file: IO[bytes] | None = None

    def write(self, line: bytes) -> None:
        if self._file is None or self._requests == _REQUESTS_A_FILE or self._bytes + len(line) > _BYTES_A_FILE:
            self.close()
            self._number += 1
            self._file = (self._folder / f"batch_requests_{self._number:04d}.jsonl").open("wb")
            self._requests = self._bytes = 0
        self._file.write(line)
        self._requests += 1
        self._bytes += len(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _tables(folder: Path) -> list[Path]:
    return sorted((folder / "pristine" / "tables").glob("strings_composite_*.parquet"))


def _count_group(path: Path, group: int) -> list[int]:
    """In a process of its own: the tokens of a row group's texts."""
    encode = _encoding().encode_ordinary
    texts: list[str] = pq.ParquetFile(path).read_row_group(group, columns=["text"]).column("text").to_pylist()
    return [len(encode(text)) for text in texts]


def floor(name: str) -> None:
    """Counted by as many processes as there are cores, written meanwhile by this one."""
    folder = Path(name)
    places = [(path, group) for path in _tables(folder) for group in range(pq.ParquetFile(path).num_row_groups)]
    files, total = _Files(folder / "floor"), 0
    encode = msgspec.json.Encoder().encode
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        counted = pool.map(_count_group, *zip(*places, strict=True))
        for path, group in places:
            table = pq.ParquetFile(path).read_row_group(group, columns=["row", "text"])
            for row, text in zip(table.column("row").to_pylist(), table.column("text").to_pylist(), strict=True):
                name = f"{zlib.crc32(text.encode()):08x}_composite_{row}"
                files.write(encode(_Request(name, "POST", "/v1/embeddings", _Body(MODEL, text))) + b"\n")
        total = sum(chain.from_iterable(counted))
    files.close()
    print(json.dumps({"tokens": total}))


def rival(name: str) -> None:
    """The plain way."""
    folder, encoding = Path(name), _encoding()
    lines: list[str] = []
    total = 0
    for path in _tables(folder):
        table = pq.read_table(path, columns=["row", "text"])
        for row, text in zip(table.column("row").to_pylist(), table.column("text").to_pylist(), strict=True):
            total += len(encoding.encode(text, disallowed_special=()))
            request = {
                "custom_id": f"{zlib.crc32(text.encode()):08x}_composite_{row}",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": MODEL, "input": text, "encoding_format": "base64"},
            }
            lines.append(json.dumps(request, ensure_ascii=False, separators=(",", ":")))
    files = _Files(folder / "rival")
    for line in lines:
        files.write(line.encode() + b"\n")
    files.close()
    print(json.dumps({"tokens": total}))
