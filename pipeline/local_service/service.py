"""The OpenAI-compatible service as one function: a request and the state in, a response out.

What it answers is the literal `_ROUTES` below; everything else gets OpenAI's own error shape. Its limits are
the real ones: 1 to 2,048 inputs a request, none empty, 8,192 tokens an input, 300,000 a request. Its tokens
are its own: one for each started four bytes of a text's UTF-8, since the model has no vocabulary.

It doesn't know how requests reach it: `transport` brings them in-process, `server` from a socket. The caller
says `state.answered(…)` when the response has left.
"""

from __future__ import annotations

import base64
import hmac
import math
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
import numpy as np

from pipeline.local_service import model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.local_service.state import Limited, State

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
MAX_REQUEST_TOKENS = 300_000
# 300,000 tokens are 1.2 MB, six times that when each byte is escaped, and some room for the rest.
MAX_BODY_BYTES = 8 << 20

_EMBEDDING_KEYS = {"input", "model", "dimensions", "encoding_format", "user"}
_MODEL_CREATED = 1_767_225_600  # 2026-01-01: the model is part of the program and has no other date


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; the path and query as they were sent, without the `?`; the body whole."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # holds the key: never shown
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; the names of its headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a route gives: the body, and what must be counted before it leaves."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[str] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Route:
    answer: Callable[[Request, str], _Answer]  # the request, and what stands for `{id}` in the path
    max_body_bytes: int = MAX_BODY_BYTES


class _RefusedError(Exception):
    """A request that is answered with an error, in OpenAI's shape."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.answer = _Answer(error_body(message, kind=kind, param=param, code=code), status, headers or {})


def handle(request: Request, state: State, clock: Callable[[], float]) -> Response:
    """Answer one request; everything that may be counted is counted when this returns."""
    try:
        number = state.arrived(clock())
        try:
            check_key(request, state)
            answer = _routed(request)
        except _RefusedError as refused:
            answer = refused.answer
        settled = state.settle(number, clock(), answer.texts, answer.tokens)
    except sqlite3.Error as error:  # a full disk, a lock held too long: ours to own up to, not the client's fault
        message = f"The local service could not use its state file: {error}."
        return Response(500, {"content-type": "application/json"}, error_body(message, kind="server_error"))
    if settled.limited:
        answer = _too_many(settled.limited)
    headers = {
        "content-type": "application/json",
        "x-request-id": settled.request_id,
        **settled.headers,
        **answer.headers,
    }
    return Response(answer.status, headers, answer.body)


def body_limit(method: str, path: str) -> int:
    """How many bytes a request to this route may have, for who reads it from a socket."""
    found = _matching(path).get(method)
    return found[0].max_body_bytes if found else MAX_BODY_BYTES


def error_body(message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> bytes:
    """An error in OpenAI's shape."""
    clean = message.encode("utf-8", "replace").decode()  # a path in it may hold what is not text
    return msgspec.json.encode({"error": {"message": clean, "type": kind, "param": param, "code": code}})


def refusal_of_key(request: Request, state: State) -> bytes | None:
    """The body of a 401 when the state asks for a key and the request doesn't bring it."""
    try:
        check_key(request, state)
    except _RefusedError as refused:
        return refused.answer.body
    return None


def check_key(request: Request, state: State) -> None:
    """Refuse a request that lacks the key that the state asks for; the answer never repeats what was sent."""
    if state.api_key is None:
        return
    sent = next((value for name, value in request.headers.items() if name.lower() == "authorization"), None)
    if sent is None:
        raise _RefusedError(
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            status=401,
        )
    scheme, _, key = sent.partition(" ")
    matches = hmac.compare_digest(key.strip().encode("utf-8", "replace"), state.api_key.encode("utf-8", "replace"))
    if scheme.lower() != "bearer" or not matches:
        raise _RefusedError("Incorrect API key provided.", status=401, code="invalid_api_key")


def _routed(request: Request) -> _Answer:
    found = _matching(request.path)
    if not found:
        raise _RefusedError(f"Invalid URL ({request.method[:20]} {request.path[:200]})", status=404)
    if request.method not in found:
        raise _RefusedError(
            f"Not allowed to {request.method[:20]} on {request.path[:200]}. "
            "(HINT: Perhaps you meant to use a different HTTP method?)",
            status=405,
            code="method_not_supported",
            headers={"allow": ", ".join(sorted(found))},
        )
    route, argument = found[request.method]
    if len(request.body) > route.max_body_bytes:
        raise _RefusedError(
            f"The body has {len(request.body)} bytes; at most {route.max_body_bytes} are taken here.",
            status=413,
        )
    return route.answer(request, argument)


def _matching(path: str) -> dict[str, tuple[_Route, str]]:
    """The routes of a path, by method, each with what stands for `{id}`."""
    found = {}
    for (method, pattern), route in _ROUTES.items():
        before, placeholder, after = pattern.partition("{id}")
        argument = path[len(before) : len(path) - len(after)] if placeholder else ""
        if path == before + argument + after and bool(argument) == bool(placeholder) and "/" not in argument:
            found[method] = (route, unquote(argument))
    return found


def _embeddings(request: Request, _: str) -> _Answer:
    body = _json_object(request.body)
    for key in body:
        if key not in _EMBEDDING_KEYS:
            raise _RefusedError(f"Unrecognized request argument supplied: {key[:100]}")
    _known_model(_required(body, "model"))
    texts = _texts(_required(body, "input"))
    tokens = _tokens(texts)
    dimensions = _dimensions(body.get("dimensions"))
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise _RefusedError(
            "Invalid 'encoding_format': it must be 'float' or 'base64'.",
            param="encoding_format",
            code="invalid_value",
        )
    if not isinstance(body.get("user", ""), str | None):
        raise _RefusedError("Invalid type for 'user': expected a string.", param="user", code="invalid_type")
    vectors = model.embed(texts, dimensions)
    coded: Sequence[str | list[float]] = _base64(vectors) if encoding == "base64" else _decimals(vectors)
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(coded)],
        "model": model.MODEL,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return _Answer(msgspec.json.encode(answer), texts=texts, tokens=tokens)


def _models(_: Request, __: str) -> _Answer:
    return _Answer(msgspec.json.encode({"object": "list", "data": [_model_card()]}))


def _one_model(_: Request, name: str) -> _Answer:
    _known_model(name)
    return _Answer(msgspec.json.encode(_model_card()))


# Files and batches come here, each with its own limit of bytes.
_ROUTES: dict[tuple[str, str], _Route] = {
    ("POST", "/v1/embeddings"): _Route(_embeddings),
    ("GET", "/v1/models"): _Route(_models),
    ("GET", "/v1/models/{id}"): _Route(_one_model),
}


def _model_card() -> dict[str, object]:
    return {"id": model.MODEL, "object": "model", "created": _MODEL_CREATED, "owned_by": "local"}


def _json_object(body: bytes) -> dict[str, Any]:
    """The body as an object; what is not strict JSON (NaN, a lone surrogate, not UTF-8) is refused."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _RefusedError(f"We could not parse the JSON body of your request: {error}.") from error
    if not isinstance(found, dict):
        raise _RefusedError("We could not parse the JSON body of your request: it is not an object.")
    return found


def _required(body: Mapping[str, Any], key: str) -> object:
    if body.get(key) is None:
        raise _RefusedError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")
    return body[key]


def _known_model(name: object) -> None:
    if not isinstance(name, str):
        raise _RefusedError("Invalid type for 'model': expected a string.", param="model", code="invalid_type")
    if name != model.MODEL:
        raise _RefusedError(
            f"The model `{name[:100]}` does not exist or you do not have access to it.",
            status=404,
            code="model_not_found",
        )


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise _RefusedError(
            "Invalid type for 'input': expected a string or an array of strings.",
            param="input",
            code="invalid_type",
        )
    if not texts:
        raise _RefusedError(
            "Invalid 'input': empty array. Expected an array with minimum length 1.",
            param="input",
            code="empty_array",
        )
    if all(isinstance(text, int) for text in texts) or isinstance(texts[0], list):
        raise _RefusedError(
            "Invalid type for 'input': arrays of tokens are not taken, the model has no vocabulary.",
            param="input",
            code="invalid_type",
        )
    if len(texts) > MAX_INPUTS:
        raise _RefusedError(
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, but got "
            f"an array with length {len(texts)} instead.",
            param="input",
            code="array_above_max_length",
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise _RefusedError(f"Invalid type for 'input[{index}]': expected a string.", param="input", code="invalid_type")
        if not text:
            raise _RefusedError(
                f"Invalid 'input[{index}]': input cannot be an empty string.",
                param="input",
                code="empty_string",
            )
    return texts


def _tokens(texts: Sequence[str]) -> int:
    total = 0
    for index, text in enumerate(texts):
        tokens = (len(text.encode()) + 3) // 4
        if tokens > MAX_INPUT_TOKENS:
            raise _RefusedError(
                f"Invalid 'input[{index}]': maximum length is {MAX_INPUT_TOKENS} tokens, it has {tokens}.",
                param="input",
                code="context_length_exceeded",
            )
        total += tokens
    if total > MAX_REQUEST_TOKENS:
        raise _RefusedError(
            f"Requested {total} tokens, max {MAX_REQUEST_TOKENS} tokens per request",
            kind="max_tokens_per_request",
            code="max_tokens_per_request",
        )
    return total


def _dimensions(value: object) -> int:
    if value is None:
        return model.DIMENSIONS
    if not isinstance(value, int) or isinstance(value, bool):
        raise _RefusedError("Invalid type for 'dimensions': expected an integer.", param="dimensions", code="invalid_type")
    if not 1 <= value <= model.DIMENSIONS:
        raise _RefusedError(
            f"Invalid value for 'dimensions' = {value}. Must be from 1 to {model.DIMENSIONS}.",
            param="dimensions",
            code="invalid_value",
        )
    return value


def _base64(vectors: NDArray[np.float32]) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4", copy=False)]


def _decimals(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Ten decimals where they name the very same float32, as they nearly always do; elsewhere all of them."""
    whole = vectors.astype(np.float64)
    short = np.round(whole, 10)
    values: list[list[float]] = np.where(short.astype(np.float32) == vectors, short, whole).tolist()
    return values


def _too_many(limited: Limited) -> _Answer:
    short = {"requests": "RPM", "tokens": "TPM"}[limited.kind]
    facts = f"on {limited.kind} per min ({short}): Limit {limited.limit}"
    if limited.wait is None:
        message = f"Request too large for {model.MODEL} {facts}, Requested {limited.requested}."
        headers = {}
    else:
        seconds = max(1, math.ceil(limited.wait))
        message = (
            f"Rate limit reached for {model.MODEL} {facts}, Used {limited.used}, "
            f"Requested {limited.requested}. Please try again in {seconds}s."
        )
        headers = {"retry-after": str(seconds)}
    return _Answer(error_body(message, kind=limited.kind, code="rate_limit_exceeded"), 429, headers)
