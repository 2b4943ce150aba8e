"""`--status --exit-code`: finished, in progress, or in need of a person, from the ledger alone; and the screen beside it."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.standing import FINISHED, IN_PROGRESS, NEEDS_PERSON
from pipeline.ledger import Intent, Spending
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import Pace
from tests.batch.world import DAY, Maker, World, error, once

HOUR = 3600
SLOW = Pace(working=HOUR)
CODES = {FINISHED: 0, IN_PROGRESS: 3, "new": 3, NEEDS_PERSON: 1}


def standing(world: World) -> dict[str, Any]:
    """The document; screen, exit code and document agree, and the service is asked nothing."""
    asked = len(world.wire.requests)
    shown, said = world.main("--status", "--exit-code"), world.main("--status", "--exit-code", "--json")
    found: dict[str, Any] = said.document
    assert shown.code == said.code == CODES[found["state"]]
    assert world.main("--status").code == 0, "without --exit-code it only shows"
    assert len(world.wire.requests) == asked
    needs = [line.removeprefix("Needs you: ") for line in shown.out.splitlines() if line.startswith("Needs you: ")]
    assert needs == [f"{need['words']}: {need['command']}" for need in found.get("needs", [])]
    assert all(f"Needs you: {need}" in world.main("--batch-status").out for need in needs)
    return {**found, "screen": shown.out}


def type_it(world: World, need: dict[str, Any]) -> int:
    """The command of a need, as it stands there."""
    python, program, *arguments = shlex.split(need["command"])
    assert python == "python"
    return (world.run if program == "batch_manager.py" else world.main)(*arguments).code


def test_from_nothing_to_finished(make: Maker) -> None:
    world = make(pace=SLOW, batch_embedding_size=2, max_active_batches=1, use_batch_embeddings=True)
    assert standing(world)["state"] == "new"
    world.advance()
    found = standing(world)
    assert (found["state"], found["needs"]) == (IN_PROGRESS, [])
    assert "Jobs: 0 of about 2 collected; 1 at the service; 1 still to be made." in found["screen"]
    assert "When it will end can't be known yet: too little came home lately; 4 strings are left." in found["screen"]
    world.clock.sleep(HOUR)
    world.advance()
    world.clock.sleep(HOUR)
    found = standing(world)
    assert "Jobs: 1 of 2 collected; 1 at the service." in found["screen"]
    assert "At this pace it ends about" in found["screen"]
    assert found["pace"]["strings_an_hour"] == pytest.approx(1), "two strings, created two hours ago"
    assert found["pace"]["ends_at"] == pytest.approx(world.clock.now() + 2 * HOUR)
    world.advance()
    found = standing(world)
    assert (found["state"], found["pace"]) == (FINISHED, None)
    assert "Jobs: 2 of 2 collected." in found["screen"]
    assert "Nothing is pending." in found["screen"]


def test_what_ends_by_itself_at_the_service_is_shown_with_its_day(make: Maker) -> None:
    world = make(pace=Pace(working=20 * HOUR))
    world.advance()
    found = standing(world)
    (batch,) = world.batches()
    (job,) = world.jobs()
    assert found["expires"] == {"first_batch_at": job.expires_at, "first_results_at": (job.created_at or 0) + 30 * DAY}
    assert re.search(r"the first batch ends on \d{4}-\d\d-\d\d \d\d:\d\d at the latest", found["screen"])
    assert batch["status"] != "completed"


def test_a_run_at_work_is_in_progress(make: Maker) -> None:
    world = make()
    world.advance(2)
    assert standing(world)["state"] == FINISHED
    with writing(Checkpoint(world.catalogue.checkpoint), "elsewhere"):
        assert standing(world)["state"] == IN_PROGRESS
    assert standing(world)["state"] == FINISHED


def test_a_budget_that_is_used_up_needs_a_person_until_it_is_raised(make: Maker) -> None:
    world = make(price=1_000_000.0, budget_usd=4)
    assert world.run("--advance").code == 1
    found = standing(world)
    (need,) = found["needs"]
    assert need["words"].startswith("budget_usd is 4: ")
    assert need["command"] == "python batch_manager.py --advance"
    assert "When it will end can't be known while it needs you" in found["screen"]
    world.run("--download")
    assert standing(world)["state"] == NEEDS_PERSON, "a download that does well raises no budget"
    assert world.run("--advance", "--set", "budget_usd=100").code == 0
    found = standing(world)
    assert (found["state"], found["stopped_by"]) == (IN_PROGRESS, [])
    assert "Spent: $0 of $4.00 (budget_usd), for 0 tokens. $" in found["screen"]


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [(401, "invalid_api_key", NEEDS_PERSON), (429, "insufficient_quota", NEEDS_PERSON), (503, "overloaded", IN_PROGRESS)],
)
def test_a_service_that_says_no_for_good_needs_a_person_and_one_that_is_down_does_not(
    make: Maker, status: int, code: str, state: str
) -> None:
    world = make()
    world.wire.faults.append(once("POST", "/v1/files", error(status, code, "no"), times=100))
    assert world.run("--advance").code == 1
    found = standing(world)
    assert (found["state"], found["stopped_by"][0]["passes"]) == (state, state == IN_PROGRESS)
    if state == IN_PROGRESS:
        assert "The last batch_manager.py --advance was stopped, and the next one tries again: " in found["screen"]
    world.wire.faults.clear()
    world.advance(2)
    assert standing(world)["state"] == FINISHED


def test_an_input_that_is_broken_needs_a_person(make: Maker) -> None:
    world = make()
    world.advance()
    (world.catalogue.folder / "records.csv").write_bytes(b"id,person,title\n1,,\xff\xfe\n")
    assert world.run("--advance").code == 2
    (need,) = standing(world)["needs"]
    assert "records.csv" in need["words"]
    world.catalogue.write([("1", "", "Fugue")])
    world.main("--accept-new-input")
    assert standing(world)["state"] == FINISHED


def test_a_key_that_cron_does_not_have_needs_a_person(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.advance()
    monkeypatch.setattr("pipeline.commands.session.need_key", _no_key)
    assert world.run("--advance").code == 2
    (need,) = standing(world)["needs"]
    assert (need["words"], need["command"]) == ("no API key is set. Then", "python batch_manager.py --advance")


def _no_key(*_: object) -> None:
    from pipeline.errors import ConfigError

    raise ConfigError("no API key is set.")


def test_lost_jobs_need_a_person_and_the_command_helps(make: Maker) -> None:
    world = make(Misbehaviour(kind="output_gone", create=1))
    world.run("--advance")
    world.run("--advance")
    (need,) = standing(world)["needs"]
    assert need["keys"] == ["lost 1"]
    type_it(world, need)
    world.advance(2)
    found = standing(world)
    assert found["state"] == FINISHED
    assert "Possibly paid twice: 4 strings" in found["screen"], "told, and no reason to call anybody"


def test_stuck_jobs_need_a_person_and_can_be_given_up(make: Maker) -> None:
    world = make(Misbehaviour(kind="stuck", create=1), batch_max_wait_time=60 * HOUR)
    world.advance()
    world.clock.sleep(27 * HOUR)
    world.advance()
    (need,) = standing(world)["needs"]
    assert need["keys"] == ["stuck 1"]
    assert type_it(world, need) == 0
    world.advance(3)
    assert standing(world)["state"] == FINISHED


def test_a_job_that_takes_longer_than_batch_max_wait_time_needs_a_person(make: Maker) -> None:
    world = make(pace=Pace(working=20 * HOUR), batch_max_wait_time=5 * HOUR)
    world.advance()
    world.clock.sleep(4 * HOUR)
    assert standing(world)["state"] == IN_PROGRESS
    world.clock.sleep(2 * HOUR)
    (need,) = standing(world)["needs"]
    assert need["keys"] == ["late 1"]
    assert "batch_max_wait_time (18,000 s)" in need["words"]
    world.clock.sleep(16 * HOUR)
    world.advance()
    assert standing(world)["state"] == FINISHED


def test_paid_results_that_are_soon_deleted_need_a_person(make: Maker) -> None:
    world = make(batch_max_wait_time=90 * DAY)
    world.run("--create")
    world.clock.sleep(26 * DAY)
    assert standing(world)["state"] == IN_PROGRESS
    world.clock.sleep(2 * DAY)
    (need,) = standing(world)["needs"]
    assert need["keys"] == ["expiring 1"]
    assert type_it(world, need) == 0
    assert standing(world)["state"] == FINISHED


def test_failed_strings_need_a_person_when_all_else_is_done(make: Maker) -> None:
    world = make(
        Misbehaviour(kind="refused_row", create=1, row=1), batch_embedding_size=2, max_active_batches=1, batch_max_attempts=1
    )
    world.advance()
    world.run("--advance")
    found = standing(world)
    assert found["failures"]
    assert (found["state"], found["needs"]) == (IN_PROGRESS, []), "a job is still at the service"
    world.run("--advance")
    (need,) = standing(world)["needs"]
    assert need["keys"] == ["failed"]
    type_it(world, need)
    world.advance(2)
    assert standing(world)["state"] == FINISHED


def test_an_index_that_waits_as_the_config_says_keeps_nothing_from_being_finished(make: Maker) -> None:
    world = make(index_later=True)
    world.advance(2)
    found = standing(world)
    assert found["state"] == FINISHED
    assert "index_later is true; 4 strings wait." in found["screen"]


def test_exit_code_goes_with_status_alone(make: Maker) -> None:
    assert make().main("--exit-code").code == 2


def test_what_is_left_of_adding_up_is_not_on_its_way(make: Maker) -> None:
    world = make()
    world.advance(2)
    with writing(Checkpoint(world.catalogue.checkpoint), "test") as ledger:
        (generation,) = [one.id for one in ledger.generations()]
        ledger.spend(Spending(generation, "title", "realtime", 1, 1, 0.1))
        ledger.add_doubt(Intent(generation, "title", [(0, 1)], 1, 1, 0.2), "a test", 0.0)  # 0.1 + 0.2 - 0.1 - 0.2 is not 0
    found = standing(world)
    assert found["on_its_way_usd"] == 0
    assert "on its way" not in found["screen"]
