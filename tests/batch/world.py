"""What tests of batch mode under faults share: a catalogue, the local service told to misbehave, and a clock of ours.

The truth is the service's own list (`World.batches`) and what it embedded (`World.embedded`), never our ledger. Each
request passes a wire that counts it, tells the service's time, and may lose, change or replace an answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

# Those that take names from `session` are imported before a test changes these names: a command imports them when it runs.
import pipeline.commands.check
import pipeline.commands.dry_run
import pipeline.commands.jobs
import pipeline.commands.restore
import pipeline.commands.search  # noqa: F401
from pipeline.commands import batch_manager
from pipeline.commands.entry import options_of
from pipeline.commands.session import Options
from pipeline.ledger import Failure, Job
from pipeline.local_service import LocalTransport, State
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import AS_REAL, AT_ONCE, BatchLimits, Pace
from pipeline.local_service.state import BatchSummary
from pipeline.provider.service import Service, service_of
from tests.clock import FakeClock
from tests.tools import Catalogue, Ran

Fault = Callable[[httpx2.Request], httpx2.Response | None]
Change = Callable[[httpx2.Request, httpx2.Response], httpx2.Response]
DAY = 86_400


class Wire(httpx2.BaseTransport):
    """The way to the service. `faults` may answer in its place; `changes` see the real answer."""

    def __init__(self, state: State, clock: FakeClock) -> None:
        self.mount(state)
        self._clock = clock
        self.ahead = 0.0  # the service's clock, before ours
        self.faults: list[Fault] = []
        self.changes: list[Change] = []
        self.after_each: Callable[[], None] = lambda: None

    def mount(self, state: State) -> None:
        self._local = LocalTransport(state, self.now)
        self.requests: list[tuple[str, str]] = []

    def now(self) -> float:
        return self._clock.now() + self.ahead

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append((request.method, request.url.path))
        for fault in self.faults:
            if (instead := fault(request)) is not None:
                return self._dated(instead)
        answer = self._local.handle_request(request)
        for change in self.changes:
            answer = change(request, answer)
        self.after_each()
        return self._dated(answer)

    def _dated(self, answer: httpx2.Response) -> httpx2.Response:
        answer.headers["date"] = email.utils.formatdate(self.now(), usegmt=True)
        return answer

    def count(self, method: str, path: str) -> int:
        return sum((method, path) == one for one in self.requests)


@dataclass
class World:
    """One catalogue and one service; a command is run as it is typed, on the fake clock."""

    catalogue: Catalogue
    clock: FakeClock
    state: State
    wire: Wire
    prices: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str) -> Ran:
        """`python batch_manager.py --config CONFIG ARGUMENTS…`, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = batch_manager.main(["--config", str(self.catalogue.config), *arguments])
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Ran(code, out.getvalue(), err.getvalue())

    def main(self, *arguments: str) -> Ran:
        """`python main.py --config CONFIG ARGUMENTS…`, in this process."""
        ran = self.catalogue.run(*arguments)
        assert "Traceback" not in ran.err, ran.err
        return ran

    def mount(self, state: State) -> None:
        """From now on the service has this state, and has been asked for nothing."""
        self.state = state
        self.wire.mount(state)

    def advance(self, times: int = 1) -> Ran:
        """`--advance`, so often, an hour between."""
        for number in range(times):
            if number:
                self.clock.sleep(3600)
            ran = self.run("--advance")
        return ran

    def batches(self) -> list[BatchSummary]:
        return self.state.summary()["batches"]

    def times(self, text: str) -> int:
        """How often the service embedded a text, and would have billed it."""
        return self.state.embedded().get(hashlib.sha256(text.encode()).hexdigest(), 0)

    def twice(self) -> int:
        return len(self.state.summary()["embedded_more_than_once"])

    def jobs(self) -> list[Job]:
        with self.catalogue.ledger() as ledger:
            return ledger.jobs.all()

    def embedded(self) -> list[str]:
        return sorted(self.catalogue.embedded("title"))

    def failures(self) -> list[Failure]:
        with self.catalogue.ledger() as ledger:
            generation = ledger.current_generation()
            assert generation is not None
            return list(ledger.failures(generation.id))

    def attempts(self) -> dict[int, int]:
        with self.catalogue.ledger() as ledger:
            generation = ledger.current_generation()
            assert generation is not None
            return ledger.jobs.attempts(generation.id, "title")

    def doubts(self) -> int:
        with self.catalogue.ledger() as ledger:
            return ledger.doubt_totals()[0]


@dataclass
class Maker:
    """Builds worlds, and closes their states. The service keeps its state in `elsewhere`, or beside the catalogue."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    states: list[State] = field(default_factory=list)
    elsewhere: Path | None = None

    def __call__(
        self,
        *misbehaviours: Misbehaviour,
        titles: Sequence[str] = ("Fugue", "Mass", "Suite", "Toccata"),
        pace: Pace = AT_ONCE,
        limits: BatchLimits = AS_REAL,
        price: float = 0.0,
        key: str | None = None,
        **keys: object,
    ) -> World:
        path = (self.elsewhere or self.folder) / "service.sqlite"
        state = State(path, record=True, pace=pace, batch_limits=limits, misbehaviours=misbehaviours)
        self.states.append(state)
        clock = FakeClock()
        wire = Wire(state, clock)
        catalogue = Catalogue(self.folder)
        catalogue.configure(**{"fields": {"title": "title"}, "max_rejected_rows": 0, **keys})
        catalogue.write([(str(number), "", title) for number, title in enumerate(titles)])

        def mounted(service: Service, place: object, *, batches: bool = False) -> Callable[[], httpx2.BaseTransport]:
            return lambda: wire

        def with_clock(*arguments: Any, **more: Any) -> Options:
            return dataclasses.replace(options_of(*arguments, **more), clock=clock)

        def priced(config: Any) -> Service:
            return dataclasses.replace(service_of(config), batch_price=price, api_key=key)

        self.monkeypatch.setattr("pipeline.commands.session.transport_of", mounted)
        self.monkeypatch.setattr("pipeline.commands.jobs.transport_of", mounted)
        self.monkeypatch.setattr("pipeline.commands.batch_manager.options_of", with_clock)
        self.monkeypatch.setattr("pipeline.commands.main.options_of", with_clock)
        self.monkeypatch.setattr("pipeline.commands.session.service_of", priced)
        return World(catalogue, clock, state, wire)


def once(method: str, path: str, answer: Callable[[httpx2.Request], httpx2.Response], *, times: int = 1) -> Fault:
    """This answer instead of the service's, for the first so many requests to a path (or below it)."""
    left = [times]

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method != method or not request.url.path.startswith(path) or not left[0]:
            return None
        left[0] -= 1
        return answer(request)

    return fault


def error(status: int, code: str, message: str, **headers: str) -> Callable[[httpx2.Request], httpx2.Response]:
    """OpenAI's error shape."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = {"error": {"message": message, "type": code, "code": code, "param": None}}
        return httpx2.Response(status, headers=headers, json=body, request=request)

    return answer


def never_arrives(request: httpx2.Request) -> httpx2.Response:
    """The connection ends, and the service never saw the request; the client can't know."""
    raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)


def rewrite_shape(wire: Wire, function: Callable[[dict[str, Any]], None]) -> None:
    """Change each batch that is shown by its id."""

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.method != "GET" or not request.url.path.startswith("/v1/batches/") or answer.status_code != 200:
            return answer
        shape = json.loads(answer.read())
        function(shape)
        return httpx2.Response(200, json=shape, request=request)

    wire.changes.append(change)


def rewrite_lines(world: World, function: Callable[[list[bytes]], bytes]) -> None:
    """Change each output file as it is downloaded, and the size that the service says of it."""
    contents: dict[str, bytes] = {}

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        path = request.url.path
        if request.method != "GET" or not path.startswith("/v1/files/") or answer.status_code != 200:
            return answer
        name = path.split("/")[3]
        found = next(world.state.folder.glob(name), None)
        if found is None:
            return answer
        if name not in contents:
            contents[name] = function(found.read_bytes().splitlines(keepends=True))
        content = contents[name]
        if path.endswith("/content"):
            answer.close()
            return httpx2.Response(200, content=content, request=request)
        shape = json.loads(answer.read())
        shape["bytes"] = len(content)
        return httpx2.Response(200, json=shape, request=request)

    world.wire.changes.append(change)
