"""Who is told what, how often, and that nothing of it changes what a command does: a real program, a real HTTP server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import Checkpoint, writing
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import Pace
from pipeline.notify import ping, run_program
from tests.batch.world import Maker, World, error, once
from tests.tools import Ran

HOUR = 3600
SECRET = "sk-a-key-of-somebody-0123456789"


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """A program beside the config that keeps what it is told; what it was told so far."""
    notifier(tmp_path)
    return lambda: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(tmp_path.glob("told-*"), key=_number)]


def notifier(folder: Path, more: str = "") -> None:
    """`notify.py` in a folder: keeps each document beside itself, with the environment and arguments that came along."""
    script = folder / "notify.py"
    script.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent("""\
            import glob, json, os, sys
            document = json.load(sys.stdin)
            document["environment"], document["arguments"] = dict(os.environ), sys.argv[1:]
            with open(f"told-{len(glob.glob('told-*'))}", "w", encoding="utf-8") as file:
                json.dump(document, file)
            print("printed by the program")
            """)
        + more,
        encoding="utf-8",
    )
    script.chmod(0o755)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("told-"))


def events(found: list[dict[str, Any]]) -> list[str]:
    return [one["event"] for one in found]


Told = Callable[[], list[dict[str, Any]]]


# The program


def test_finished_is_told_once_and_again_when_more_came_in(make: Maker, told: Told) -> None:
    world = make(notify_command="./notify.py 'two words' --flag")
    world.advance()
    assert told() == []
    world.advance(4)
    (first,) = told()
    assert (first["event"], first["arguments"]) == ("finished", ["two words", "--flag"])
    assert first["words"] == ["Finished: 4 strings embedded; $0 of $25.00 spent."]
    assert first["status"]["state"] == "finished"
    assert first["checkpoint_dir"] == str(world.catalogue.checkpoint)
    world.catalogue.write([(str(number), "", title) for number, title in enumerate(["Fugue", "Mass", "Suite", "Toccata", "Trio"])])
    world.advance(4)
    assert events(told()) == ["finished"] * 2
    assert world.main().code == 0
    assert events(told()) == ["finished"] * 2, "a run with nothing to do is no news"


def test_a_run_in_real_time_tells_as_well(make: Maker, told: Told) -> None:
    world = make(notify_command=["./notify.py"])
    assert world.main().code == 0
    assert events(told()) == ["finished"]


def test_what_is_told_is_what_status_says(make: Maker, told: Told) -> None:
    world = make(notify_command=["./notify.py"])
    world.advance(2)
    shown = world.main("--status", "--json").document
    (found,) = told()
    assert {**found["status"], "checkpoint_dir": found["checkpoint_dir"]} == shown


def test_a_need_is_told_once_and_again_when_it_comes_back(make: Maker, told: Told) -> None:
    world = make(price=1_000_000.0, budget_usd=4, notify_command=["./notify.py"])
    for _ in range(5):
        assert world.run("--advance").code == 1
        world.clock.sleep(HOUR)
    (found,) = told()
    assert found["event"] == "needs_person"
    assert found["words"][0].startswith("budget_usd is 4: ")
    assert found["words"][0].endswith(f"Then: python batch_manager.py --config {world.catalogue.config} --advance")
    for _ in range(3):
        assert world.run("--advance", "--set", "budget_usd=100").code == 0
    assert events(told()) == ["needs_person", "finished"]
    world.catalogue.write([(str(number), "", f"New {number}") for number in range(9)])
    for _ in range(3):
        world.run("--advance", "--set", "budget_usd=5", "--set", "max_rejected_rows=0")
    assert len(told()) == 3


def test_another_job_that_is_lost_is_another_event(make: Maker, told: Told) -> None:
    world = make(
        Misbehaviour(kind="output_gone", create=1), Misbehaviour(kind="output_gone", create=2),
        batch_embedding_size=2, max_active_batches=1, notify_command=["./notify.py"],
    )  # fmt: skip
    for _ in range(6):
        world.run("--advance")
    assert [one["status"]["needs"][0]["keys"] for one in told()] == [["lost 1"], ["lost 1", "lost 2"]]


def test_a_string_that_failed_is_told_once_while_additions_come_each_day_and_more_of_them_are_news(make: Maker, told: Told) -> None:
    refused = [Misbehaviour(kind="refused_row", create=number, row=1) for number in (1, 4, 5, 6)]
    world = make(*refused, notify_command=["./notify.py"])
    titles = ["Fugue", "Mass", "Suite", "Toccata"]

    def day(*more: str) -> list[str]:
        titles.extend(more)
        world.catalogue.write([(str(number), "", title) for number, title in enumerate(titles)])
        world.advance(3)
        return [one["words"][0].split(" failed")[0] for one in told() if one["event"] == "needs_person"]

    assert day() == ["1 string"]
    assert day("Trio") == day("Ballade") == ["1 string"], "it is as it was"
    assert day("Canon") == ["1 string", "2 strings"]
    assert world.main("--retry-failed", "--set", "use_batch_embeddings=true", "--set", "batch_manual_polling=true").code in (0, 1)
    assert day() == ["1 string", "2 strings", "1 string"], "one was settled, and one came back"
    world.main("--retry-failed", "--set", "use_batch_embeddings=true", "--set", "batch_manual_polling=true")
    assert day() == ["1 string", "2 strings", "1 string", "1 string"]
    world.main("--retry-failed", "--set", "use_batch_embeddings=true", "--set", "batch_manual_polling=true")
    day()
    assert events(told())[-1] == "finished"


def test_a_service_that_is_down_for_an_hour_is_nobodys_business_and_for_a_day_it_is(make: Maker, told: Told) -> None:
    world = make(notify_command=["./notify.py"], notify_no_progress_hours=24)
    world.wire.faults.append(once("POST", "/v1/files", error(503, "overloaded", "no"), times=10_000))
    began = world.clock.now()
    while world.clock.now() < began + 23.5 * HOUR:
        assert world.run("--advance").code == 1
        world.clock.sleep(HOUR / 2)
    assert told() == []
    for _ in range(10):
        world.run("--advance")
        world.clock.sleep(HOUR / 2)
    (found,) = told()
    assert found["event"] == "no_progress"
    assert found["words"][0].startswith("No progress since ")
    assert found["words"][1].startswith("The last batch_manager.py --advance was stopped: ")
    world.wire.faults.clear()
    world.advance(3)
    assert events(told()) == ["no_progress", "finished"]


def test_a_job_that_takes_its_day_is_no_standstill_and_automatic_mode_tells_of_one(make: Maker, told: Told) -> None:
    world = make(pace=Pace(working=23 * HOUR), use_batch_embeddings=True, batch_poll_interval=HOUR, notify_command=["./notify.py"])
    assert world.main().code == 0
    assert events(told()) == ["finished"]
    world.catalogue.write([(str(number), "", f"New {number}") for number in range(4)])
    assert world.main("--set", "notify_no_progress_hours=12", "--accept-new-input").code == 0
    assert events(told()) == ["finished", "no_progress", "finished"]


def test_months_of_rest_are_no_standstill(make: Maker, told: Told) -> None:
    world = make(pace=Pace(working=HOUR), notify_command=["./notify.py"])
    world.advance(3)
    world.clock.sleep(60 * 24 * HOUR)
    world.catalogue.write([(str(number), "", title) for number, title in enumerate(["Fugue", "Mass", "Suite", "Toccata", "Trio"])])
    world.advance(3)
    assert events(told()) == ["finished", "finished"]


@pytest.mark.parametrize(
    ("more", "trouble"),
    [
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", "ended with signal 9"),
        ("\0", "ended with exit code 1"),
    ],
)
def test_a_program_that_fails_is_a_warning_and_tried_again_in_an_hour(
    make: Maker, told: Told, tmp_path: Path, more: str, trouble: str
) -> None:
    notifier(tmp_path, more.replace("\0", "raise SystemError"))
    world = make(notify_command=["./notify.py"])
    world.run("--advance")
    for _ in range(3):
        ran = world.run("--advance", "--json")
        assert ran.code == 0
        assert isinstance(ran.document, dict)
        if len(told()) == 1 and "Warning" in ran.err:
            assert f"Warning: notify_command: ./notify.py {trouble}. It is tried again in an hour." in ran.err
        world.clock.sleep(60)
    assert len(told()) == 1
    notifier(tmp_path)
    world.clock.sleep(HOUR)
    world.run("--advance")
    world.clock.sleep(HOUR)
    world.run("--advance")
    assert len(told()) == 2


def test_a_program_that_is_not_there_changes_nothing(make: Maker) -> None:
    world = make(notify_command=["./gone.py", "--token", SECRET])
    world.run("--advance")
    ran = world.run("--advance")
    assert ran.code == 0
    assert "Warning: notify_command: ./gone.py could not be run: No such file or directory." in ran.err
    assert SECRET not in ran.err + ran.out
    checked = world.main("--check")
    assert checked.code == 1
    assert "./gone.py: there is no such program" in checked.out


def test_what_the_command_says_and_leaves_is_the_same_with_and_without_it(make: Maker, told: Told, tmp_path: Path) -> None:
    world = make()
    world.advance(2)
    plain = world.run("--advance", "--json")
    world.catalogue.configure(fields={"title": "title"}, max_rejected_rows=0, notify_command=["./notify.py"])
    telling = world.run("--advance", "--json")
    assert (telling.code, telling.out) == (plain.code, plain.out)
    assert len(told()) == 1


def test_nothing_that_is_written_twice_a_minute_is_told_by_commands_that_only_look(make: Maker, told: Told) -> None:
    world = make(price=1_000_000.0, budget_usd=4, notify_command=["./notify.py"])
    world.run("--advance")
    for command in ("--status", "--failures", "--list"):
        world.run(command)
    world.main("--verify")
    world.main("--dry-run")
    assert len(told()) == 1


def test_no_key_reaches_the_program(make: Maker, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "SERVICE_API_KEY", "WEAVIATE_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HARMLESS", "yes")
    world = make(notify_command=["./notify.py"], key=SECRET)
    world.wire.faults.append(once("POST", "/v1/files", error(401, "invalid_api_key", f"Incorrect API key: {SECRET}"), times=9))
    assert world.run("--advance").code == 1
    (found,) = told()
    assert found["environment"]["HARMLESS"] == "yes"
    assert not {name for name in found["environment"] if name.endswith(("_API_KEY", "_API_KEY_FILE"))}
    assert SECRET not in json.dumps(found)
    assert "[hidden]" in json.dumps(found["words"])


def test_a_place_where_nothing_can_be_noted_down_tells_nothing_and_says_so(
    make: Maker, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import DiskError
    from pipeline.ledger.news import NewsBook

    def full(*_: object) -> None:
        raise DiskError("no room")

    world = make(notify_command=["./notify.py"])
    world.advance()
    monkeypatch.setattr(NewsBook, "save_told", full)
    ran = world.run("--advance")
    assert ran.code == 0
    assert "Warning: notify_command was not run, for what is told could not be noted down: no room" in ran.err
    assert told() == []


def test_a_program_that_does_not_end_is_ended_with_all_that_it_began(tmp_path: Path) -> None:
    script = tmp_path / "slow.sh"
    script.write_text("#!/bin/sh\nsleep 600 &\necho $! > child\necho $$ > parent\nwait\n", encoding="utf-8")
    script.chmod(0o755)
    began = time.monotonic()
    trouble = run_program([str(script)], {"long": "x" * 200_000}, tmp_path, os.environ, seconds=2.0)
    assert time.monotonic() - began < 30
    assert trouble == f"{script} had not ended after 2 seconds; it was ended, with all that it began"
    for name in ("parent", "child"):
        assert is_over(int((tmp_path / name).read_text())), name


def is_over(pid: int) -> bool:
    """Gone, or dead and not yet buried by whoever is init here; a signal takes a moment."""
    for _ in range(500):
        state = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        threading.Event().wait(0.01)
    return False


def test_a_program_that_does_not_listen_is_no_trouble(tmp_path: Path) -> None:
    assert run_program(["true"], {"long": "x" * 1_000_000}, tmp_path, os.environ) == ""


# The ping


@contextlib.contextmanager
def server(status: int = 200) -> Iterator[tuple[str, list[tuple[str, str, dict[str, str]]]]]:
    """A server, and what it was asked."""
    asked: list[tuple[str, str, dict[str, str]]] = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.command, self.path, dict(self.headers)))
            self.send_response(status)
            self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")  # type: ignore[attr-defined]
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}", asked
        finally:
            made.shutdown()
            thread.join()


def test_each_advance_that_did_well_is_followed_by_one_get_without_a_key(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with server() as (url, asked):
        world = make(ping_url=f"{url}/ping/0af?status=up&msg=OK")
        world.advance(3)
        assert [(method, path) for method, path, _ in asked] == [("GET", "/ping/0af?status=up&msg=OK")] * 3
        assert SECRET not in repr(asked)
        assert not {name.lower() for _, _, headers in asked for name in headers} & {"authorization", "cookie"}
        for command in ("--status", "--download", "--create", "--wait"):
            world.run(command)
        world.main()
        assert len(asked) == 3


def test_an_advance_that_failed_or_found_another_run_at_work_asks_for_nothing(make: Maker) -> None:
    with server() as (url, asked):
        world = make(price=1_000_000.0, budget_usd=4, ping_url=url)
        assert world.run("--advance").code == 1
        with writing(Checkpoint(world.catalogue.checkpoint), "elsewhere"):
            assert world.run("--advance").code == 0
        assert asked == []


@pytest.mark.parametrize("status", [301, 404, 500])
def test_an_answer_that_is_none_is_a_warning_and_no_redirect_is_followed(make: Maker, status: int) -> None:
    with server(status) as (url, asked):
        ran = advanced(make(ping_url=f"{url}/{SECRET}"))
        assert ran.code == 0
        assert f"Warning: ping_url (127.0.0.1): the answer was {status}\n" in ran.err
        assert SECRET not in ran.err + ran.out
        assert len(asked) == 1


def test_nobody_at_home_is_a_warning(make: Maker) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ran = advanced(make(ping_url=f"http://127.0.0.1:{free.getsockname()[1]}/{SECRET}"))
    assert ran.code == 0
    assert "Warning: ping_url (127.0.0.1): " in ran.err
    assert SECRET not in ran.err


def advanced(world: World) -> Ran:
    return world.run("--advance", "--json")


def test_a_server_that_says_a_byte_now_and_then_holds_nobody(tmp_path: Path) -> None:
    stop = threading.Event()

    def drip(listening: socket.socket) -> None:
        talking, _ = listening.accept()
        with talking:
            while not stop.wait(0.05):
                with contextlib.suppress(OSError):
                    talking.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        began = time.monotonic()
        assert ping(f"http://127.0.0.1:{listening.getsockname()[1]}/", seconds=1.0)
        assert time.monotonic() - began < 10
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "file:///etc/passwd",
        "host/x",
        "http://user:word@host/",
        "http://169.254.169.254/latest",
        "https://h/#x",
        7,
        "",
    ],
)
def test_what_is_no_url_to_ask_for_is_refused_and_not_shown(make: Maker, url: object) -> None:
    ran = make(ping_url=url).run("--advance")
    assert ran.code == 2
    assert "ping_url is set; it must be " in ran.err
    assert "user:" not in ran.err


@pytest.mark.parametrize("command", ["", "'open", [], ["", "x"], [7], {"a": "b"}, 7, ["a\0b"]])
def test_what_is_no_program_is_refused_and_not_shown(make: Maker, command: object) -> None:
    ran = make(notify_command=command).run("--advance")
    assert ran.code == 2
    assert "notify_command is set; it must be a program and its arguments" in ran.err
