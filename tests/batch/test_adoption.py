"""After a doubt about a create or an upload: one batch at the service, by its own list, and never two by our doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import Pace
from tests.batch.world import Maker, World, error, never_arrives, once
from tests.crash.served import ENVIRONMENT, ROOT, Service, service

TITLES = ["Fugue", "Mass", "Suite", "Toccata"]


def assert_done(world: World, batches: int = 1) -> None:
    """All is embedded, once each, by so many batches; and a further command changes nothing."""
    assert world.embedded() == TITLES
    assert len(world.batches()) == batches
    assert world.twice() == 0
    posts = sum(method == "POST" for method, _ in world.wire.requests)
    assert world.run("--advance").code == 0
    assert sum(method == "POST" for method, _ in world.wire.requests) == posts


def test_lost_reply_leaves_one_batch_that_the_next_command_adopts(make: Maker) -> None:
    world = make(Misbehaviour(kind="lose_reply", create=1))
    ran = world.run("--create")
    assert ran.code == 0
    assert "settles it" in ran.out
    assert [job.state for job in world.jobs()] == ["creating"]
    assert len(world.batches()) == 1
    assert world.run("--advance").code == 0
    (job,) = world.jobs()
    assert (job.state, job.batch) == ("collected", world.batches()[0]["id"])
    assert_done(world)


def test_automatic_mode_adopts_by_itself(make: Maker) -> None:
    world = make(Misbehaviour(kind="lose_reply", create=1))
    assert world.run("--wait").code == 0
    assert_done(world)


@pytest.mark.parametrize("status", [500, 502, 408])
def test_server_error_at_a_create_is_a_doubt_too(make: Maker, status: int) -> None:
    """The gateway gave up; the service behind it made the batch all the same."""
    world = make()
    gave_up = [True]

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.method == "POST" and request.url.path == "/v1/batches" and gave_up.pop():
            return error(status, "server_error", "Bad gateway")(request)
        return answer

    world.wire.changes.append(change)
    world.run("--create")
    assert [job.state for job in world.jobs()] == ["creating"]
    assert world.run("--advance").code == 0
    assert_done(world)


def test_hidden_batch_is_waited_for_and_shown_as_in_doubt(make: Maker) -> None:
    world = make(
        Misbehaviour(kind="lose_reply", create=1), Misbehaviour(kind="hide", create=1, seconds=30), create_grace_seconds=60
    )
    world.run("--create")
    world.clock.sleep(10)
    ran = world.run("--advance")
    assert ran.code == 0
    assert "in doubt" in ran.out
    assert [job.state for job in world.jobs()] == ["creating"]
    assert "creating" in world.run("--status").out
    world.clock.sleep(15)
    world.run("--advance")
    assert len(world.batches()) == 1
    world.clock.sleep(10)
    assert world.run("--advance").code == 0
    assert_done(world)


def test_hidden_batch_is_waited_for_by_automatic_mode(make: Maker) -> None:
    world = make(
        Misbehaviour(kind="lose_reply", create=1), Misbehaviour(kind="hide", create=1, seconds=30), create_grace_seconds=60
    )
    assert world.run("--wait").code == 0
    assert_done(world)


def test_create_that_never_arrived_is_sent_once_after_the_grace_period(make: Maker) -> None:
    world = make(create_grace_seconds=60)
    world.wire.faults.append(once("POST", "/v1/batches", never_arrives))
    world.run("--create")
    for _ in range(3):
        world.clock.sleep(15)
        world.run("--advance")
        assert world.batches() == []
        assert [job.state for job in world.jobs()] == ["creating"]
    world.clock.sleep(20)
    world.run("--advance")
    assert len(world.batches()) == 1
    world.run("--advance")
    assert_done(world)


def test_downloading_never_creates(make: Maker) -> None:
    """`--download` submits nothing: a job in doubt is shown, and after the grace period it waits to be submitted."""
    world = make(create_grace_seconds=60)
    world.wire.faults.append(once("POST", "/v1/batches", never_arrives))
    world.run("--create")
    assert "in doubt" in world.run("--download").out
    assert [job.state for job in world.jobs()] == ["creating"]
    world.clock.sleep(3600)
    assert "in doubt" not in world.run("--download").out
    assert [job.state for job in world.jobs()] == ["uploaded"]
    assert world.batches() == []
    world.advance(2)
    assert_done(world)


def test_create_that_never_arrived_holds_no_string_back_from_real_time(make: Maker) -> None:
    """The mode was switched meanwhile: neither a run nor `--download` may leave its strings in doubt for ever."""
    world = make(create_grace_seconds=60)
    world.wire.faults.append(once("POST", "/v1/batches", never_arrives))
    world.run("--create")
    world.clock.sleep(3600)
    assert world.run("--download").code == 0
    assert world.run("--finish-realtime").code == 0
    assert world.batches() == []
    assert_done(world, batches=0)


def test_grace_period_is_by_the_services_clock(make: Maker) -> None:
    """Ours jumps a day ahead; the service's says that it is a minute later, and hides the batch still."""
    world = make(
        Misbehaviour(kind="lose_reply", create=1), Misbehaviour(kind="hide", create=1, seconds=120), create_grace_seconds=300
    )
    world.run("--create")
    world.clock.sleep(86_400)
    world.wire.ahead -= 86_340
    world.run("--advance")
    assert len(world.batches()) == 1
    assert [job.state for job in world.jobs()] == ["creating"]
    world.clock.sleep(100)
    world.run("--advance")
    assert_done(world)


def test_intent_of_an_earlier_upload_is_dated_by_the_services_clock_too(make: Maker) -> None:
    """A command whose first word to the service is a create: our own clock, a day behind, must not date its intent."""
    world = make(Misbehaviour(kind="insufficient_quota", create=1), Misbehaviour(kind="hide", create=2, seconds=120))
    world.wire.ahead = 86_400
    assert world.run("--create").code == 1
    assert [job.state for job in world.jobs()] == ["uploaded"]

    lost = [True]

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.method == "POST" and request.url.path == "/v1/batches" and lost:
            lost.clear()
            raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        return answer

    world.wire.changes.append(change)
    world.run("--create")
    world.clock.sleep(30)
    world.run("--advance")
    assert len(world.batches()) == 1
    world.clock.sleep(600)
    world.run("--advance")
    assert_done(world)


@pytest.mark.parametrize("seconds", [0.0, 7200.0])
def test_of_two_batches_for_one_job_the_older_stays_and_the_other_is_cancelled(make: Maker, seconds: float) -> None:
    """Whether or not they have ended by then, which makes the cancel too late."""
    world = make(
        Misbehaviour(kind="lose_reply"),
        Misbehaviour(kind="hide", create=1, seconds=1000),
        Misbehaviour(kind="hide", create=2, seconds=500),
        pace=Pace(working=seconds),
        create_grace_seconds=60,
    )
    world.run("--create")
    world.clock.sleep(100)
    world.run("--advance")
    assert len(world.batches()) == 2
    world.clock.sleep(1000)
    ran = world.run("--advance")
    assert ran.code == 0, ran.err
    assert world.batches()[1]["id"] in ran.out
    older, newer = world.batches()
    assert world.jobs()[0].batch == older["id"]
    if seconds:
        assert newer["status"] in ("cancelling", "cancelled")
    assert world.doubts() == len(TITLES)  # perhaps paid twice, and booked so
    world.clock.sleep(7200)
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 2


def test_refusal_of_a_repeated_create_does_not_hold_up_what_is_finished(make: Maker) -> None:
    """Collecting comes first: the account has no money left, and the other job's results come home."""
    world = make(
        Misbehaviour(kind="insufficient_quota", create=2), batch_embedding_size=2, create_grace_seconds=60, max_active_batches=2
    )
    world.wire.faults.append(once("POST", "/v1/batches", never_arrives))
    world.run("--create")
    assert len(world.batches()) == 0
    world.clock.sleep(30)
    world.run("--advance")  # the second job is created, the first is still in doubt
    assert len(world.batches()) == 1
    world.clock.sleep(60)
    ran = world.run("--advance")
    assert [job.state for job in world.jobs()][1] == "collected", ran.err
    world.run("--advance")
    world.run("--advance")
    assert_done(world, 2)


def test_upload_whose_id_was_not_recorded_is_found_by_name_and_size(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()

    class Killed(BaseException):
        pass

    def killed(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if request.method == "POST" and request.url.path == "/v1/files":
            raise Killed
        return answer

    world.wire.changes.append(killed)
    with pytest.raises(Killed):
        world.run("--create")
    assert [job.state for job in world.jobs()] == ["prepared"]
    world.wire.changes.clear()
    assert world.run("--create").code == 0
    assert world.wire.count("POST", "/v1/files") == 1
    assert world.run("--advance").code == 0
    assert_done(world)


def test_lost_reply_to_an_upload_is_sent_again(make: Maker) -> None:
    world = make()
    world.wire.faults.append(once("POST", "/v1/files", never_arrives))
    assert world.run("--create").code == 0
    assert world.run("--advance").code == 0
    assert_done(world)


def test_input_file_that_is_gone_before_the_create_is_uploaded_again(make: Maker) -> None:
    world = make(Misbehaviour(kind="insufficient_quota", create=1))
    assert world.run("--create").code == 1
    (job,) = world.jobs()
    world.wire.handle_request(httpx2.Request("DELETE", f"http://local/v1/files/{job.input_file}"))
    assert world.run("--advance").code == 1
    assert world.run("--advance").code == 0
    world.run("--advance")
    assert world.attempts() == {}
    assert_done(world)


# A kill, in a process of its own, against a service in another

_KILLED_AFTER_CREATE = """
import os, signal, sys
from pipeline.provider.batch_client import BatchClient

create = BatchClient.create

def killed(self, *arguments):
    create(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

BatchClient.create = killed
from pipeline.commands.batch_manager import main
sys.exit(main(sys.argv[1:]))
"""


def manage(config: Path, *arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    program = [str(ROOT / "batch_manager.py")] if script is None else ["-c", script]
    command = [sys.executable, *program, "--config", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)


def test_killed_right_after_the_create_one_batch_is_there_and_adopted(tmp_path: Path) -> None:
    with service(tmp_path, latency=0) as served:
        write(tmp_path, served)
        killed = manage(tmp_path / "my.yml", "--create", script=_KILLED_AFTER_CREATE)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(served.state()["batches"]) == 1
        ran = manage(tmp_path / "my.yml", "--advance")
        assert ran.returncode == 0, ran.stderr
        again = manage(tmp_path / "my.yml", "--advance")
        assert again.returncode == 0, again.stderr
        truth = served.state()
        assert len(truth["batches"]) == 1
        assert truth["texts"] == len(TITLES)
        assert truth["embedded_more_than_once"] == []
    assert not list((tmp_path / "checkpoints" / "scratch").iterdir())


def write(folder: Path, served: Service) -> None:
    (folder / "records.csv").write_text("id,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(TITLES)), "utf-8")
    (folder / "my.yml").write_text(
        f"input: records.csv\nfields: {{title: title}}\nembedding_service: {served.url}\nservice_name: loopback\n"
        "embedding_model: local-lexical-384\n",
        encoding="utf-8",
    )
