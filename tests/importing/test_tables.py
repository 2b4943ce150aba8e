"""Moving in with a table: Parquet, CSV and JSON Lines, the columns by their own names, odd rows each with its reason."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.local_service.model import MODEL
from tests.importing.world import Vectors, ask, names, stored
from tests.tools import Catalogue, Ran
from tests.wire import FaultyService

TEXTS = names(60)
SAMPLE = 5
Rows = list[tuple[str | None, str | None, object]]  # text, field, vector as numbers


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    with FaultyService() as service:
        return ask(service.base_url, TEXTS)


@pytest.fixture
def service() -> Iterator[FaultyService]:
    with FaultyService() as served:
        yield served


@pytest.fixture
def catalogue(tmp_path: Path, service: FaultyService) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure(embedding_service=service.base_url, service_name="ours", embedding_model=MODEL, import_sample=SAMPLE)
    made.write([(str(number), text, f"{text}!") for number, text in enumerate(TEXTS)])
    assert made.run("--end", "preprocessing").code == 0
    return made


def move_in(catalogue: Catalogue, path: Path, *more: str) -> Ran:
    return catalogue.run("--import-embeddings", str(path), "--model", MODEL, "--json", *more)


def as_parquet(path: Path, rows: Rows, names_: tuple[str, str, str]) -> None:
    columns = [pa.array([row[0] for row in rows]), pa.array([row[1] for row in rows]), pa.array([row[2] for row in rows])]
    pq.write_table(pa.table(dict(zip(names_, columns, strict=True))), path, row_group_size=7)


def as_float32_parquet(path: Path, rows: Rows, names_: tuple[str, str, str]) -> None:
    vectors = pa.array([row[2] for row in rows], pa.list_(pa.float32(), 384))
    columns = [pa.array([row[0] for row in rows]), pa.array([row[1] for row in rows]), vectors]
    pq.write_table(pa.table(dict(zip(names_, columns, strict=True))), path)


def as_lines(path: Path, rows: Rows, names_: tuple[str, str, str]) -> None:
    path.write_text("".join(json.dumps(dict(zip(names_, row, strict=True))) + "\n" for row in rows), encoding="utf-8")


def as_csv(path: Path, rows: Rows, names_: tuple[str, str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names_)
        for place, (text, field, vector) in enumerate(rows):
            packed = base64.b64encode(np.array(vector, "<f4").tobytes()).decode() if place % 2 else json.dumps(vector)
            writer.writerow((text, field, packed))


FORMS: list[tuple[str, Callable[[Path, Rows, tuple[str, str, str]], None]]] = [
    ("a.parquet", as_parquet),
    ("b.parquet", as_float32_parquet),
    ("a.jsonl", as_lines),
    ("a.csv", as_csv),
]


@pytest.mark.parametrize(("name", "write"), FORMS, ids=["parquet", "parquet of fixed length", "jsonl", "csv"])
def test_a_table_is_imported_by_field_and_text(
    catalogue: Catalogue, service: FaultyService, vectors: Vectors, name: str, write: Callable[..., None], tmp_path: Path
) -> None:
    rows: Rows = [(text, "person", vectors[text].astype(float).tolist()) for text in TEXTS]
    rows += [(TEXTS[0], "author", rows[0][2]), ("unknown", "person", rows[0][2])]
    write(tmp_path / name, rows, ("text", "field", "vector"))
    ran = move_in(catalogue, tmp_path / name)
    assert ran.code == 0, ran.err
    found = ran.document
    assert (found["vectors"], found["matched"], found["imported"], found["unmatched"]) == (62, 60, 60 - SAMPLE, 2)
    assert found["other_fields"] == ["author"]
    assert service.embedded.total() == SAMPLE
    assert stored(catalogue) == {("person", text): vectors[text].tobytes() for text in TEXTS}


def test_columns_have_the_names_that_are_told(catalogue: Catalogue, vectors: Vectors, tmp_path: Path) -> None:
    rows: Rows = [(text, "person", vectors[text].astype(float).tolist()) for text in TEXTS]
    path = tmp_path / "older.parquet"
    as_parquet(path, rows, ("original_string", "field_type", "embedding"))
    ran = move_in(catalogue, path)
    assert ran.code == 2
    assert "there is no column 'text'" in ran.err
    assert "--columns text=NAME,field=NAME,vector=NAME" in ran.err
    told = "text=original_string,field=field_type,vector=embedding"
    assert move_in(catalogue, path, "--columns", told, "--dry-run").document["to_import"] == 60
    told = "text=original_string,vector=embedding"
    assert move_in(catalogue, path, "--columns", told, "--field", "person").document["imported"] == 60 - SAMPLE


def test_rows_without_a_field_match_the_field_that_is_told_and_else_every_field(
    catalogue: Catalogue, vectors: Vectors, tmp_path: Path
) -> None:
    rows: Rows = [(text, None, vectors[text].astype(float).tolist()) for text in TEXTS]
    as_lines(tmp_path / "a.jsonl", rows, ("text", "field", "vector"))
    assert move_in(catalogue, tmp_path / "a.jsonl", "--dry-run").document["matched"] == 60
    assert move_in(catalogue, tmp_path / "a.jsonl", "--dry-run", "--field", "title").document["matched"] == 0


def test_odd_rows_are_listed_with_their_reason_and_line(catalogue: Catalogue, vectors: Vectors, tmp_path: Path) -> None:
    good = [vectors[text].astype(float).tolist() for text in TEXTS]
    rows: Rows = [(text, "person", vector) for text, vector in zip(TEXTS, good, strict=True)]
    rows[20] = (None, "person", good[20])
    rows[21] = (TEXTS[21], "person", None)
    rows[22] = (TEXTS[22], "person", good[22][:-1])
    rows[23] = (TEXTS[23], "person", [*good[23][:-1], 1e300])
    as_parquet(tmp_path / "a.parquet", rows, ("text", "field", "vector"))
    as_lines(tmp_path / "a.jsonl", rows, ("text", "field", "vector"))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n["no object"]\n{"text": "torn')
    for name, more in (("a.parquet", 0), ("a.jsonl", 2)):
        dry = move_in(catalogue, tmp_path / name, "--dry-run").document
        assert (dry["to_import"], dry["rejected"]) == (56, 4 + more)
    assert move_in(catalogue, tmp_path / "a.jsonl").code == 0
    with (catalogue.checkpoint / "import_rejected.csv").open(encoding="utf-8", newline="") as file:
        listed = [(row["line"], row["reason"]) for row in csv.DictReader(file)]
    assert listed == [
        ("21", "no text"),
        ("22", "no vector but NoneType"),
        ("23", "the vector has 383 numbers instead of 384"),
        ("24", "NaN or infinity in the vector"),
        ("62", "not a JSON object, or cut off"),
        ("63", "not a JSON object, or cut off"),
    ]


def test_what_is_no_table_says_so(catalogue: Catalogue, tmp_path: Path) -> None:
    for name, content, words in (
        ("a.xlsx", b"PK", "the ending says no format"),
        ("a.parquet", b"PAR1 no", "can't be read"),
        ("a.csv", b"", "the file is empty"),
        ("b.csv", b"text,field,vector\n", "no vector in it can be used: it holds no lines"),
        ("c.jsonl", b'{"text": "a", "vec": [1]}\n', "--columns text=NAME,field=NAME,vector=NAME"),
    ):
        (tmp_path / name).write_bytes(content)
        ran = move_in(catalogue, tmp_path / name)
        assert ran.code == 2
        assert words in ran.err
