"""What tests of batch mode share: a maker of catalogues, each with a service of its own that may misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.world import Maker


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    maker = Maker(tmp_path, monkeypatch)
    yield maker
    for state in maker.states:
        state.close()
