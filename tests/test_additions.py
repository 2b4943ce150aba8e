"""Additions and forgotten records: the catalogue is that of one snapshot of all that is left, and nothing is embedded twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tools import Catalogue, record_texts

Row = tuple[str, str, str]
FIRST: list[Row] = [("r1", "Bach", "Fugue"), ("r2", "Telemann", "Suite"), ("r3", "Bach", "Suite")]


def made(folder: Path, **keys: object) -> Catalogue:
    folder.mkdir(exist_ok=True)
    catalogue = Catalogue(folder)
    catalogue.configure(**keys)
    return catalogue


def taken(catalogue: Catalogue, *arguments: str) -> str:
    ran = catalogue.run(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


def meaning(catalogue: Catalogue) -> object:
    """Which record has which texts, and how often each occurs; not how strings are numbered, which tells their history."""
    ids = {row["record"]: row["id"] for row in catalogue.table("records", "full")}
    assert sorted(ids) == list(range(len(ids)))
    found: dict[str, object] = {"records": sorted(ids.values())}
    for field in ("person", "title"):
        texts = catalogue.strings(field)
        rows = catalogue.table("occurrences", "full", field)
        assert [row["record"] for row in rows] == sorted(ids)
        found[field] = sorted((ids[row["record"]], texts[row["row"]]) for row in rows)
        counts = catalogue.table("frequencies", "full", field)
        found[f"{field} counts"] = sorted((texts[row["row"]], row["frequency"]) for row in counts)
        assert sorted(catalogue.rows("present", "full", field)) == [row["row"] for row in counts]
    return found


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    found = made(tmp_path / "catalogue", input_mode="additions")
    found.write(FIRST)
    taken(found)
    return found


def test_additions_are_added_and_a_record_that_is_here_again_is_replaced(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent = record_texts(monkeypatch)
    catalogue.write([("r4", "Händel", "Suite"), ("r2", "Telemann", "Ouverture")])
    taken(catalogue)
    assert sorted(sent) == ["Händel", "Ouverture"]
    whole = made(tmp_path / "whole")
    whole.write([FIRST[0], FIRST[2], ("r4", "Händel", "Suite"), ("r2", "Telemann", "Ouverture")])
    taken(whole)
    assert meaning(catalogue) == meaning(whole)
    assert [row["id"] for row in catalogue.table("records", "full")] == ["r1", "r3", "r4", "r2"]
    del sent[:]
    catalogue.write([("r2", "Telemann", "Ouverture")])  # the same again, alone
    taken(catalogue)
    assert not sent
    assert meaning(catalogue) == meaning(whole)


def test_an_addition_without_rows_changes_nothing(catalogue: Catalogue) -> None:
    before = meaning(catalogue)
    catalogue.write([])
    taken(catalogue)
    assert meaning(catalogue) == before


def test_a_snapshot_that_looks_like_a_delta_asks(catalogue: Catalogue) -> None:
    catalogue.configure()
    catalogue.write([("r9", "Händel", "Suite")])
    ran = catalogue.run()
    assert ran.code == 2
    assert "It would remove 100 % of the records: if it is a delta, set input_mode: additions" in ran.err


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"fields": {"person": "person", "title": "title", "both": "{person}: {title}"}}, "the field 'both' is new or changed"),
        ({"fields": {"person": "person", "title": "person"}}, "the field 'title' is new or changed"),
        ({"fields": {"person": "person"}}, "the field 'title' is left out"),
        ({"id_column": "title"}, "id_column was 'id' and is now 'title'"),
    ],
)
def test_what_needs_the_earlier_rows_is_refused(catalogue: Catalogue, keys: dict[str, object], words: str) -> None:
    catalogue.configure(input_mode="additions", **keys)
    catalogue.write([("r4", "Händel", "Suite")])
    before = catalogue.state()
    ran = catalogue.run("--accept-new-input")
    assert ran.code == 2
    assert words in ran.err
    assert "input_mode: snapshot" in ran.err
    assert catalogue.state() == before


def test_earlier_records_whose_tables_are_gone_are_not_silently_dropped(catalogue: Catalogue) -> None:
    for path in (catalogue.checkpoint / "tables").glob("records_*"):
        path.unlink()
    catalogue.write([("r4", "Händel", "Suite")])
    ran = catalogue.run()
    assert ran.code == 2
    assert "The tables of the 3 earlier records are gone" in ran.err


def test_forgotten_records_are_gone_and_come_back_only_with_their_rows(catalogue: Catalogue, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("\ufeffr2\r\n\nr7\nr2\n", encoding="utf-8")
    out = taken(catalogue, "--forget-records", str(ids))
    assert "Forgotten: 1 records, of 2 ids; 2 are left. Strings that occur no more: 1;" in out
    whole = made(tmp_path / "whole")
    whole.write([FIRST[0], FIRST[2]])
    taken(whole)
    assert meaning(catalogue) == meaning(whole)
    taken(catalogue)  # the input did not change: it is not read again
    assert meaning(catalogue) == meaning(whole)
    assert "Forgotten: 0 records" in taken(catalogue, "--forget-records", str(ids))
    assert "1 string" in taken(catalogue, "--prune")
    catalogue.write([FIRST[1]])
    taken(catalogue)
    assert len(catalogue.table("records", "full")) == 3


def test_to_forget_most_of_a_catalogue_needs_a_word(catalogue: Catalogue, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("r1\nr2\n", encoding="utf-8")
    before = meaning(catalogue)
    ran = catalogue.run("--forget-records", str(ids))
    assert ran.code == 2
    assert "This would forget 2 of 3 records." in ran.err
    assert meaning(catalogue) == before
    taken(catalogue, "--forget-records", str(ids), "--yes")
    assert [row["id"] for row in catalogue.table("records", "full")] == ["r3"]


def test_a_list_of_ids_that_cant_be_read_changes_nothing(catalogue: Catalogue, tmp_path: Path) -> None:
    bad = tmp_path / "ids.txt"
    bad.write_bytes(b"r1\n\xff\xfe\n")
    before = meaning(catalogue)
    for path, words in ((bad, "is not UTF-8"), (tmp_path / "none.txt", "can't be read")):
        ran = catalogue.run("--forget-records", str(path))
        assert ran.code == 2
        assert words in ran.err
    assert meaning(catalogue) == before


def test_nothing_is_forgotten_before_anything_was_read(tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("r1\n", encoding="utf-8")
    ran = made(tmp_path / "new").run("--forget-records", str(ids))
    assert ran.code == 2
    assert "No catalogue was read yet" in ran.err


_texts = st.sampled_from(["Bach", "Telemann", "Händel", "", "Fugue", "Suite"])
_batch = st.lists(st.tuples(st.sampled_from([f"r{n}" for n in range(8)]), _texts, _texts), max_size=5, unique_by=lambda row: row[0])
_step = st.one_of(st.tuples(st.just("add"), _batch), st.tuples(st.just("forget"), _batch))


@settings(max_examples=15, deadline=None)
@given(first=_batch.filter(bool), steps=st.lists(_step, max_size=4))
def test_after_any_additions_and_forgettings_the_catalogue_is_one_snapshot_of_what_is_left(
    first: list[Row], steps: list[tuple[str, list[Row]]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogue = made(folder / "steps", input_mode="additions", vector_store="none")
        catalogue.write(first)
        taken(catalogue, "--end", "preprocessing")
        left = {row[0]: row for row in first}
        for number, (what, rows) in enumerate(steps):
            if what == "add":
                # A name of its own, so that the same rows in two steps are two inputs.
                catalogue.configure(input_mode="additions", vector_store="none", input=f"delta{number}.csv")
                catalogue.write(rows, name=f"delta{number}.csv")
                taken(catalogue, "--end", "preprocessing")
                for row in rows:
                    left.pop(row[0], None)
                left |= {row[0]: row for row in rows}
            else:
                (folder / "ids.txt").write_text("".join(f"{row[0]}\n" for row in rows), encoding="utf-8")
                taken(catalogue, "--forget-records", str(folder / "ids.txt"), "--yes")
                for row in rows:
                    left.pop(row[0], None)
        assert [row["id"] for row in catalogue.table("records", "full")] == list(left)
        if left:
            whole = made(folder / "whole", vector_store="none")
            whole.write(list(left.values()))
            taken(whole, "--end", "preprocessing")
            assert meaning(catalogue) == meaning(whole)
