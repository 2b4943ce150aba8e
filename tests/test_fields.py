"""Fields: what a column or a template means, in SQL over millions of rows as in plain Python; and what is wrong with one."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.fields import Field, Part, parse_field
from pipeline.identity import uuid_of
from pipeline.reading import Reader, Rejected, find_sources
from pipeline.tables.duck import blank_sql
from pipeline.tables.snapshot import FieldCount, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

UNHURRIED = settings(deadline=None, max_examples=60)  # the machine may be busy
Row = dict[str, str | None]

COLUMNS = ("person", "title", "a column", "it's", "d\u00e9j\u00e0 \u201cvu\u201d")
LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
SPACE = st.text(st.sampled_from(" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2000\u2028\u3000\u1680"), max_size=3)
CELLS = st.one_of(
    st.just(""), SPACE, st.text(LETTERS, max_size=8), st.sampled_from(["Bach", "{x}", "'", '"', "a:b", "0", "\u200b"])
)
WORDS = st.text(LETTERS.filter(lambda letter: letter not in "{}\n"), max_size=6)
PIECES = st.one_of(
    WORDS, st.sampled_from(["{{", "}}", "{{}}", "'", "''", "\\n", "%", "||"]), st.sampled_from(COLUMNS).map("{{{}}}".format)
)
TEMPLATES = (
    st.lists(st.lists(PIECES, max_size=4).map("".join), min_size=1, max_size=4)
    .map("\n".join)
    .filter(lambda source: any(f"{{{column}}}" in re.sub(r"\{\{|\}\}", "", source) for column in COLUMNS))
    .filter(lambda source: source.strip() != "")
)
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, CELLS)), min_size=1, max_size=6)


def rendered(source: str, row: Row) -> str:
    """The rule in plain Python: a line whose columns are all empty is left out; all columns empty gives the empty text."""
    alone = re.fullmatch(r"\{([^{}]*)\}|([^{}]*)", source.rstrip("\n"))
    if alone:  # one column, as it stands
        return row[alone[1] or alone[2]] or ""
    lines = []
    said = False
    for line in source.rstrip("\n").split("\n"):
        cells: list[str] = []

        def cell(found: re.Match[str], cells: list[str] = cells) -> str:
            if found[0] in ("{{", "}}"):
                return found[0][0]
            cells.append(row[found[1]] or "")
            return cells[-1]

        words = re.sub(r"\{\{|\}\}|\{([^{}]*)\}", cell, line)
        said = said or any(text.strip() for text in cells)
        if not cells or any(text.strip() for text in cells):
            lines.append(words)
    return "\n".join(lines) if said else ""


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, quoting=csv.QUOTE_ALL)
        lines.writerow(("id", *COLUMNS))
        lines.writerows((number, *(row[column] for column in COLUMNS)) for number, row in enumerate(rows))


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    lines = (json.dumps({"id": str(number), **row}) for number, row in enumerate(rows))
    path.write_text("\n".join(lines), encoding="utf-8")


def texts_of(field: Field, rows: Sequence[Row], ending: str) -> tuple[list[str], FieldCount]:
    """The text of each record as the pipeline makes it, from a file of rows through the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (write_csv if ending == "csv" else write_jsonl)(folder / f"rows.{ending}", rows)
        rejected: list[Rejected] = []
        reader = Reader(("id", *COLUMNS), {}, "utf-8", None, rejected.append)
        sources = find_sources(folder, f"rows.{ending}")
        work = Work(folder, 0.5)
        try:
            work.take(sources, reader, None)
            rejected += work.judge(sources)
            count = work.number_strings(field, [], 0, [])
            work.write_new_strings(field, (0, count.new), folder / "strings.parquet")
            work.write_occurrences(field.name, folder / "occurrences.parquet")
        finally:
            work.close()
        assert not rejected
        strings = pq.read_table(folder / "strings.parquet").to_pylist()
        occurrences = pq.read_table(folder / "occurrences.parquet").to_pylist()
    by_row = {string["row"]: string for string in strings}
    assert all(string["uuid"] == uuid_of(field.name, string["text"]) for string in strings)
    return [by_row[occurrence["row"]]["text"] for occurrence in occurrences], count


FULL: Row = dict.fromkeys(COLUMNS, "x")
NOTHING: Row = dict.fromkeys(COLUMNS, " ")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@UNHURRIED
@given(source=st.one_of(TEMPLATES, st.sampled_from(COLUMNS)), rows=ROWS)
@example(source="{person}\n", rows=[{**NOTHING, "person": " "}])
@example(source="{person} ", rows=[{**NOTHING, "person": " "}])
@example(source="A: {person}\nB\n\nC: {title} {a column}", rows=[FULL, NOTHING, {**NOTHING, "title": "t"}, {**FULL, "title": ""}])
@example(source="{{{person}}}\n'{it's}'\n", rows=[FULL, NOTHING])
@example(source="{person}{person}\n{title}", rows=[{**NOTHING, "title": "\u2028"}, {**NOTHING, "title": "\u200b"}])
def test_the_sql_renders_what_the_rule_says(ending: str, source: str, rows: list[Row]) -> None:
    """Any template over any cells: the same texts, numbered in the order of their first record, each with its UUID."""
    field = parse_field("composite", source)
    found, count = texts_of(field, rows, ending)
    wanted = [rendered(source, row) for row in rows]
    assert found == wanted
    assert count.occurrences == len(wanted)
    assert count.strings == count.new == len(set(wanted))
    assert count.present == [(0, len(set(wanted)))]


def test_a_missing_value_is_an_empty_one() -> None:
    """null, or no such key in a row of JSON Lines."""
    rows: list[Row] = [{**FULL, "person": None}, FULL, {**NOTHING, "person": None}]
    found, _ = texts_of(parse_field("composite", "P: {person}\nT: {title}"), rows, "jsonl")
    assert found == ["T: x", "P: x\nT: x", ""]


def test_the_template_of_the_readme() -> None:
    """Contributor, title and roles, of which the roles are missing."""
    source = "Contributor: {person}\nTitle: {title}\nRoles: {a column}"
    found, _ = texts_of(parse_field("composite", source), [{**FULL, "person": "Bach", "title": "Fugue", "a column": ""}], "csv")
    assert found == ["Contributor: Bach\nTitle: Fugue"]


def test_strings_that_are_known_keep_their_numbers(tmp_path: Path) -> None:
    """New ones get the next, in the order of their first record; the frequency of known ones may change."""
    field = parse_field("person", "person")
    counts = []
    known: list[Path] = []
    frequencies: list[Path] = []
    next_row = 0
    for turn, persons in enumerate((["b", "a", "b"], ["c", "a", "a", "d", "c"], ["a"])):
        folder = tmp_path / str(turn)
        folder.mkdir()
        write_csv(folder / "rows.csv", [{**FULL, "person": person} for person in persons])
        work = Work(folder, 0.5)
        sources = find_sources(folder, "rows.csv")
        work.take(sources, Reader(("id", *COLUMNS), {}, "utf-8", None, lambda _: None), None)
        assert not list(work.judge(sources))
        counts.append(work.number_strings(field, known, next_row, frequencies))
        work.write_new_strings(field, (next_row, next_row + counts[-1].new), folder / "strings.parquet")
        work.write_frequencies("person", folder / "frequencies.parquet")
        work.close()
        next_row += counts[-1].new
        known.append(folder / "strings.parquet")
        frequencies = [folder / "frequencies.parquet"]
    rows = [(string["row"], string["text"]) for path in known for string in pq.read_table(path).to_pylist()]
    assert rows == [(0, "b"), (1, "a"), (2, "c"), (3, "d")]
    assert counts == [
        FieldCount(3, 2, 2, [(0, 2)], []),
        FieldCount(5, 3, 2, [(1, 4)], [(0, 2)]),
        FieldCount(1, 1, 0, [(1, 2)], [(1, 4)]),
    ]


# The config's words


def test_a_source_without_braces_is_a_column() -> None:
    """Whatever it is called; it needs no quotes of its own."""
    for source in ("person", "a column", "100$a", "it's", "x:y"):
        field = parse_field("person", source)
        assert field.is_column
        assert field.columns == (source,)


def test_a_template_names_its_columns_once_in_order() -> None:
    """A template of nothing but one column is that column."""
    field = parse_field("composite", "{b}: {a}\nand {b}\n")
    assert field.columns == ("b", "a")
    assert not field.is_column
    assert field.lines[1] == (Part("and ", False), Part("b", True))
    assert len(field.lines) == 2
    assert parse_field("composite", "{b}").is_column


def test_double_braces_are_braces() -> None:
    """As Python writes them."""
    assert parse_field("f", "{{a}} {b}").lines == ((Part("{", False), Part("a}", False), Part(" ", False), Part("b", True)),)


@pytest.mark.parametrize("source", ["{person", "person}", "{a} }", "a {", "x\n{a} {\ny", "{a}}", "{{a}"])
def test_a_lone_brace_is_named_with_its_line_and_the_way_out(source: str) -> None:
    """And not taken for a column of that name."""
    with pytest.raises(ValueError, match=r"'person' has a lone brace in the line '.*'.*write \{\{ or \}\}"):
        parse_field("person", source)


@pytest.mark.parametrize("source", ["{}", "{a:>10}", "{a!r}", "x {} y", "{a}\n{b:d}"])
def test_braces_hold_a_plain_column_name(source: str) -> None:
    """No formats, no conversions, no positions."""
    with pytest.raises(ValueError, match="'person' has braces that hold no plain column name in the line"):
        parse_field("person", source)


@pytest.mark.parametrize("source", ["", " ", "\n", "\t\n "])
def test_nothing_is_no_field(source: str) -> None:
    """With an example of what would be one."""
    with pytest.raises(ValueError, match=r"'person' names no column; give it a column, or a template such as '\{person\}'"):
        parse_field("person", source)


@pytest.mark.parametrize("source", ["{{person}}", "{{", "a\n}}"])
def test_a_template_without_a_column_is_no_field(source: str) -> None:
    """It would give every record the same text."""
    with pytest.raises(ValueError, match=r"the template of the field 'person' names no column in braces, e\.g\. '\{person\}'"):
        parse_field("person", source)


@pytest.mark.parametrize("source", ["a\0b", "{a}\0", "{a\0b}"])
def test_a_source_with_nul_is_refused(source: str) -> None:
    """No column and no text holds one, and SQL ends at it."""
    with pytest.raises(ValueError, match="NUL"):
        parse_field("person", source)


@pytest.mark.parametrize("name", ["", "Person", "1a", "_a", "a-b", "a b", "a:b", "a" * 33, "\u00e9", "a\n", "a/../b", "a\0"])
def test_a_field_name_that_does_not_fit_is_refused(name: str) -> None:
    """Names stand in file names, custom ids and tables: the rule is said."""
    with pytest.raises(ValueError, match="start with a small letter and hold at most 32 small letters, digits and under"):
        parse_field(name, "person")


@pytest.mark.parametrize("name", ["a", "a" * 32, "a1b2c3d4", "a__b", "select", "order"])
def test_a_field_name_that_fits_is_taken(name: str) -> None:
    """Also one that looks like a CRC32, or is a word of SQL."""
    field = parse_field(name, "person")
    assert field.name == name
    assert texts_of(field, [FULL], "csv")[0] == ["x"]


@pytest.mark.parametrize(("text", "is_blank"), [("", True), (" \t", True), ("\u3000", True), ("Bach", False), (" Bach", False)])
def test_whether_a_text_is_blank_is_always_said(text: str, is_blank: bool) -> None:
    """Never NULL, which would be neither blank nor not blank to whoever asks for the others."""
    with duckdb.connect() as duck:
        assert duck.execute(f"SELECT {blank_sql('text')} FROM (SELECT ? AS text)", [text]).fetchone() == (is_blank,)
