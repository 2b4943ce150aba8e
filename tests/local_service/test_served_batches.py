"""Files and batches over a socket: large contents, rude clients, several processes, kills."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from pipeline.local_service import Misbehaviour, State
from tests.local_service.batching import create, read, upload
from tests.local_service.test_server import Running, running, until
from tests.wire import FaultyService

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTE = 1 << 20


class Megabytes:
    """A readable file of so many megabytes that nobody has in memory."""

    def __init__(self, count: int) -> None:
        self.left = self.size = count * MEGABYTE

    def read(self, size: int = -1) -> bytes:
        piece = b"x" * min(self.left, MEGABYTE if size < 0 else size)
        self.left -= len(piece)
        return piece

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(MEGABYTE):
            yield piece


def peak_megabytes(service: Running) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) >> 10


def form(size: int, purpose: str = "batch") -> tuple[bytes, bytes, int]:
    """The head and the tail of an upload's form, and how long it is with so many bytes in between."""
    head = (
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    ).encode()
    return head, b"\r\n--b--\r\n", len(head) + size + 9


def begin_upload(service: Running, size: int, key: str = "") -> tuple[socket.socket, bytes]:
    head, tail, length = form(size)
    connection = socket.create_connection(service.address, timeout=30)
    connection.sendall(
        b"POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n%s\r\n"
        % (length, key.encode())
        + head
    )
    return connection, tail


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_hundred_megabytes_go_in_and_out_and_are_never_in_memory(tmp_path: Path) -> None:
    with running("--state", str(tmp_path / "state.sqlite")) as service:
        before = peak_megabytes(service)
        connection, tail = begin_upload(service, 200 * MEGABYTE)
        with connection:
            for piece in Megabytes(200):
                connection.sendall(piece)
            connection.sendall(tail)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            made = json.loads(answer.read())
        assert answer.status == 200
        assert made["bytes"] == 200 * MEGABYTE
        size = 0
        with service.client() as client, client.files.with_streaming_response.content(made["id"]) as response:
            for piece in response.iter_bytes(MEGABYTE):
                size += len(piece)
        assert size == 200 * MEGABYTE
        grown = peak_megabytes(service) - before
        print(f"200 MB in and out: {before} MB before, {grown} MB more")
        assert grown < 30


def test_too_large_a_file_is_refused_before_it_is_sent() -> None:
    with running() as service:
        connection, _ = begin_upload(service, 600 * MEGABYTE)
        with connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_refusal_is_read_though_the_body_was_not(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret", encoding="utf-8")
    with running("--api-key-file", str(key)) as service:
        connection, tail = begin_upload(service, 20 * MEGABYTE)
        with connection:
            for piece in Megabytes(20):
                connection.sendall(piece)
            connection.sendall(tail)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in answer
        assert service.end() == ""


def test_a_client_that_goes_away_in_mid_upload_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state.sqlite.files"
    with running("--record", "--state", str(tmp_path / "state.sqlite")) as service:
        connection, _ = begin_upload(service, 20 * MEGABYTE)
        with connection:
            connection.sendall(b"x" * MEGABYTE)
            until(lambda: any(path.stat().st_size for path in folder.glob("*.part")))
            assert service.state()["open"] == 1
        until(lambda: not list(folder.iterdir()))
        until(lambda: service.state()["open"] == 0)
        with service.client() as client:
            assert list(client.files.list()) == []
        assert service.end() == ""


def test_a_client_that_goes_away_in_mid_download_leaves_no_traceback() -> None:
    with running() as service, service.client() as client:
        made = client.files.create(file=("a.jsonl", b"x" * 30 * MEGABYTE), purpose="batch")
        with socket.create_connection(service.address, timeout=10) as connection:
            connection.sendall(f"GET /v1/files/{made.id}/content HTTP/1.1\r\n\r\n".encode())
            connection.recv(1000)
        assert client.files.retrieve(made.id).bytes == 30 * MEGABYTE
        assert service.end() == ""


def test_a_batch_from_end_to_end_on_one_connection() -> None:
    with running("--record") as service, service.client() as client:
        seen = client.batches.retrieve(create(client, 50, metadata={"job": "1"}).id)
        assert seen.status == "completed"
        assert sorted(read(client, seen).done) == sorted(f"r{number}" for number in range(1, 51))
        (listed,) = service.state()["batches"]
        assert (listed["id"], listed["metadata"], listed["input_file_name"]) == (seen.id, {"job": "1"}, "batch_requests_0001.jsonl")
        assert listed["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
        assert service.state()["texts"] == 50


def test_a_reply_that_is_lost_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text('[{"kind": "lose_reply", "create": 1}]', encoding="utf-8")
    with running("--record", "--misbehave", str(path)) as service, service.client() as client:
        file = upload(client, 3)
        with pytest.raises(openai.APIConnectionError):
            create(client, 0, input_file_id=file.id)
        until(lambda: service.state()["open"] == 0)
        assert [batch.input_file_id for batch in client.batches.list()] == [file.id]
        create(client, 0, input_file_id=file.id)
        assert len(service.state()["batches"]) == 2
        assert service.end() == ""


def test_the_wire_of_the_tests_loses_it_too() -> None:
    with State(misbehaviours=[Misbehaviour(kind="lose_reply")]) as state, FaultyService(state=state) as service:
        client = openai.OpenAI(api_key="x", base_url=service.base_url, max_retries=0)
        with client, pytest.raises(openai.APIConnectionError):
            create(client, 3)
        with openai.OpenAI(api_key="x", base_url=service.base_url, max_retries=0) as client:
            (made,) = client.batches.list()
            assert len(read(client, made).done) == 3


def test_speed_and_limits_come_from_the_command_line() -> None:
    with (
        running("--batch-seconds", "3600", "--batches-active", "2", "--batches-enqueued-requests", "5") as service,
        service.client() as client,
    ):
        first, second = create(client, 4), create(client, 4)
        assert client.batches.retrieve(first.id).status == "in_progress"
        assert client.batches.retrieve(second.id).status == "failed"
        create(client, 1)
        with pytest.raises(openai.RateLimitError, match="2 of 2"):
            create(client, 1)


def test_processes_work_on_one_job_by_turns(tmp_path: Path) -> None:
    options = ("--record", "--state", str(tmp_path / "state.sqlite"))
    with running(*options) as one, running(*options) as other, one.client() as client:
        made = [create(client, 4000).id for _ in range(2)]

        def look(number: int) -> str:
            with (one, other)[number % 2].client() as eyes:
                return eyes.batches.retrieve(made[number // 2 % 2]).status

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(look, range(16))) <= {"in_progress", "finalizing", "completed"}
        for batch in made:
            seen = client.batches.retrieve(batch)
            assert Counter(read(client, seen).done) == Counter(f"r{number}" for number in range(1, 4001))
        embedded = one.state()
        assert embedded["texts"] == 8000
        assert {entry["times"] for entry in embedded["embedded_more_than_once"]} == {2}, "once in each of the two jobs"


LOOK = """
import sys, time, httpx2, openai
from pathlib import Path
from pipeline.local_service import LocalTransport, State
state = State(Path(sys.argv[1]), record=True)
http = httpx2.Client(transport=LocalTransport(state))
client = openai.OpenAI(api_key="x", base_url="http://local/v1", max_retries=0, http_client=http)
print("ready", flush=True)
print(client.batches.retrieve(sys.argv[2]).status, flush=True)
"""


def went_on(service: Running, texts: int, worker: subprocess.Popen[str]) -> bool:
    return service.state()["texts"] > texts or worker.poll() is not None


def test_a_job_outlives_the_kill_of_whoever_works_on_it(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    root = Path(__file__).resolve().parents[2]
    with running("--record", "--state", str(path)) as service, service.client() as client:
        batch = create(client, 20_000).id
        killed = 0
        for _ in range(6):
            worker = subprocess.Popen([sys.executable, "-c", LOOK, str(path), batch], cwd=root, stdout=subprocess.PIPE, text=True)
            with worker:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
                until(partial(went_on, service, service.state()["texts"], worker))
                os.kill(worker.pid, signal.SIGKILL)
                killed += worker.wait(10) == -signal.SIGKILL
            if service.state()["texts"] == 20_000:
                break
        assert killed
        print(f"killed {killed} times, {service.state()['texts']} rows done by then")
        seen = client.batches.retrieve(batch)
        assert seen.status == "completed"
        assert Counter(read(client, seen).done) == Counter(f"r{number}" for number in range(1, 20_001))
        assert service.state()["texts"] == 20_000
        assert service.state()["embedded_more_than_once"] == []
        assert httpx2.get(service.base_url + "/batches").json()["data"][0]["id"] == batch
