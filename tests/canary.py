"""The canary key, eyes that find it in whatever dress, a service that says it back, and the faults that do so.

Shared by `test_canary.py` and by whoever wants to know that a secret is nowhere.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.commands import batch_manager, main
from pipeline.local_service import Response
from pipeline.local_service.model import MODEL
from tests.tools import Catalogue
from tests.wire import Answer, Change, Delay, Fault, FaultyService, Reset, Stream, Truncate

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-canary-7Hq2/vX+z9=Lw4TnB8cQe5"
BASIC = base64.b64encode(f"user:{KEY}".encode()).decode()
IN_URL = urllib.parse.quote(KEY, safe="")
JSON = {"content-type": "application/json"}
HEADERS = {"x-request-id": KEY, "openai-organization": KEY, "www-authenticate": f'Bearer realm="{KEY}"', "retry-after": KEY}


def forms() -> list[bytes]:
    """The key in every dress that we know of."""
    found = {KEY.encode(), IN_URL.encode(), KEY.encode("utf-16-le"), KEY.encode().hex().encode(), json.dumps(KEY)[1:-1].encode()}
    for before in range(3):
        letters = base64.b64encode(bytes(before) + KEY.encode() + b"\0\0")
        found |= {letters[4:36], letters[4:36].replace(b"+", b"-").replace(b"/", b"_")}
    return sorted(found)


def leaks(content: bytes | str) -> list[bytes]:
    """The forms of the key that stand in something, also when it is all upper or lower case."""
    found = content.encode("utf-8", "replace") if isinstance(content, str) else content
    return [form for form in forms() if form in found or form.lower() in found or form.upper() in found]


def leaks_below(folder: Path) -> list[str]:
    """Where in a folder the key stands: in names, in bytes, in unpacked tables."""
    found = []
    for path in folder.rglob("*"):
        if leaks(str(path.relative_to(folder))):
            found.append(f"the name of {path}")
        if not path.is_file():
            continue
        if leaks(path.read_bytes()):
            found.append(str(path))
        if path.suffix == ".parquet" and leaks(repr((pq.read_schema(path).metadata, pq.read_table(path).to_pylist()))):
            found.append(f"{path}, unpacked")
        if path.suffix == ".sqlite":
            with contextlib.closing(sqlite3.connect(path)) as database:
                found += [f"{path}, unpacked" for line in database.iterdump() if leaks(line)]
    return found


class Hurried:
    """The machine's clock, and no waits."""

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        pass


class Gossip(FaultyService):
    """Says our key back in the headers of every answer; takes OpenAI's model for its own."""

    def answer(self, request: Any) -> Response:
        body = request.body
        if request.path == "/v1/embeddings":
            asked = {**json.loads(body), "model": MODEL}
            asked.pop("dimensions", None)
            body = json.dumps(asked).encode()
        response = super().answer(dataclasses.replace(request, body=body))
        kept = {name: value for name, value in response.headers.items() if name.lower() != "x-request-id"}
        return dataclasses.replace(response, headers={**kept, **{name: HEADERS[name] for name in list(HEADERS)[:3]}})


class Trial:
    """A catalogue, commands at --debug, and everything that they said."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.catalogue = Catalogue(folder)
        self.said: list[str] = []
        self._rows: list[tuple[str, str, str]] = []
        self.add()

    def add(self) -> None:
        """Three new strings, so that there is something to ask for; one shares its letters with nothing."""
        self._rows += [(str(len(self._rows) + place), "", f"Title {len(self._rows) + place}") for place in range(3)]
        self.catalogue.write(self._rows)

    def configure(self, service: FaultyService, **keys: object) -> None:
        by_url = {
            "embedding_service": service.base_url, "service_name": "loopback", "embedding_model": MODEL, "price_per_million": 1.0,
        }  # fmt: skip
        known = {"fields": {"title": "title"}, "max_concurrent_requests": 1, "request_timeout_seconds": 3, **keys}
        self.catalogue.configure(**({} if "embedding_service" in keys else by_url), **known)

    def run(self, *arguments: str, by: Callable[[list[str]], int] = main.main) -> int:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = by(["--config", str(self.catalogue.config), "--debug", *arguments])
        self.said += [out.getvalue(), err.getvalue()]
        return code

    def process(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A command in a process of its own; its output goes to a file that is looked through as well."""
        program = [sys.executable, str(ROOT / "main.py"), "--config", str(self.catalogue.config), "--debug", *arguments]
        with (self.catalogue.folder / f"said {len(list(self.catalogue.folder.glob('said*')))}").open("w") as said:
            return subprocess.Popen(program, stdout=said, stderr=said, text=True, env={**os.environ, **environment})

    def words(self) -> str:
        return "\n".join([*self.said, *(path.read_text() for path in sorted(self.catalogue.folder.glob("said*")))])

    def assert_silent(self) -> None:
        """Nothing anywhere, what is exported included. The config may hold the key itself, and is not looked at."""
        for command in (("--export-embeddings", "out.parquet"), ("--export-occurrences", "out.csv"), ("--status",)):
            self.run(command[0], *(str(self.catalogue.folder / name) for name in command[1:]))
        self.run("--failures", by=batch_manager.main)
        self.run("--status", "--json", by=batch_manager.main)
        self.catalogue.config.unlink()
        assert leaks(self.words()) == []
        assert leaks_below(self.catalogue.folder) == []


def error(status: int, message: str, **facts: object) -> Answer:
    body = {"error": {"message": message, "type": KEY, "param": None, "code": None, **facts}}
    return Answer(status, {**JSON, **HEADERS}, json.dumps(body).encode())


def _rename(answer: Any) -> Any:
    return {**answer, "model": f"{'m' * 290}{KEY}", "object": KEY, "id": KEY}


def _spoil(answer: Any) -> Any:
    answer["data"][0]["embedding"] = KEY
    answer["data"][1]["embedding"] = [KEY]
    return answer


def _gossip(wait: Callable[[float], None]) -> Iterator[bytes]:
    while True:
        yield f"<p>{KEY} {BASIC} {IN_URL}</p>\n".encode() * 1000


MASKED = f"{KEY[:8]}{'*' * 20}{KEY[-4:]}"
FAULTS: dict[str, Fault] = {
    "401 whole": error(401, f"Incorrect API key provided: {KEY}. You can find it at https://host/?key={IN_URL}", code=KEY),
    "401 masked": error(401, f"Incorrect API key provided: {MASKED}", code="invalid_api_key"),
    "401 cut in the middle": error(401, f"{'x' * 285} {KEY}"),
    "403 as text": Answer(403, HEADERS, f"Authorization: Bearer {KEY}\nBasic {BASIC}".encode()),
    "429": error(429, f"{KEY} is out of quota", code=KEY),
    "429 no money": error(429, f"{KEY} is out of quota", code="insufficient_quota"),
    "400": error(400, f"Bad request by {KEY}", code=f"code {KEY}"),
    "400 of the whole request": error(400, f"Bad request by {KEY}", param="model"),
    "404": error(404, f"{KEY} knows no model", code="model_not_found"),
    "409": error(409, KEY),
    "500 page": Answer(500, {"content-type": "text/html", **HEADERS}, f"<h1>{KEY}</h1>{BASIC} {IN_URL}".encode()),
    "307": Answer(307, {"location": f"http://127.0.0.1:9/v1?api_key={IN_URL}", **HEADERS}, KEY.encode()),
    "302 to where the key is the name": Answer(302, {"location": f"http://user:{IN_URL}@127.0.0.1:9/"}),
    "200 page": Answer(200, {"content-type": "text/html", **HEADERS}, f"<h1>{KEY}</h1>".encode()),
    "200 page, cut in the middle": Answer(200, JSON, b"<" * 50 + KEY.encode()),
    "200 without data": Answer(200, JSON, json.dumps({"data": KEY, "model": KEY}).encode()),
    "200 in an encoding": Answer(200, {**JSON, "content-encoding": KEY}, b"x"),
    "200 broken gzip": Answer(200, {**JSON, "content-encoding": "gzip"}, KEY.encode()),
    "reset before": Reset("headers"),
    "reset after": Reset("request"),
    "reset in the answer": Reset("half_body"),
    "late": Delay(30),
    "cut short": Truncate(100),
    "another model": Change(_rename),
    "no vectors": Change(_spoil),
    "without an end": Stream(200, {**JSON, **HEADERS}, _gossip),
    "an error without an end": Stream(500, {**JSON, **HEADERS}, _gossip),
}
