"""The OpenAI-compatible service as one function: a request and the state in, a response out.

What it answers is the literal `_ROUTES` below; everything else gets OpenAI's own error shape. What the
endpoints mean is in `embeddings`, `files` and `batches`.

It doesn't know how requests reach it: `transport` brings them in-process, `server` from a socket. The caller
says `state.answered(…)` when the response has left.
"""

from __future__ import annotations

import hmac
import math
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from pipeline.local_service import batches, files, model
from pipeline.local_service.embeddings import embeddings, known_model
from pipeline.local_service.messages import Answer, BodyLostError, Call, RefusedError, Request, Response, error_body
from pipeline.local_service.settings import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.local_service.state import Limited, State

__all__ = ["MAX_BODY_BYTES", "Request", "Response", "body_limit", "check_key", "handle", "refusal_of_key", "takes_pieces"]

# 300,000 tokens are 1.2 MB, six times that when each byte is escaped, and some room for the rest.
MAX_BODY_BYTES = 8 << 20

_FORM_BYTES = 1 << 16  # what a form may have around its file
_MODEL_CREATED = 1_767_225_600  # 2026-01-01: the model is part of the program and has no other date


@dataclass(frozen=True, slots=True)
class _Route:
    answer: Callable[[Call], Answer]
    max_body_bytes: int = MAX_BODY_BYTES
    pieces: bool = False


def handle(request: Request, state: State, clock: Callable[[], float]) -> Response:
    """Answer one request; everything that may be counted is counted when this returns."""
    try:
        number = state.arrived(clock())
        try:
            check_key(request, state)
            answer = _routed(request, state, clock)
        except RefusedError as refused:
            answer = refused.answer
        except BodyLostError:
            state.answered(state.settle(number, clock()).request_id, clock())
            raise
        settled = state.settle(number, clock(), answer.texts, answer.tokens)
    except (sqlite3.Error, OSError) as error:  # a full disk, a lock held too long: ours to own up to, not the client's fault
        message = f"The local service could not use its state file: {_without_path(error)}."
        return Response(500, {"content-type": "application/json"}, error_body(message, kind="server_error"))
    if settled.limited:
        answer = _too_many(settled.limited)
    headers = {
        "content-type": "application/json",
        "x-request-id": settled.request_id,
        **settled.headers,
        **answer.headers,
    }
    return Response(answer.status, headers, answer.body, answer.content, answer.lost)


def body_limit(method: str, path: str) -> int:
    """How many bytes a request to this route may have, for who reads it from a socket."""
    found = _matching(path).get(method)
    return found[0].max_body_bytes if found else MAX_BODY_BYTES


def takes_pieces(method: str, path: str) -> bool:
    """Whether a request to this route may bring its body in pieces instead of whole."""
    found = _matching(path).get(method)
    return found is not None and found[0].pieces


def refusal_of_key(request: Request, state: State) -> bytes | None:
    """The body of a 401 when the state asks for a key and the request doesn't bring it."""
    try:
        check_key(request, state)
    except RefusedError as refused:
        return refused.answer.body
    return None


def check_key(request: Request, state: State) -> None:
    """Refuse a request that lacks the key that the state asks for; the answer never repeats what was sent."""
    if state.api_key is None:
        return
    sent = request.header("authorization")
    if sent is None:
        raise RefusedError(
            "You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            status=401,
        )
    scheme, _, key = sent.partition(" ")
    matches = hmac.compare_digest(key.strip().encode("utf-8", "replace"), state.api_key.encode("utf-8", "replace"))
    if scheme.lower() != "bearer" or not matches:
        raise RefusedError("Incorrect API key provided.", status=401, code="invalid_api_key")


def _routed(request: Request, state: State, clock: Callable[[], float]) -> Answer:
    found = _matching(request.path)
    if not found:
        raise RefusedError(f"Invalid URL ({request.method[:20]} {request.path[:200]})", status=404)
    if request.method not in found:
        raise RefusedError(
            f"Not allowed to {request.method[:20]} on {request.path[:200]}. "
            "(HINT: Perhaps you meant to use a different HTTP method?)",
            status=405,
            code="method_not_supported",
            headers={"allow": ", ".join(sorted(found))},
        )
    route, argument = found[request.method]
    if len(request.body) > route.max_body_bytes:
        raise RefusedError(
            f"The body has {len(request.body)} bytes; at most {route.max_body_bytes} are taken here.",
            status=413,
        )
    return route.answer(Call(request, argument, state, clock()))


def _matching(path: str) -> dict[str, tuple[_Route, str]]:
    """The routes of a path, by method, each with what stands for `{id}`."""
    found = {}
    for (method, pattern), route in _ROUTES.items():
        before, placeholder, after = pattern.partition("{id}")
        argument = path[len(before) : len(path) - len(after)] if placeholder else ""
        if path == before + argument + after and bool(argument) == bool(placeholder) and "/" not in argument:
            found[method] = (route, unquote(argument).encode("utf-8", "replace").decode())
    return found


def _models(_: Call) -> Answer:
    return Answer(msgspec.json.encode({"object": "list", "data": [_model_card()]}))


def _one_model(call: Call) -> Answer:
    known_model(call.argument)
    return Answer(msgspec.json.encode(_model_card()))


_ROUTES: dict[tuple[str, str], _Route] = {
    ("POST", "/v1/embeddings"): _Route(embeddings),
    ("GET", "/v1/models"): _Route(_models),
    ("GET", "/v1/models/{id}"): _Route(_one_model),
    ("POST", "/v1/files"): _Route(files.upload, MAX_FILE_BYTES + _FORM_BYTES, pieces=True),
    ("GET", "/v1/files"): _Route(files.listed),
    ("GET", "/v1/files/{id}"): _Route(files.retrieve),
    ("DELETE", "/v1/files/{id}"): _Route(files.delete),
    ("GET", "/v1/files/{id}/content"): _Route(files.content),
    ("POST", "/v1/batches"): _Route(batches.create),
    ("GET", "/v1/batches"): _Route(batches.listed),
    ("GET", "/v1/batches/{id}"): _Route(batches.retrieve),
    ("POST", "/v1/batches/{id}/cancel"): _Route(batches.cancel),
}


def _model_card() -> dict[str, object]:
    return {"id": model.MODEL, "object": "model", "created": _MODEL_CREATED, "owned_by": "local"}


def _without_path(error: sqlite3.Error | OSError) -> str:
    """Where the file is on this machine is nothing for a client on another."""
    return str((error.strerror or type(error).__name__) if isinstance(error, OSError) else error)


def _too_many(limited: Limited) -> Answer:
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
    return Answer(error_body(message, kind=limited.kind, code="rate_limit_exceeded"), 429, headers)
