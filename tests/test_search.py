"""`--search`: a stored text costs nothing, another costs one request, and a run at work is no reason to wait."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.local_service.model import embed
from tests.tools import Catalogue
from tests.wire import Answer, FaultyService

ROWS = [
    ("1", "Bach, Johann Sebastian", "Die Kunst der Fuge"),
    ("2", "Bach, J. S.", "Das wohltemperierte Klavier"),
    ("3", "Mozart, Wolfgang Amadeus", "Requiem"),
    ("4", "Requiem", "Messe"),
    *((f"m{number}", "Mozart, Leopold", f"Sinfonia {number}") for number in range(5)),
]


@pytest.fixture
def service() -> Iterator[FaultyService]:
    with FaultyService() as running:
        yield running


@pytest.fixture
def catalogue(tmp_path: Path, service: FaultyService) -> Catalogue:
    """A catalogue that was run with a service on a port, which counts what reaches it."""
    made = Catalogue(tmp_path)
    configure(made, service)
    made.write(ROWS)
    ran = made.run()
    assert ran.code == 0, ran.err
    return made


def configure(catalogue: Catalogue, service: FaultyService, **keys: object) -> None:
    catalogue.configure(
        embedding_service=service.base_url, service_name="counted", embedding_model="local-lexical-384", **keys
    )  # fmt: skip


def cosine(one: str, other: str) -> float:
    first, second = embed([one, other]).astype(np.float64)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_a_stored_text_is_searched_by_its_stored_vector_without_a_request(catalogue: Catalogue, service: FaultyService) -> None:
    before = service.requests
    found = catalogue.run("--search", "Bach, Johann Sebastian", "--json").document
    assert service.requests == before
    first, second = found["results"][:2]
    assert (first["text"], first["similarity"]) == ("Bach, Johann Sebastian", 1.0)
    assert second["text"] == "Bach, J. S."
    assert second["similarity"] == pytest.approx(cosine("Bach, Johann Sebastian", "Bach, J. S."), abs=1e-5)


@pytest.mark.parametrize("field", ["person", "title"])
def test_with_a_field_too_a_stored_text_costs_nothing_whichever_field_it_stands_in(
    catalogue: Catalogue, service: FaultyService, field: str
) -> None:
    before = service.requests
    found = catalogue.run("--search", "Mozart, Wolfgang Amadeus", "--field", field, "--json").document
    assert service.requests == before
    assert {result["field"] for result in found["results"]} == {field}


def test_another_text_is_asked_for_once_and_alone(catalogue: Catalogue, service: FaultyService) -> None:
    before, embedded = service.requests, service.embedded.total()
    found = catalogue.run("--search", "Bach, Johan Sebastian", "--json").document
    assert service.requests == before + 1
    assert service.embedded.total() == embedded + 1
    assert service.embedded["Bach, Johan Sebastian"] == 1
    best = found["results"][0]
    assert best["text"] == "Bach, Johann Sebastian"
    assert best["similarity"] == pytest.approx(cosine("Bach, Johan Sebastian", "Bach, Johann Sebastian"), abs=1e-5)


def test_what_a_search_cost_is_booked_without_the_lock(catalogue: Catalogue, service: FaultyService) -> None:
    configure(catalogue, service, price_per_million=1000.0, budget_usd=0.01)
    with held(catalogue):
        assert catalogue.run("--search", "never seen").code == 0
    with catalogue.ledger() as ledger:
        (search,) = [spending for spending in ledger.spendings() if spending.kind == "search"]
        spent = ledger.spent_usd()
    assert search.strings == 1
    assert search.usd == pytest.approx(search.tokens / 1000)
    assert spent == pytest.approx(search.usd)
    before = service.requests
    refused = catalogue.run("--search", "another text that is too long for what is left of so small a budget as this")
    assert (refused.code, service.requests) == (1, before)
    assert "budget_usd" in refused.err
    assert catalogue.run("--search", "Requiem").code == 0, "a stored text needs no budget"


def test_a_field_lets_through_its_strings_alone(catalogue: Catalogue) -> None:
    everywhere = catalogue.run("--search", "Requiem", "--json").document["results"]
    assert [(result["field"], result["similarity"]) for result in everywhere[:2]] in (
        [("person", 1.0), ("title", 1.0)], [("title", 1.0), ("person", 1.0)],
    )  # fmt: skip
    titles = catalogue.run("--search", "Requiem", "--field", "title", "--top", "50", "--json").document["results"]
    assert titles[0]["text"] == "Requiem"
    assert {result["text"] for result in titles} == {row[2] for row in ROWS}


def test_an_unknown_field_is_refused_with_those_there_are(catalogue: Catalogue) -> None:
    ran = catalogue.run("--search", "Requiem", "--field", "author")
    assert (ran.code, ran.err) == (2, "--field: there is no field 'author'; the config has person, title.\n")


def test_top_says_how_many(catalogue: Catalogue) -> None:
    texts = [result["text"] for result in catalogue.run("--search", "Requiem", "--json").document["results"]]
    assert len(texts) == 10
    for top in (1, 3, 100):
        found = catalogue.run("--search", "Requiem", "--top", str(top), "--json").document["results"]
        assert [result["text"] for result in found][:10] == texts[:top]
        assert len(found) == min(top, 5 + 9)


def test_a_result_names_its_first_records_and_how_many_there_are(catalogue: Catalogue) -> None:
    found = catalogue.run("--search", "Mozart, Leopold", "--json").document
    assert found["query"] == "Mozart, Leopold"
    assert found["results"][0] == {
        "field": "person", "text": "Mozart, Leopold", "similarity": 1.0, "frequency": 5, "records": 5,
        "first_record_ids": ["m0", "m1", "m2"],
    }  # fmt: skip
    shown = catalogue.run("--search", "Mozart, Leopold", "--top", "1").out.splitlines()[-1]
    assert shown.split() == ["1.000", "person", "Mozart,", "Leopold", "m0,", "m1,", "m2", "and", "2", "more"]


def test_a_string_that_left_the_catalogue_is_found_without_records(catalogue: Catalogue) -> None:
    catalogue.write(ROWS[:3])
    assert catalogue.run("--accept-new-input").code == 0
    found = catalogue.run("--search", "Mozart, Leopold", "--json").document["results"][0]
    assert (found["text"], found["frequency"], found["records"], found["first_record_ids"]) == ("Mozart, Leopold", 0, 0, [])


def test_a_text_on_several_lines_is_shown_on_one(catalogue: Catalogue) -> None:
    catalogue.write([*ROWS, ("x", "one\ntwo", "t")])
    catalogue.run()
    assert "  1.000  person     one / two " in catalogue.run("--search", "one\ntwo").out


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_search_for_nothing_is_refused(catalogue: Catalogue, text: str) -> None:
    ran = catalogue.run("--search", text)
    assert (ran.code, ran.err) == (2, "--search needs a text to search for.\n")


@pytest.mark.parametrize("after", [None, ("--end", "preprocessing"), ("--dry-run",)], ids=["new", "preprocessed", "dry run"])
def test_before_anything_is_indexed_a_sentence_says_what_to_do(
    tmp_path: Path, service: FaultyService, after: tuple[str, ...] | None
) -> None:
    catalogue = Catalogue(tmp_path)
    configure(catalogue, service)
    catalogue.write(ROWS)
    if after:
        assert catalogue.run(*after).code == 0
    ran = catalogue.run("--search", "Bach")
    assert ran.code == 2
    assert ran.err.startswith("Nothing is indexed yet in ")
    assert ran.err.endswith("First: python main.py\n")
    assert catalogue.checkpoint.exists() == (after is not None)
    assert service.requests == 0


def test_a_service_that_fails_is_told_in_a_sentence(tmp_path: Path) -> None:
    with FaultyService([None, None, Answer(500, {}, b"<html>out of order</html>")]) as service:
        catalogue = Catalogue(tmp_path)
        configure(catalogue, service)
        catalogue.write(ROWS)
        assert catalogue.run().code == 0
        ran = catalogue.run("--search", "not stored")
    assert ran.code == 1
    assert "out of order" in ran.err
    assert ran.err.startswith("counted: 500")


def test_it_works_while_another_process_holds_the_lock(catalogue: Catalogue) -> None:
    with held(catalogue):
        assert catalogue.run().code == 75
        assert catalogue.run("--search", "Requiem").code == 0
        assert catalogue.run("--search", "never seen before").code == 0


def test_it_works_in_another_process_while_a_run_is_at_work_and_leaves_its_scratch_alone(catalogue: Catalogue) -> None:
    scratch = catalogue.checkpoint / "scratch" / "of the run"
    scratch.mkdir()
    command = [sys.executable, "main.py", "--config", str(catalogue.config), "--search", "Requiem", "--json"]
    with held(catalogue):
        ran = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert scratch.is_dir()
    assert '"text": "Requiem"' in ran.stdout


class held:  # noqa: N801  # reads as a `with` block does
    """The lock of a catalogue, held as another process would hold it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._handle = os.open(catalogue.checkpoint / "lock", os.O_RDWR | os.O_CREAT)

    def __enter__(self) -> None:
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
