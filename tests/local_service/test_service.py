"""The service's answers: OpenAI's shapes, OpenAI's limits, and an error for whatever else comes."""

from __future__ import annotations

import base64
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import openai
import openai.types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.local_service import LocalTransport, Request, Response, State, handle
from pipeline.local_service.model import MODEL, embed
from pipeline.local_service.service import MAX_BODY_BYTES
from pipeline.local_service.state import duration

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    """A time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def state() -> Iterator[State]:
    with State(record=True) as state:
        yield state


def ask(state: State, body: object = None, *, clock: Clock | None = None, **request: Any) -> Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    whole = {"method": "POST", "path": "/v1/embeddings", "body": raw} | request
    return handle(Request(**whole), state, clock or Clock())


def error_of(response: Response) -> dict[str, Any]:
    body = json.loads(response.body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["message"]
    found: dict[str, Any] = body["error"]
    return found


def client_of(state: State, clock: Clock | None = None, key: str = "local") -> openai.OpenAI:
    http_client = httpx2.Client(transport=LocalTransport(state, clock or Clock()))
    return openai.OpenAI(api_key=key, base_url="http://local/v1", max_retries=0, http_client=http_client)


def test_an_answer_is_strictly_the_sdk_s_own_type(state: State) -> None:
    texts = ["Bach, Johann Sebastian", "Mozart", "Ärger & Söhne 朱"]
    response = ask(state, {"model": MODEL, "input": texts})
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    body = json.loads(response.body)
    parsed = openai.types.CreateEmbeddingResponse.model_validate(body, strict=True)
    assert set(body) == {"object", "data", "model", "usage"}
    assert [entry.index for entry in parsed.data] == [0, 1, 2]
    assert parsed.model == MODEL
    assert parsed.usage.prompt_tokens == parsed.usage.total_tokens == 6 + 2 + 5
    assert np.array([entry.embedding for entry in parsed.data], np.float32).tobytes() == embed(texts).tobytes()


def test_base64_is_strictly_the_same_once_decoded(state: State) -> None:
    body = json.loads(ask(state, {"model": MODEL, "input": ["Bach"], "encoding_format": "base64"}).body)
    for entry in body["data"]:
        entry["embedding"] = np.frombuffer(base64.b64decode(entry["embedding"], validate=True), "<f4").tolist()
    openai.types.CreateEmbeddingResponse.model_validate(body, strict=True)
    assert np.array(body["data"][0]["embedding"], np.float32).tobytes() == embed(["Bach"]).tobytes()


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5), st.integers(1, 384))
def test_float_and_base64_are_the_very_same_float32(texts: list[str], dimensions: int) -> None:
    wanted = {"model": MODEL, "input": texts, "dimensions": dimensions}
    with State() as state:
        numbers = json.loads(ask(state, wanted | {"encoding_format": "float"}).body)["data"]
        coded = json.loads(ask(state, wanted | {"encoding_format": "base64"}).body)["data"]
    for one, other in zip(numbers, coded, strict=True):
        assert np.array(one["embedding"], "<f4").tobytes() == base64.b64decode(other["embedding"])


def test_small_numbers_of_long_texts_round_trip_too(state: State) -> None:
    text = " ".join(f"{number:x}" for number in range(4000))
    body = json.loads(ask(state, {"model": MODEL, "input": text}).body)
    assert np.array(body["data"][0]["embedding"], np.float32).tobytes() == embed([text]).tobytes()


def test_the_models_are_strictly_the_sdk_s_own_type(state: State) -> None:
    listed = json.loads(ask(state, method="GET", path="/v1/models").body)
    assert listed["object"] == "list"
    one = json.loads(ask(state, method="GET", path=f"/v1/models/{MODEL}").body)
    assert listed["data"] == [one]
    assert openai.types.Model.model_validate(one, strict=True).id == MODEL
    with client_of(state) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).owned_by == "local"


@pytest.mark.parametrize(
    ("changes", "status", "param", "says"),
    [
        ({"input": []}, 400, "input", "empty array"),
        ({"input": ""}, 400, "input", "empty string"),
        ({"input": ["a", ""]}, 400, "input", r"input\[1\]"),
        ({"input": ["a"] * 2049}, 400, "input", "2048"),
        ({"input": [1, 2, 3]}, 400, "input", "tokens"),
        ({"input": [[1, 2], [3]]}, 400, "input", "tokens"),
        ({"input": ["a", 1]}, 400, "input", "string"),
        ({"input": ["a", None]}, 400, "input", "string"),
        ({"input": {"a": 1}}, 400, "input", "string"),
        ({"input": 5}, 400, "input", "string"),
        ({"input": None}, 400, "input", "Missing"),
        ({"input": "a" * (8192 * 4 + 1)}, 400, "input", "8192"),
        ({"input": ["a" * 32768] * 36 + ["b" * 20353]}, 400, None, "300001"),
        ({"model": None}, 400, "model", "Missing"),
        ({"model": 7}, 400, "model", "string"),
        ({"model": "text-embedding-3-small"}, 404, None, "text-embedding-3-small"),
        ({"dimensions": 0}, 400, "dimensions", "384"),
        ({"dimensions": 385}, 400, "dimensions", "384"),
        ({"dimensions": -1}, 400, "dimensions", "384"),
        ({"dimensions": 10**30}, 400, "dimensions", "384"),
        ({"dimensions": 5.0}, 400, "dimensions", "integer"),
        ({"dimensions": True}, 400, "dimensions", "integer"),
        ({"dimensions": "5"}, 400, "dimensions", "integer"),
        ({"encoding_format": "hex"}, 400, "encoding_format", "base64"),
        ({"encoding_format": ["float"]}, 400, "encoding_format", "base64"),
        ({"user": 5}, 400, "user", "string"),
        ({"x": 1}, 400, None, "Unrecognized request argument supplied: x"),
    ],
)
def test_what_is_wrong_is_refused_and_embeds_nothing(
    state: State, changes: dict[str, Any], status: int, param: str | None, says: str
) -> None:
    response = ask(state, {"model": MODEL, "input": "a"} | changes)
    error = error_of(response)
    assert (response.status, error["param"]) == (status, param)
    with pytest.raises(openai.APIStatusError, match=says), client_of(state) as client:
        client.post("/embeddings", body={"model": MODEL, "input": "a"} | changes, cast_to=object)
    assert state.summary()["texts"] == 0


def test_an_unknown_model_says_so_in_its_code(state: State) -> None:
    for response in (
        ask(state, {"model": "gpt", "input": "a"}),
        ask(state, method="GET", path="/v1/models/gpt%20%ff"),
    ):
        assert response.status == 404
        assert error_of(response)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "changes",
    [
        {"input": ["a"] * 2048},
        {"input": "a" * 8192 * 4},
        {"input": ["a" * 32768] * 36 + ["b" * 20352]},
        {"dimensions": 1},
        {"dimensions": 384},
        {"dimensions": None, "user": None, "encoding_format": None},
        {"user": "me"},
        {"input": " "},
        {"input": "\x00\u2028\x85"},
    ],
)
def test_what_is_just_within_the_limits_is_taken(state: State, changes: dict[str, Any]) -> None:
    assert ask(state, {"model": MODEL, "input": "a", "encoding_format": "base64"} | changes).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b'{"model": NaN}',
        b'{"dimensions": Infinity}',
        b'{"dimensions": 1e999}',
        b'{"dimensions": ' + b"1" * 5000 + b"}",
        rb'{"model": "m", "input": "\ud800"}',
        rb'{"\udc00": "m"}',
        b'{"model": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "m"} x',
        b"\x1f\x8b\x08",
    ],
)
def test_what_is_no_json_is_a_400(state: State, raw: bytes) -> None:
    response = ask(state, raw)
    assert response.status == 400
    assert "JSON" in error_of(response)["message"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "input", "dimensions", "encoding_format", "user", "x"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=8,
    )
    | st.binary(max_size=30)
)
def test_nothing_makes_it_crash(body: object) -> None:
    with State() as state:
        response = ask(state, {"model": MODEL} | body if isinstance(body, dict) else body)
    if response.status != 200:
        assert response.status in {400, 404}
        error_of(response)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embedding", 404),
        ("POST", "/v1/embeddings/", 404),
        ("POST", "/embeddings", 404),
        ("GET", "/", 404),
        ("GET", "", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/a/b", 404),
        ("GET", "/v1/\ud800", 404),
        ("GET", "/local/state", 404),
        ("POST", "/v1/uploads", 404),
        ("PUT", "/v1/files", 405),
        ("POST", "/v1/batches/cancel", 405),
        ("GET", "/v1/embeddings", 405),
        ("DELETE", f"/v1/models/{MODEL}", 405),
        ("post", "/v1/embeddings", 405),
    ],
)
def test_everything_else_has_the_error_s_shape(state: State, method: str, path: str, status: int) -> None:
    response = ask(state, {}, method=method, path=path)
    assert response.status == status
    assert error_of(response)["type"] == "invalid_request_error"
    assert ("allow" in response.headers) == (status == 405)


def test_a_body_beyond_the_bound_is_refused(state: State) -> None:
    assert ask(state, b" " * (MAX_BODY_BYTES + 1)).status == 413
    assert ask(state, b" " * MAX_BODY_BYTES).status == 400


def test_the_sdk_sees_the_right_errors() -> None:
    with State(api_key="sk-secret", requests_per_minute=1) as state:
        with client_of(state, key="sk-wrong-one") as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                stranger.embeddings.create(model=MODEL, input="a")
            assert refused.value.code == "invalid_api_key"
            assert "sk-" not in str(refused.value)
        with client_of(state, key="sk-secret") as client:
            with pytest.raises(openai.BadRequestError) as bad:
                client.embeddings.create(model=MODEL, input=[])
            assert bad.value.param == "input"
            with pytest.raises(openai.NotFoundError) as missing:
                client.embeddings.create(model="x", input="a")
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.NotFoundError):
                client.post("/nowhere", cast_to=object)
            answer = client.embeddings.create(model=MODEL, input="a")
            assert len(answer.data[0].embedding) == 384
            with pytest.raises(openai.RateLimitError) as limited:
                client.embeddings.create(model=MODEL, input="a")
            assert limited.value.code == "rate_limit_exceeded"
            assert limited.value.request_id == "req_local_000000000006"


@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer ", "Basic sk-secret", "sk-secret", "Bearer sk-secret2", "Bearer ü"])
def test_without_the_key_there_is_no_answer_not_even_a_404(sent: str | None) -> None:
    headers = {} if sent is None else {"authorization": sent}
    with State(api_key="sk-secret", record=True) as state:
        for path in ("/v1/embeddings", "/v1/models", "/nowhere"):
            response = ask(state, {"model": MODEL, "input": "a"}, path=path, headers=headers)
            assert response.status == 401
            assert "secret" not in json.dumps(error_of(response))
        assert state.summary()["texts"] == 0
        assert "secret" not in repr(state)
        granted = ask(state, {"model": MODEL, "input": "a"}, headers={"AUTHORIZATION": "bearer sk-secret"})
        assert granted.status == 200


def test_a_request_never_shows_its_headers() -> None:
    assert "secret" not in repr(Request("GET", "/", headers={"authorization": "Bearer secret"}, body=b"secret"))


def test_request_ids_count_up(state: State) -> None:
    ids = [ask(state, {"model": MODEL, "input": "a"}).headers["x-request-id"] for _ in range(3)]
    assert ids == ["req_local_000000000001", "req_local_000000000002", "req_local_000000000003"]


def test_requests_a_minute() -> None:
    clock, wanted = Clock(), {"model": MODEL, "input": "abcd"}
    with State(requests_per_minute=3) as state:
        granted = [ask(state, wanted, clock=clock) for _ in range(3)]
        assert [response.status for response in granted] == [200, 200, 200]
        assert granted[0].headers["x-ratelimit-limit-requests"] == "3"
        assert [response.headers["x-ratelimit-remaining-requests"] for response in granted] == ["2", "1", "0"]
        assert [response.headers["x-ratelimit-reset-requests"] for response in granted] == [
            "20s",
            "40s",
            "1m0s",
        ]
        assert "x-ratelimit-limit-tokens" not in granted[0].headers
        refused = ask(state, wanted, clock=clock)
        assert (refused.status, refused.headers["retry-after"]) == (429, "20")
        assert error_of(refused)["type"] == "requests"
        assert state.summary()["texts"] == 3
        clock.now += 19
        assert ask(state, wanted, clock=clock).status == 429
        clock.now += 1
        assert ask(state, wanted, clock=clock).status == 200
        clock.now -= 3600
        refused = ask(state, wanted, clock=clock)
        assert (refused.status, refused.headers["retry-after"]) == (429, "20")
        clock.now += 20
        assert ask(state, wanted, clock=clock).status == 200


def test_tokens_a_minute() -> None:
    clock = Clock()
    with State(requests_per_minute=1000, tokens_per_minute=600) as state:
        first = ask(state, {"model": MODEL, "input": "a" * 4 * 500}, clock=clock)
        assert first.headers["x-ratelimit-remaining-tokens"] == "100"
        assert first.headers["x-ratelimit-reset-tokens"] == "50s"
        assert first.headers["x-ratelimit-reset-requests"] == "60ms"
        refused = ask(state, {"model": MODEL, "input": "a" * 4 * 110}, clock=clock)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "100"
        assert refused.headers["x-ratelimit-remaining-requests"] == "999", "what was refused took nothing"
        assert error_of(refused)["type"] == "tokens"
        clock.now += 1
        assert ask(state, {"model": MODEL, "input": "a" * 4 * 110}, clock=clock).status == 200
        never = ask(state, {"model": MODEL, "input": "a" * 4 * 601}, clock=clock)
        assert never.status == 429
        assert "retry-after" not in never.headers, "no waiting would help"
        assert "too large" in error_of(never)["message"]


def test_only_what_embeds_counts_against_the_limits() -> None:
    with State(requests_per_minute=1) as state:
        for _ in range(3):
            assert ask(state, {"model": MODEL, "input": []}).status == 400
            assert ask(state, method="GET", path="/v1/models").status == 200
        assert ask(state, {"model": MODEL, "input": "a"}).status == 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (90.25, "1m30.25s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (7265, "2h1m5s"),
    ],
)
def test_durations_are_written_as_openai_s(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_state_that_fails_is_a_500_and_no_traceback(state: State) -> None:
    state.close()
    response = ask(state, {"model": MODEL, "input": "a"})
    assert response.status == 500
    assert error_of(response)["type"] == "server_error"
    with pytest.raises(openai.InternalServerError), client_of(state) as client:
        client.embeddings.create(model=MODEL, input="a")


def test_a_program_error_is_not_hidden(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pipeline.local_service.model.embed", broken)
    with pytest.raises(ZeroDivisionError):
        ask(state, {"model": MODEL, "input": "a"})
    assert state.summary()["texts"] == 0, "what was not embedded is not billed"


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 24), "ON CONFLICT DO UPDATE"
