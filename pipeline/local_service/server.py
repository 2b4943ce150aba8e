"""The service on a port: HTTP/1.1, a thread for each connection, and the end of it in good order.

It reads a request within bounds of size and time, asks `handle`, waits for as long as it was told to play a
slow service, and sends the answer. With `record`, `GET /local/state` tells what the state holds. It doesn't
know what is asked or answered, and speaks no TLS: it listens beyond this machine only when a key is asked for
(see `__main__`).
"""

from __future__ import annotations

import re
import signal
import socket
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.local_service.messages import PIECE_BYTES, BodyLostError, Request, Response, error_body
from pipeline.local_service.service import body_limit, handle, refusal_of_key, takes_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.local_service.state import State

_STATE_PATH = "/local/state"
_LENGTH = re.compile(r"[0-9]{1,15}")
_FINISH_SECONDS = 5.0  # how long the end waits for answers that have begun
_DRAIN_SECONDS, _DRAIN_BYTES = 1.0, 64 << 20  # see `_drain`
_JSON = {"content-type": "application/json"}


class _BadBodyError(BodyLostError):
    """A body that can't be read to its end, so that the connection is of no further use."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LocalServer(ThreadingHTTPServer):
    """Listens from its creation on; `serve_forever` answers. Port 0 takes a free one, see `url`."""

    daemon_threads = True  # a connection that a client keeps open doesn't keep the program alive
    request_queue_size = 128

    def __init__(
        self,
        state: State,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: float = 0.0,
        idle_seconds: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = state
        self.clock = clock
        self.latency = latency
        self.idle_seconds = idle_seconds
        self.stopping = threading.Event()
        self._busy = 0
        self._changed = threading.Condition()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Connection)

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name that `http.server` makes and nobody needs."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # the stubs know AF_INET alone

    @property
    def url(self) -> str:
        """The base URL for a client."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}/v1"

    def begin(self, change: int) -> None:
        """Count an answer that begins (1) or has ended (-1)."""
        with self._changed:
            self._busy += change
            self._changed.notify_all()

    def finish(self) -> None:
        """Take no more connections, and let the answers that have begun leave, for some seconds."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, _FINISH_SECONDS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of ours; the rest keeps its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    """One client's connection: any number of requests, one after the other."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "local-service", ""
    disable_nagle_algorithm = True
    server: LocalServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.idle_seconds)
        self._unread = 0  # bytes of the body that nobody asked for yet

    def answer(self) -> None:
        """Read one request and answer it, whatever its method."""
        path, _, query = self.path.partition("?")
        try:
            self._unread = self._length(path)
            pieces, body = self._pieces(), b""
            if not takes_pieces(self.command, path):
                body = b"".join(pieces)
            request = Request(self.command, path, query, dict(self.headers.items()), body, pieces)
            self.server.begin(1)
            try:
                self._send_answer_to(request)
            except (ConnectionError, TimeoutError):
                self.close_connection = True  # the client went away; what was embedded for it stays counted
            finally:
                self.server.begin(-1)
        except _BadBodyError as error:
            self.send_error(error.status, str(error))
            self._unread = _DRAIN_BYTES
        except BodyLostError:
            self.close_connection = True
            return
        if self._unread:
            self._drain()

    def _send_answer_to(self, request: Request) -> None:
        state, clock = self.server.state, self.server.clock
        if state.record and (request.method, request.path) == ("GET", _STATE_PATH):
            refusal = refusal_of_key(request, state)
            self._send(Response(401, _JSON, refusal) if refusal else Response(200, _JSON, msgspec.json.encode(state.summary())))
            return
        response = handle(request, state, clock)
        try:
            self.server.stopping.wait(self.server.latency)
            if response.lost:
                self.close_connection = True
            else:
                self._send(response)
        finally:
            if response.content is not None:
                response.content.close()
            if "x-request-id" in response.headers:
                state.answered(response.headers["x-request-id"], clock())

    def _send(self, response: Response) -> None:
        if self.server.stopping.is_set() or self._unread:
            self.close_connection = True
        self.request_version = self.protocol_version  # headers even for a line that looked like HTTP/0.9
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(response.length))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            for piece in response.pieces():
                self.wfile.write(piece)

    def _length(self, path: str) -> int:
        """How long the body is, which must be told and within the route's bound."""
        lengths = set(self.headers.get_all("content-length", []))
        if "transfer-encoding" in self.headers:
            raise _BadBodyError(411, "A body in chunks is not taken here; send it with a Content-Length.")
        if not lengths:
            return 0
        length = lengths.pop().strip()
        if lengths or not _LENGTH.fullmatch(length):
            raise _BadBodyError(400, "The Content-Length is not one whole number.")
        limit = body_limit(self.command, path)
        if int(length) > limit:
            raise _BadBodyError(413, f"The body has {length} bytes; at most {limit} are taken here.")
        return int(length)

    def _pieces(self) -> Iterator[bytes]:
        """The body, read as it is asked for."""
        while self._unread:
            try:
                piece = self.rfile.read(min(self._unread, PIECE_BYTES))
            except TimeoutError as error:
                raise _BadBodyError(
                    408, f"The body did not come to its end within {self.server.idle_seconds:g} seconds."
                ) from error
            if not piece:
                raise BodyLostError
            self._unread -= len(piece)
            yield piece

    def _drain(self) -> None:
        """Read away what the client still sends: closing over it would reset our answer away."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_DRAIN_SECONDS)
        deadline, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        while left > 0 and time.monotonic() < deadline:
            try:
                piece = self.connection.recv(PIECE_BYTES)
            except (ConnectionError, TimeoutError):
                return
            if not piece:
                return
            left -= len(piece)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors of the wire itself, in OpenAI's shape as all others; the connection ends with them."""
        self.close_connection = True
        self.command = self.command or ""
        self._send(Response(int(code), _JSON, error_body(message or explain or "Bad request")))

    def log_message(self, *_: object) -> None:
        """Nothing: a line for each request is of no use to the program that asks thousands."""


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
    setattr(_Connection, f"do_{_method}", _Connection.answer)  # the names that `http.server` looks for


def serve(server: LocalServer) -> None:
    """Answer until SIGTERM or SIGINT, and say once where; from the main thread only, where signals arrive."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    print(f"listening on {server.url}", flush=True)  # the one line that a caller waits for
    ended.wait()
    server.finish()
