"""A bad row is listed in rejected_rows.csv with its file, row, id and reason, and the run goes on without it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.tools import HEADER, Catalogue

GOOD = [("1", "Bach", "Fugue"), ("2", "Telemann", "Suite"), ("3", "Händel", "Messiah")]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    return made


def preprocess(catalogue: Catalogue, code: int = 0) -> str:
    ran = catalogue.run("--end", "preprocessing", "--quiet")
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    return ran.err


def listed(catalogue: Catalogue) -> list[tuple[str, str, str]]:
    """(row, id, reason) of what was left out of the one file."""
    assert {row["file"] for row in catalogue.rejected()} == {"records.csv"}
    return [(row["row"], row["id"], row["reason"]) for row in catalogue.rejected()]


def test_a_run_embeds_the_good_rows_and_says_where_the_bad_ones_are_listed(catalogue: Catalogue) -> None:
    catalogue.write([*GOOD, ("", "Nobody", "Nothing")])
    ran = catalogue.run()
    assert ran.code == 0
    assert f"1 bad rows left out; each is listed with its reason in {catalogue.checkpoint / 'rejected_rows.csv'}" in ran.out
    assert catalogue.ids() == ["1", "2", "3"]
    assert catalogue.embedded("person") == ["Bach", "Telemann", "Händel"]
    assert catalogue.run("--status", "--json").document["input"]["rejected_rows"] == 1


@pytest.mark.parametrize(
    ("row", "shown"), [(("4", "a\0b", "t"), "4"), (("4", "a", "\0"), "4"), (("4\0", "a", "t"), "4\\0"), (("\0", "a", "t"), "\\0")]
)
def test_a_nul_byte_in_a_used_cell(catalogue: Catalogue, row: tuple[str, str, str], shown: str) -> None:
    catalogue.write([*GOOD[:2], row, GOOD[2]])
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "2", "3"]
    assert listed(catalogue) == [("4", shown, "holds a NUL byte")]
    assert b"\0" not in (catalogue.checkpoint / "rejected_rows.csv").read_bytes()


def test_a_cell_of_ten_megabytes(catalogue: Catalogue) -> None:
    catalogue.write([GOOD[0], ("2", "Telemann", "x" * 10_000_000), GOOD[2]])
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "3"]
    assert listed(catalogue) == [("3", "2", "has a cell of more than 1,048,576 bytes")]


def test_the_largest_cell_is_counted_in_bytes(catalogue: Catalogue) -> None:
    fits, too_long = "é" * (1 << 19), "é" * (1 << 19) + "e"
    catalogue.write([("1", "Bach", fits), ("2", "Bach", too_long)])
    preprocess(catalogue)
    assert catalogue.present("title") == [fits]
    assert [row[0] for row in listed(catalogue)] == ["3"]


def test_what_is_wrong_in_a_column_that_nothing_uses_costs_nothing(catalogue: Catalogue) -> None:
    catalogue.write([("1", "Bach", "Fugue", "\0"), ("2", "Telemann", "Suite", "x" * 10_000_000)], (*HEADER, "scan"))
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "2"]
    assert not (catalogue.checkpoint / "rejected_rows.csv").exists()


def test_of_rows_with_one_id_the_first_is_the_record(catalogue: Catalogue) -> None:
    catalogue.write([*GOOD, ("2", "Somebody", "else"), ("2", "Telemann", "Suite")])
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "2", "3"]
    assert catalogue.present("person") == ["Bach", "Telemann", "Händel"]
    reason = "the id stands already in row 3 of records.csv"
    assert listed(catalogue) == [("5", "2", reason), ("6", "2", reason)]


def test_a_row_that_is_bad_itself_takes_no_id_from_a_good_one(catalogue: Catalogue) -> None:
    catalogue.write([("1", "a\0", "first"), ("1", "Bach", "second")])
    preprocess(catalogue)
    assert catalogue.present("title") == ["second"]
    assert listed(catalogue) == [("2", "1", "holds a NUL byte")]


@pytest.mark.parametrize("seed", range(4))
def test_which_duplicate_is_kept_follows_from_names_and_rows_alone(catalogue: Catalogue, seed: int) -> None:
    files = {
        "a.csv": [("1", "from a", "x"), ("2", "from a", "y")],
        "b.csv": [("2", "from b", "y"), ("3", "from b", "z"), ("3", "again", "z")],
        "c.csv": [("3", "from c", "z"), ("1", "from c", "x")],
    }
    names = list(files)
    random.Random(seed).shuffle(names)  # the order in which the files come onto the disk
    (catalogue.folder / "in").mkdir()
    for name in names:
        catalogue.write(files[name], name=f"in/{name}")
    catalogue.configure(input="in")
    seen = []
    for _ in range(2):
        preprocess(catalogue)
        people, mentions = catalogue.strings("person"), catalogue.table("occurrences", "full", "person")
        kept = dict(zip(catalogue.ids(), (people[mention["row"]] for mention in mentions), strict=True))
        seen.append((kept, catalogue.rejected()))
        assert catalogue.run("--reset", "preprocessing").code == 0
    assert seen[0] == seen[1]
    kept, rejected = seen[0]
    assert kept == {"1": "from a", "2": "from a", "3": "from b"}
    assert [tuple(row.values()) for row in rejected] == [
        ("in/b.csv", "2", "2", "the id stands already in row 3 of in/a.csv"),
        ("in/b.csv", "4", "3", "the id stands already in row 3 of in/b.csv"),
        ("in/c.csv", "2", "3", "the id stands already in row 3 of in/b.csv"),
        ("in/c.csv", "3", "1", "the id stands already in row 2 of in/a.csv"),
    ]


def raw(catalogue: Catalogue, *lines: str) -> None:
    (catalogue.folder / "records.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


@pytest.mark.parametrize(("line", "cells"), [("2,Telemann", 2), ("2", 1), ("2,Telemann,Suite,more", 4), (",,,", 4)])
def test_another_number_of_cells_than_the_header(catalogue: Catalogue, line: str, cells: int) -> None:
    raw(catalogue, "id,person,title", "1,Bach,Fugue", line, "3,Händel,Messiah")
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "3"]
    assert listed(catalogue) == [("3", "", f"has {cells} cells, the header has 3")]


def test_a_row_of_several_lines_with_a_wrong_number_of_cells_says_how_far_it_reached(catalogue: Catalogue) -> None:
    """Two quotes in the wrong place can look like one long cell: whoever reads the list must see what went with it."""
    raw(catalogue, "id,person,title", '1,"Bach,Fugue', '2,Telemann,Suite"', "3,Händel,Messiah")
    preprocess(catalogue)
    assert catalogue.ids() == ["3"]
    ((row, _, reason),) = listed(catalogue)
    assert row == "2"
    assert reason.startswith("has 2 cells, the header has 3")
    assert "line 3" in reason


def test_blank_lines_are_no_rows(catalogue: Catalogue) -> None:
    raw(catalogue, "id,person,title", "", "1,Bach,Fugue", "", "", "3,Händel,Messiah", "")
    preprocess(catalogue)
    assert [row["row"] for row in catalogue.table("records", "full")] == [3, 6]
    assert not (catalogue.checkpoint / "rejected_rows.csv").exists()


def test_a_stray_quote_costs_its_own_row_only(catalogue: Catalogue) -> None:
    raw(catalogue, "id,person,title", '1,"Bach" J.S.,Fugue', "2,Telemann,Suite", '3,"Händel","Mess"iah"', '4,"Finck ","Lied"')
    preprocess(catalogue)
    assert catalogue.ids() == ["2", "4"]
    assert [(row, identifier) for row, identifier, _ in listed(catalogue)] == [("2", ""), ("4", "")]
    assert all(reason.startswith("a quote in the wrong place") for _, _, reason in listed(catalogue))


@pytest.mark.parametrize("identifier", ["", " ", "\t", "\u00a0", "\u2003 "])
def test_no_id(catalogue: Catalogue, identifier: str) -> None:
    catalogue.write([GOOD[0], (identifier, "Nobody", "Nothing"), GOOD[2]])
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "3"]
    assert [(row, reason) for row, _, reason in listed(catalogue)] == [("3", "has no id")]


def as_lines(catalogue: Catalogue, *lines: str | bytes) -> None:
    catalogue.configure(input="records.jsonl")
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    (catalogue.folder / "records.jsonl").write_bytes(content)


def line(identifier: object, person: object = "Bach", title: object = "Fugue") -> str:
    return json.dumps({"id": identifier, "person": person, "title": title})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON: "),
        ('{"id": "2", "person": "x" "title": "y"}', "not JSON: "),
        ('{"id": "2"} {"id": "4"}', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('["2", "Bach", "Fugue"]', "not a JSON object but a list"),
        ('"2"', "not a JSON object but a str"),
        ("null", "not a JSON object but a NoneType"),
        ("17", "not a JSON object but a int"),
        (r'{"id": "2", "person": "\ud800", "title": "x"}', "'person' holds an unpaired surrogate"),
        (r'{"id": "\udfff", "person": "Bach", "title": "x"}', "'id' holds an unpaired surrogate"),
        (r'{"id": "2", "person": ["Bach", "\ud834"], "title": "x"}', "'person' holds an unpaired surrogate"),
        (line("2", {"name": "Bach"}), "'person' is a JSON object"),
        (line("2", [["Bach"]]), "'person' is a list of lists or objects"),
        (line({"a": 1}), "'id' is a JSON object"),
        (line(None), "has no id"),
        ('{"person": "Bach", "title": "x"}', "has no id"),
        (line("2", "a\0b"), "holds a NUL byte"),
    ],
)
def test_a_line_of_json_that_is_no_row(catalogue: Catalogue, bad: str, reason: str) -> None:
    as_lines(catalogue, line("1"), bad, line("3"))
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "3"]
    (listed,) = catalogue.rejected()
    assert (listed["file"], listed["row"]) == ("records.jsonl", "2")
    assert listed["reason"].startswith(reason)


def test_odd_json_that_can_be_read_costs_nothing(catalogue: Catalogue) -> None:
    """NaN is no JSON and a surrogate pair is one character; neither is a reason to lose a row."""
    as_lines(catalogue, line("1"), '{"id": "2", "person": NaN, "title": "x", "other": "\\ud800"}', line("3", "\U0001d11e"))
    preprocess(catalogue)
    assert catalogue.ids() == ["1", "2", "3"]
    assert catalogue.present("person") == ["Bach", "NaN", "\U0001d11e"]


ODD_IDS = [
    "with spaces  inside",
    " leading and trailing ",
    "../../etc/passwd",
    "/absolute",
    "..",
    "a/b\\c",
    "🎻",
    "é",
    "e\u0301",
    "x" * 65,
    "y" * 5000,
    "'; DROP TABLE record; --",
    "line\nbreak",
    'comma, "quote"',
    "=1+1",
    "1",
    "01",
    "1.0",
    "NULL",
    "%s {0}",
]


def test_odd_ids_are_ids_as_they_are(catalogue: Catalogue) -> None:
    catalogue.write([(identifier, "Bach", f"title {place}") for place, identifier in enumerate(ODD_IDS)])
    outside = sorted(path.name for path in catalogue.folder.parent.iterdir())
    assert catalogue.run().code == 0
    assert catalogue.ids() == ODD_IDS
    assert not (catalogue.checkpoint / "rejected_rows.csv").exists()
    assert sorted(path.name for path in catalogue.folder.parent.iterdir()) == outside
    names = [path.name for path in catalogue.checkpoint.rglob("*")]
    assert not [name for name in names if "passwd" in name or "🎻" in name or "xxx" in name]


def bad_cells(count: int) -> list[str]:
    return [f"{10 + number},one cell too few" for number in range(count)]


def bad_ids(count: int) -> list[str]:
    return ["1,the same,id again" for _ in range(count)]


@pytest.mark.parametrize("bad", [bad_cells, bad_ids])
def test_as_many_bad_rows_as_allowed_are_left_out(catalogue: Catalogue, bad: object) -> None:
    assert callable(bad)
    catalogue.configure(max_rejected_rows=3)
    raw(catalogue, "id,person,title", "1,Bach,Fugue", *bad(3))
    preprocess(catalogue)
    assert len(catalogue.rejected()) == 3


@pytest.mark.parametrize("bad", [bad_cells, bad_ids])
@pytest.mark.parametrize("most", [0, 3])
def test_one_more_stops_lists_what_was_seen_and_touches_nothing(catalogue: Catalogue, bad: object, most: int) -> None:
    assert callable(bad)
    catalogue.configure(max_rejected_rows=most)
    catalogue.write(GOOD)
    assert catalogue.run().code == 0
    before = catalogue.state()
    raw(catalogue, "id,person,title", "1,Bach,Fugue", "9,New,Row", *bad(most + 4))
    said = preprocess(catalogue, code=2)
    assert "records.csv" in said
    assert "max_rejected_rows" in said
    assert f"more than {most:,} bad rows" in said
    assert f"the last is row {4 + most}" in said
    assert len(said.splitlines()) == 1
    assert [row["row"] for row in catalogue.rejected()] == [str(4 + place) for place in range(most + 1)]
    after = catalogue.state()
    assert "rejected_rows.csv" in after
    del after["rejected_rows.csv"]
    assert after == before


def test_when_every_row_is_bad_the_run_stops_and_names_the_first(catalogue: Catalogue) -> None:
    raw(catalogue, "id,person,title", "1,Bach", "2,Händel")
    said = preprocess(catalogue, code=2)
    assert "every row of 'records.csv' was rejected; the first: row 2, has 2 cells, the header has 3" in said
    assert len(catalogue.rejected()) == 2


def test_the_list_goes_when_the_input_is_mended_and_stays_while_it_is_not(catalogue: Catalogue) -> None:
    catalogue.write([*GOOD, ("", "Nobody", "Nothing")])
    for _ in range(2):
        preprocess(catalogue)
        assert len(catalogue.rejected()) == 1
    catalogue.write(GOOD)
    preprocess(catalogue)
    assert not (catalogue.checkpoint / "rejected_rows.csv").exists()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_the_list_is_safe_to_open_in_a_spreadsheet(catalogue: Catalogue, start: str) -> None:
    evil = start + 'HYPERLINK("http://x","y")'
    (catalogue.folder / "=in").mkdir()
    catalogue.configure(input="=in")
    catalogue.write([(evil, "Bach", "Fugue"), (evil, "Bach", "Fugue"), (start, "Bach", "Fugue")], name="=in/+a.csv")
    preprocess(catalogue)
    rejected = catalogue.rejected()
    assert rejected[0]["id"] == "'" + evil
    for row in rejected:
        assert not any((value or "").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for value in row.values())
        assert row["file"] == "'=in/+a.csv"
