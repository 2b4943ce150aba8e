"""Reading the input: every cell as it was written, whatever the format, the encoding and the line ends."""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import decimal
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.reading import Reader, Rejected, find_sources, fingerprint_of, read_rows
from pipeline.reading.rows import BATCH_ROWS

Rows = list[tuple[str | None, ...]]
COLUMNS = ("id", "person", "title")


def read(
    folder: Path,
    wanted: str,
    columns: Sequence[str] = COLUMNS,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    rejected: list[Rejected] | None = None,
) -> Rows:
    """The cells of every row of the input, in order; a bad row fails the test unless it is asked for."""
    return [cells for _, cells in numbered(folder, wanted, columns, encoding=encoding, delimiter=delimiter, rejected=rejected)]


def numbered(
    folder: Path,
    wanted: str,
    columns: Sequence[str] = COLUMNS,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    rejected: list[Rejected] | None = None,
) -> list[tuple[int, tuple[str | None, ...]]]:
    """The same with the number of each row."""
    bad: list[Rejected] = [] if rejected is None else rejected
    reader = Reader(tuple(columns), dict.fromkeys(columns, "fields.test"), encoding, delimiter, bad.append)
    rows: list[tuple[int, tuple[str | None, ...]]] = []
    for source in find_sources(folder, wanted):
        for batch in read_rows(source, reader):
            assert batch.schema.names == ["row", *(f"c{place}" for place in range(len(columns)))]
            rows += [
                (number, tuple(cells)) for number, *cells in zip(*(column.to_pylist() for column in batch.columns), strict=True)
            ]
    assert rejected is not None or not bad
    return rows


def table(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# CSV and TSV


def test_newlines_quotes_and_delimiters_inside_quotes(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", 'id,person,title\n1,"Bach, J. S.","The ""Little""\nFugue\r\nin G\rminor"\n2,,""\n')
    assert numbered(tmp_path, "a.csv") == [
        (2, ("1", "Bach, J. S.", 'The "Little"\nFugue\r\nin G\rminor')),
        (6, ("2", "", "")),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_of_every_system(tmp_path: Path, end: str, last: bool) -> None:
    table(tmp_path / "a.csv", end.join(["id,person,title", "1,Bach,Fugue", "2,Telemann,Suite"]) + (end if last else ""))
    assert numbered(tmp_path, "a.csv") == [(2, ("1", "Bach", "Fugue")), (3, ("2", "Telemann", "Suite"))]


def test_line_ends_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", 'id,person,title\r\n1,Bach,Fugue\n2,Telemann,Suite\r3,"a\rb",c\r\n4,d,e')
    assert numbered(tmp_path, "a.csv") == [
        (2, ("1", "Bach", "Fugue")),
        (3, ("2", "Telemann", "Suite")),
        (4, ("3", "a\rb", "c")),
        (6, ("4", "d", "e")),
    ]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\v", "\f", "\x1c", "\x1d", "\x1e"])
def test_only_line_ends_end_a_line(tmp_path: Path, separator: str) -> None:
    table(tmp_path / "a.csv", f"id,person,title\n1,a{separator}b,{separator}\n2,c,d\n")
    assert numbered(tmp_path, "a.csv") == [(2, ("1", f"a{separator}b", separator)), (3, ("2", "c", "d"))]
    table(tmp_path / "a.jsonl", json.dumps({"id": "1", "person": f"a{separator}b", "title": separator}, ensure_ascii=False))
    assert read(tmp_path, "a.jsonl") == [("1", f"a{separator}b", separator)]


TEXT = "id,person,title\n1,Händel,Μουσική 音楽 🎻\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("configured", ["utf-8", "cp1252"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_part_of_the_header(
    tmp_path: Path, mark: bytes, encoding: str, configured: str
) -> None:
    table(tmp_path / "a.csv", mark + TEXT.encode(encoding))
    assert read(tmp_path, "a.csv", encoding=configured) == [("1", "Händel", "Μουσική 音楽 🎻")]


@pytest.mark.parametrize(
    ("encoding", "person"),
    [
        ("cp1252", "Händel – “Messiah” €"),
        ("iso8859-1", "Händel"),
        ("utf-16-le", "Händel 音楽"),
        ("shift_jis", "音楽"),
        ("koi8-r", "Бах"),
    ],
)
def test_an_encoding_by_its_key(tmp_path: Path, encoding: str, person: str) -> None:
    table(tmp_path / "a.csv", f"id,person,title\n1,{person},x\n".encode(encoding))
    assert read(tmp_path, "a.csv", encoding=encoding) == [("1", person, "x")]


@pytest.mark.parametrize(
    ("name", "delimiter", "separator"),
    [
        ("a.csv", ";", ";"),
        ("a.csv", "\t", "\t"),
        ("a.tsv", None, "\t"),
        ("a.tsv", ";", ";"),
        ("a.csv", "|", "|"),
        ("a.csv", None, ","),
    ],
)
def test_delimiters(tmp_path: Path, name: str, delimiter: str | None, separator: str) -> None:
    others = "".join(character for character in ",;\t|" if character != separator)
    lines = [COLUMNS, ("1", f'"x{separator}y"', others), ("2", others, "z")]
    table(tmp_path / name, "".join(separator.join(line) + "\n" for line in lines))
    assert read(tmp_path, name, delimiter=delimiter) == [("1", f"x{separator}y", others), ("2", others, "z")]


def test_columns_are_found_by_name_and_others_are_passed_over(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "x,title,y,id,person,y\n-,Fugue,-,1,Bach,-\n")
    assert read(tmp_path, "a.csv") == [("1", "Bach", "Fugue")]
    assert read(tmp_path, "a.csv", ["id"]) == [("1",)]
    with pytest.raises(InputError, match=r"the column 'y', which fields\.test names, stands 2 times in the header"):
        read(tmp_path, "a.csv", ["id", "y"])


def test_cells_are_texts_as_they_stand(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "id,person,title\n007,NULL, 1.50 \n1e3,NaN,true\n")
    assert read(tmp_path, "a.csv") == [("007", "NULL", " 1.50 "), ("1e3", "NaN", "true")]


def test_more_rows_than_a_batch_come_in_order_and_none_is_lost(tmp_path: Path) -> None:
    count = 2 * BATCH_ROWS + 1
    table(tmp_path / "a.csv", "id,person,title\n" + "".join(f"{number},p,t\n" for number in range(count)))
    assert [number for number, _ in numbered(tmp_path, "a.csv")] == list(range(2, count + 2))
    assert [cells[0] for cells in read(tmp_path, "a.csv")] == [str(number) for number in range(count)]


@pytest.mark.parametrize(
    ("before", "mark"), [(b"", b""), (b"", codecs.BOM_UTF8), ("ü".encode() * 700_000, b""), (b"x" * 1_048_575, codecs.BOM_UTF8)]
)
def test_the_byte_that_does_not_fit_is_named(tmp_path: Path, before: bytes, mark: bytes) -> None:
    start = mark + b"id,person,title\n1," + before
    table(tmp_path / "a.csv", start + b"H\xe4ndel,Messiah\n")
    with pytest.raises(InputError, match=rf"^a\.csv: not utf-8.* at byte {len(start) + 1:,} \(0xe4\)\. Set input_encoding"):
        read(tmp_path, "a.csv")


def test_a_byte_that_an_older_encoding_does_not_know_is_named_too(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", b"id,person,title\n1,H\x81ndel,x\n")
    with pytest.raises(InputError, match=r"not cp1252 at byte 19 \(0x81\)"):
        read(tmp_path, "a.csv", encoding="cp1252")


def test_a_character_cut_off_at_the_end_is_found(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", b"id,person,title\n1,Bach,\xe9\x9f")
    with pytest.raises(InputError, match=r"not utf-8 at byte 23 \(0xe9\)"):
        read(tmp_path, "a.csv")


# JSON Lines


def test_json_values_become_texts(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "person": None, "title": "x"},
        {"title": "no person", "id": "2"},
        {"id": "3", "person": ["Bach", None, "", 7, True], "title": []},
        {"id": 4, "person": 1.5, "title": True, "other": {"deep": [[1]]}},
        {"id": "5", "person": "", "title": -0.0},
    ]
    table(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path, "a.jsonl") == [
        ("1", None, "x"),
        ("2", None, "no person"),
        ("3", "Bach; 7; true", ""),
        ("4", "1.5", "true"),
        ("5", "", "-0.0"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_with_a_mark_blank_lines_and_no_last_end(tmp_path: Path, name: str, end: str) -> None:
    first, second = ({"id": str(number), "person": "Händel", "title": "x"} for number in (1, 2))
    lines = ["", json.dumps(first, ensure_ascii=False), "  ", json.dumps(second)]
    table(tmp_path / name, codecs.BOM_UTF8 + end.join(lines).encode())
    assert numbered(tmp_path, name) == [(2, ("1", "Händel", "x")), (4, ("2", "Händel", "x"))]


def test_a_mark_before_the_first_object_is_no_part_of_it(tmp_path: Path) -> None:
    table(tmp_path / "a.jsonl", codecs.BOM_UTF8 + b'{"id": "1", "person": "Bach", "title": "x"}')
    assert read(tmp_path, "a.jsonl") == [("1", "Bach", "x")]


def test_a_key_may_be_missing_from_rows_but_not_from_the_file(tmp_path: Path) -> None:
    table(tmp_path / "a.jsonl", '{"id": "1", "titel": "x"}\n{"id": "2", "person": "Bach"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: there is no column 'title', .* Did you mean 'titel'\?"):
        read(tmp_path, "a.jsonl")


def test_json_lines_of_another_encoding_name_line_and_byte(tmp_path: Path) -> None:
    table(tmp_path / "a.jsonl", b'{"id": "1", "person": "a", "title": "b"}\n{"id": "H\xe4ndel"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: line 2 is not UTF-8 at its byte 9"):
        read(tmp_path, "a.jsonl")


# Parquet


def test_parquet_values_become_texts(tmp_path: Path) -> None:
    columns = {
        "id": pa.array([1, 2, 3], pa.int64()),
        "person": pa.array(["Bach", None, "Händel 🎻\n"]),
        "title": pa.array([dt.date(1685, 3, 31), None, dt.date(1750, 7, 28)]),
        "when": pa.array(["1999-12-31T23:59:00", None, None]).cast(pa.timestamp("s")),
        "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.00")]),
        "flag": pa.array([True, False, None]),
        "nothing": pa.nulls(3),
        "large": pa.array(["a", "b", None], pa.large_string()),
        "coded": pa.array(["x", "y", "x"]).dictionary_encode(),
        "unused": pa.array([[1], [2], [3]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert numbered(tmp_path, "a.parquet", [name for name in columns if name != "unused"]) == [
        (1, ("1", "Bach", "1685-03-31", "1999-12-31 23:59:00.000", "1.50", "true", None, "a", "x")),
        (2, ("2", None, None, None, None, "false", None, "b", "y")),
        (3, ("3", "Händel 🎻\n", "1750-07-28", None, "-2.00", None, None, None, "x")),
    ]


@pytest.mark.parametrize(
    "values", [pa.array([["a", "b"]]), pa.array([{"first": "a"}]), pa.array([b"\xff"]), pa.array([b"\xff"], pa.large_binary())]
)
def test_a_parquet_column_that_is_no_text_number_or_date_is_refused(tmp_path: Path, values: object) -> None:
    pq.write_table(pa.table({"id": pa.array(["1"]), "person": values, "title": pa.array(["x"])}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: the column 'person' is .*; only texts, numbers and dates can be read"):
        read(tmp_path, "a.parquet")


def test_a_parquet_column_that_is_missing_or_stands_twice_is_named(tmp_path: Path) -> None:
    values = pa.array(["1"])
    pq.write_table(pa.table({"id": values, "persn": values, "title": values}), tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"a\.parquet: there is no column 'person', which fields\.test names\. Did you mean 'persn'\?"
    ):
        read(tmp_path, "a.parquet")
    pq.write_table(pa.Table.from_arrays([values] * 4, ["id", "person", "title", "person"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: the column 'person', which fields\.test names, stands 2 times"):
        read(tmp_path, "a.parquet")


def test_a_parquet_column_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "dc.title": ["x"], "dc": ["y"]}), tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet", ["id", "dc.title"]) == [("1", "x")]
    assert read(tmp_path, "a.parquet", ["id", "dc"]) == [("1", "y")]


def test_a_parquet_text_that_is_no_utf_8_stops(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"H\xe4ndel"]).buffers())
    pq.write_table(pa.table({"id": ["1"], "person": broken, "title": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .*(UTF-?8|utf-?8)"):
        read(tmp_path, "a.parquet")


def test_a_broken_parquet_file_stops(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "person": ["Bach"], "title": ["x"]}), tmp_path / "a.parquet")
    table(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.parquet: this Parquet file can't be read: "):
        read(tmp_path, "a.parquet")


# Which files


def three_formats(folder: Path) -> None:
    folder.mkdir()
    table(folder / "1.csv", "id,person,title\n1,Bach,Fugue\n")
    table(folder / "2.tsv", "title\tid\tperson\nSuite\t2\tTelemann\n")
    table(folder / "3.jsonl", '{"title": "Messiah", "person": "Händel", "id": 3}\n')
    pq.write_table(pa.table({"person": ["Finck"], "title": ["Lied"], "id": ["4"]}), folder / "4.parquet")
    table(folder / "5.CSV", "person,id,title,more\nIsaac,5,Motet,x\n")


ALL = [
    ("1", "Bach", "Fugue"),
    ("2", "Telemann", "Suite"),
    ("3", "Händel", "Messiah"),
    ("4", "Finck", "Lied"),
    ("5", "Isaac", "Motet"),
]


def test_a_folder_of_all_formats_each_with_its_own_order_of_columns(tmp_path: Path) -> None:
    three_formats(tmp_path / "in")
    table(tmp_path / "in" / "README.txt", "not read")
    table(tmp_path / "in" / ".hidden.csv", "not,read\n")
    (tmp_path / "in" / "below.csv").mkdir()
    assert read(tmp_path, "in") == ALL
    assert read(tmp_path, str(tmp_path / "in")) == ALL
    assert [source.name for source in find_sources(tmp_path, "in")] == [
        "in/1.csv",
        "in/2.tsv",
        "in/3.jsonl",
        "in/4.parquet",
        "in/5.CSV",
    ]


def test_one_file_or_a_glob(tmp_path: Path) -> None:
    three_formats(tmp_path / "in")
    assert read(tmp_path, "in/2.tsv") == ALL[1:2]
    assert read(tmp_path, "in/[13].*") == [ALL[0], ALL[2]]
    assert read(tmp_path, "**/*.csv") == ALL[:1]
    assert read(tmp_path, str(tmp_path / "in" / "?.*")) == ALL


def test_a_name_with_glob_characters_that_is_there_is_a_name(tmp_path: Path) -> None:
    table(tmp_path / "a[1].csv", "id,person,title\n1,Bach,Fugue\n")
    table(tmp_path / "a1.csv", "id,person,title\n2,Telemann,Suite\n")
    assert read(tmp_path, "a[1].csv") == ALL[:1]


def test_the_order_is_that_of_the_names_not_of_the_disk(tmp_path: Path) -> None:
    for name in ("c.csv", "a.csv", "b.csv"):
        table(tmp_path / name, f"id,person,title\n{name},p,t\n")
    assert [row[0] for row in read(tmp_path, "*.csv")] == ["a.csv", "b.csv", "c.csv"]


def test_the_fingerprint_follows_every_change_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table(tmp_path / "in" / "a.csv", "id,person,title\n1,Bach,Fugue\n")

    def now() -> str:
        return fingerprint_of(find_sources(tmp_path, "in"))

    seen = [now()]
    assert now() == seen[0]
    table(tmp_path / "in" / "b.csv", "id,person,title\n2,Telemann,Suite\n")
    seen.append(now())
    table(tmp_path / "in" / "b.csv", "id,person,title\n2,Telemann,Suites\n")
    seen.append(now())
    (tmp_path / "in" / "b.csv").rename(tmp_path / "in" / "c.csv")
    seen.append(now())
    assert len(set(seen)) == len(seen)


# Round trips

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TABLES = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=8)
TABLES_WITH_NULLS = st.lists(st.tuples(TEXTS, st.none() | TEXTS, st.none() | TEXTS), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from([",", ";", "\t", "|"]), st.booleans(), st.booleans())
def test_what_the_csv_writer_wrote_is_read_back(rows: Rows, end: str, delimiter: str, all_quoted: bool, marked: bool) -> None:
    text = io.StringIO(newline="")
    # The writer leaves a lone CR or LF bare when the other one is the line end: then all must be quoted.
    quoted = all_quoted or end != "\r\n"
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerows([COLUMNS, *rows])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table(folder / "a.csv", text.getvalue().encode("utf-8-sig" if marked else "utf-8"))
        assert read(folder, "a.csv", delimiter=delimiter) == rows


@settings(max_examples=60, deadline=None)
@given(TABLES_WITH_NULLS, st.booleans())
def test_what_json_wrote_is_read_back(rows: Rows, ascii_only: bool) -> None:
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=ascii_only) for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table(folder / "a.jsonl", "\n".join(lines))
        assert read(folder, "a.jsonl") == rows


@settings(max_examples=60, deadline=None)
@given(TABLES_WITH_NULLS, st.integers(1, 4))
def test_what_pyarrow_wrote_is_read_back(rows: Rows, group: int) -> None:
    columns = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(COLUMNS)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=group)
        assert read(folder, "a.parquet") == rows
