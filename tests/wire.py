"""A service that fails at the wire, by a script: for tests of who must survive it.

    with FaultyService([None, Reset("request"), Answer(429, {"retry-after": "1"})]) as service:
        client = OpenAI(base_url=service.base_url, api_key="local", max_retries=0)

A real loopback server around the local service's `handle`. One entry of the script is used up by each
request that arrives, None and the script's end mean no fault. `at` has scripts for single requests
(`{"GET /v1/files/[^/]+/content": [Truncate(7)]}`, a regular expression of method and path), `on` faults for the first
so many requests of a kind; what fits one of these uses up no entry of the script. `bodies` and `headers` hold what was
received, `sent` how many bytes of streams went out, `embedded` how often each text was embedded, whether or not a client
read the answer: what a real service bills.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline.local_service import Request, Response, State, handle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Answer:
    """This instead of the real answer; nothing is embedded, or `is_done` all the same."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset before the body is read, in the middle of it, after all was done, or in mid-answer."""

    after: Literal["headers", "half_request", "request", "half_body"]


@dataclass(frozen=True, slots=True)
class Delay:
    """The texts are embedded, and the answer waits."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Truncate:
    """Only so many bytes, and a clean end: less than the Content-Length, without the last chunk, or as if it were all."""

    bytes: int
    of: Literal["length", "chunks", "nothing"] = "length"


@dataclass(frozen=True, slots=True)
class Change:
    """The real answer's JSON, rewritten; what it returns may hold NaN."""

    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Stream:
    """This instead of the real answer, without a length, until it ends or the client goes away; nothing is embedded.

    `pieces` is given a function that waits so many seconds.
    """

    status: int
    headers: Mapping[str, str]
    pieces: Callable[[Callable[[float], None]], Iterable[bytes]]


Fault = Answer | Reset | Delay | Truncate | Change | Stream


@dataclass(frozen=True, slots=True)
class On:
    """A fault for the first so many requests of a method whose path fits a pattern as a whole."""

    method: str
    path: str
    fault: Fault
    times: int = 1


class FaultyService:
    """The service while the `with` block lasts; `script` may be a function of a request's number, from 1."""

    def __init__(
        self,
        script: Sequence[Fault | None] | Callable[[int], Fault | None] = (),
        *,
        at: Mapping[str, Sequence[Fault | None]] | None = None,
        on: Sequence[On] = (),
        state: State | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.asked: list[tuple[str, str]] = []  # method and path of each request that arrived
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.sent = 0
        self._at = {pattern: list(faults) for pattern, faults in (at or {}).items()}
        self.embedded: Counter[str] = Counter()
        self.state = state or State()
        self._owns_state = state is None
        self._clock = clock
        self._script = script
        self._unscripted = 0
        self._on = list(on)
        self._left = [one.times for one in on]
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._ending.set()
        self._server.shutdown()
        self._server.end()
        self._thread.join()
        if self._owns_state:
            self.state.close()

    @property
    def base_url(self) -> str:
        """Where a client finds it."""
        assert self._server is not None, "inside the `with` block only"
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        """How many requests have arrived, those included that were reset before their body was read."""
        with self._lock:
            return len(self.asked)

    def next_fault(self, method: str, path: str, headers: Mapping[str, str]) -> Fault | None:
        """The fault of the request that has just arrived."""
        with self._lock:
            self.headers.append(dict(headers))
            self.asked.append((method, path))
            for place, one in enumerate(self._on):
                if self._left[place] and one.method == method and re.fullmatch(one.path, path):
                    self._left[place] -= 1
                    return one.fault
            for pattern, faults in self._at.items():
                if faults and re.fullmatch(pattern, f"{method} {path}"):
                    return faults.pop(0)
            self._unscripted += 1
            number = self._unscripted
        if callable(self._script):
            return self._script(number)
        return self._script[number - 1] if number <= len(self._script) else None

    def received(self, body: bytes) -> None:
        """Record a body that was read to its end."""
        with self._lock:
            self.bodies.append(body)

    def answer(self, request: Request) -> Response:
        """The real answer; what it embedded is counted."""
        response = handle(request, self.state, self._clock)
        if request.path == "/v1/embeddings" and response.status == 200:
            texts = json.loads(request.body)["input"]
            with self._lock:
                self.embedded.update([texts] if isinstance(texts, str) else texts)
        if "x-request-id" in response.headers:
            self.state.answered(response.headers["x-request-id"], self._clock())
        return response

    def now(self) -> float:
        return self._clock()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the `with` block."""
        self._ending.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `server_close` waits for every connection's thread
    request_queue_size = 128

    def __init__(self, service: FaultyService) -> None:
        self.service = service
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Connection)

    def end(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):  # its thread may have closed it by itself
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a client does that was reset, or went away, is what the tests are about."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 10  # seconds, for a test that forgot its connection
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def play(self) -> None:
        service = self.server.service
        path, _, query = self.path.partition("?")
        fault = service.next_fault(self.command, path, dict(self.headers.items()))
        length = int(self.headers.get("content-length", 0))
        if isinstance(fault, Reset) and fault.after in ("headers", "half_request"):
            self.rfile.read(length // 2 if fault.after == "half_request" else 0)
            self._reset()
            return
        body = self.rfile.read(length)
        service.received(body)
        if isinstance(fault, Answer) and not fault.is_done:
            self._send(fault.status, fault.headers, fault.body, fault.body)
            return
        if isinstance(fault, Stream):
            self._stream(fault)
            return
        response = service.answer(Request(self.command, path, query, dict(self.headers.items()), body))
        if response.lost or fault == Reset("request"):
            response.whole()  # closes what is open
            self._reset()
        else:
            self._answer(response, fault)

    def _answer(self, response: Response, fault: Fault | None) -> None:
        """Send what was really done, or what the fault makes of it."""
        whole = sent = response.whole()
        status, headers = response.status, response.headers
        match fault:
            case Answer():
                status, headers, whole, sent = fault.status, fault.headers, fault.body, fault.body
            case Reset():
                sent = whole[: len(whole) // 2]
            case Delay(seconds):
                self.server.service.wait(seconds)
            case Truncate(count, "length"):
                sent = whole[:count]
            case Truncate(count, "nothing"):
                whole = sent = whole[:count]
            case Truncate(count):
                self._send_chunk(response, whole[:count])
                return
            case Change(function):
                whole = sent = json.dumps(function(json.loads(whole))).encode()
        self._send(status, headers, whole, sent)
        if isinstance(fault, Reset):
            self._reset()

    def _send(self, status: int, headers: Mapping[str, str], whole: bytes, sent: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in {name.lower() for name in headers}:
            self.send_header("content-length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)
        if sent != whole:
            self.close_connection = True

    def _stream(self, fault: Stream) -> None:
        self.close_connection = True
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        for piece in fault.pieces(self.server.service.wait):
            self.wfile.write(piece)
            self.server.service.sent += len(piece)

    def _send_chunk(self, response: Response, sent: bytes) -> None:
        """One chunk, and an end without the last one."""
        self.send_response(response.status)
        for name, value in {**response.headers, "transfer-encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b"")
        self.close_connection = True

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The `Date` of an answer is the service's own time."""
        return email.utils.formatdate(self.server.service.now() if timestamp is None else timestamp, usegmt=True)

    def _reset(self) -> None:
        """Close with RST instead of FIN: no lingering, and before anything else touches the socket."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.open.discard(self.connection)
        socket.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        """Nothing."""


for _method in ("GET", "POST", "DELETE"):
    setattr(_Connection, f"do_{_method}", _Connection.play)  # the names that `http.server` looks for
