"""What an interleaving is judged by: the service's own record, the files of the index, and the list that users are shown.

Nothing here asks the ledger. What should be so is said in `tests/test_interleavings.py`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.local_service import State
from pipeline.local_service.misbehaviour import Kind
from tests.tools import Catalogue

# A row that is embedded and billed, and has no vector that can be used.
USELESS: tuple[Kind, ...] = (
    "null_custom_id", "unknown_custom_id", "missing_row", "differing_duplicate", "status_zero", "nan", "wrong_dimensions",
    "empty_data",
)  # fmt: skip


def index_of(catalogue: Catalogue) -> list[tuple[Any, ...]]:
    """All that the files of the index hold of each string, with its vector."""
    found: list[tuple[Any, ...]] = []
    for path in (catalogue.checkpoint / "store").glob("*.sqlite"):
        vectors = np.fromfile(path.with_suffix(".f32"), "<f4").reshape(-1, 384)
        with contextlib.closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT slot, field, text, uuid, crc32, frequency, model FROM string").fetchall()
        found += [(*row, vectors[slot].tobytes()) for slot, *row in rows]
    return sorted(found)


def reported_in(catalogue: Catalogue) -> list[tuple[str, str]]:
    """The sha256 of each text that possibly_paid_twice.csv lists, and why it does."""
    path = catalogue.checkpoint / "possibly_paid_twice.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(hashlib.sha256(row["text"].encode()).hexdigest(), row["reason"]) for row in csv.DictReader(file, strict=True)]


def by_batches(truth: State, uploaded: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each text was embedded by a batch whose answer could be used, and how often by one that made it useless."""
    usefully: Counter[str] = Counter()
    useless: Counter[str] = Counter()
    with truth.transaction("BEGIN") as connection:
        batches = connection.execute("SELECT id, input_file_id, misbehaviours FROM batches").fetchall()
        pieces = connection.execute("SELECT batch, sha256s FROM embedded_in_batches").fetchall()
    for batch, name, misbehaviours in batches:
        told = {wrong.get("row") for wrong in json.loads(misbehaviours)["every"] if wrong["kind"] in USELESS}
        lines = enumerate((uploaded / name).read_bytes().splitlines(), start=1)
        wrong = {hashlib.sha256(json.loads(line)["body"]["input"].encode()).hexdigest() for row, line in lines if row in told}
        for digests in (digests for of_batch, digests in pieces if of_batch == batch):
            for digest in (digests[start : start + 32].hex() for start in range(0, len(digests), 32)):
                (useless if digest in wrong else usefully)[digest] += 1
    return usefully, useless
