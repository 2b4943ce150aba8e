"""What goes in and out of the service: requests, answers, OpenAI's error shape, and how a body or query is read.

It knows nothing of sockets, of the state, or of what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.local_service.state import State

PIECE_BYTES = 1 << 16


class BodyLostError(Exception):
    """The body of a request stopped coming. Raised by whoever brings the pieces; nobody is left to answer."""


class Content:
    """An open file on its way out, in pieces; deleting the file meanwhile doesn't cut it off."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self.length = length

    def __iter__(self) -> Iterator[bytes]:
        left = self.length  # never more than was promised
        while left and (piece := self._file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield piece

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; the path and query as they were sent, without the `?`.

    The body is whole, except where `service.takes_pieces` says that `pieces` may bring it.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # holds the key: never shown
    body: bytes = field(default=b"", repr=False)
    pieces: Iterator[bytes] | None = field(default=None, repr=False)

    def header(self, name: str) -> str | None:
        """The value of a header, whose name is given in small letters."""
        return next((value for key, value in self.headers.items() if key.lower() == name), None)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; the names of its headers are in small letters.

    `content` instead of `body` is a file to send and then close; `lost` means that all was done and the
    connection must end without a word.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    content: Content | None = field(default=None, repr=False)
    lost: bool = False

    @property
    def length(self) -> int:
        return self.content.length if self.content else len(self.body)

    def pieces(self) -> Iterator[bytes]:
        """What to send, once; the file is closed behind it."""
        if self.content is None:
            yield self.body
            return
        try:
            yield from self.content
        finally:
            self.content.close()

    def whole(self) -> bytes:
        """All that is to be sent, in memory."""
        return b"".join(self.pieces())


@dataclass(frozen=True, slots=True)
class Call:
    """What a route is given: the request, what stands for `{id}` in its path, the state, and the time."""

    request: Request
    argument: str
    state: State
    now: float

    def limit(self, default: int, maximum: int) -> int:
        """The `limit` of a page."""
        text = self.one("limit")
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= maximum:
            raise RefusedError(
                f"Invalid 'limit': expected a whole number from 1 to {maximum}, but got '{text[:20]}' instead.",
                param="limit",
                code="invalid_value",
            )
        return int(text[:9])

    def one(self, name: str) -> str | None:
        """A parameter of the query; the last when there are several."""
        try:
            found = parse_qs(self.request.query.encode("utf-8", "replace").decode(), max_num_fields=100, errors="replace").get(name)
        except ValueError as error:
            raise RefusedError("The query has too many parameters.") from error
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route gives: the body, and what must be counted before it leaves."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[str] = ()
    tokens: int = 0
    content: Content | None = None
    lost: bool = False


class RefusedError(Exception):
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
        self.code = code
        self.answer = Answer(error_body(message, kind=kind, param=param, code=code), status, headers or {})


def error_body(message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> bytes:
    """An error in OpenAI's shape."""
    clean = message.encode("utf-8", "replace").decode()  # a path in it may hold what is not text
    return msgspec.json.encode({"error": {"message": clean, "type": kind, "param": param, "code": code}})


def json_object(body: bytes) -> dict[str, Any]:
    """The body as an object; what is not strict JSON (NaN, a lone surrogate, not UTF-8) is refused."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(f"We could not parse the JSON body of your request: {error}.") from error
    if not isinstance(found, dict):
        raise RefusedError("We could not parse the JSON body of your request: it is not an object.")
    return found


def required(body: Mapping[str, Any], key: str) -> object:
    """The value of a key that must be there."""
    if body.get(key) is None:
        raise RefusedError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")
    return body[key]


def only(body: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a key that the endpoint doesn't know."""
    for key in body:
        if key not in known:
            raise RefusedError(f"Unrecognized request argument supplied: {key[:100]}")
