"""The faulty service does what its script says: otherwise the tests that stand on it prove nothing."""

from __future__ import annotations

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

from pipeline.local_service.model import MODEL
from tests.wire import Answer, Change, Delay, FaultyService, Reset, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.wire import Fault


def client_of(service: FaultyService, **options: Any) -> openai.OpenAI:
    transport = httpx2.Client(follow_redirects=False, **options)
    return openai.OpenAI(api_key="local", base_url=service.base_url, max_retries=0, http_client=transport)


def embed(service: FaultyService, *texts: str, **options: Any) -> openai.types.CreateEmbeddingResponse:
    with client_of(service, **options) as client:
        return client.embeddings.create(model=MODEL, input=list(texts))


def address_of(service: FaultyService) -> tuple[str, int]:
    url = httpx2.URL(service.base_url)
    assert url.port
    return url.host, url.port


@pytest.fixture(params=[False, True], ids=["list", "function"])
def scripted(request: pytest.FixtureRequest) -> Callable[..., FaultyService]:
    """A script as a list and as a function does the same."""

    def make(*script: Fault | None) -> FaultyService:
        entries = dict(enumerate(script, 1))
        return FaultyService(entries.get if request.param else script)

    return make


def test_without_a_script_it_is_the_service(scripted: Any) -> None:
    with scripted() as service:
        assert len(embed(service, "Bach", "Bach", "Mozart").data) == 3
        assert service.embedded == {"Bach": 2, "Mozart": 1}
        assert [json.loads(body)["input"] for body in service.bodies] == [["Bach", "Bach", "Mozart"]]


def test_entries_are_used_up_one_by_one(scripted: Any) -> None:
    with scripted(None, Answer(503), None) as service:
        embed(service, "a")
        with pytest.raises(openai.InternalServerError):
            embed(service, "b")
        embed(service, "c")
        embed(service, "d")
        assert service.requests == 4
        assert service.embedded == {"a": 1, "c": 1, "d": 1}


def test_an_answer_comes_with_its_headers_and_embeds_nothing() -> None:
    error = json.dumps({"error": {"message": "slow down", "type": "requests", "param": None, "code": "x"}}).encode()
    with FaultyService([Answer(429, {"retry-after": "7"}, error)]) as service:
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            embed(service, "a")
        assert caught.value.response.headers["retry-after"] == "7"
        assert not service.embedded
        assert len(service.bodies) == 1


@pytest.mark.parametrize(("after", "embedded", "bodies"), [("headers", 0, 0), ("request", 1, 1), ("half_body", 1, 1)])
def test_a_reset_is_a_reset_and_counts_what_was_embedded(after: Any, embedded: int, bodies: int) -> None:
    with FaultyService([Reset(after)]) as service:
        # Within the answer, the SDK lets the HTTP library's own error through.
        with pytest.raises((openai.APIConnectionError, httpx2.ReadError)):
            embed(service, "a")
        assert service.embedded["a"] == embedded
        assert len(service.bodies) == bodies
        embed(service, "a")
        assert service.embedded["a"] == embedded + 1


@pytest.mark.parametrize("after", ["headers", "request", "half_body"])
def test_a_reset_is_no_polite_end(after: Any) -> None:
    body = json.dumps({"model": MODEL, "input": "a"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with FaultyService([Reset(after)]) as service, socket.create_connection(address_of(service), 5) as raw:
        raw.sendall(head if after == "headers" else head + body)

        def read_to_the_end() -> None:
            while raw.recv(65536):
                pass

        with pytest.raises(ConnectionResetError):
            read_to_the_end()


def test_a_delayed_answer_was_embedded_before_the_client_gave_up() -> None:
    with FaultyService([Delay(30)]) as service:
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            embed(service, "a", timeout=0.05)
        assert service.embedded == {"a": 1}
    assert time.monotonic() - began < 5, "the end of the block ends the delay"


def test_a_truncated_answer_is_shorter_than_it_says() -> None:
    with FaultyService([Truncate(100)]) as service:
        with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
            embed(service, "a")
        assert service.embedded == {"a": 1}


def test_a_changed_answer_keeps_its_shape_on_the_wire() -> None:
    def swap(body: Any) -> Any:
        body["data"][0]["index"], body["data"][1]["index"] = 1, 1
        body["data"][0]["embedding"] = [float("nan")]
        return body

    with FaultyService([Change(swap)]) as service:
        raw = httpx2.post(service.base_url + "/embeddings", json={"model": MODEL, "input": ["a", "b"]})
        assert [entry["index"] for entry in raw.json()["data"]] == [1, 1]
        assert b"[NaN]" in raw.content
        assert service.embedded == {"a": 1, "b": 1}


def test_many_clients_at_once_are_all_counted() -> None:
    with (
        FaultyService(lambda number: Answer(500) if number % 2 else None) as service,
        client_of(service) as client,
    ):

        def ask(number: int) -> bool:
            try:
                client.embeddings.create(model=MODEL, input=[f"text {number}"], encoding_format="base64")
            except openai.InternalServerError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(ask, range(40)))
        assert sum(outcomes) == 20 == len(service.embedded)
        assert len(service.bodies) == 40


def test_answers_are_those_of_the_real_service() -> None:
    with FaultyService() as service:
        raw = httpx2.post(service.base_url + "/embeddings", json={"model": MODEL, "input": "a", "encoding_format": "base64"}).json()
    assert len(base64.b64decode(raw["data"][0]["embedding"])) == 384 * 4
