"""What must agree about a catalogue: the service's own record, and everything that the product says of money, strings and runs.

The service is asked what it embedded and bills, the store's own files what is in the index; the product is asked for
`--status`, `batch_manager.py --status`, `--audit` and `--export-embeddings`. Nothing here knows on which day that is.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.identity import uuid_of
from pipeline.local_service import model
from tests.evidence import index_of, reported_in
from tests.weeks import FIELDS, Desk, Shelf, String, Typed, sha256

NOISE = 1e-9  # USD: what sums of floats may be off by
BOOKED = ("paid", "on its way", "possibly paid twice")


@dataclass(frozen=True, slots=True)
class Sums:
    """What came of a catalogue so far, by the service's own record."""

    ended: Counter[str]
    strings: int
    in_index: int
    tokens: int
    usd: float


def check(desk: Desk, shelf: Shelf, *, pays_at_once: bool) -> Sums:
    """Everything that says what was done, beside the service's own record. Nothing is at the service now."""
    rows, said = what_is_said(desk)
    assert said["on its way"] == 0
    assert {job.state for job in desk.jobs()} <= {"collected", "returned"}
    usd, tokens = money_agrees(desk, rows, said, pays_at_once=pays_at_once)
    embedded = strings_agree(desk, shelf, pays_at_once=pays_at_once)
    in_index = index_agrees(desk, shelf, embedded)
    log_agrees(desk)
    ended = Counter(batch.status for batch in desk.account.batches(desk.id))
    return Sums(ended, len(embedded), in_index, tokens, usd)


def what_is_said(desk: Desk) -> tuple[list[dict[str, str]], dict[str, float]]:
    """The rows of the audit, and what is booked by kind: the same in all that says it, also while jobs are at the service."""
    rows, status, jobs = desk.audit(), desk.status(), desk.batch("--status", "--json").document
    sums = {booked: sum(float(row["usd"]) for row in rows if row["booked"] == booked) for booked in BOOKED}
    twice = status["possibly_paid_twice"]
    for booked, usd in zip(BOOKED, (status["spent_usd"], status["on_its_way_usd"], twice["usd"]), strict=True):
        assert sums[booked] == pytest.approx(usd, abs=NOISE)
    assert (sums["on its way"] == 0) == (status["on_its_way_usd"] == 0)
    assert _total(rows, "paid", "tokens") == status["tokens"]
    assert _total(rows, "possibly paid twice", "strings") == twice["strings"]
    assert {key: value for key, value in status.items() if key != "checkpoint_dir"} == jobs["status"]
    words = re.search(r"Spent or on its way: \$([\d.,]+?)\.(?: |$)", desk.batch("--status").out, re.MULTILINE)
    assert words is not None
    assert float(words[1].replace(",", "")) == pytest.approx(sum(sums.values()), abs=0.005)
    of_jobs = [row for row in rows if row["what"] == "job"]
    assert [int(row["job"]) for row in of_jobs] == [job["id"] for job in jobs["jobs"]]
    for row, job in zip(of_jobs, jobs["jobs"], strict=True):
        assert (row["state"], row["batch"], row["status"]) == (job["state"], job["batch"] or "", job["status"] or "")
        if row["booked"] == "paid":
            assert (int(row["tokens"]), int(row["embedded"])) == (job["paid_tokens"], job["embedded"])
    return rows, sums


def _total(rows: list[dict[str, str]], booked: str, column: str) -> int:
    return sum(int(row[column]) for row in rows if row["booked"] == booked)


def money_agrees(desk: Desk, rows: list[dict[str, str]], said: dict[str, float], *, pays_at_once: bool) -> tuple[float, int]:
    """The service's bill, batch by batch and in sum."""
    account, batches = desk.account, desk.account.batches(desk.id)
    of_batches = {row["batch"]: row for row in rows if row["batch"]}
    assert len(of_batches) == sum(bool(row["batch"]) for row in rows), "a batch stands twice in the audit"
    assert list(of_batches) == [batch.id for batch in batches], "each batch has its row, whoever made it"
    for batch, row in zip(batches, of_batches.values(), strict=True):
        assert (row["status"], int(row["tokens"])) == (batch.status, batch.tokens)
        assert float(row["usd"]) == pytest.approx(batch.usd, abs=NOISE)
        assert batch.requests in (int(row["strings"]), 0), "0: it was refused as it came"
        assert int(row["embedded"]) == batch.times.total() - batch.useless.total()
    assert not [row for row in rows if row["what"] == "job" and not row["batch"] and float(row["usd"])]
    tokens, usd = sum(batch.tokens for batch in batches), sum(batch.usd for batch in batches)
    if pays_at_once:
        lost = tokens_lost(desk)
        usd_lost = lost * account.first_price / 1_000_000
        tokens += account.tokens_at_once() - lost
        usd += account.usd_at_once - usd_lost
        assert said["possibly paid twice"] >= usd_lost, "what can't be known is charged in full"
    assert _total(rows, "paid", "tokens") == tokens
    assert said["paid"] == pytest.approx(usd, abs=NOISE)
    return usd, tokens


def tokens_lost(desk: Desk) -> int:
    """What the service counted for strings whose answer never came, by its own rule. That the list is right is judged below."""
    path = desk.catalogue.checkpoint / "possibly_paid_twice.csv"
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", newline="") as file:
        return sum((len(row["text"].encode()) + 3) // 4 for row in csv.DictReader(file, strict=True))


def strings_agree(desk: Desk, shelf: Shelf, *, pays_at_once: bool) -> dict[String, bytes]:
    """Each string once, by the service; the vectors are those that its model gives."""
    rows = desk.exported()
    found = {(row["field"], row["text"]): np.array(row["vector"], "<f4") for row in rows}
    assert len(found) == len(rows), "a string was embedded twice"
    assert {row["uuid"] for row in rows} == {str(uuid_of(*string)) for string in found}
    assert shelf.counts().keys() <= found.keys() <= shelf.ever
    given = model.embed([text for _, text in found])
    assert all(np.array_equal(vector, vector_given) for vector, vector_given in zip(found.values(), given, strict=True))
    expected = Counter(sha256(text) for _, text in found)
    times: Counter[str] = Counter()
    for batch in desk.account.batches(desk.id):
        times += batch.times
        expected += batch.useless
    if pays_at_once:
        times += desk.account.times_at_once()
        expected += Counter(digest for digest, _ in reported_in(desk.catalogue))
        expected += Counter(sha256(text) for text in desk.searched)
    assert times == expected
    return {string: vector.tobytes() for string, vector in found.items()}


def index_agrees(desk: Desk, shelf: Shelf, embedded: dict[String, bytes]) -> int:
    """All that is embedded but for what was pruned; how often each string occurs now, in both directions."""
    counts = shelf.counts()
    expected = {
        (*string, uuid_of(*string).bytes, counts[string], vector)
        for string, vector in embedded.items()
        if string not in shelf.pruned
    }
    found = {(name, text, key, frequency, vector) for name, text, key, _, frequency, _, vector in index_of(desk.catalogue)}
    assert found == expected
    status = desk.status()
    for name in FIELDS:
        assert status["fields"][name]["indexed"] == sum(string[0] == name for string in found)
        assert status["fields"][name]["failed"] == sum(string[0] == name for string in shelf.blank)
        left = {key: status["fields"][name][key] for key in ("pending", "in_jobs", "to_index", "refused_by_index")}
        assert not any(left.values()), left
    return len(found)


def log_agrees(desk: Desk) -> None:
    """Each command that took the lock, by whom, where, when, and how it ended; those of the machine before as well."""
    runs = desk.main("--audit", "--json").document["runs"]
    found = [Typed(run["command"], run["user"], run["host"], run["started_at"], run["exit_code"]) for run in runs]
    assert found == desk.log
