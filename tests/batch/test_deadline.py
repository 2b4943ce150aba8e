"""`batch_deadline_hours`: late jobs are cancelled and harvested, and the rest is finished in real time."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import batch, session
from pipeline.commands.console import Console
from pipeline.commands.session import Options
from pipeline.local_service import LocalTransport, Request, State, handle
from pipeline.local_service.settings import Pace
from pipeline.retry import NO_WAITS
from tests.clock import FakeClock

NAMES = [f"Name {number:03d}" for number in range(120)]


def test_the_late_rest_goes_through_real_time_and_nothing_is_embedded_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock()
    with (tmp_path / "names.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows(enumerate(NAMES))
    config = tmp_path / "my.yml"
    config.write_text(
        "input: names.csv\nfields: {person: person}\nbatch_embedding_size: 40\nbatch_deadline_hours: 6\n", encoding="utf-8"
    )
    state = State(tmp_path / "service.sqlite", record=True, pace=Pace(working=20 * 3600.0))
    monkeypatch.setattr(session, "transport_of", lambda *_, **__: lambda: LocalTransport(state, clock.now))
    options = Options(config=config, clock=clock, policy=NO_WAITS, batches=True)

    def passes() -> dict[str, Any]:
        capsys.readouterr()
        assert batch.advance(options, Console(as_json=True)) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert len(passes()["submitted"]) == 3
    clock.sleep(5 * 3600)
    assert passes()["waiting"] == 0, "within the deadline the jobs are left alone"
    clock.sleep(2 * 3600)
    ended = passes()
    while ended["open"]:
        clock.sleep(600)
        ended = passes()
    assert ended["waiting"] == ended["failed"] == 0
    counted = Counter(state.embedded().values())
    assert counted == {1: len(NAMES)}, "each string was embedded once, by batch or in real time"
    statuses = {one["status"] for one in json.loads(handle(Request("GET", "/v1/batches"), state, clock.now).body)["data"]}
    assert statuses == {"cancelled"}
    assert passes() == {**ended, "collected": []}
    state.close()
