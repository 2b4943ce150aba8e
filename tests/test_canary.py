"""One key, given in every way, and every fault that we can play, at --debug: no byte of it is anywhere afterwards.

What is looked through: standard output and error, logs and tracebacks, each file of the checkpoint folder as it lies there
and unpacked (SQLite, Parquet), and what was exported; for the key as it is, in a URL, in base64, in hex, in UTF-16. That
the same eyes find it where it is, is shown by the service's own record of what it received, and by leaks made on purpose.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import log
from pipeline.commands import batch_manager
from pipeline.commands.entry import options_of
from pipeline.commands.session import Options
from pipeline.local_service import State
from pipeline.local_service.misbehaviour import Kind, Misbehaviour
from pipeline.retry import RetryPolicy
from tests.canary import BASIC, FAULTS, HEADERS, IN_URL, JSON, KEY, Gossip, Hurried, Trial, error, leaks, leaks_below
from tests.wire import Answer, Change, Delay, Fault, FaultyService

ROOT = Path(__file__).resolve().parent.parent


# The eyes


def test_what_is_looked_for_would_be_found(tmp_path: Path) -> None:
    """Leaks of every kind, made on purpose."""
    for text in (
        KEY, f"…{KEY}…", IN_URL, BASIC, base64.urlsafe_b64encode(f"a{KEY}".encode()).decode(), KEY.upper(), KEY.encode().hex(),
        json.dumps({"a": KEY}), f"https://host/?key={IN_URL.lower()}",
    ):  # fmt: skip
        assert leaks(text), text
    assert leaks(KEY.encode("utf-16"))
    assert not leaks(KEY[:-1])
    folder = tmp_path / "leaking"
    folder.mkdir()
    pq.write_table(pa.table({"a": [KEY] * 100}), folder / "zipped.parquet", compression="zstd")
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"by": KEY}), folder / "facts.parquet")
    with contextlib.closing(sqlite3.connect(folder / "state.sqlite")) as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (?)", (KEY,))
        database.commit()
    (folder / f"a {KEY.replace('/', ':')}").touch()
    (folder / "plain").write_text(f"Bearer {KEY}")
    assert {where.split(",")[0].rsplit("/", 1)[-1] for where in leaks_below(folder)} == {
        "zipped.parquet", "facts.parquet", "state.sqlite", "plain",
    }  # fmt: skip


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
def test_the_sieve_knows_the_same_dresses(before: str) -> None:
    """But for hex and UTF-16, in which nobody answers."""
    log.hide(KEY)
    for shown in (KEY, IN_URL, base64.b64encode(f"{before}{KEY}:x".encode()).decode(),
                  base64.urlsafe_b64encode(f"{before}{KEY}".encode()).decode()):  # fmt: skip
        assert not leaks(log.without_secrets(f"before {shown} behind"))
        assert log.without_secrets(f"before {shown} behind").startswith("before ")


# The trial


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    def hurried(*arguments: Any, **more: Any) -> Options:
        return dataclasses.replace(options_of(*arguments, **more), clock=Hurried(), policy=RetryPolicy(attempts=3))

    for name in ("OPENAI_API_KEY", "SERVICE_API_KEY", "WEAVIATE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pipeline.commands.main.options_of", hurried)
    monkeypatch.setattr("pipeline.commands.batch_manager.options_of", hurried)
    before = signal.getsignal(signal.SIGTERM), sys.excepthook
    log._secrets.clear()  # what another test hid would be hidden here for the wrong reason
    yield Trial(tmp_path / "trial")
    signal.signal(signal.SIGTERM, before[0])
    sys.excepthook = before[1]


def given(how: str, name: str, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The key for a service, in one of the ways; what the config has of it."""
    if how == "file":
        place = trial.catalogue.folder.parent / "key file"
        place.write_text(f"{KEY}\n")
        monkeypatch.setenv(f"{name}_FILE", str(place))
    elif how == "environment":
        monkeypatch.setenv(name, KEY)
    return {name.lower(): KEY} if how == "config" else {}


def play_all(trial: Trial, service: FaultyService, keys: dict[str, object], script: list[Fault | None]) -> None:
    """Each fault meets a run of its own, three times in a row, and then the run succeeds or a person would have to act."""
    for fault in FAULTS.values():
        trial.add()
        script[:] = [fault] * (1 if isinstance(fault, Delay) else 3)
        trial.configure(service, **keys)
        trial.run()
        script.clear()
    trial.run("--retry-failed")
    assert trial.run("--status", "--json") == 0


def scripted(script: list[Fault | None]) -> Callable[[int], Fault | None]:
    return lambda _: script.pop(0) if script else None


def test_a_header_of_ones_own_in_real_time(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with any key: it is in the header, and nowhere else."""
    monkeypatch.setenv("GATEWAY_KEY", KEY)
    script: list[Fault | None] = []
    with Gossip(scripted(script)) as service:
        play_all(trial, service, {"service_headers": {"api-key": "env:GATEWAY_KEY"}, "service_api_version": "1"}, script)
        trial.run("--check")
        assert {headers.get("api-key") for headers in service.headers} == {KEY}
        assert {headers.get("authorization") for headers in service.headers} == {None}
    assert "[hidden]" in trial.words()
    trial.assert_silent()


@pytest.mark.parametrize("how", ["environment", "file", "config"])
def test_openai_in_real_time(trial: Trial, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    script: list[Fault | None] = []
    with Gossip(scripted(script)) as service:
        monkeypatch.setattr("pipeline.provider.service.OPENAI_URL", service.base_url)
        keys = given(how, "OPENAI_API_KEY", trial, monkeypatch)
        play_all(trial, service, {**keys, "embedding_service": "openai", "embedding_dimensions": 384}, script)
        trial.run("--check")
        trial.run("--search", "nothing like it")
        assert {headers["authorization"] for headers in service.headers} == {f"Bearer {KEY}"}
        assert leaks(repr(service.headers)), "what the service received is found by the same eyes"
        assert len(service.embedded) > 40
    assert "[hidden]" in trial.words()
    assert "Traceback" in trial.words(), "--debug shows tracebacks"
    trial.assert_silent()


@pytest.mark.parametrize("how", ["environment", "file"])
def test_a_service_by_url_in_real_time(trial: Trial, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    script: list[Fault | None] = []
    given(how, "SERVICE_API_KEY", trial, monkeypatch)
    with Gossip(scripted(script)) as service:
        play_all(trial, service, {}, script)
        assert {headers["authorization"] for headers in service.headers} == {f"Bearer {KEY}"}
        assert leaks(repr(service.headers))
    trial.assert_silent()


def test_a_key_that_is_not_for_this_service_is_not_sent_and_not_shown(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Gossip([error(401, "no")]) as service:
        trial.configure(service, openai_api_key=KEY, weaviate_api_key=KEY)
        trial.run()
        trial.run("--set", f"openai_api_key={KEY}", "--set", f"openai_api_kye={KEY}")
        assert service.headers
        assert not leaks(repr(service.headers))
    trial.assert_silent()


# Batch mode


COMMANDS = (
    ["--create"],
    ["--advance"],
    ["--status"],
    ["--advance"],
    ["--list"],
    ["--cancel"],
    ["--sweep"],
    ["--retry-failed", "--yes"],
)
REQUESTS = (
    "POST /v1/files", "POST /v1/batches", "GET /v1/batches", "GET /v1/batches/[^/]+", "GET /v1/files", "GET /v1/files/[^/]+",
    "GET /v1/files/[^/]+/content", "DELETE /v1/files/[^/]+", "POST /v1/batches/[^/]+/cancel",
)  # fmt: skip


@pytest.mark.parametrize("kind", get_args(Kind))
def test_batch_mode_with_a_service_that_misbehaves(trial: Trial, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    status = {"end": "expired", "unknown_status": f"pondering {KEY}"}.get(kind, "")
    monkeypatch.setenv("SERVICE_API_KEY", KEY)
    misbehaviour = Misbehaviour(kind=kind, create=1, status=status)
    with State(trial.catalogue.folder.parent / "service.sqlite", record=True, api_key=KEY, misbehaviours=[misbehaviour]) as state:
        with Gossip(state=state) as service:
            trial.configure(service, use_batch_embeddings=True, batch_manual_polling=True, batch_max_attempts=1)
            for command in COMMANDS[:4]:
                trial.run(*command, by=batch_manager.main)
            assert leaks(repr(service.headers))
            assert state.summary()["answered"] > 3, "it takes this key only"
        trial.assert_silent()


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not isinstance(fault, Delay)])
def test_batch_mode_at_a_faulty_wire(trial: Trial, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The fault once at every kind of request."""
    monkeypatch.setenv("SERVICE_API_KEY", KEY)
    fault = FAULTS[name]
    if isinstance(fault, Change):
        fault = Change(
            lambda answer: {**answer, "errors": {"data": [{"code": KEY, "message": KEY}]}, "filename": KEY, "object": KEY}
        )
    with State(trial.catalogue.folder.parent / "service.sqlite", api_key=KEY) as state:
        with Gossip(at={asked: [fault] for asked in REQUESTS}, state=state) as service:
            trial.configure(service, use_batch_embeddings=True, batch_manual_polling=True, create_grace_seconds=0)
            for command in COMMANDS:
                trial.run(*command, by=batch_manager.main)
            assert leaks(repr(service.headers))
        trial.assert_silent()


# Weaviate


@pytest.mark.parametrize("how", ["environment", "file", "config"])
def test_an_index_that_does_not_let_us_in(trial: Trial, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    keys = given(how, "WEAVIATE_API_KEY", trial, monkeypatch)
    meta = Answer(200, {**JSON, **HEADERS}, json.dumps({"version": "1.38.11", "hostname": KEY, "modules": {}}).encode())
    for name in ("401 whole", "403 as text", "500 page", "307", "200 page", "429"):
        for begins_well in (False, True):
            answers = {"GET /v1/meta": [meta] * 9} if begins_well else {}
            with Gossip(lambda _, fault=FAULTS[name]: fault, at=answers) as rest, Gossip() as grpc:  # type: ignore[misc]
                url, port = rest.base_url.removesuffix("/v1"), int(grpc.base_url.split(":")[2].removesuffix("/v1"))
                trial.configure(rest, embedding_service="local", vector_store="weaviate", weaviate_url=url, weaviate_grpc_port=port,
                                weaviate_timeout_seconds=1, **keys)  # fmt: skip
                trial.run("--check" if begins_well else "--verify")
                trial.run()
                assert leaks(repr(rest.headers)), "the server really got it"
    trial.assert_silent()


# What ends a run from outside, and what nobody foresaw


def test_killed_while_a_request_is_on_the_wire(trial: Trial) -> None:
    with Gossip([Delay(60)]) as service:
        trial.configure(service, request_timeout_seconds=60)
        process = trial.process(SERVICE_API_KEY=KEY)
        deadline = time.monotonic() + 60
        while not service.bodies and time.monotonic() < deadline:
            time.sleep(0.01)
        assert leaks(Path(f"/proc/{process.pid}/environ").read_bytes() if sys.platform == "linux" else KEY)
        process.kill()
        process.wait()
        assert leaks(repr(service.headers))
        assert leaks_below(trial.catalogue.folder) == []
        process = trial.process(SERVICE_API_KEY=KEY)
        assert process.wait() == 0
    assert (trial.catalogue.checkpoint / "possibly_paid_twice.csv").exists()
    trial.assert_silent()


def test_with_the_sdk_told_to_log_everything(trial: Trial) -> None:
    with Gossip([FAULTS["500 page"], FAULTS["late"]]) as service:
        trial.configure(service)
        process = trial.process(SERVICE_API_KEY=KEY, OPENAI_LOG="debug")
        assert process.wait() == 0
        assert leaks(repr(service.headers))
    assert "openai" in trial.words()
    trial.assert_silent()


@pytest.mark.parametrize(
    "bug",
    [
        "raise RuntimeError(f'a bug with {KEY} in it')",
        "raise RuntimeError(base64.b64encode(f'user:{KEY}'.encode()))",
        "try:\n        int(KEY)\n    except ValueError as problem:\n        raise KeyError('later') from problem",
        "logging.getLogger('other').warning('%s', KEY)\n    raise SystemError",
        "logging.getLogger('other').exception('%s', KEY, exc_info=ValueError(KEY))\n    raise SystemError",
    ],
)
def test_a_bug_that_nobody_caught(trial: Trial, bug: str) -> None:
    """Python's own traceback: its lines are source, and its last one may quote anything."""
    program = f"""
import base64, logging, os, sys
from pipeline.commands import main, status
KEY = os.environ["SERVICE_API_KEY"]
def buggy(*_):
    {bug}
status.show_status = buggy
sys.exit(main.main(["--config", sys.argv[1], "--debug", "--status"]))
"""
    with Gossip() as service:
        trial.configure(service)
        assert trial.run() == 0
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(trial.catalogue.config)],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, "SERVICE_API_KEY": KEY}, check=False,
        )  # fmt: skip
    assert ran.returncode == 1
    assert "Traceback (most recent call last)" in ran.stderr
    trial.said += [ran.stdout, ran.stderr]
    trial.assert_silent()


def test_a_disk_that_takes_no_more(trial: Trial) -> None:
    """No file may grow beyond some bytes: every write that is larger fails."""
    program = """
import resource, sys
from pipeline.commands import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
sys.exit(main.main(["--config", sys.argv[1], "--debug"]))
"""
    for size in (1000, 40_000, 150_000):
        with Gossip() as service:
            trial.configure(service)
            trial.add()
            ran = subprocess.run(
                [sys.executable, "-c", program, str(trial.catalogue.config), str(size)],
                capture_output=True, text=True, cwd=ROOT, env={**os.environ, "SERVICE_API_KEY": KEY}, check=False,
            )  # fmt: skip
            trial.said += [ran.stdout, ran.stderr]
    assert "could not be written" in trial.words()
    trial.assert_silent()


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "SERVICE_API_KEY", "WEAVIATE_API_KEY"])
def test_a_key_file_that_can_not_be_read(trial: Trial, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Or the key itself where the name of its file should be, as happens."""
    folder = trial.catalogue.folder.parent
    (folder / "binary").write_bytes(b"\xff" + KEY.encode())
    (folder / "locked").write_text(KEY)
    (folder / "locked").chmod(0)
    service = {"OPENAI_API_KEY": {"embedding_service": "openai"}, "WEAVIATE_API_KEY": {"vector_store": "weaviate"}}.get(name, {})
    with Gossip() as running:
        for place in (KEY, str(folder / "binary"), str(folder / "locked"), str(folder), str(folder / "gone")):
            monkeypatch.setenv(f"{name}_FILE", place)
            trial.configure(running, **{"embedding_service": running.base_url, **({} if name == "SERVICE_API_KEY" else service)})
            trial.configure(running, **service)
            trial.run()
            trial.run("--check")
    assert f"{name}_FILE is" in trial.words()
    trial.assert_silent()
