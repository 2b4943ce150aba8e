"""Moving in at size, in a process of its own that is measured: by default some thousand lines, with `NAMESAKE_FULL=1` 200,000."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import spans as span_sets
from pipeline.local_service.model import MODEL
from pipeline.tables.embeddings import read_embeddings
from tests.importing.world import ask, names, write_pairs
from tests.tools import Catalogue
from tests.wire import FaultyService

FULL = os.environ.get("NAMESAKE_FULL") == "1"
COUNT = 200_000 if FULL else 6_000
SAMPLE = 100
ROOT = Path(__file__).resolve().parents[2]


# A process counts what its parent held when it was started: between the test, which holds all vectors, and the command stands this.
_BETWEEN = """
import os, sys
_, status, used = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]]), 0)
print(used.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(catalogue: Catalogue, *typed: str) -> tuple[Any, float, int]:
    """The document of a command, its seconds, and the most memory that its own process held, in MB."""
    began = time.monotonic()
    command = [sys.executable, "-c", _BETWEEN, str(ROOT / "main.py"), "--config", str(catalogue.config), "--json", *typed]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout), time.monotonic() - began, int(ended.stderr.split()[-1]) // 1024


def test_a_folder_of_many_lines_is_imported_in_bounded_memory_and_a_following_run_pays_nothing(tmp_path: Path) -> None:
    texts = names(COUNT)
    catalogue, source = Catalogue(tmp_path), tmp_path / "older"
    catalogue.write([(str(number), text, "") for number, text in enumerate(texts)])
    with FaultyService() as older:
        vectors = ask(older.base_url, texts)
        write_pairs(source, vectors, 50_000 if FULL else 2_500)
    with FaultyService() as service:
        catalogue.configure(
            fields={"person": "person"}, embedding_service=service.base_url, service_name="ours", embedding_model=MODEL
        )
        run(catalogue, "--end", "preprocessing")
        found, seconds, memory = run(catalogue, "--import-embeddings", str(source), "--model", MODEL)
        assert (found["vectors"], found["matched"], found["imported"]) == (COUNT, COUNT, COUNT - SAMPLE)
        assert found["indexed"] == COUNT
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"\n{COUNT:,} lines, {size / 1e6:,.0f} MB: imported and indexed in {seconds:.0f} s, {memory:,} MB at most")
        mapped = COUNT * 384 * 4 // 10**6  # of the index, by the searches of the report: the system's own memory, not the command's
        assert memory < 400 + mapped
        assert service.embedded.total() == SAMPLE
        asked = service.requests
        again, _, _ = run(catalogue)
        assert again["stages"]["embedding_and_indexing"]["embedded"] == 0
        assert service.requests == asked, "a following run asked for something"
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
        assert generation is not None
        assert span_sets.count(ledger.spans("embedded", generation.id, "person")) == COUNT
        files = ledger.files("embeddings", generation.id, "person")
    assert max(file.rows for file in files) <= 50_000
    some = span_sets.of_rows(range(0, COUNT, COUNT // 1000))
    strings, compared = catalogue.strings("person"), 0
    for rows, found_there in read_embeddings([catalogue.checkpoint / "tables" / file.name for file in files], some):
        for row, vector in zip(rows.tolist(), found_there, strict=True):
            assert np.array_equal(vector, vectors[strings[row]])
            compared += 1
    assert compared == 1000
