"""A slice of the sweep of kills, in every run; the whole of it: python -m tests.crash --points 1000."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash.sweep import SCENARIOS, Scenario, Tally, point
from tests.crash.zygote import Zygote

POINTS = int(os.environ.get("NAMESAKE_POINTS", "2"))  # of each scenario
SEED = int(os.environ.get("NAMESAKE_SEED", "20261121"))
FARTHEST = 15  # about so many calls has the shortest of them


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_at_a_call_and_typed_again_nothing_is_lost_and_nothing_paid_twice(tmp_path: Path, scenario: Scenario) -> None:
    """Every second recovery is killed as well."""
    chance, tally = random.Random(f"{SEED} {scenario.name}"), Tally()
    with Zygote(tmp_path) as zygote:
        for number in range(POINTS):
            first, second = chance.randrange(1, FARTHEST), chance.randrange(1, FARTHEST)
            point(zygote, tmp_path / str(number), scenario, first, tally, second if number % 2 else None)
    print("\n" + "\n".join(tally.lines()))
    assert tally.points >= POINTS / 2, "a sweep without kills proves nothing"
