"""A slice of the sweep of kills, in every run; the whole of it: python -m tests.crash --points 1000."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.sweep import Point, Tally, calls_of, rig, run
from tests.weaviate_server import WeaviateServer

POINTS = int(os.environ.get("NAMESAKE_POINTS", "2"))  # of each scenario
SEED = int(os.environ.get("NAMESAKE_SEED", "20261121"))


def sweep(folder: Path, scenario: Scenario, weaviate: WeaviateServer | None) -> None:
    chance, tally = random.Random(f"{SEED} {scenario.name}"), Tally()
    with rig(folder, weaviate) as made:
        calls = calls_of(made, scenario)
        for number in range(POINTS):
            run(made, Point(scenario, tuple(chance.sample(calls, 1 + number % 2))), tally)
    print("\n" + "\n".join(tally.lines()))
    assert tally.points >= POINTS / 2, "a sweep without kills proves nothing"


@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if one.small and not one.weaviate], ids=lambda scenario: scenario.name
)
def test_killed_at_a_call_and_typed_again_nothing_is_lost_and_nothing_paid_twice(tmp_path: Path, scenario: Scenario) -> None:
    """Every second recovery is killed as well."""
    sweep(tmp_path, scenario, None)


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.weaviate], ids=lambda scenario: scenario.name)
def test_killed_while_it_writes_into_weaviate(tmp_path: Path, scenario: Scenario, weaviate_server: WeaviateServer) -> None:
    """The objects are read by a client of the test's own."""
    sweep(tmp_path, scenario, weaviate_server)
