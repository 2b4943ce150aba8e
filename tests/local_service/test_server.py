"""The service as a process of its own, reached over a socket: by the SDK, by rude clients, and by signals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

from pipeline.local_service.model import MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-W", "error", "-m", "pipeline.local_service"]


@dataclass
class Running:
    """A service in its own process."""

    process: subprocess.Popen[str]
    base_url: str

    @property
    def address(self) -> tuple[str, int]:
        url = httpx2.URL(self.base_url)
        assert url.port is not None
        return url.host, url.port

    def client(self, key: str = "local") -> openai.OpenAI:
        return openai.OpenAI(api_key=key, base_url=self.base_url, max_retries=0, timeout=10)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(self.base_url.removesuffix("/v1") + "/local/state").json()
        return found

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send a signal, and give what was written to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=10)
        return errors


@contextlib.contextmanager
def running(*options: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*PROGRAM, "--port", "0", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://"), line + process.communicate(timeout=10)[1]
            yield Running(process, line.removeprefix("listening on ").strip())
        finally:
            process.terminate()  # not killed: a state in memory has a folder to clear away
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One process for all tests that leave it as it is."""
    with running("--record") as service:
        yield service


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def exchange(service: Running, raw: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes as they are, and give all that comes until the service closes."""
    with socket.create_connection(service.address, timeout=10) as connection:
        connection.sendall(raw)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_sdk_reaches_it(shared: Running) -> None:
    with shared.client() as client:
        answer = client.embeddings.create(model=MODEL, input=["Bach", "Mozart"])
        assert [len(entry.embedding) for entry in answer.data] == [384, 384]
        assert [model.id for model in client.models.list()] == [MODEL]
        assert list(client.files.list()) == []


def test_many_clients_at_once_are_all_answered_and_counted(shared: Running) -> None:
    before = shared.state()

    def ask(number: int) -> str:
        with shared.client() as client:
            answers = [client.embeddings.create(model=MODEL, input=[f"{number} {turn}", "!"]) for turn in range(3)]
        assert all(len(answer.data) == 2 for answer in answers)
        return str(answers[0].data[0].embedding)

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(ask, range(24)))) == 24
    # An answer is on its way a moment before it is written down as answered.
    until(lambda: shared.state()["open"] == 0)
    after = shared.state()
    assert after["texts"] - before["texts"] == 24 * 3 * 2
    assert after["answered"] - before["answered"] == 24 * 3
    assert {entry["sha256"]: entry["times"] for entry in after["embedded_more_than_once"]}[sha256("!")] == 72


def test_a_connection_is_kept_for_the_next_request(shared: Running) -> None:
    with (
        socket.create_connection(shared.address, timeout=10) as connection,
        connection.makefile("rb") as answers,
    ):
        for method, path, status in [
            ("POST", "/x", 404),
            ("GET", "/v1/models", 200),
            ("HEAD", "/v1/models", 405),
        ] * 2:
            body = b"some body" if method == "POST" else b""
            connection.sendall(f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            assert f"HTTP/1.1 {status}".encode() in answers.readline()
            headers = dict(line.split(b": ", 1) for line in iter(answers.readline, b"\r\n"))
            if method != "HEAD":
                json.loads(answers.read(int(headers[b"content-length"])))


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}", 413),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
        (b"BREW /v1/models HTTP/1.1\r\n\r\n", 501),
        (b"GET /v1/models HTTP/9.9\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 404),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_what_is_no_good_request_gets_an_error_and_never_hangs(shared: Running, raw: bytes, status: int) -> None:
    answer = exchange(shared, raw, half_close=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_answered_and_not_read_into_memory(shared: Running) -> None:
    answer = exchange(shared, b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 20000000\r\n\r\n" + b" " * 20_000_000)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_leaves_no_traceback_and_has_paid() -> None:
    body = json.dumps({"model": MODEL, "input": ["Bach"] * 2000, "encoding_format": "float"}).encode()
    request = b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with running("--record", "--latency", "0.02") as service:
        for turn in (1, 2):
            with socket.create_connection(service.address) as connection:
                connection.sendall(request)
            until(lambda turn=turn: service.state()["texts"] == 2000 * turn)  # type: ignore[misc]
            until(lambda: service.state()["open"] == 0)
        with socket.create_connection(service.address) as connection:
            connection.sendall(request[:200])
        assert service.state()["embedded_more_than_once"] == [{"sha256": sha256("Bach"), "times": 4000}]
        assert service.end() == ""


def test_a_killed_client_has_paid_for_what_was_open() -> None:
    program = (
        "import openai, sys; openai.OpenAI(api_key='x', base_url=sys.argv[1], max_retries=0)"
        f".embeddings.create(model='{MODEL}', input=['Bach'])"
    )
    with running("--record", "--latency", "30") as service:
        client = subprocess.Popen([sys.executable, "-c", program, service.base_url])
        # Counted before the answer is held back: whoever sees it open may kill and knows what was paid.
        until(lambda: service.state()["texts"] == 1)
        assert service.state()["open"] == 1
        client.kill()
        client.wait(10)
        assert service.state()["texts"] == 1
        assert service.end() == "", "the end doesn't wait for the latency"


def test_a_state_file_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    for times in (1, 2):
        with running("--record", "--state", str(path)) as service, service.client() as client:
            client.embeddings.create(model=MODEL, input=["Bach"])
            assert service.state()["texts"] == times
            service.end(signal.SIGKILL)
    with running("--record", "--state", str(path)) as service:
        assert service.state()["embedded_more_than_once"] == [{"sha256": sha256("Bach"), "times": 2}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_though_clients_are_connected(number: int) -> None:
    with running() as service, socket.create_connection(service.address), service.client() as client:
        client.models.list()
        assert service.end(number) == ""
        assert service.process.returncode == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_an_answer_that_has_begun_still_leaves() -> None:
    with (
        running("--record", "--latency", "30") as service,
        service.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.embeddings.create, model=MODEL, input="Bach")
        until(lambda: service.state()["texts"] == 1)
        assert service.end() == ""
        assert len(answer.result(timeout=10).data) == 1


def test_limits_and_key_come_from_the_command_line(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret\n", encoding="utf-8")
    options = [
        "--api-key-file",
        str(key),
        "--requests-per-minute",
        "1",
        "--tokens-per-minute",
        "100",
        "--record",
    ]
    with running(*options) as service:
        with service.client("sk-other") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with service.client("sk-secret") as client:
            raw = client.embeddings.with_raw_response.create(model=MODEL, input="Bach")
            assert raw.headers["x-ratelimit-remaining-tokens"] == "99"
            with pytest.raises(openai.RateLimitError) as limited:
                client.embeddings.create(model=MODEL, input="Bach")
            assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
        assert "secret" not in json.dumps(service.state())
        assert service.state()["error"]["message"].startswith("You didn't provide an API key")
        assert service.end() == ""


def test_without_record_there_is_no_state_to_see() -> None:
    with running() as service:
        assert service.state()["error"]["message"] == "Invalid URL (GET /local/state)"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--host", "192.0.2.1"], 2, "--api-key-file"),
        (["--host", "example.org"], 2, "--api-key-file"),
        (["--host", "::"], 2, "--api-key-file"),
        (["--api-key-file", "no-such-file"], 2, "no-such-file"),
        (["--api-key-file", os.devnull], 2, "empty"),
        (["--state", "."], 2, "unable to open"),
        (["--latency", "nan"], 2, "latency"),
        (["--latency", "-1"], 2, "latency"),
        (["--port", "65536"], 2, "65535"),
        (["--port", "x"], 2, "port"),
        (["--requests-per-minute", "0"], 2, "at least 1"),
        (["--tokens-per-minute", "0.5"], 2, "tokens-per-minute"),
        (["--unknown"], 2, "--unknown"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    options: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.local_service.__main__ import main

    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["--port", "0", *options]))
    assert ended.value.code == code
    assert says in capsys.readouterr().err


def test_a_taken_port_is_said_so(shared: Running, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.local_service.__main__ import main

    assert main(["--port", str(shared.address[1])]) == 1
    assert str(shared.address[1]) in capsys.readouterr().err


def test_a_body_that_stops_coming_is_given_up() -> None:
    import threading

    from pipeline.local_service.server import LocalServer
    from pipeline.local_service.state import State

    with State() as state:
        server = LocalServer(state, idle_seconds=0.05)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
                connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 10\r\n\r\n{")
                assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
                assert connection.recv(1000) == b"", "an idle connection is closed"
        finally:
            server.finish()
            thread.join(10)
