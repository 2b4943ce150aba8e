"""A second model is a second generation, and what can't be sent is known before anything is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipeline.commands.main import main

NAMES = ["Bach, Johann Sebastian", "Bach, J. S.", "Händel, Georg Friedrich", "  ", "", "word " * 9000]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    with (tmp_path / "names.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows(enumerate(NAMES))
    path = tmp_path / "my.yml"
    path.write_text("input: names.csv\nfields: {person: person}\n", encoding="utf-8")
    return path


def status(config: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["--config", str(config), "--status", "--json", *flags]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_other_dimensions_are_another_generation_and_the_first_stays(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--set", "embedding_dimensions=64")
    assert main(["--config", str(config), "--quiet"]) == 1  # the long one fails at the local service
    first = status(config, capsys)
    assert main(["--config", str(config), "--quiet", *short]) == 1
    second = status(config, capsys, *short)
    assert first["generation"] != second["generation"]
    assert first == status(config, capsys) | {name: first[name] for name in ("spent_usd", "tokens", "generations")}
    for flags, length in (((), 384), (short, 64)):
        target = config.parent / f"{length}.parquet"
        assert main(["--config", str(config), "--export-embeddings", str(target), *flags]) == 0
        import pyarrow.parquet as pq

        table = pq.read_table(target)
        assert table["vector"].type.list_size == length
        assert table.num_rows == 3


def test_asking_for_the_models_own_length_is_the_same_generation(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "--quiet"]) == 1
    assert status(config, capsys)["generation"] == status(config, capsys, "--set", "embedding_dimensions=384")["generation"]


def test_preflight_lists_what_openai_would_refuse_without_asking_it(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdef")
    assert main(["--config", str(config), "--dry-run", "--json", "--set", "embedding_service=openai"]) == 0
    [field] = json.loads(capsys.readouterr().out)["fields"]
    assert (field["pending"], field["refused"]) == (3, 3)
    with (config.parent / "checkpoints" / "failures.csv").open(encoding="utf-8", newline="") as file:
        listed = {(row["stage"], row["code"]): row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {("preflight", "blank"), ("preflight", "empty"), ("preflight", "too_long")}
    assert listed["preflight", "too_long"].endswith("tokens; the model takes 8,192")


def test_a_field_that_was_never_preprocessed_is_not_passed_over(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "--quiet"]) == 1
    more = ("--set", "fields.again=person", "--start", "embedding_and_indexing")
    assert main(["--config", str(config), *more]) == 2
    assert "'again' is not preprocessed yet" in capsys.readouterr().err


def test_a_trial_is_not_taken_for_the_catalogue(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "--quiet", "--limit", "2"]) == 0
    assert main(["--config", str(config), "--start", "embedding_and_indexing"]) == 2
    assert "Only the first 2 records were read" in capsys.readouterr().err
