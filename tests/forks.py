"""Commands of the product, each in a forked process that may be killed, over one service and one clock that survive it.

A process that has imported everything forks one child a command: no thread of DuckDB or Arrow may be there when it
forks. The child mounts the local service over its state file, on a clock that it is given and that moves by sleeping
alone. A `Fault` is a SIGKILL that the child sends itself before or after its n-th call of a kind, or a request or
reply that gets lost. What a command should have done is not known here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import functools
import gc
import importlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
import msgspec

from pipeline.local_service import LocalTransport, State
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import AT_ONCE, Pace
from tests.clock import FakeClock

ROOT = Path(__file__).resolve().parents[1]
KILLED = 128 + signal.SIGKILL
# What commands import when they need it; a fork that has it already costs a tenth of a second instead of two.
IMPORTED = (
    "duckdb", "openai.resources.batches", "openai.resources.files", "pandas", "pyarrow.pandas_compat", "pyarrow.parquet",
    "pipeline.batch.deadline", "pipeline.batch.exports", "pipeline.batch.life", "pipeline.commands.batch_manager",
    "pipeline.commands.check", "pipeline.commands.export", "pipeline.commands.forget", "pipeline.commands.index",
    "pipeline.commands.lists", "pipeline.commands.main", "pipeline.commands.run", "pipeline.commands.search",
    "pipeline.embedding_and_indexing", "pipeline.preprocessing", "pipeline.stores.embedded",
)  # fmt: skip
_ID = re.compile(r"(?<=/)(batch_|file-)[^/]+")
_MOST_SECONDS = 60  # a command that takes longer hangs, and its SIGALRM says so

# What makes a thing durable, unmakes it, or sends it away. `commit` is SQLite's, which no call of Python's shows.
Call = Literal["request", "commit", "fsync", "replace", "unlink"]


class Fault(msgspec.Struct, frozen=True):
    """What befalls a command at its `at`-th call of a kind. Only a request can be lost."""

    call: Call
    at: int
    how: Literal["killed before", "killed after", "reply lost", "never sent"]


class Asked(msgspec.Struct, frozen=True):
    """One command, and the world that it runs in. `folder` is the service's."""

    command: tuple[str, ...]
    folder: str
    now: float
    pace: Pace = AT_ONCE
    misbehaviours: tuple[Misbehaviour, ...] = ()
    fault: Fault | None = None


class Ended(msgspec.Struct, frozen=True):
    """A command that has ended, and what time it was then; of a killed one, the time of its last sleep."""

    code: int
    out: str
    err: str
    now: float


class Forks:
    """Runs commands, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "tests.forks", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_MOST_SECONDS)
        self._process.stdout.close()

    def run(self, asked: Asked) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        out, err, now = ((self._folder / name).read_text(encoding="utf-8") for name in ("out", "err", "now"))
        return Ended(code, out, err, float(now))


def requests_to(folder: Path) -> list[str]:
    """What the service of a folder was asked so far, as `POST /v1/embeddings`; an id is left out."""
    journal = folder / "requests"
    return journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []


def uploaded_to(folder: Path) -> Path:
    """Where each file that was uploaded to the service stays under its id, also when the service deleted it."""
    return folder / "uploaded"


# In a child


class _SavedClock(FakeClock):
    """Leaves the time where a SIGKILL can't take it away."""

    def __init__(self, start: float, path: Path) -> None:
        super().__init__(start)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        os.pwrite(self._handle, b"%020.3f" % self.now(), 0)


class _Tripwire:
    """Counts the calls of the fault's kind, and kills this process at the one that is meant."""

    def __init__(self, fault: Fault | None) -> None:
        self._fault = fault
        self._left = 0 if fault is None else fault.at
        self._lock = threading.Lock()
        self._at_service = threading.local()

    @contextlib.contextmanager
    def around(self, call: Call) -> Iterator[str]:
        how = self._how(call)
        if how == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        yield how
        if how == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def at_the_service(self) -> Iterator[None]:
        """What the service does in here is another process's work, as far as the product knows."""
        self._at_service.now = True
        try:
            yield
        finally:
            self._at_service.now = False

    def counted(self, call: Call, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **more: Any) -> Any:
            with self.around(call):
                return function(*arguments, **more)

        return wrapped

    def _how(self, call: Call) -> str:
        if self._fault is None or call != self._fault.call or getattr(self._at_service, "now", False):
            return ""
        with self._lock:
            self._left -= 1
            return "" if self._left else self._fault.how


class _Wire(httpx2.BaseTransport):
    """The way to the service, which survives: it writes down each request, and keeps each file that is uploaded."""

    def __init__(self, state: State, clock: FakeClock, folder: Path, tripwire: _Tripwire) -> None:
        self._state, self._clock, self._tripwire = state, clock, tripwire
        self._local = LocalTransport(state, clock.now)
        self._uploaded = uploaded_to(folder)
        self._uploaded.mkdir(exist_ok=True)
        self._journal = os.open(folder / "requests", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with self._tripwire.around("request") as how:
            if how == "never sent":
                raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)
            with self._tripwire.at_the_service():
                os.write(self._journal, f"{request.method} {_ID.sub('…', request.url.path)}\n".encode())
                answer = self._local.handle_request(request)
                if (request.method, request.url.path, answer.status_code) == ("POST", "/v1/files", 200):
                    name = json.loads(answer.read())["id"]
                    os.link(self._state.folder / name, self._uploaded / name)
            if how == "reply lost":
                answer.close()
                raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        answer.headers["date"] = email.utils.formatdate(self._clock.now(), usegmt=True)
        return answer


def _play(asked: Asked, clock_file: Path) -> int:
    """One command in this process, which ends with it: nothing that is replaced here is put back."""
    from pipeline.commands import batch_manager, entry, jobs, session
    from pipeline.commands import main as main_py

    folder, clock, tripwire = Path(asked.folder), _SavedClock(asked.now, clock_file), _Tripwire(asked.fault)
    state = State(folder / "service.sqlite", record=True, pace=asked.pace, misbehaviours=asked.misbehaviours)
    wire = _Wire(state, clock, folder, tripwire)

    class Committing(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if sql != "COMMIT":
                return super().execute(sql, parameters)
            with tripwire.around("commit"):
                return super().execute(sql)

    def mounted(*_: object, **__: object) -> Callable[[], httpx2.BaseTransport]:
        return lambda: wire

    def with_clock(*arguments: Any, **more: Any) -> session.Options:
        return dataclasses.replace(entry.options_of(*arguments, **more), clock=clock)

    random.seed(0)  # the jitter of waits
    for place, name, value in (
        (session, "transport_of", mounted), (jobs, "transport_of", mounted),
        (main_py, "options_of", with_clock), (batch_manager, "options_of", with_clock),
        (sqlite3, "connect", functools.partial(sqlite3.connect, factory=Committing)),
        (os, "fsync", tripwire.counted("fsync", os.fsync)), (os, "replace", tripwire.counted("replace", os.replace)),
        (os, "unlink", tripwire.counted("unlink", os.unlink)),
    ):  # fmt: skip
        setattr(place, name, value)
    program, *arguments = asked.command
    return main_py.main(arguments) if program == "main.py" else batch_manager.main(arguments)


def _serve(folder: Path) -> None:
    """Fork for each line, until there are no more."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page that it looks at
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=Asked)
        pid = os.fork()
        if pid == 0:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            signal.alarm(_MOST_SECONDS)
            code = 70  # of a program error, with its traceback
            try:
                code = _play(asked, folder / "now")
            except BaseException:  # noqa: BLE001  # it must not go on into the loop of the process that forked it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        print(ended if ended >= 0 else 128 - ended, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
    os._exit(0)  # DuckDB's binding would complain of its own leaks
