"""Answering for it: the log of runs, the audit, and our files at the service that are deleted with a receipt.

Over a real service on loopback, with a price. The service says which files it has and what it billed; the audit is read
from its file, as an auditor reads it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import re
import shlex
import shutil
import sqlite3
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands import batch_manager
from pipeline.commands import main as entry
from pipeline.commands.entry import line_of, options_of
from pipeline.commands.session import Options
from pipeline.ledger import Ledger, schema
from pipeline.ledger.runs import RunBook
from pipeline.local_service import State
from pipeline.local_service.settings import AT_ONCE, Pace
from tests.clock import FakeClock
from tests.test_restore import KilledError, killed
from tests.tools import Catalogue, Ran
from tests.wire import Answer, Fault, FaultyService, Reset

TITLES = ["Fugue", "Mass", "Suite", "Toccata", "Partita"]
HOUR = 3600.0
SLOW = Pace(working=2 * HOUR)
DELETE = "DELETE /v1/files/[^/]+"


@dataclass
class Answering:
    """A catalogue, its service on a port, one clock for both, and what an auditor would look at."""

    catalogue: Catalogue
    service: FaultyService
    clock: FakeClock

    def type(self, program: Any, *arguments: str) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program.main(["--config", str(self.catalogue.config), *arguments])
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Ran(code, out.getvalue(), err.getvalue())

    def main(self, *arguments: str) -> Ran:
        return self.type(entry, *arguments)

    def batch(self, *arguments: str) -> Ran:
        return self.type(batch_manager, *arguments)

    def audit(self) -> list[dict[str, str]]:
        """The rows of a fresh audit, whose sums are first compared with all that says what was spent."""
        target = self.catalogue.folder / "audit.csv"
        told = self.main("--audit", str(target), "--json").document
        with target.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        assert told["rows"] == len(rows)
        status = self.main("--status", "--json").document
        sums = {booked: sum(float(row["usd"]) for row in rows if row["booked"] == booked) for booked in BOOKED}
        assert sums["paid"] == pytest.approx(status["spent_usd"], abs=1e-12)
        assert sum(int(row["tokens"]) for row in rows if row["booked"] == "paid") == status["tokens"]
        assert sums["possibly paid twice"] == pytest.approx(status["possibly_paid_twice"]["usd"], abs=1e-12)
        assert sums["on its way"] == pytest.approx(status["on_its_way_usd"], abs=1e-12)
        with self.catalogue.ledger() as ledger:
            assert sum(float(row["usd"]) for row in rows) == pytest.approx(ledger.spent_usd(), abs=1e-12)
        assert {f"{booked.replace(' ', '_')}_usd": pytest.approx(usd) for booked, usd in sums.items()}.items() <= told.items()
        return rows

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.main("--audit", "--json").document["runs"]
        return found

    def remote(self) -> list[str]:
        """The files that the service has."""
        return sorted(path.name for path in self.service.state.folder.glob("file-*"))

    def receipts(self) -> dict[str, str]:
        with self.catalogue.ledger() as ledger:
            return {file: receipt.answer for file, receipt in ledger.runs.receipts().items()}


BOOKED = ("paid", "on its way", "possibly paid twice")


@pytest.fixture
def open_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Answering]]:
    with contextlib.ExitStack() as stack:

        def make(*, pace: Pace = AT_ONCE, at: dict[str, Any] | None = None, **keys: object) -> Answering:
            clock = FakeClock()
            state = stack.enter_context(State(tmp_path / "service.sqlite", record=True, pace=pace))
            service = stack.enter_context(FaultyService(at=at, state=state, clock=clock.now))
            catalogue = Catalogue(tmp_path)
            catalogue.configure(**{
                "embedding_service": service.base_url, "service_name": "loopback", "embedding_model": "local-lexical-384",
                "price_per_million": 1000, "create_grace_seconds": 60, "use_batch_embeddings": True, **keys,
            })  # fmt: skip
            catalogue.write([(str(number), "", title) for number, title in enumerate(TITLES)])

            def with_clock(*arguments: Any, **more: Any) -> Options:
                return dataclasses.replace(options_of(*arguments, **more), clock=clock)

            for program in ("main", "batch_manager"):
                monkeypatch.setattr(f"pipeline.commands.{program}.options_of", with_clock)
            return Answering(catalogue, service, clock)

        yield make


# The log of runs


def test_each_run_is_kept_with_who_typed_what_and_how_it_ended(open_world: Callable[..., Answering]) -> None:
    world = open_world(use_batch_embeddings=False)
    world.main("--quiet")
    world.main("--set", "openai_api_key=sk-0123456789abcdef", "--reset", "preprocessing")
    world.main("--drop-embeddings")  # without --yes
    first, second, third = world.runs()
    assert first["command"] == shlex.join(["main.py", "--config", str(world.catalogue.config), "--quiet"])
    assert second["command"].endswith("--set 'openai_api_key=[hidden]' --reset preprocessing")
    assert [run["end"] for run in (first, second, third)] == ["exit 0", "exit 0", "exit 2"]
    assert first["user"]
    assert first["host"]
    assert first["version"]
    shown = world.main("--audit").out
    assert f"{first['user']}@{first['host']}" in shown
    assert "sk-0123456789abcdef" not in shown + (world.catalogue.checkpoint / "ledger.sqlite").read_bytes().decode("latin-1")


def test_a_run_that_was_killed_did_not_end_and_one_that_was_interrupted_did(
    open_world: Callable[..., Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_world(use_batch_embeddings=False)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.commands.session._leave", lambda *_: None)
        world.main("--end", "preprocessing")
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("pipeline.preprocessing.find_sources", interrupted)
        assert world.main().code == 130
    assert [run["end"] for run in world.runs()] == ["did not end", "exit 130"]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["--set", "weaviate_api_key = a b"], "main.py --set 'weaviate_api_key =[hidden]'"),
        (["--set=openai_api_key=x\ny"], "main.py '--set=openai_api_key=[hidden]'"),
        (["--set", "embedding_service=https://me:pw@host/v1"], "main.py --set 'embedding_service=https://[hidden]@host/v1'"),
        (["--search", "Bach, J. S."], "main.py --search '[a text]'"),
        (["--search=Bach"], "main.py '--search=[a text]'"),
        (["--set", "max_enqueued_tokens=5"], "main.py --set max_enqueued_tokens=5"),
    ],
)
def test_a_line_is_kept_without_its_secrets(typed: list[str], kept: str) -> None:
    assert line_of("main.py", typed) == kept


@given(st.text(alphabet=string.ascii_letters + string.digits + "=-_ '\"\n", min_size=1))
def test_no_key_that_is_typed_is_kept(secret: str) -> None:
    marked = f"<{secret}>"
    assert marked not in line_of("main.py", ["--set", f"openai_api_key={marked}", "--status"])


def test_a_ledger_of_before_is_brought_up_to_date_and_its_audit_says_what_it_can_not_tell(
    open_world: Callable[..., Answering], tmp_path: Path
) -> None:
    """Of what was booked before there was a log by run, the job is known by its own figures; the rest stands in one row."""
    world = open_world()
    world.main("--quiet")
    world.main("--quiet", "--set", "use_batch_embeddings=false", "--search", "somebody unknown")
    path = world.catalogue.checkpoint / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(
            "DROP TABLE booking; DROP TABLE past_job; DROP TABLE receipt; DROP TABLE stop; DROP TABLE told; "
            "ALTER TABLE run DROP COLUMN user; PRAGMA user_version = 2"
        )
    assert len(schema.MIGRATIONS) == 4
    assert "was written by an older version" in world.main("--audit").err
    world.main("--quiet")
    rows = world.audit()
    assert [(row["what"], row["booked"]) for row in rows] == [("job", "paid"), ("search, not kept by run", "paid")]
    assert [run["user"] for run in world.runs()][:2] == ["", ""]


# The audit


def test_the_audit_of_jobs_and_runs_agrees_with_the_ledger_and_the_files(open_world: Callable[..., Answering]) -> None:
    world = open_world(pace=SLOW, batch_embedding_size=2, budget_usd=1000)
    world.batch("--create")
    sha256 = hashlib.sha256((world.catalogue.checkpoint / "batch_requests_0001.jsonl").read_bytes()).hexdigest()
    rows = world.audit()
    assert [(row["what"], row["booked"], row["state"]) for row in rows] == [("job", "on its way", "open")] * 3
    assert rows[0]["request_sha256"] == sha256
    assert rows[0]["files_expire_by"] > rows[0]["batch_expires_at"] > rows[0]["created_at"] > ""
    world.clock.sleep(3 * HOUR)
    world.batch("--download")
    world.catalogue.write([(str(number), "Anna", title) for number, title in enumerate([*TITLES, "=Cantata"])])
    world.main("--quiet", "--set", "use_batch_embeddings=false")
    world.main("--quiet", "--search", "somebody unknown")
    rows = world.audit()
    assert [row["what"] for row in rows] == ["job"] * 3 + ["real time", "search"]
    job, real = rows[0], rows[3]
    assert (job["fields"], job["strings"], job["embedded"], job["failed"]) == ("title 2", "2", "2", "0")
    assert (job["booked"], job["price_per_million"], job["state"], job["status"]) == ("paid", "1000.0", "collected", "completed")
    assert float(job["usd"]) == int(job["tokens"]) * 1000 / 1e6
    assert job["command"].endswith("--download")
    assert (real["fields"], real["strings"]) == ("person 1; title 1", "2")
    assert real["command"].endswith("--set use_batch_embeddings=false")
    shape = r"input file-\S+ \S+Z deleted \(.*\); output file-\S+ \S+Z deleted \(.*\)"
    assert all(re.fullmatch(shape, row["receipts"]) for row in rows[:3])
    assert [row["files_expire_by"] for row in rows[:3]] == ["", "", ""]
    assert world.remote() == []


def test_what_was_on_the_wire_at_a_kill_is_in_the_audit_and_then_possibly_paid_twice(
    open_world: Callable[..., Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_world(use_batch_embeddings=False, budget_usd=1000)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.realtime.RealTime._settle", killed)
        patch.setattr("pipeline.provider.client.EmbeddingClient.ask", killed)
        with pytest.raises(KilledError):
            world.main("--quiet")
    rows = world.audit()
    assert [(row["what"], row["booked"], row["fields"]) for row in rows] == [("on the wire", "on its way", "title 5")]
    world.main("--quiet")
    rows = world.audit()
    assert [row["what"] for row in rows] == ["real time", "possibly paid twice"]
    assert rows[1]["reason"] == "the run ended while the request was open"


def test_a_job_that_a_reset_forgot_is_still_in_the_audit(open_world: Callable[..., Answering]) -> None:
    world = open_world()
    world.main("--quiet")
    before = world.audit()
    assert world.main("--quiet", "--reset", "embedding_and_indexing").code == 0
    with world.catalogue.ledger() as ledger:
        assert ledger.jobs.all() == []
    assert world.audit() == before


def test_the_audit_survives_the_ledger_as_far_as_the_copy_knows(open_world: Callable[..., Answering]) -> None:
    world = open_world(budget_usd=1000)
    world.main("--quiet")
    copy = world.catalogue.checkpoint / "ledger.copy.sqlite"
    saved = world.catalogue.folder / "saved"
    shutil.copy(copy, saved)
    world.catalogue.write([(str(number), "", title) for number, title in enumerate([*TITLES, "Cantata"])])
    world.main("--quiet", "--set", "use_batch_embeddings=false")
    before = world.audit()
    for path in world.catalogue.checkpoint.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copy(saved, copy)
    assert world.main("--restore-ledger").code == 0
    rows = world.audit()
    assert [row["usd"] for row in rows] == [row["usd"] for row in before]
    assert rows[0] == before[0], "the copy knows the job, who collected it, and its receipts"
    assert rows[1]["command"].endswith("--restore-ledger"), "booked again by the restore, from what the files say"
    assert [run["end"] for run in world.runs()] == ["exit 0", "exit 0"]


# Our files at the service


def test_nothing_is_deleted_without_a_yes_and_nothing_of_an_open_job_with_it(open_world: Callable[..., Answering]) -> None:
    world = open_world(pace=SLOW)
    assert "never had a job" in world.main("--delete-remote").out
    world.batch("--create")
    assert len(world.remote()) == 1
    ran = world.main("--delete-remote", "--yes")
    assert ran.code == 0
    assert "Stays: the files of job 1, which is open" in ran.out
    assert len(world.remote()) == 1
    world.clock.sleep(3 * HOUR)
    world.batch("--download")
    assert world.remote() == [], "collected, and cleaned up"
    assert len(world.receipts()) == 2


def leave_files(world: Answering) -> list[str]:
    """Two collected jobs whose files the service would not delete, and an upload that no job names."""
    assert world.batch("--create").code == 0
    assert world.batch("--download").code == 1, "it could not clean up"
    left = world.remote()
    assert len(left) == 7
    return left


FAILING: dict[str, list[Fault | None]] = {
    "POST /v1/files": [Reset("request")],
    DELETE: [Answer(503, {"content-type": "application/json"}, b'{"error": {"message": "not now"}}')] * 100,
}


def test_all_that_is_ours_goes_with_a_receipt_and_nothing_of_others(open_world: Callable[..., Answering]) -> None:
    world = open_world(at=dict(FAILING), batch_embedding_size=2)
    left = leave_files(world)
    client = world.service
    theirs = _upload(client.base_url, "0123456789abcdef0123456789abcdef_batch_requests_0001.jsonl")
    also = _upload(client.base_url, "batch_requests_0001.jsonl")
    world.service._at.pop(DELETE)
    ran = world.main("--delete-remote")
    assert ran.code == 2
    assert "This would delete 7 files of 3 jobs" in ran.err
    assert len(world.remote()) == 9
    ran = world.main("--delete-remote", "--yes", "--json")
    assert ran.code == 0
    assert sorted(ran.document["answers"]) == left
    assert world.remote() == sorted([theirs, also])
    assert sorted(world.receipts()) == left
    assert all(answer.startswith("deleted (") for answer in world.receipts().values())
    told = " ".join(row["receipts"] for row in world.audit())
    assert all(file in told for file in left)
    asked = sum(method == "DELETE" for method, _ in world.service.asked)
    assert world.main("--delete-remote", "--yes").code == 0
    assert sum(method == "DELETE" for method, _ in world.service.asked) == asked, "nothing is asked for twice"


def _upload(base_url: str, name: str) -> str:
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key="theirs", max_retries=0) as client:
        return client.files.create(file=(name, io.BytesIO(b"{}\n"), "application/jsonl"), purpose="batch").id


@pytest.mark.parametrize("at", [1, 3, 7])
def test_killed_between_a_deletion_and_its_receipt_it_is_typed_again(
    at: int, open_world: Callable[..., Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of one deletion is lost; its receipt says that the file was gone."""
    world = open_world(at=dict(FAILING), batch_embedding_size=2)
    left = leave_files(world)
    world.service._at.pop(DELETE)
    real, count = RunBook.add_receipt, itertools.count(1)
    with monkeypatch.context() as patch:

        def add(*given: Any) -> None:
            if next(count) == at:
                raise KilledError
            real(*given)

        patch.setattr(RunBook, "add_receipt", add)
        with pytest.raises(KilledError):
            world.main("--delete-remote", "--yes")
    assert world.main("--delete-remote", "--yes").code == 0
    assert world.remote() == []
    answers = world.receipts()
    assert sorted(answers) == left
    assert sum(answer.startswith("gone already (404") for answer in answers.values()) == 1
    asked = world.service.requests
    assert world.batch("--advance").code == 0
    assert world.service.requests == asked


def test_a_service_that_does_not_answer_stops_it_and_the_next_one_goes_on(open_world: Callable[..., Answering]) -> None:
    world = open_world(at=dict(FAILING), batch_embedding_size=2)
    left = leave_files(world)
    refused = Answer(400, {"content-type": "application/json"}, b'{"error": {"message": "in use", "code": "in_use"}}')
    world.service._at[DELETE] = [None, refused, None, *FAILING[DELETE]]
    ran = world.main("--delete-remote", "--yes")
    assert ran.code == 1
    assert "2 of 7 files are deleted and have their receipts; run the same command again" in ran.err
    world.service._at[DELETE] = [refused]
    ran = world.main("--delete-remote", "--yes")
    assert ran.code == 1
    assert "Not deleted: file-" in ran.err
    assert "in use" in ran.err
    world.service._at.pop(DELETE)
    assert world.main("--delete-remote", "--yes").code == 0
    assert sorted(world.receipts()) == left
    assert world.remote() == []


def test_files_at_another_service_are_not_called_gone(open_world: Callable[..., Answering]) -> None:
    world = open_world(at=dict(FAILING), batch_embedding_size=2)
    leave_files(world)
    world.service._at.pop(DELETE)
    elsewhere = world.main("--delete-remote", "--yes", "--set", "service_name=elsewhere")
    assert elsewhere.code == 0
    assert "they are at another service than elsewhere" in elsewhere.out
    assert world.receipts() == {}
    world.batch("--download", "--set", "service_name=elsewhere")
    assert world.receipts() == {}, "and cleaning up after a collection asks it for nothing either"


def test_the_ledger_keeps_the_first_answer(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    schema.migrate(database)
    with contextlib.closing(Ledger(database, tmp_path / "ledger.sqlite")) as ledger:
        ledger.runs.start("main.py", "1", "host", "anna", 7, 1.0)
        ledger.runs.add_receipt("file-1", 1, "input", 2.0, "deleted (yes)")
        ledger.runs.add_receipt("file-1", 1, "input", 3.0, "gone already (404)")
        assert [(one.run, one.at, one.answer) for one in ledger.runs.receipts().values()] == [(1, 2.0, "deleted (yes)")]
