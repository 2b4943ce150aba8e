"""A service that answers at once: embeddings and batches with vectors made before anybody asked, nothing on disk.

    python -m benchmarks.instant_service DIMENSIONS          prints its port, and serves until it is ended

It looks at as little as it can: of a request how many inputs it has, of a request file the custom_ids. A batch is
completed when it is created, and its result file is put together while it is sent. It knows one client at a time and
no error. One thread, asyncio: on two cores it still takes some of what the product would have.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np

from benchmarks.racing import ROOT

_KINDS = 64  # different vectors; string i of a request gets kind i modulo so many
_PIECE_LINES = 64
_ID = re.compile(rb'^\{"custom_id": ?"([^"]+)"', re.MULTILINE)


class _Asked(msgspec.Struct):
    input: list[msgspec.Raw]


@dataclass(slots=True)
class _State:
    vectors: list[bytes]
    names: dict[str, list[bytes]] = field(default_factory=dict)  # of a request file: its custom_ids
    sizes: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))


@contextlib.contextmanager
def running(dimensions: int) -> Iterator[str]:
    """The service in a process of its own; its address."""
    command = [sys.executable, "-m", "benchmarks.instant_service", str(dimensions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - for mypy: it was asked for
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


def _vectors(dimensions: int) -> list[bytes]:
    made = np.random.default_rng(1).standard_normal((_KINDS, dimensions), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return [base64.b64encode(vector.astype("<f4").tobytes()) for vector in made]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _file(state: _State, name: str) -> bytes:
    return _json({
        "id": name, "object": "file", "bytes": state.sizes.get(name, 0), "created_at": int(time.time()),
        "filename": f"{name}.jsonl", "purpose": "batch", "status": "processed",
    })  # fmt: skip


def _batch(state: _State, name: str, metadata: object = None) -> bytes:
    """The batch of a request file; its id tells which."""
    count, now = len(state.names[name]), int(time.time())
    later = now + 86_400
    return _json({
        "id": f"batch_{name}", "object": "batch", "endpoint": "/v1/embeddings", "input_file_id": name, "completion_window": "24h",
        "status": "completed", "output_file_id": f"out_{name}", "error_file_id": None, "created_at": now, "expires_at": later,
        "completed_at": now, "request_counts": {"total": count, "completed": count, "failed": 0}, "metadata": metadata or {},
    })  # fmt: skip


def _line(state: _State, place: int, name: bytes) -> bytes:
    return (
        b'{"id":"r","custom_id":"%b","response":{"status_code":200,"request_id":"r","body":{"object":"list","data":[{"object":'
        b'"embedding","index":0,"embedding":"%b"}],"model":"m","usage":{"prompt_tokens":9,"total_tokens":9}}},"error":null}\n'
        % (name, state.vectors[place % _KINDS])
    )


def _result_pieces(state: _State, name: str) -> Iterator[bytes]:
    names = state.names[name]
    for start in range(0, len(names), _PIECE_LINES):
        yield b"".join(_line(state, start + place, one) for place, one in enumerate(names[start : start + _PIECE_LINES]))


def _take_file(state: _State, body: bytes) -> bytes:
    name = f"file-{next(state.numbers)}"
    # The lines stand in the form as they are, each at the beginning of a line.
    state.names[name] = _ID.findall(body)
    state.sizes[name] = len(body)
    empty = sum(len(_line(state, place, b"")) for place in range(_KINDS)) // _KINDS  # vectors are all of one length
    state.sizes[f"out_{name}"] = sum(empty + len(one) for one in state.names[name])
    return _file(state, name)


def _answer(state: _State, method: str, path: str, body: bytes) -> bytes:
    """What is not a download."""
    match path.split("/")[2:], method:
        case ["files"], "POST":
            return _take_file(state, body)
        case ["batches"], "POST":
            asked = json.loads(body)
            return _batch(state, asked["input_file_id"], asked.get("metadata"))
        case ["batches", batch], "GET":
            return _batch(state, batch.removeprefix("batch_"))
        case ["files", name], "GET":
            return _file(state, name)
        case ["files", name], "DELETE":
            return _json({"id": name, "object": "file", "deleted": True})
        case _:
            return _json({"object": "list", "data": [], "has_more": False})


async def _serve(state: _State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    @cache
    def embeddings(count: int) -> bytes:
        entries = (b'{"object":"embedding","index":%d,"embedding":"%b"}' % (i, state.vectors[i % _KINDS]) for i in range(count))
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (9 * count, 9 * count)
        return b'{"object":"list","data":[%b],"model":"m","usage":%b}' % (b",".join(entries), usage)

    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            method, target, _ = first.split(" ")
            said = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if said.get("expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await _body(reader, said)
            path = target.partition("?")[0]
            if path.endswith("/content"):
                name = path.split("/")[3]
                _head(writer, state.sizes[name], "application/octet-stream")
                for piece in _result_pieces(state, name.removeprefix("out_")):
                    writer.write(piece)
                    await writer.drain()
                continue
            if path.endswith("/embeddings"):
                answer = embeddings(len(msgspec.json.decode(body, type=_Asked).input))
            else:
                answer = _answer(state, method, path, body)
            _head(writer, len(answer), "application/json")
            writer.write(answer)
            await writer.drain()
    writer.close()


async def _body(reader: asyncio.StreamReader, said: dict[str, str]) -> bytes:
    if said.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(said.get("content-length", 0)))
    pieces = []
    while size := int(await reader.readline(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(pieces)


def _head(writer: asyncio.StreamWriter, size: int, kind: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind.encode(), size))


async def _run(dimensions: int) -> None:
    state = _State(_vectors(dimensions))
    server = await asyncio.start_server(lambda reader, writer: _serve(state, reader, writer), "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1])))
