"""What the tests of files and batches share: a clock, a client, input files, and strict shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import openai.types

from pipeline.local_service import LocalTransport, State
from pipeline.local_service.model import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openai.types import Batch, FileObject

START = 1_800_000_000.0
SHAPES: dict[str, Any] = {"file": openai.types.FileObject, "batch": openai.types.Batch}
FILE_KEYS = set(openai.types.FileObject.model_fields)
BATCH_KEYS = set(openai.types.Batch.model_fields)


class Clock:
    """A time that stands still until a test moves it."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Strict(LocalTransport):
    """Each JSON answer about files and batches is held against the SDK's own types, strictly."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if response.headers["content-type"] == "application/json" and response.status_code == 200:
            strict(json.loads(response.read()))
        return response


def strict(body: dict[str, Any]) -> None:
    if body["object"] == "list":
        assert set(body) == {"object", "data", "first_id", "last_id", "has_more"}
        for entry in body["data"]:
            strict(entry)
    elif "deleted" in body:
        openai.types.FileDeleted.model_validate(body, strict=True)
        assert set(body) == {"object", "id", "deleted"}
    elif body["object"] in SHAPES:
        SHAPES[body["object"]].model_validate(body, strict=True)
        assert set(body) == (FILE_KEYS if body["object"] == "file" else BATCH_KEYS)


def client_of(state: State, clock: Clock | None = None, *, checked: bool = True, key: str = "local") -> openai.OpenAI:
    transport = (Strict if checked else LocalTransport)(state, clock or Clock())
    return openai.OpenAI(api_key=key, base_url="http://local/v1", max_retries=0, http_client=httpx2.Client(transport=transport))


def line(custom_id: object, text: object, **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "input": text, "encoding_format": "base64"} | changes.pop("body", {})
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body} | changes


def jsonl(lines: Iterable[object]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def upload(client: openai.OpenAI, content: bytes | int, name: str = "batch_requests_0001.jsonl") -> FileObject:
    """An input file; a number stands for so many lines that are in order, `r1` to `rN`."""
    if isinstance(content, int):
        content = jsonl(line(f"r{number}", f"Bach, Johann {number}") for number in range(1, content + 1))
    return client.files.create(file=(name, content), purpose="batch")


def create(client: openai.OpenAI, content: bytes | int, **options: Any) -> Batch:
    wanted = {"endpoint": "/v1/embeddings", "completion_window": "24h", "input_file_id": ""} | options
    if not wanted["input_file_id"]:
        wanted["input_file_id"] = upload(client, content).id
    return client.batches.create(**wanted)


@dataclass
class Ended:
    """The two files of a batch, read."""

    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def done(self) -> list[str]:
        return [row["custom_id"] for row in self.output]

    @property
    def refused(self) -> list[str]:
        return [row["custom_id"] for row in self.errors]


def read(client: openai.OpenAI, batch: Batch) -> Ended:
    return Ended(rows(client, batch.output_file_id), rows(client, batch.error_file_id))


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if not file_id:
        return []
    content = client.files.content(file_id).content
    assert len(content) == client.files.retrieve(file_id).bytes
    return [json.loads(one) for one in content.split(b"\n") if one]
