"""The invariants of a recovery, by the service's own word and by the index's own content; never by our state alone."""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.identity import uuid_of
from pipeline.local_service.model import embed
from tests.crash.scenarios import Scenario, Written
from tests.crash.served import Service
from tests.crash.zygote import Zygote
from tests.weaviate.world import connected
from tests.weaviate_server import WeaviateServer

Objects = dict[str, tuple[str, NDArray[np.float32]]]  # uuid → text, vector


@dataclass(frozen=True)
class Paid:
    """What a catalogue cost: strings that the service embedded more than once, and those that were reported as such."""

    twice: int
    reported: int


def is_done(zygote: Zygote, made: Written) -> bool:
    """By its own word: every string is embedded and indexed, or failed for good."""
    found = json.loads(zygote.run("main.py", ["--config", str(made.config), "--status", "--json"]).out)
    people = found.get("fields", {}).get("person", {})
    ended = people and people["embedded"] == people["indexed"] and people["embedded"] + people["failed"] == len(made.texts)
    return bool(ended and people["in_jobs"] == people["pending"] == 0)


def judge(
    zygote: Zygote, made: Written, scenario: Scenario, served: Service, others: set[str], weaviate: WeaviateServer | None
) -> Paid:
    """`others`: batches of other catalogues at this service."""
    truth = served.state()
    assert truth["open"] == 0
    batches = [batch for batch in truth["batches"] if batch["id"] not in others]
    ours = {hashlib.sha256(text.encode()).hexdigest() for text in made.texts}
    twice = ours & {entry["sha256"] for entry in truth["embedded_more_than_once"]}
    listed = _listed(made.checkpoint / "possibly_paid_twice.csv")
    if scenario.pays_once:
        assert not twice, "a string was paid for twice in batch mode"
        jobs = Counter(batch["metadata"]["job"] for batch in batches if batch["status"] == "completed")
        assert set(jobs.values()) <= {1}, "two batches did the same job"
    assert twice <= {hashlib.sha256(text.encode()).hexdigest() for text in listed}, "paid twice, and not reported"
    failed = _listed(made.checkpoint / "failures.csv")
    assert bool(failed) == scenario.refuses
    _a_further_run_asks_for_nothing(zygote, made, scenario, served, truth)
    objects = _of_weaviate(weaviate, made.collection) if weaviate is not None else _of_store(made.checkpoint / "store")
    _compare(objects, [text for text in made.texts if text not in failed])
    assert len(set(failed)) == len(failed)
    return Paid(len(twice), len(listed))


def _a_further_run_asks_for_nothing(
    zygote: Zygote, made: Written, scenario: Scenario, served: Service, before: dict[str, Any]
) -> None:
    command = scenario.commands[-1]
    drafts = sorted(path.name for path in made.checkpoint.rglob("*.tmp"))
    again = zygote.run(command[0], made.typed(command))
    assert again.code == int(scenario.refuses), again.err  # what failed for good needs a person
    after = served.state()
    assert (after["answered"], len(after["batches"])) == (before["answered"], len(before["batches"])), "it asked for something"
    assert drafts == [], f"drafts were left: {drafts}"
    verified = json.loads(zygote.run("main.py", ["--config", str(made.config), "--verify", "--json"]).out)
    assert verified["is_well_now"]
    assert (verified["missing"], verified["changed"], verified["unexpected"], verified["written"]) == (0, 0, 0, 0)


def _listed(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row.get("reason", "known") for row in rows), "a failure without its reason"
    return [row["text"] for row in rows]


def _of_store(store: Path) -> Objects:
    (database,) = store.glob("*.sqlite")
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT lower(hex(uuid)), text, slot FROM string").fetchall()
    vectors = np.fromfile(database.with_suffix(".f32"), "<f4").reshape(-1, 384)
    return {key: (text, vectors[slot]) for key, text, slot in rows}


def _of_weaviate(server: WeaviateServer, collection: str) -> Objects:
    with connected(server) as client:
        found = client.collections.use(collection).iterator(include_vector=True, return_properties=["text"])
        return {one.uuid.hex: (str(one.properties["text"]), np.array(one.vector["default"], np.float32)) for one in found}


def _compare(objects: Objects, texts: list[str]) -> None:
    """The index holds each string once, under its UUID, with the very vector of its text."""
    assert sorted(text for text, _ in objects.values()) == sorted(texts)
    for key, (text, vector) in objects.items():
        assert uuid_of("person", text).hex == key
        assert np.array_equal(vector, embed([text])[0])
