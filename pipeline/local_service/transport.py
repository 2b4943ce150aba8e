"""The way in without a socket: the `openai` SDK's HTTP client hands its requests straight to the service.

    OpenAI(api_key="local", base_url="http://local/v1", max_retries=0,
           http_client=httpx2.Client(transport=LocalTransport(state)))

It knows neither what is asked nor what is answered. Host and scheme are not looked at. Several threads may
use one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx2

from pipeline.local_service.messages import Request
from pipeline.local_service.service import handle, takes_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.local_service.messages import Content
    from pipeline.local_service.state import State


class LocalTransport(httpx2.BaseTransport):
    """Answers every request from the state that it was given, which stays the caller's to close."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request, one answer, in the caller's thread."""
        path, _, query = request.url.raw_path.decode("ascii", "replace").partition("?")
        pieces = None
        if takes_pieces(request.method, path) and isinstance(request.stream, httpx2.SyncByteStream):
            pieces = iter(request.stream)
        body = request.read() if pieces is None else b""
        response = handle(Request(request.method, path, query, dict(request.headers), body, pieces), self._state, self._clock)
        if "x-request-id" in response.headers:
            self._state.answered(response.headers["x-request-id"], self._clock())
        if response.lost:
            raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        headers = {**response.headers, "content-length": str(response.length)}
        if response.content is not None:
            return httpx2.Response(response.status, headers=headers, stream=_Sent(response.content), request=request)
        return httpx2.Response(response.status, headers=headers, content=response.body, request=request)


class _Sent(httpx2.SyncByteStream):
    """A file on its way out; closed when it was read, or when the client has had enough."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield from self._content

    def close(self) -> None:
        self._content.close()
