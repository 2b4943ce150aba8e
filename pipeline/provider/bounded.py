"""Answers of the service, bounded while they stream: in bytes as they come, in bytes as they unfold, and in time.

One hook on the HTTP client, so that every answer passes it, whichever way it came: from a socket, through a proxy, out of
this process. gzip is undone here, in small pieces, so that a bomb ends where its bound is and never lies in memory;
another encoding was not asked for and is refused. A timeout of the HTTP library is for one read, and a byte every minute
would go on for ever: the answer as a whole has to come at a minimum rate. Of the body of an error only the head is
read, since its status says enough. How large an answer may be is told by whoever asks; what one means that is larger
is `client.py`.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2

ACCEPTED = "gzip"
_MOST_JSON = 32 << 20  # a page of a hundred batches, each with a list of errors by line
_MOST_ERROR = 64 << 10  # of an error we show 300 characters
_SLOWEST = 2_000.0  # bytes a second: 64 requests at once on a line of 1 Mbit/s
_PIECE = 64 << 10  # no more than `_MOST_ERROR`, so that the head of an error is shown
_GZIP_OVERHEAD = 64 << 10  # what does not compress gets a little larger


class UnreadableError(httpx2.RequestError):
    """An answer that would be no better if it was asked for again: too large, or in an encoding that was not asked for."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How many bytes may come, and of what, in words for people."""

    most: int
    what: str


_USUAL = Bound(_MOST_JSON, "a list or a status")
_bound: ContextVar[Bound] = ContextVar("bound")


@contextlib.contextmanager
def at_most(most: int, what: str) -> Iterator[None]:
    """What is asked for within, in this thread, may have so many bytes and no more."""
    token = _bound.set(Bound(most, what))
    try:
        yield
    finally:
        _bound.reset(token)


def watch(response: httpx2.Response, seconds: float) -> None:
    """Put the bounds around an answer whose body has not been read yet; `seconds` may pass beside what the slowest line needs."""
    if response.is_closed or not isinstance(response.stream, httpx2.SyncByteStream):
        return
    encoding = response.headers.pop("content-encoding", "").strip().lower()  # or it would be undone a second time
    is_known = encoding in ("", "identity", "gzip", "x-gzip")
    bound = _bound.get(_USUAL) if response.is_success else Bound(_MOST_ERROR, "an error")
    if not is_known and response.is_success:
        raise UnreadableError(
            f"{bound.what} came in the encoding {encoding[:20]!r}, and only gzip was asked for", request=response.request
        )
    response.stream = _Watched(response.stream, bound, seconds, encoding, is_error=not response.is_success)


class _Watched(httpx2.SyncByteStream):
    """The body of an answer within its bounds."""

    def __init__(self, stream: httpx2.SyncByteStream, bound: Bound, seconds: float, encoding: str, *, is_error: bool) -> None:
        self._stream = stream
        self._bound = bound
        self._seconds = seconds
        self._encoding = encoding
        self._is_error = is_error

    def __iter__(self) -> Iterator[bytes]:
        pieces = _in_time(self._stream, self._seconds)
        if self._encoding in ("gzip", "x-gzip"):
            pieces = _unfolded(_within(pieces, self._bound, _GZIP_OVERHEAD))
        pieces = _within(pieces, self._bound)
        if not self._is_error:
            yield from pieces
        elif self._encoding in ("", "identity", "gzip", "x-gzip"):
            with contextlib.suppress(httpx2.HTTPError):  # too large, too slow, cut off: what has come is what is shown
                yield from pieces

    def close(self) -> None:
        self._stream.close()


def _in_time(stream: httpx2.SyncByteStream, seconds: float) -> Iterator[bytes]:
    """Pieces as they come; the time that whoever reads them takes is not counted."""
    pieces, waited, came = iter(stream), 0.0, 0
    while True:
        began = time.monotonic()
        piece = next(pieces, None)
        waited += time.monotonic() - began
        if piece is None:
            return
        came += len(piece)
        if waited > seconds + came / _SLOWEST:
            raise httpx2.ReadTimeout(f"after {waited:.0f} seconds {came:,} bytes of it had come, and no end")
        yield piece


def _within(pieces: Iterator[bytes], bound: Bound, more: int = 0) -> Iterator[bytes]:
    came = 0
    for piece in pieces:
        came += len(piece)
        if came > bound.most + more:
            raise UnreadableError(f"{bound.what} is larger than the {bound.most:,} bytes that it can have; the rest was not read")
        yield piece


def _unfolded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """gzip undone, never more than a piece at once."""
    undo, has_begun = zlib.decompressobj(zlib.MAX_WBITS | 16), False
    try:
        for piece in pieces:
            has_begun, left = True, piece
            while True:
                found = undo.decompress(left, _PIECE)
                if found:
                    yield found
                left = undo.unconsumed_tail
                if undo.eof and undo.unused_data:  # gzip may stand behind gzip
                    left, undo = undo.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 16)
                elif not left and len(found) < _PIECE:
                    break
    except zlib.error as problem:
        raise httpx2.DecodingError(f"its gzip is broken: {problem}") from problem
    if has_begun and not undo.eof:
        raise httpx2.RemoteProtocolError("it ended in the middle of its gzip")
