"""One job that can't be looked at holds up no other; a service that is down is said so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.batch.poll import poll
from pipeline.context import Context
from pipeline.errors import ServiceError
from pipeline.ledger import Job, open_for_writing
from pipeline.provider.batch_client import BatchClient, RemoteBatch


class Service:
    """Says that every batch is completed, but for some, which it can't show."""

    def __init__(self, broken: set[str]) -> None:
        self.broken = broken
        self.asked: list[str] = []

    def now(self) -> float:
        return 100.0

    def retrieve(self, batch: str) -> RemoteBatch:
        self.asked.append(batch)
        if batch in self.broken:
            raise ServiceError("500: something broke")
        return RemoteBatch(batch, "completed", "file", "out", None, 1.0, 200.0, 1, 1, 0, {}, ())


@pytest.mark.parametrize(("broken", "asked", "ended"), [({1}, 5, 4), ({1, 2}, 5, 3), ({1, 2, 3}, 3, 0)])
def test_the_other_jobs_are_looked_at_and_the_trouble_is_raised(tmp_path: Path, broken: set[int], asked: int, ended: int) -> None:
    ledger = open_for_writing(tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite")
    for number in range(1, 6):
        ledger.jobs.add(
            Job(number, "g", "open", 1, 1, 1, 0.0, "", 1.0, batch=f"batch_{number}", created_at=1.0),
            {"person": [(number, number + 1)]},
        )
    service = Service({f"batch_{number}" for number in broken})
    context = cast("Context", SimpleNamespace(ledger=ledger, config=SimpleNamespace(create_grace_seconds=600.0)))
    with pytest.raises(ServiceError, match="something broke"):
        poll(context, cast("BatchClient", service))
    assert len(service.asked) == asked
    assert len(ledger.jobs.all(("ended",))) == ended
    ledger.close()
