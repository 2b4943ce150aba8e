"""The exports: whole or not at all, exact to the last bit, safe to open, and with the user's own rights."""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commands import export
from pipeline.identity import uuid_of
from tests.tools import Catalogue

ROWS = [
    ("1", "Bach, Johann Sebastian", "Die Kunst der Fuge"),
    ("=2", "Bach, J. S.", "=SUM(1;2)"),
    ("3", "Bach, J. S.", 'He said: "so, what?"'),
    ("4", "+49 30 123", "line\nbreak"),
    ("5", "-", "carriage\rreturn"),
    ("6", "@home", "\u2028 between 𝄞 lines"),
    ("é7", "", "\ttab first"),
    ("8", "NaN", "null"),
]
PERSONS, TITLES = 6, 8
TEXTS = {("person", row[1]) for row in ROWS if row[1]} | {("title", row[2]) for row in ROWS}
COLUMNS = ["uuid", "field", "text", "crc32", "service", "model", "dimensions", "created_at", "vector"]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS)
    ran = made.run()
    assert ran.code == 0, ran.err
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "export.parquet"


def stored_vectors(catalogue: Catalogue) -> dict[str, bytes]:
    """UUID → the bytes of the vector in the tables."""
    found = {}
    for field in ("person", "title"):
        texts = catalogue.strings(field)
        for row in catalogue.table("embeddings", field=field):
            found[str(uuid_of(field, texts[row["row"]]))] = np.array(row["vector"], np.float32).tobytes()
    return found


def alone(target: Path) -> bool:
    """Nothing but the export was left in its folder."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


# Embeddings as Parquet


def test_parquet_has_the_columns_and_types_that_were_promised(catalogue: Catalogue, target: Path) -> None:
    assert catalogue.run("--export-embeddings", str(target)).code == 0
    schema = pq.read_schema(target)
    assert schema.names == COLUMNS
    assert [schema.field(name).type for name in COLUMNS[:6]] == [pa.string()] * 6
    assert schema.field("dimensions").type == pa.int32()
    assert schema.field("created_at").type == pa.timestamp("ms", "UTC")
    assert schema.field("vector").type == pa.list_(pa.float32(), 384)
    assert alone(target)


def test_there_is_a_row_for_each_embedded_string_with_the_very_vector_of_the_table(catalogue: Catalogue, target: Path) -> None:
    ran = catalogue.run("--export-embeddings", str(target), "--json")
    rows = pq.read_table(target).to_pylist()
    assert {(row["field"], row["text"]) for row in rows} == TEXTS
    assert {row["uuid"]: np.array(row["vector"], np.float32).tobytes() for row in rows} == stored_vectors(catalogue)
    assert ran.document == {"path": str(target), "rows": PERSONS + TITLES, "bytes": target.stat().st_size}
    assert len(rows) == PERSONS + TITLES


def test_each_row_tells_what_it_is_and_where_its_vector_came_from(catalogue: Catalogue, target: Path) -> None:
    catalogue.run("--export-embeddings", str(target))
    now = dt.datetime.now(dt.UTC)
    for row in pq.read_table(target).to_pylist():
        assert row["uuid"] == str(uuid_of(row["field"], row["text"]))
        assert row["crc32"] == f"{zlib.crc32(row['text'].encode()):08x}"
        assert (row["service"], row["model"], row["dimensions"]) == ("local", "local-lexical-384", 384)
        assert now - dt.timedelta(hours=1) < row["created_at"] <= now


def test_pandas_reads_it(catalogue: Catalogue, target: Path) -> None:
    catalogue.run("--export-embeddings", str(target))
    frame = pd.read_parquet(target)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == PERSONS + TITLES
    assert frame["vector"].map(len).eq(384).all()
    assert frame["vector"].iloc[0].dtype == np.float32


def test_the_rows_of_several_runs_stand_in_one_file(catalogue: Catalogue, target: Path) -> None:
    catalogue.write([*ROWS, ("9", "Haydn, Joseph", "Die Schöpfung")])
    assert catalogue.run().code == 0
    catalogue.run("--export-embeddings", str(target))
    texts = pq.read_table(target).column("text").to_pylist()
    assert len(texts) == len(set(zip(pq.read_table(target).column("field").to_pylist(), texts, strict=True))) == len(TEXTS) + 2
    assert {"Haydn, Joseph", "Die Schöpfung"} <= set(texts)


def test_only_the_generation_of_the_config_is_exported(catalogue: Catalogue, target: Path) -> None:
    assert catalogue.run("--set", "embedding_dimensions=16", "--fields", "title").code == 0
    catalogue.run("--export-embeddings", str(target), "--set", "embedding_dimensions=16")
    short = pq.read_table(target)
    assert short.schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert set(short.column("dimensions").to_pylist()) == {16}
    assert short.num_rows == TITLES
    catalogue.run("--export-embeddings", str(target))
    assert pq.read_table(target).num_rows == PERSONS + TITLES


# Embeddings as a wide CSV


@pytest.fixture
def wide(catalogue: Catalogue, tmp_path: Path) -> Path:
    target = tmp_path / "wide.csv"
    ran = catalogue.run("--export-embeddings", str(target), "--format", "csv-wide")
    assert ran.code == 0, ran.err
    return target


def test_v1_to_vd_give_back_the_same_float32(catalogue: Catalogue, wide: Path) -> None:
    expected = stored_vectors(catalogue)
    with wide.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert list(rows[0]) == [*COLUMNS[:-1], *(f"V{place}" for place in range(1, 385))]
    found = {row["uuid"]: np.array([row[f"V{place}"] for place in range(1, 385)], np.float64).astype(np.float32) for row in rows}
    assert {key: vector.tobytes() for key, vector in found.items()} == expected


def test_pandas_reads_the_wide_csv_with_one_row_a_string_whatever_its_text_holds(wide: Path, catalogue: Catalogue) -> None:
    frame = pd.read_csv(wide, dtype={"crc32": str}, keep_default_na=False)
    assert len(frame) == PERSONS + TITLES
    expected = stored_vectors(catalogue)
    numbers = [f"V{place}" for place in range(1, 385)]
    for identifier, vector in zip(frame["uuid"], frame[numbers].to_numpy(np.float64).astype(np.float32), strict=True):
        assert vector.tobytes() == expected[identifier]


def test_a_text_that_a_spreadsheet_would_calculate_gets_a_quote_in_csv_and_only_there(
    wide: Path, catalogue: Catalogue, target: Path
) -> None:
    with wide.open(encoding="utf-8", newline="") as file:
        by_uuid = {row["uuid"]: row["text"] for row in csv.DictReader(file, strict=True)}
    for field, text in TEXTS:
        written = by_uuid[str(uuid_of(field, text))]
        assert written == ("'" + text if text[0] in "=+-@\t\r\n" else text)
    catalogue.run("--export-embeddings", str(target))
    assert {"=SUM(1;2)", "+49 30 123", "-", "@home", "\ttab first"} <= set(pq.read_table(target).column("text").to_pylist())


def test_a_header_stands_once_however_many_pieces_there_are(catalogue: Catalogue, tmp_path: Path) -> None:
    for number in range(3):
        catalogue.write([*ROWS, *((f"n{more}", f"Person {more}", "") for more in range(number + 1))])
        assert catalogue.run().code == 0
    target = tmp_path / "wide.csv"
    assert catalogue.run("--export-embeddings", str(target), "--format", "csv-wide").code == 0
    assert target.read_text(encoding="utf-8").count('"V384"') == 1
    assert len(pd.read_csv(target)) == PERSONS + TITLES + 3


# Occurrences


def _expected_occurrences() -> Counter[tuple[str, str, str]]:
    pairs = itertools.chain.from_iterable(((row[0], "person", row[1]), (row[0], "title", row[2])) for row in ROWS)
    return Counter((record, field, str(uuid_of(field, text))) for record, field, text in pairs)


def test_occurrences_join_back_to_the_input(catalogue: Catalogue, target: Path) -> None:
    ran = catalogue.run("--export-occurrences", str(target), "--json")
    rows = pq.read_table(target)
    assert rows.schema.names == ["id", "field", "uuid"]
    assert [field.type for field in rows.schema] == [pa.string()] * 3
    assert Counter((row["id"], row["field"], row["uuid"]) for row in rows.to_pylist()) == _expected_occurrences()
    assert ran.document["rows"] == 2 * len(ROWS)


def test_occurrences_and_embeddings_join_by_uuid_to_the_whole_catalogue(catalogue: Catalogue, target: Path) -> None:
    catalogue.run("--export-embeddings", str(target))
    catalogue.run("--export-occurrences", str(target.with_name("occurrences.parquet")))
    joined = pd.read_parquet(target.with_name("occurrences.parquet")).merge(pd.read_parquet(target), on=["uuid", "field"])
    found = Counter(zip(joined["id"], joined["field"], joined["text"], strict=True))
    person = Counter((row[0], "person", row[1]) for row in ROWS if row[1])
    assert found == person + Counter((row[0], "title", row[2]) for row in ROWS)


@pytest.mark.parametrize("name", ["o.csv", "o.CSV"])
def test_occurrences_as_csv_are_the_same_with_safe_ids(catalogue: Catalogue, tmp_path: Path, name: str) -> None:
    assert catalogue.run("--export-occurrences", str(tmp_path / name)).code == 0
    with (tmp_path / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    safe = Counter({("'=2" if key[0] == "=2" else key[0], *key[1:]): count for key, count in _expected_occurrences().items()})
    assert Counter((row["id"], row["field"], row["uuid"]) for row in rows) == safe


def test_only_what_is_in_the_catalogue_now_occurs(catalogue: Catalogue, target: Path) -> None:
    catalogue.write(ROWS[:5])
    assert catalogue.run().code == 0
    catalogue.run("--export-occurrences", str(target))
    assert set(pq.read_table(target).column("id").to_pylist()) == {row[0] for row in ROWS[:5]}


# What can be wrong with a target


COMMANDS = [("--export-embeddings",), ("--export-occurrences",)]


@pytest.mark.parametrize("command", COMMANDS)
def test_before_a_run_there_is_nothing_to_export_and_nothing_is_made(tmp_path: Path, command: tuple[str]) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure()
    catalogue.write(ROWS)
    ran = catalogue.run(*command, str(tmp_path / "x.parquet"))
    assert ran.code == 2
    assert "First: python main.py" in ran.err
    assert not (tmp_path / "x.parquet").exists()
    assert not catalogue.checkpoint.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_as_target_or_no_folder_above_it_is_refused(catalogue: Catalogue, target: Path, command: tuple[str]) -> None:
    there = target.parent / "folder.parquet"
    there.mkdir()
    folder = catalogue.run(*command, str(there))
    assert (folder.code, folder.err) == (2, f"{there} is a folder; give the path of a file.\n")
    there.rmdir()
    other = catalogue.run(*command, str(target.parent / "table.xlsx"))
    assert (other.code, "a name that ends in .parquet" in other.err) == (2, True)
    missing = catalogue.run(*command, str(target.parent / "not there" / "x.parquet"))
    assert (missing.code, missing.err) == (2, f"{target.parent / 'not there'} is no folder; make it first.\n")
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("command", [*COMMANDS, ("--format", "csv-wide", "--export-embeddings")])
def test_a_folder_that_may_not_be_written_is_refused(
    catalogue: Catalogue, target: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    if os.geteuid() == 0:  # whom no rights stop: the system's answer is played

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(target))

        monkeypatch.setattr(pq, "ParquetWriter", denied)
        real = Path.open
        monkeypatch.setattr(
            Path, "open", lambda path, *rest, **named: denied() if path.parent == target.parent else real(path, *rest, **named)
        )
    else:
        target.parent.chmod(0o500)
    ran = catalogue.run(*command, str(target))
    assert (ran.code, ran.err) == (2, f"{target}: Permission denied; choose a place that you may write.\n")
    target.parent.chmod(0o700)
    assert list(target.parent.iterdir()) == []


def _failing(reason: BaseException) -> Any:
    """The embeddings, cut short behind their first piece."""
    real = export._embeddings

    def some(*arguments: Any) -> Iterator[pa.RecordBatch]:
        yield from itertools.islice(real(*arguments), 1)
        raise reason

    return some


@pytest.mark.parametrize("form", ["parquet", "csv-wide"])
@pytest.mark.parametrize(
    ("reason", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)], ids=["Ctrl-C", "full disk"]
)
def test_an_interrupted_export_leaves_no_file(
    catalogue: Catalogue, target: Path, monkeypatch: pytest.MonkeyPatch, form: str, reason: BaseException, code: int
) -> None:
    monkeypatch.setattr(export, "_embeddings", _failing(reason))
    ran = catalogue.run("--export-embeddings", str(target), "--format", form)
    assert ran.code == code
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_export_leaves_the_earlier_one_as_it_was(
    catalogue: Catalogue, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue.run("--export-embeddings", str(target))
    before = target.read_bytes()
    monkeypatch.setattr(export, "_embeddings", _failing(KeyboardInterrupt()))
    assert catalogue.run("--export-embeddings", str(target)).code == 130
    assert target.read_bytes() == before
    assert alone(target)


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("command", [*COMMANDS, ("--format", "csv-wide", "--export-embeddings")])
def test_rights_follow_the_users_umask(
    catalogue: Catalogue, target: Path, umask: int, rights: int, command: tuple[str, ...]
) -> None:
    before = os.umask(umask)
    try:
        assert catalogue.run(*command, str(target)).code == 0
        assert os.umask(umask) == umask, "the command gave the umask back"
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == rights


def test_a_second_export_replaces_the_first(catalogue: Catalogue, target: Path) -> None:
    target.write_bytes(b"something older")
    assert catalogue.run("--export-embeddings", str(target)).code == 0
    assert pq.read_table(target).num_rows == PERSONS + TITLES
