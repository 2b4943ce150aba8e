"""Ctrl-C and SIGTERM in batch mode, whatever it is doing: exit 130 at once, and the next run goes on without a doubt.

Real processes, and a real service on a port whose answers are held back, so that each step can be met while it lasts.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import batch_manager
from pipeline.commands import main as entry
from pipeline.local_service import State
from pipeline.local_service.settings import Pace
from tests.crash.served import ENVIRONMENT, ROOT
from tests.wire import Delay, FaultyService, On

MANY = 6000
PROGRAMS = {"main.py": entry, "batch_manager.py": batch_manager}
PROMPT = 5.0  # seconds; a process on a busy machine needs a moment to end
LONG = Delay(60)  # longer than any of this lasts; it ends with the service
CREATE, DOWNLOAD, WAIT = ("batch_manager.py", "--create"), ("batch_manager.py", "--download"), ("batch_manager.py", "--wait")


@dataclass
class World:
    """A catalogue in a folder, and a service on a port whose clock can be set ahead."""

    folder: Path
    service: FaultyService
    state: State
    ahead: float = 0.0

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        typed = [sys.executable, str(ROOT / program), "--config", str(self.folder / "my.yml"), *arguments]
        return subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def finish(self, program: str, *arguments: str) -> str:
        """A command that nobody interrupts, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = PROGRAMS[program].main(["--config", str(self.folder / "my.yml"), *arguments])
        assert code == 0, err.getvalue()
        return out.getvalue()

    def wait_for(self, *asked: str) -> None:
        """Until the service was asked for this; paths end where an id begins."""
        self.wait_until(
            lambda: set(asked) <= {f"{method} {path.split('-')[0].split('batch_')[0]}" for method, path in self.service.asked}
        )

    def wait_until(self, happened: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < until, self.service.asked
            time.sleep(0.005)

    def interrupt(self, process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
        """One signal; it ends well, and soon."""
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert time.monotonic() - began < PROMPT
        assert "run the same command again" in err
        assert "Traceback" not in err

    def states(self) -> list[str]:
        found = json.loads(self.finish("batch_manager.py", "--status", "--json"))
        return [job["state"] for job in found["jobs"]]

    def goes_on(self, *command: str) -> None:
        """The same command, an hour later, and the usual one until all is done: one batch, and nothing was paid twice."""
        self.ahead += 7200
        self.finish(*command)
        self.finish("batch_manager.py", "--wait")
        found = json.loads(self.finish("main.py", "--status", "--json"))
        people = found["fields"]["title"]
        assert people["embedded"] == people["indexed"] == people["present"]
        assert found["possibly_paid_twice"]["strings"] == 0
        truth = self.state.summary()
        assert len(truth["batches"]) == 1
        assert truth["embedded_more_than_once"] == []
        assert truth["texts"] == people["present"]


Make = Callable[..., World]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command line sets a handler for SIGTERM; the tests that follow get theirs back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as open_:

        def made(*on: On, titles: int = 4, working: float = 0.0) -> World:
            state = open_.enter_context(State(tmp_path / "service.sqlite", record=True, pace=Pace(working=working)))
            world: World
            service = open_.enter_context(FaultyService(on=on, state=state, clock=lambda: time.time() + world.ahead))
            world = World(tmp_path, service, state)
            rows = "".join(f"{row},title number {row}\n" for row in range(titles))
            (tmp_path / "records.csv").write_text(f"id,title\n{rows}", "utf-8")
            (tmp_path / "my.yml").write_text(
                f"input: records.csv\nfields: {{title: title}}\nembedding_service: {service.base_url}\nservice_name: loopback\n"
                "embedding_model: local-lexical-384\nbatch_poll_interval: 2\ncreate_grace_seconds: 1\n",
                encoding="utf-8",
            )
            return world

        yield made


def test_in_an_upload(make: Make) -> None:
    world = make(On("POST", "/v1/files", LONG))
    process = world.start(*CREATE)
    world.wait_for("POST /v1/files")
    world.interrupt(process, signal.SIGINT)
    assert world.states() == ["prepared"]
    world.goes_on(*CREATE)


def test_in_a_create_its_reply_is_waited_for_so_that_there_is_no_doubt(make: Make) -> None:
    world = make(On("POST", "/v1/batches", Delay(1.0)))
    process = world.start(*CREATE)
    world.wait_for("POST /v1/batches")
    world.interrupt(process, signal.SIGTERM)
    assert world.states() == ["open"]
    world.goes_on(*CREATE)


def test_in_a_create_that_hangs_a_second_interrupt_leaves_at_once_and_the_batch_is_adopted(make: Make) -> None:
    world = make(On("POST", "/v1/batches", LONG))
    process = world.start(*CREATE)
    world.wait_for("POST /v1/batches")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # two signals at once are one
    assert process.poll() is None
    world.interrupt(process)
    assert world.states() == ["creating"]
    world.goes_on(*CREATE)


def test_between_two_looks_at_the_service(make: Make) -> None:
    world = make(working=3600)
    process = world.start(*WAIT)
    world.wait_for("GET /v1/batches/")
    world.interrupt(process, signal.SIGTERM)
    assert world.states() == ["open"]
    world.goes_on(*WAIT)


def test_in_a_download(make: Make) -> None:
    world = make(On("GET", "/v1/files/[^/]+/content", LONG))
    world.finish(*CREATE)
    process = world.start(*DOWNLOAD)
    world.wait_until(lambda: any(path.endswith("/content") for _, path in world.service.asked))
    world.interrupt(process, signal.SIGINT)
    assert world.states() == ["ended"]
    world.goes_on(*DOWNLOAD)


def test_while_indexing(make: Make) -> None:
    world = make(titles=MANY)
    world.finish(*CREATE)
    process = world.start(*DOWNLOAD)
    world.wait_until(lambda: any(path.stat().st_size for path in (world.folder / "checkpoints" / "store").glob("*.f32")))
    world.interrupt(process, signal.SIGTERM)
    found: dict[str, Any] = json.loads(world.finish("main.py", "--status", "--json"))
    assert found["fields"]["title"]["embedded"] == MANY
    assert found["fields"]["title"]["indexed"] < MANY, "it had ended before the signal came: this test would prove nothing"
    world.goes_on(*DOWNLOAD)
