"""Asking the service, once: one request in, one outcome out. Nothing here repeats a request or waits.

The official SDK talks, with its own retries off: one lost reply and two of its default retries would pay three times.
Every way in which a request can end becomes one of five outcomes, and each failed one says whether the service may
have done (and billed) the work all the same. What the service says may quote our key back at us, so its words are
rid of it here, before they are cut, kept or shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.log import without_secrets
from pipeline.provider.service import Service, most_answer_bytes
from pipeline.retry import Clock, retry_after

if TYPE_CHECKING:
    import httpx2
    import openai

# Errors of the request itself, whatever strings are in it: halving it would refuse every string one by one.
_WHOLE_REQUEST = {"model_not_found", "invalid_api_key", "unsupported_parameter", "unknown_parameter"}
_WHOLE_REQUEST_PARAMS = {"model", "dimensions", "encoding_format", "user"}
MOST_WORDS = 300
_WITH_AZURE = "; with Azure, service_deployment and service_api_version as well"


@dataclass(frozen=True, slots=True)
class Answered:
    """The service answered; `bodies[i]` holds what it said about input i: usually one body, none or two if it erred."""

    bodies: list[list[bytes]]
    tokens: int | None
    unknown: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refused:
    """Some input of the request is not acceptable; nothing was paid."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """No further request will do better until a person acts. `maybe_paid` as below."""

    reason: str
    maybe_paid: bool = False


@dataclass(frozen=True, slots=True)
class Troubled:
    """It may work later. `maybe_paid`: the service may have embedded the strings and the answer was lost."""

    reason: str
    maybe_paid: bool
    wait: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class CutOffError(Exception):
    """A download that ended cleanly and too early."""


class OddAnswerError(Exception):
    """An answer that says 200 and is not what was asked for: a page of a proxy, say."""


Outcome = Answered | Refused | Stopped | Troubled


class _Entry(msgspec.Struct):
    index: int
    embedding: msgspec.Raw


class _Usage(msgspec.Struct):
    total_tokens: int


class _Body(msgspec.Struct):
    data: list[_Entry]
    model: str = ""
    usage: _Usage | None = None


class EmbeddingClient:
    """The SDK, set up so that it goes where we say and nowhere else."""

    def __init__(self, service: Service, clock: Clock, transport: httpx2.BaseTransport | None = None) -> None:
        import httpx2
        import openai

        from pipeline.provider import bounded

        self._service = service
        self._clock = clock
        self.date_seen: str | None = None  # the service's own time, from its last answer
        timeout = httpx2.Timeout(service.timeout, connect=min(service.timeout, 20.0))
        limits = httpx2.Limits(max_connections=64)
        watch: Callable[[httpx2.Response], None] = partial(bounded.watch, seconds=service.timeout)
        hooks: dict[str, list[Callable[..., None]]] = {"request": [self._dress], "response": [self._note_date, watch]}
        # Redirects are not followed, so that the key and the texts stay with the host that the user named.
        http = httpx2.Client(
            transport=transport, timeout=timeout, follow_redirects=False, limits=limits, event_hooks=hooks,
            headers={"accept-encoding": bounded.ACCEPTED},
        )  # fmt: skip
        self._openai: openai.OpenAI = openai.OpenAI(
            api_key=service.api_key or "none", base_url=service.base_url, max_retries=0, timeout=timeout, http_client=http,
            default_query={"api-version": service.api_version} if service.api_version else None,
        )  # fmt: skip
        base = service.base_url + (f"/deployments/{service.deployment}" if service.deployment else "")
        self._embedding: openai.OpenAI = self._openai.with_options(base_url=base)

    def close(self) -> None:
        self._openai.close()

    @property
    def sdk(self) -> openai.OpenAI:
        """The SDK itself, for files and batches (`batch_client.py`)."""
        return self._openai

    def judge(self, problem: Exception) -> Refused | Stopped | Troubled:
        """What an exception of the SDK, or of the HTTP library under it, means; anything else is raised again."""
        import httpx2
        import openai

        from pipeline.provider.bounded import UnreadableError

        if isinstance(problem, openai.APIStatusError):
            return _of_status(problem, self._clock.now())
        if isinstance(problem, openai.APIConnectionError):
            return _of_connection(problem)
        if isinstance(problem, UnreadableError):
            return _unreadable(problem)
        if isinstance(problem, OddAnswerError | json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            return Troubled(f"its answer is not what was asked for: {told(problem)}", maybe_paid=True)
        if isinstance(problem, httpx2.HTTPError | CutOffError):  # a stream that breaks off is the HTTP library's own error
            return Troubled(f"the answer was cut off: {told(problem)}", maybe_paid=True)
        raise problem

    def _dress(self, request: httpx2.Request) -> None:
        """The user's own headers, on whatever the SDK sends; where one of them is the key, the SDK's is none."""
        if self._service.brings_its_key:
            request.headers.pop("authorization", None)
        for header in self._service.headers:
            request.headers[header.name] = header.value or ""

    def _note_date(self, response: httpx2.Response) -> None:
        self.date_seen = response.headers.get("date", self.date_seen)

    def ask(self, texts: Sequence[str]) -> Outcome:
        """Send one request."""
        import openai

        from pipeline.provider.bounded import at_most

        asked: dict[str, Any] = {
            "model": self._service.model,
            "input": list(texts),
            "encoding_format": self._service.encoding_format,
        }
        if self._service.asked_dimensions is not None:
            asked["dimensions"] = self._service.asked_dimensions
        most = most_answer_bytes(len(texts), self._service.dimensions)
        try:
            with at_most(most, f"the answer to {len(texts):,} strings"):
                reply = self._embedding.embeddings.with_raw_response.create(**asked)
        except openai.APIStatusError as problem:
            return _of_status(problem, self._clock.now())
        except openai.APIConnectionError as problem:
            return _of_connection(problem)
        return _read(reply.http_response.content, len(texts), reply.http_response.headers)

    def look(self) -> str | None:
        """Whether the service answers and takes the key, without embedding anything; None when it is well."""
        import openai

        try:
            self._openai.models.with_raw_response.retrieve(self._service.model)
        except openai.NotFoundError as problem:
            # Many compatible services have no list of models; that says nothing about embeddings.
            return (
                None
                if self._service.deployment or _code(problem) != "model_not_found"
                else f"it does not know the model {self._service.model!r}"
            )
        except openai.APIStatusError as problem:
            return _words(problem)
        except openai.APIConnectionError as problem:
            return _of_connection(problem).reason
        return None


def _read(content: bytes, inputs: int, headers: Mapping[str, str]) -> Answered | Troubled:
    """Cut an answer into one body a string, in the form of a batch result, without parsing a vector."""
    try:
        body = msgspec.json.decode(content, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            body = msgspec.convert(_raw_embeddings(json.loads(content)), _Body)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            start = told(content[:MOST_WORDS].decode("utf-8", "replace"))[:60]
            return Troubled(f"its answer is not what an embedding service answers: {start!r}", maybe_paid=True)
    bodies: list[list[bytes]] = [[] for _ in range(inputs)]
    unknown = 0
    model = msgspec.json.encode(told(body.model[: 2 * MOST_WORDS]))  # it stands in each body again
    for entry in body.data:
        if 0 <= entry.index < inputs:
            said = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":%b}],"model":%b,"usage":null}'
            bodies[entry.index].append(said % (bytes(entry.embedding), model))
        else:
            unknown += 1
    return Answered(bodies, body.usage.total_tokens if body.usage else None, unknown, headers)


def _raw_embeddings(body: Any) -> Any:
    """An answer that only the lenient parser reads (NaN in a vector): each embedding as JSON text again, one by one."""
    for entry in body["data"]:
        entry["embedding"] = msgspec.Raw(json.dumps(entry.get("embedding")).encode())
    return body


def _unreadable(problem: Exception) -> Stopped:
    """An answer came, so the work was done, and asking again would be paid again for the same answer."""
    words = "Is that a proxy, or another program, that answers? Check embedding_service and embedding_dimensions"
    return Stopped(f"{told(problem)}. {words}", maybe_paid=True)


def _of_connection(problem: openai.APIConnectionError) -> Stopped | Troubled:
    """No answer. Only a connection that was never made is sure to have cost nothing."""
    import httpx2

    from pipeline.provider.bounded import UnreadableError

    cause = problem.__cause__
    if isinstance(cause, UnreadableError):
        return _unreadable(cause)
    unsent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    words = told(str(cause or problem)) or type(cause or problem).__name__
    return Troubled(f"no connection: {words}" if unsent else f"the answer was lost: {words}", maybe_paid=not unsent)


def _of_status(problem: openai.APIStatusError, now: float) -> Refused | Stopped | Troubled:
    status, code, words = problem.status_code, _code(problem), _words(problem)
    if status == 429:
        if code == "insufficient_quota":
            return Stopped(f"{words}. The account has no money left: add some, or raise its limit, and run again")
        return Troubled(
            words,
            maybe_paid=False,
            wait=retry_after(problem.response.headers.get("retry-after"), now),
            headers=problem.response.headers,
        )
    if status in (401, 403):
        return Stopped(f"{words}. Check the API key and what it may do")
    if 300 <= status < 400:
        return Stopped(
            f"{words}: it redirects to another place, which is not followed with a key. Set embedding_service to the right URL"
        )
    if status in (400, 413, 422):
        if code in _WHOLE_REQUEST or _param(problem) in _WHOLE_REQUEST_PARAMS:
            return Stopped(f"{words}. Mend the config: the model, its dimensions or encoding_format")
        return Refused(code or str(status), words)
    if status in (404, 405, 410):
        return Stopped(f"{words}. Check embedding_service (does the URL end in /v1?) and embedding_model{_WITH_AZURE}")
    # 408, 409 and 5xx: a gateway may have given up while the service went on working.
    return Troubled(words, maybe_paid=status != 409, wait=retry_after(problem.response.headers.get("retry-after"), now))


def _error_body(problem: openai.APIStatusError) -> Mapping[str, Any]:
    return problem.body if isinstance(problem.body, dict) else {}


def _code(problem: openai.APIStatusError) -> str:
    said = _error_body(problem)
    return told(said.get("code") or said.get("type") or "")


def _param(problem: openai.APIStatusError) -> str:
    return str(_error_body(problem).get("param") or "")


def _words(problem: openai.APIStatusError) -> str:
    """`429 rate_limit_exceeded: …`, from whatever body came; an HTML page is cut short."""
    plain = told(_error_body(problem).get("message") or problem.response.text)
    return f"{problem.status_code} {_code(problem)}: {plain}".replace("  ", " ").replace(" : ", ": ")


def told(words: object) -> str:
    """What a service says, on one line and not too much of it: without secrets first, or a cut might leave a part of one."""
    return " ".join(without_secrets(str(words)).split())[:MOST_WORDS]
