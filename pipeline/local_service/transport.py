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

from pipeline.local_service.service import Request, handle

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.local_service.state import State


class LocalTransport(httpx2.BaseTransport):
    """Answers every request from the state that it was given, which stays the caller's to close."""

    def __init__(self, state: State, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request, one answer, in the caller's thread."""
        path, _, query = request.url.raw_path.decode("ascii", "replace").partition("?")
        asked = Request(request.method, path, query, dict(request.headers), request.read())
        response = handle(asked, self._state, self._clock)
        if "x-request-id" in response.headers:
            self._state.answered(response.headers["x-request-id"], self._clock())
        return httpx2.Response(response.status, headers=dict(response.headers), content=response.body, request=request)
