"""Batch mode over real sockets that fail: resets, cut downloads, odd answers, and a service that misbehaves.

Each row of the table is one thing that goes wrong, played by `tests/wire.py` at the wire or by the service itself. The
commands are typed until nothing is left to do, in both ways of batch mode; the service says what was paid. Time is a
clock of ours: nothing sleeps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import batch_manager
from pipeline.commands import main as entry
from pipeline.commands.entry import options_of
from pipeline.commands.session import Options
from pipeline.local_service import State
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import AS_REAL, AT_ONCE, BatchLimits, Pace
from tests.clock import FakeClock
from tests.tools import Catalogue, Ran
from tests.wire import Answer, Change, FaultyService, On, Reset, Truncate

TITLES = ["Fugue", "Mass", "Suite\u2028in b", "Toccata"]
KEY = "sk-canary-0123456789abcdefghij"
HOUR = 3600.0
BATCH, FILE, CONTENT = "/v1/batches/[^/]+", "/v1/files/[^/]+", "/v1/files/[^/]+/content"
CREATE, UPLOAD = ("POST", "/v1/batches"), ("POST", "/v1/files")
JSON = {"content-type": "application/json"}


def says(status: int, code: str, **headers: str) -> Answer:
    """An error in OpenAI's shape."""
    said = {"error": {"message": f"No: {code} ({KEY})", "type": code, "code": code, "param": None}}
    return Answer(status, JSON | headers, json.dumps(said).encode())


@dataclass(frozen=True)
class Row:
    """What goes wrong, and what may come of it; each number is what it must be, not what it may be at most."""

    name: str
    on: tuple[On, ...] = ()
    wrongs: tuple[Misbehaviour, ...] = ()
    limits: BatchLimits = AS_REAL
    pace: Pace = AT_ONCE
    batches: int = 1
    twice: int = 0  # strings that the service embedded again
    lacking: int = 0  # strings that end as failures
    trouble: tuple[int, int] = (0, 0)  # commands that ended with 1: by hand, and of automatic mode
    waited: float = 0.0
    shown: str = ""  # in what was printed
    also: tuple[tuple[str, ...], ...] = ()  # what a person types when all is still
    keys: tuple[tuple[str, Any], ...] = ()


def page(status: int, *, is_done: bool = False) -> Answer:
    """What a gateway or a proxy says in the service's place."""
    return Answer(status, {"content-type": "text/html"}, b"<html><h1>Bad gateway</h1></html>", is_done=is_done)


def told(kind: Any, **facts: Any) -> tuple[Misbehaviour, ...]:
    return (Misbehaviour(kind=kind, **facts),)


def shape(**news: object) -> Change:
    """The service's answer with some values of its first level changed."""
    return Change(lambda found: {**found, **news})


WRITING = [
    Row("no fault"),
    # 429: waited for, and never sent again where it could be paid twice
    *(
        Row(f"429 {seconds} at {method} {path}", (On(method, path, says(429, "rate_limit_exceeded", **{"retry-after": seconds})),),
            waited=float(seconds))
        for seconds, method, path in (
            ("1", *CREATE), ("7", *CREATE), ("130", *CREATE), ("7", *UPLOAD), ("1", "GET", BATCH), ("130", "GET", BATCH))
    ),
    Row("429 beyond an hour while polling", (On("GET", BATCH, says(429, "rate_limit_exceeded", **{"retry-after": "7200"})),),
        trouble=(1, 1), shown="429"),
    Row("429 beyond an hour at the create", (On(*CREATE, says(429, "rate_limit_exceeded", **{"retry-after": "7200"})),),
        trouble=(1, 1), shown="429"),
    # Nobody but a person can help: what is finished comes home all the same
    *(
        Row(f"{code} at {method} {path}", (On(method, path, says(status, code)),), trouble=(1, 1), shown=str(status))
        for status, code in ((429, "insufficient_quota"), (401, "invalid_api_key"), (403, "forbidden"))
        for method, path in (("GET", BATCH), UPLOAD, CREATE)
    ),
    # Gateways
    *(
        Row(f"{status} at the create, {'done' if is_done else 'not done'}", (On(*CREATE, page(status, is_done=is_done)),))
        for status in (200, 500, 502)
        for is_done in (True, False)
    ),
    Row("502 at the upload", (On(*UPLOAD, page(502, is_done=True)), On(*UPLOAD, page(200)))),
    # Connections
    *(
        Row(f"reset at {method} {path}, {after}", (On(method, path, Reset(after)),))
        for method, path in (UPLOAD, CREATE)
        for after in ("headers", "half_request", "request", "half_body")
    ),
    # What is seen of a batch
    Row("hidden after a lost reply", wrongs=told("lose_reply", create=1) + told("hide", create=1, seconds=30)),
    Row("not there yet", wrongs=told("vanish", create=1, seconds=30)),
    Row("vanished", wrongs=told("vanish", create=1), batches=2, twice=4, trouble=(4, 5), shown="lost",
        also=(("--retry-failed", "--yes"),)),
    # Statuses
    Row("a status that nobody knows", wrongs=told("unknown_status", status="pondering", seconds=2 * HOUR)),
    Row("failed", wrongs=told("input_not_found", create=1), batches=2),
    Row("token_limit_exceeded", limits=BatchLimits(enqueued_tokens=6), batches=3, pace=Pace(working=60)),
    Row("expired", wrongs=told("end", create=1, status="expired"), batches=2),
    Row("cancelled", wrongs=told("end", create=1, status="cancelled"), batches=2),
    Row("stuck past its expiry", wrongs=told("stuck", create=1), batches=2, shown="stuck: two hours", also=(("--cancel", "1"),)),
    Row("an output file that is gone", wrongs=told("output_gone", create=1), batches=2, twice=4, trouble=(4, 5), shown="lost",
        also=(("--retry-failed", "--yes"),)),
]  # fmt: skip
READING = [  # by the same code in both ways of batch mode
    *(
        Row(f"{status} at GET {path}", (On("GET", path, page(status), times=2),))
        for status in (500, 502, 503)
        for path in (BATCH, FILE, CONTENT)
    ),
    Row("429 at a download", (On("GET", CONTENT, says(429, "rate_limit_exceeded", **{"retry-after": "7"})),), waited=7),
    Row("a page of a gateway at GET", (On("GET", BATCH, page(200)), On("GET", FILE, page(200)), On("GET", CONTENT, page(200)))),
    Row("an error with 200 at GET", (On("GET", BATCH, Answer(200, JSON, b'{"error": {"message": "Later"}}')),)),
    *(
        Row(f"reset at GET {path}, {after}", (On("GET", path, Reset(after)),))
        for path in (BATCH, FILE, CONTENT)
        for after in ("headers", "request", "half_body")
    ),
    *(
        Row(f"a download of {count} bytes, {of}", (On("GET", CONTENT, Truncate(count, of)),))
        for count in (0, 700)
        for of in ("length", "chunks", "nothing")
    ),
    Row("no output file yet", (On("GET", BATCH, shape(status="finalizing", output_file_id=None)),)),
    Row("an empty error file", wrongs=told("empty_error_file")),
    Row("an empty id of the error file", wrongs=told("empty_error_file_id")),
    Row("no counts", wrongs=told("no_counts")),
    Row("every row refused, and no output file", wrongs=told("refused_row"), lacking=4, trouble=(1, 1), shown="4 failed"),
    *(Row(kind, wrongs=told(kind, create=1, row=2), batches=2, twice=1) for kind in (
        "missing_row", "unknown_custom_id", "null_custom_id", "nan", "wrong_dimensions", "empty_data", "status_zero")),
    Row("a row twice", wrongs=told("duplicate_row", row=2)),
    Row("a row twice and not the same", wrongs=told("differing_duplicate", row=2), lacking=1, trouble=(1, 1), shown="1 failed"),
    Row("a row refused", wrongs=told("refused_row", row=2), lacking=1, trouble=(1, 1), shown="1 failed"),
    Row("no last newline", wrongs=told("no_last_newline")),
]  # fmt: skip
PLAYED = [(row, True) for row in (*WRITING, *READING)] + [(row, False) for row in WRITING]


@dataclass
class Wired:
    """A catalogue, a service on a port, and a clock for both."""

    catalogue: Catalogue
    service: FaultyService
    clock: FakeClock
    idle: float = 0.0  # seconds between the commands

    def wait(self, seconds: float) -> None:
        self.idle += seconds
        self.clock.sleep(seconds)

    def type(self, program: Any, *arguments: str) -> Ran:
        """One command, as it is typed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program.main(["--config", str(self.catalogue.config), *arguments])
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Ran(code, out.getvalue(), err.getvalue())

    def people(self) -> dict[str, int]:
        found: dict[str, int] = self.type(entry, "--status", "--json").document["fields"]["title"]
        return found

    def times(self, text: str) -> int:
        return self.service.state.embedded().get(hashlib.sha256(text.encode()).hexdigest(), 0)


@pytest.fixture
def wired(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Row, FaultyService, FakeClock], Wired]:
    def make(row: Row, service: FaultyService, clock: FakeClock) -> Wired:
        catalogue = Catalogue(quick_path)
        catalogue.configure(**{
            "fields": {"title": "title"}, "embedding_service": service.base_url, "service_name": "loopback",
            "embedding_model": "local-lexical-384", "batch_poll_interval": 600, "create_grace_seconds": 60,
            "use_batch_embeddings": True, **dict(row.keys),
        })  # fmt: skip
        catalogue.write([(str(number), "", title) for number, title in enumerate(TITLES)])

        def with_clock(*arguments: Any, **more: Any) -> Options:
            return dataclasses.replace(options_of(*arguments, **more), clock=clock)

        for program in ("main", "batch_manager"):
            monkeypatch.setattr(f"pipeline.commands.{program}.options_of", with_clock)
        monkeypatch.setenv("SERVICE_API_KEY", KEY)
        return Wired(catalogue, service, clock)

    return make


BY_HAND = (batch_manager, ("--create",), ("--advance",))
AUTOMATIC = (entry, (), ())


@pytest.mark.parametrize(
    ("row", "by_hand"), PLAYED, ids=[f"{row.name}, {'by hand' if by_hand else 'automatic'}" for row, by_hand in PLAYED]
)
def test_it_ends_well_and_nothing_is_paid_twice(row: Row, by_hand: bool, wired: Callable[..., Wired], tmp_path: Path) -> None:
    clock = FakeClock()
    with (
        State(
            tmp_path / "service.sqlite", record=True, api_key=KEY, pace=row.pace, batch_limits=row.limits, misbehaviours=row.wrongs
        ) as state,
        FaultyService(on=row.on, state=state, clock=clock.now) as service,
    ):
        world = wired(row, service, clock)
        ran = _to_the_end(world, row, by_hand)
        print([(one.code, one.out[-300:], one.err[-300:]) for one in ran])  # shown when it fails
        found = world.people()
        assert found["embedded"] == found["indexed"] == len(TITLES) - row.lacking
        assert (found["failed"], found["pending"], found["in_jobs"]) == (row.lacking, 0, 0)
        assert [world.times(title) for title in TITLES].count(2) == row.twice
        assert max(world.times(title) for title in TITLES) <= 2
        assert len(service.state.summary()["batches"]) == row.batches
        assert {one.code for one in ran} <= {0, 1}
        assert sum(one.code for one in ran) == row.trouble[0 if by_hand else 1]
        assert row.shown in "".join(one.out + one.err for one in ran)
        assert clock.slept - world.idle >= row.waited
        _no_key(world, ran)
        asked = service.requests
        world.type(batch_manager, "--advance")
        assert service.requests == asked, "a further command asked for something"


def _to_the_end(world: Wired, row: Row, by_hand: bool) -> list[Ran]:
    """The first command, then the next as often as it has something to do; then what a person types, and on."""
    program, first, then = BY_HAND if by_hand else AUTOMATIC
    ran = [world.type(program, "--debug", *first)]
    for command in (*row.also, None):
        for _ in range(4):
            world.wait(27 * HOUR if row.also else HOUR)
            if world.people()["pending"] + world.people()["in_jobs"] == 0:
                break
            ran.append(world.type(program, "--debug", *then))
            if row.shown:
                ran.append(world.type(batch_manager, "--status"))
        if command is not None:
            ran.append(world.type(batch_manager, *command))
    return ran


def _no_key(world: Wired, ran: list[Ran]) -> None:
    for one in ran:
        assert KEY not in one.out + one.err
    for path in world.catalogue.checkpoint.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
