"""`--restore-ledger` in batch mode: at every state of a job, from a copy that does not know the job, nothing is paid twice.

The truth is the service's own list and what it embedded; the vectors are compared with the model itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq
import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.commands.entry import options_of
from pipeline.commands.session import Options
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.model import embed
from pipeline.local_service.settings import Pace
from pipeline.tables.embeddings import matrix_of
from tests.batch.world import Maker, World, never_arrives, once
from tests.test_restore import KilledError, killed
from tests.tools import Ran, untouched

TITLES = ["Fugue", "Mass", "Suite", "Toccata"]
SLOW = Pace(working=7200.0)


def place(world: World) -> Checkpoint:
    return Checkpoint(world.catalogue.checkpoint)


def first_copy(world: World) -> bytes:
    """The safe copy of a folder that has read its input and has no job."""
    assert world.catalogue.run("--quiet", "--end", "preprocessing").code == 0
    return place(world).copy.read_bytes()


def lose(world: World, copy: bytes | None = None) -> None:
    if copy is not None:
        place(world).copy.write_bytes(copy)
    for path in (place(world).ledger, *place(world).logs):
        path.unlink(missing_ok=True)


def restore(world: World, *more: str) -> Ran:
    def with_clock(*arguments: Any, **also: Any) -> Options:
        return dataclasses.replace(options_of(*arguments, **also), clock=world.clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.commands.main.options_of", with_clock)
        return world.catalogue.run("--restore-ledger", *more)


def restored(world: World, *more: str) -> dict[str, Any]:
    ran = restore(world, "--json", *more)
    assert ran.code == 0, ran.err
    document: dict[str, Any] = ran.document
    return document


def states(world: World) -> list[str]:
    return [job.state for job in world.jobs()]


def assert_done(world: World, batches: int = 2, titles: list[str] = TITLES) -> None:
    """Each string embedded once, by so many batches, under its number; and a further command asks for nothing."""
    assert world.embedded() == sorted(titles)
    assert len(world.batches()) == batches
    assert [world.times(title) for title in titles] == [1] * len(titles)
    assert world.doubts() == 0
    rows: dict[int, bytes] = {}
    with world.catalogue.ledger() as ledger:
        files = ledger.files("embeddings")
    for file in files:
        table = pq.read_table(world.catalogue.checkpoint / "tables" / file.name).combine_chunks()
        for row, vector in zip(table["row"].to_pylist(), matrix_of(table["vector"].chunk(0)), strict=True):
            assert row not in rows, "a row stands in two files"
            rows[row] = vector.tobytes()
    known = world.catalogue.strings("title")
    assert list(known.values()) == titles  # in the order of their first record, as ever
    assert rows == {row: embed([text])[0].tobytes() for row, text in known.items()}
    posts = sum(method == "POST" for method, _ in world.wire.requests)
    assert world.run("--advance").code == 0
    assert sum(method == "POST" for method, _ in world.wire.requests) == posts


def finish(world: World) -> None:
    for _ in range(4):
        world.clock.sleep(7200)
        world.run("--advance")


# Every state of a job


def to_prepared(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pipeline.provider.batch_client.BatchClient.upload", killed)
    with pytest.raises(KilledError):
        world.run("--create")


def to_uploaded(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pipeline.provider.batch_client.BatchClient.create", killed)
    patch.setattr("pipeline.batch.submit.create", killed)
    with pytest.raises(KilledError):
        world.run("--create")


def to_creating(world: World, patch: pytest.MonkeyPatch) -> None:
    world.wire.changes.append(after_create(lost))
    world.run("--create")
    world.wire.changes.clear()


def to_open(world: World, patch: pytest.MonkeyPatch) -> None:
    assert world.run("--create").code == 0


def to_ended(world: World, patch: pytest.MonkeyPatch) -> None:
    world.run("--create")
    world.clock.sleep(8000)
    patch.setattr("pipeline.batch.life.collect_job", killed)
    with pytest.raises(KilledError):
        world.run("--advance")


def to_half_collected(world: World, patch: pytest.MonkeyPatch) -> None:
    """Its results are here and its table is written; no commit names it."""
    world.run("--create")
    world.clock.sleep(8000)
    patch.setattr("pipeline.batch.collect._commit", killed)
    with pytest.raises(KilledError):
        world.run("--advance")


def to_not_cleaned(world: World, patch: pytest.MonkeyPatch) -> None:
    world.run("--create")
    world.clock.sleep(8000)
    patch.setattr("pipeline.batch.collect.clean", killed)
    with pytest.raises(KilledError):
        world.run("--advance")


def to_collected(world: World, patch: pytest.MonkeyPatch) -> None:
    world.run("--create")
    world.clock.sleep(8000)
    assert world.run("--advance").code == 0


def to_collected_and_dropped(world: World, patch: pytest.MonkeyPatch) -> None:
    """Beyond keep_results_gb even the request files of collected jobs go."""
    to_collected(world, patch)
    for path in world.catalogue.checkpoint.glob("batch_*.jsonl"):
        path.unlink()


def to_taken_back(world: World, patch: pytest.MonkeyPatch) -> None:
    """Never sent, and its strings went through real time."""
    to_prepared(world, patch)
    assert world.catalogue.run("--quiet").code == 0


def lost(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
    raise httpx2.RemoteProtocolError("Server disconnected without sending a response.", request=request)


def after_create(then: Callable[[httpx2.Request, httpx2.Response], httpx2.Response]) -> Any:
    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        return then(request, answer) if (request.method, request.url.path) == ("POST", "/v1/batches") else answer

    return change


@pytest.mark.parametrize(
    ("reach", "expected", "batches"),
    [
        (to_prepared, ["creating"], 2),
        (to_uploaded, ["creating"], 2),
        (to_creating, ["open"], 2),
        (to_open, ["open", "open"], 2),
        (to_ended, ["ended", "ended"], 2),
        (to_half_collected, ["collected", "ended"], 2),
        (to_not_cleaned, ["collected", "ended"], 2),
        (to_collected, ["collected", "collected"], 2),
        (to_collected_and_dropped, [], 2),
        (to_taken_back, ["returned"], 0),
    ],
)
@pytest.mark.parametrize("copy", ["without jobs", "newest"])
def test_lost_at_every_state_nothing_is_paid_twice(
    reach: Callable[[World, pytest.MonkeyPatch], None],
    expected: list[str],
    batches: int,
    copy: str,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make(pace=SLOW, batch_embedding_size=2, create_grace_seconds=60)
    without = first_copy(world)
    with monkeypatch.context() as patch:
        reach(world, patch)
    downloads = sum(path.endswith("/content") for _, path in world.wire.requests)
    lose(world, without if copy == "without jobs" else None)
    document = restored(world)
    assert document["asked"]
    if copy == "without jobs":
        assert states(world) == expected
        assert document["new_jobs"] == len(expected)
    finish(world)
    assert_done(world, batches)
    assert world.wire.count("POST", "/v1/batches") == batches  # nor was any refused
    assert set(states(world)) <= {"collected", "returned"}
    done = len(list(world.catalogue.checkpoint.glob("batch_results_*.jsonl")))
    if reach in (to_collected, to_collected_and_dropped, to_not_cleaned):
        assert sum(path.endswith("/content") for _, path in world.wire.requests) - downloads <= max(0, done - 1)


def test_jobs_after_the_copy_join_those_that_it_knows(make: Maker) -> None:
    """The first is in the copy as collected, the others came later: one open, and one collected without any trace on disk."""
    world = make(pace=SLOW, batch_embedding_size=2, create_grace_seconds=60)
    to_collected(world, pytest.MonkeyPatch())
    copy = place(world).copy.read_bytes()
    more = [*TITLES, "Air", "Bourree", "Chorale", "Dance"]
    world.catalogue.write([(str(number), "", title) for number, title in enumerate(more)])
    world.run("--create")
    lose(world, copy)
    assert restored(world)["new_jobs"] == 2
    assert states(world) == ["collected", "collected", "open", "open"]
    finish(world)
    assert_done(world, 4, more)


def test_numbers_of_jobs_are_never_given_again(make: Maker) -> None:
    """Number 1 names a batch at the service; a second job of that number would be taken for it."""
    world = make(pace=SLOW, batch_embedding_size=2, create_grace_seconds=60)
    copy = first_copy(world)
    to_collected_and_dropped(world, pytest.MonkeyPatch())
    lose(world, copy)
    restored(world)
    world.catalogue.write([(str(number), "", title) for number, title in enumerate([*TITLES, "Waltz"])])
    world.run("--create")
    assert [job.id for job in world.jobs()] == [3]
    finish(world)
    assert_done(world, 3, [*TITLES, "Waltz"])


def test_request_file_of_an_open_job_that_is_gone_comes_from_the_service(make: Maker) -> None:
    world = make(pace=SLOW, batch_embedding_size=2)
    copy = first_copy(world)
    world.run("--create")
    content = (world.catalogue.checkpoint / "batch_requests_0001.jsonl").read_bytes()
    (world.catalogue.checkpoint / "batch_requests_0001.jsonl").unlink()
    (world.catalogue.checkpoint / "batch_requests_0002.jsonl").write_bytes(b"torn")
    lose(world, copy)
    restored(world)
    assert states(world) == ["open", "open"]
    assert (world.catalogue.checkpoint / "batch_requests_0001.jsonl").read_bytes() == content
    finish(world)
    assert_done(world)


def test_failures_and_money_of_a_collected_job_come_back_from_its_result_files(make: Maker) -> None:
    """What the service refused stays failed, and is not downloaded, asked or paid again; the bill is the service's own."""
    world = make(Misbehaviour(kind="refused_row", row=2), price=1000.0)
    copy = first_copy(world)
    world.run("--create")
    assert world.run("--advance").code == 1
    before, failures, attempts = _spent(world), [(one.row, one.code) for one in world.failures()], world.attempts()
    assert before > 0
    downloads = sum(path.endswith("/content") for _, path in world.wire.requests)
    lose(world, copy)
    restored(world)
    world.run("--advance")
    assert ([(one.row, one.code) for one in world.failures()], world.attempts()) == (failures, attempts)
    assert _spent(world) == pytest.approx(before)
    assert sum(path.endswith("/content") for _, path in world.wire.requests) == downloads
    assert len(world.batches()) == 1


@pytest.mark.parametrize("dropped", [False, True])
def test_the_bill_of_collected_jobs_is_the_services(dropped: bool, make: Maker) -> None:
    world = make(price=1000.0, batch_embedding_size=2)
    copy = first_copy(world)
    (to_collected_and_dropped if dropped else to_collected)(world, pytest.MonkeyPatch())
    before = _spent(world)
    lose(world, copy)
    restored(world)
    assert _spent(world) == pytest.approx(before)
    assert before > 0


def _spent(world: World) -> float:
    with world.catalogue.ledger() as ledger:
        return ledger.spent_usd()


def test_a_row_that_came_by_another_job_is_no_failure_of_the_first(make: Maker) -> None:
    """Collected again for what it lacks, the first job lacks a row too that the second one brought."""
    world = make(
        Misbehaviour(kind="missing_row", create=1, row=2), Misbehaviour(kind="refused_row", create=1, row=3),
        Misbehaviour(kind="refused_row", create=2, row=2), batch_max_attempts=1,
    )  # fmt: skip
    copy = first_copy(world)
    world.advance(2)
    world.run("--retry-failed")
    world.advance(2)
    failures = [(one.row, one.code) for one in world.failures()]
    assert failures == [(2, "invalid_value")]
    assert len(world.batches()) == 2
    lose(world, copy)
    restored(world)
    assert "ended" in states(world)
    finish(world)
    assert [(one.row, one.code) for one in world.failures()] == failures
    assert len(world.batches()) == 2


def test_a_job_that_the_service_refused_whole_is_returned_again(make: Maker) -> None:
    world = make(Misbehaviour(kind="input_not_found", create=1))
    copy = first_copy(world)
    world.run("--create")
    world.advance(3)
    lose(world, copy)
    restored(world)
    finish(world)
    assert_done(world, 2)


def test_a_doubt_that_the_list_hides_is_waited_out(make: Maker) -> None:
    """The batch is there and not in the list: right after a restore it must not be created again."""
    world = make(Misbehaviour(kind="hide", create=1, seconds=50), pace=SLOW, create_grace_seconds=60)
    copy = first_copy(world)
    world.run("--create")
    lose(world, copy)
    restored(world)
    world.run("--advance")
    assert states(world) == ["creating"]
    finish(world)
    assert_done(world, 1)


def test_when_the_service_can_not_be_asked_nothing_is_changed(make: Maker) -> None:
    world = make(pace=SLOW)
    copy = first_copy(world)
    world.run("--create")
    lose(world, copy)
    before = untouched(world.catalogue.checkpoint)
    world.wire.faults.append(once("GET", "/v1/batches", never_arrives, times=99))
    ran = restore(world)
    assert (ran.code, "can't be asked" in ran.err) == (1, True)
    assert untouched(world.catalogue.checkpoint) == before
    world.wire.faults.clear()
    restored(world)
    finish(world)
    assert_done(world, 1)


@pytest.mark.parametrize("used", [False, True])
def test_without_a_sign_of_any_job_it_works_offline(used: bool, make: Maker) -> None:
    """A local service that never had a batch is not even made for the question; another one is asked, and may be down."""
    world = make()
    assert world.catalogue.run("--quiet").code == 0
    if used:
        place(world).local_service.mkdir()
    asked = len(world.wire.requests)
    lose(world)
    world.wire.faults.append(once("GET", "/v1/", never_arrives, times=99))
    assert not restored(world)["asked"]
    assert len(world.wire.requests) - asked == used
    assert world.catalogue.run("--quiet").code == 0
    assert world.embedded() == TITLES
    assert world.twice() == 0


def test_killed_while_jobs_are_restored_it_is_begun_again(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(pace=SLOW, batch_embedding_size=2)
    copy = first_copy(world)
    world.run("--create")
    lose(world, copy)
    for step in (
        "ledger.jobs.JobBook.add",
        "restoring.jobs.JobsAgain._settle",
        "restoring.draft.adopt_spool",
        "commands.restore.put_in_place",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.{step}", killed)
            with pytest.raises(KilledError):
                restore(world)
        assert "--restore-ledger" in world.run("--advance").err
    restored(world)
    finish(world)
    assert_done(world)


def test_jobs_of_another_service_are_not_judged_by_this_ones_list(make: Maker) -> None:
    world = make(pace=SLOW)
    world.run("--create")
    lose(world)
    world.catalogue.configure(
        fields={"title": "title"},
        embedding_service="http://127.0.0.1:9/v1",
        service_name="other",
        embedding_model="local-lexical-384",
    )
    ran = restore(world)
    assert (ran.code, "Set embedding_service back" in ran.err) == (2, True)
    assert not place(world).ledger.exists()


# The safe copy, and the first create


def test_automatic_mode_saves_a_copy_after_each_pass_that_changed_something(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs for days: its ledger may be lost before its end."""
    world = make(pace=Pace(working=600.0), batch_embedding_size=2, max_active_batches=1)
    saved: list[int] = []
    passes = [0]

    def counted(*arguments: Any, **more: Any) -> Any:
        passes[0] += 1
        if passes[0] > 200:
            raise KilledError
        return real_pass(*arguments, **more)

    from pipeline.commands import batch
    from pipeline.ledger import Ledger

    real_pass, real_save = batch._pass, Ledger.save_copy

    def save_copy(ledger: Ledger, copy: Path) -> None:
        saved.append(passes[0])
        real_save(ledger, copy)

    monkeypatch.setattr(batch, "_pass", counted)
    monkeypatch.setattr(Ledger, "save_copy", save_copy)
    assert world.run("--wait").code == 0
    assert world.embedded() == TITLES
    during = [number for number in saved if number > 0]
    assert 1 in during
    assert len(set(during)) >= 3  # the first create, the second one, the end
    assert len(during) < passes[0]


@pytest.mark.parametrize("command", ["--create", "--advance", "--wait"])
def test_an_empty_ledger_stops_before_the_first_create_when_the_service_knows_the_catalogue(command: str, make: Maker) -> None:
    """An older ledger was put in place by hand, and the table files went with the newer one."""
    world = make(pace=SLOW)
    copy = first_copy(world)
    world.run("--create")
    for path in world.catalogue.checkpoint.glob("batch_*"):
        path.unlink()
    lose(world)
    place(world).ledger.write_bytes(copy)
    ran = world.run(command)
    assert (ran.code, "batches of this very catalogue" in ran.err, "--restore-ledger" in ran.err) == (1, True, True)
    assert len(world.batches()) == 1
    lose(world, copy)
    place(world).local_service.mkdir()  # where the local service remembers, were it not on our wire
    assert restored(world)["new_jobs"] == 1
    finish(world)
    assert_done(world, 1)


def test_a_catalogue_begun_anew_stops_before_it_pays_for_the_same_requests(make: Maker) -> None:
    """Its folder was lost, and the name of the catalogue with it: the requests are the same all the same."""
    world = make(pace=SLOW)
    world.run("--create")
    world.catalogue.configure(fields={"title": "title"}, checkpoint_dir="anew")
    for _ in range(2):
        ran = world.run("--create")
        assert (ran.code, "exactly the requests of job 1" in ran.err) == (1, True)
        assert "--take-over" in ran.err
        assert len(world.batches()) == 1
    assert world.run("--create", "--yes").code == 0
    assert len(world.batches()) == 2
    assert world.run("--advance").code == 0  # a ledger with a batch of its own is asked no more


def test_the_list_is_asked_once_for_and_only_before_the_first_create(make: Maker) -> None:
    world = make(batch_embedding_size=2)
    world.run("--create")
    assert world.wire.count("GET", "/v1/batches") == 1
    world.run("--advance")
    world.run("--advance")
    assert world.wire.count("GET", "/v1/batches") == 1
    assert {job.state for job in world.jobs()} == {"collected"}


def test_a_reset_catalogue_is_no_stranger_to_its_own_batches(make: Maker) -> None:
    world = make()
    world.advance(2)
    assert world.catalogue.run("--quiet", "--reset", "embedding_and_indexing").code == 0
    world.catalogue.write([(str(number), "", title) for number, title in enumerate([*TITLES, "Waltz"])])
    world.advance(2)
    assert_done(world, 2, [*TITLES, "Waltz"])
