"""The quick reading of CSV gives what the strict one gives, or leaves the rest to it: never other rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.reading import Reader, Rejected, Source, delimited, quick

Row = tuple[int, tuple[str | None, ...]]
Read = tuple[list[Row], list[Rejected], str]
CELLS = st.one_of(
    st.text("ab ,\"\n\ré\u2028'", max_size=5),
    st.sampled_from(["", '""', '"a"', '"a,b"', '"a""b"', '"a\nb"', 'a"b', '"a"b', ' "a"', '"', "x" * 40]),
)
LINES = st.lists(CELLS, min_size=1, max_size=4).map(",".join)
FILES = st.lists(LINES, max_size=12).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n"]).map(lambda end: end.join(["a,b", *lines]))
)
PLAIN_CELL = st.text("ab \",é'\n", max_size=5).map(lambda text: '"' + text.replace('"', '""') + '"')
PLAIN_FILES = st.lists(st.tuples(PLAIN_CELL, st.text("ab é", max_size=9)), max_size=40).map(
    lambda rows: "".join(f"{line}\n" for line in ["a,b", *(",".join(row) for row in rows)])
)


def source_of(folder: Path, content: str | bytes) -> Source:
    path = folder / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source(path, "a.csv", "csv")


def read(source: Source, *, quickly: int = 0) -> Read:
    """Every row with its line, what was rejected, and what stopped the reading; `quickly`: with blocks of so many bytes."""
    rejected: list[Rejected] = []
    reader = Reader(("a", "b"), {"a": "x", "b": "x"}, "utf-8", None, rejected.append)
    rows: list[Row] = []
    try:
        opened = delimited.open_(source, reader)
        place = opened.rows if quickly else None
        if place is not None:
            layout = quick.Layout(opened.delimiter, opened.width, opened.wanted)
            for batch in quick.read(source.path, layout, place, quickly):
                rows += [(number, tuple(cells)) for number, *cells in zip(*(one.to_pylist() for one in batch.columns), strict=True)]
        rows += [(number, tuple(cells)) for number, cells in delimited.read(source, reader, opened, place)]
    except InputError as problem:
        return [], rejected, str(problem)
    return rows, rejected, ""


@settings(max_examples=400, deadline=None)
@given(content=st.one_of(FILES, PLAIN_FILES), block=st.sampled_from([7, 30, 1 << 20]))
@example(content='a,b\n1,"x\n2,y"\n', block=1 << 20)
@example(content="a,b\n1,x\n\n2,y\n", block=1 << 20)
@example(content="a,b\n1,x\r\n2,y\n", block=1 << 20)
@example(content='a,b\n1,""x""\n', block=1 << 20)
@example(content='a,b\n1,"x"",\n2,"y\n', block=1 << 20)
def test_quickly_or_strictly_the_rows_are_the_same(content: str, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(Path(folder), content)
        assert read(source, quickly=block) == read(source)


@pytest.mark.parametrize("bad", [b"\xff", "é".encode()[:1], b"\0"], ids=["no utf-8", "half a letter", "NUL"])
def test_bytes_that_are_not_text_are_for_the_strict_reader_wherever_they_stand(tmp_path: Path, bad: bytes) -> None:
    """Also in a column that nobody asked for."""
    source = source_of(tmp_path, b"a,b,c\n" + b"1,x,y\n" * 50 + b"2,x," + bad + b"\n" + b"3,x,y\n")
    assert read(source, quickly=40) == read(source)


PLAIN = b'1,"Bach, ""J. S."""\n2,\xc3\xa9\n3,"two\n\nlines"\n'


def test_what_is_plain_is_read_quickly(tmp_path: Path) -> None:
    """Else the tests above would compare the strict reader with itself."""
    source = source_of(tmp_path, b"a,b\n" + PLAIN * 1000 + b'3,"odd"ly\n' + PLAIN)
    place = quick.Place(4, 1)
    rows = sum(batch.num_rows for batch in quick.read(source.path, quick.Layout(",", 2, (0, 1)), place, 1000))
    assert 2900 < rows <= 3000
    assert 4 < place.at <= 4 + len(PLAIN) * 1000
    assert place.lines == 1 + source.path.read_bytes()[4 : place.at].count(b"\n")


@pytest.mark.parametrize(
    ("block", "before"),
    [
        (b"1,x\n2,y\n", [0, 1]),
        (b"1,x\n2,y", [0, 1]),
        (b"1,x\r\n2,y\r\n", [0, 1]),
        (b'"1","x"\n', [0]),
        (b'"","a""b"\n', [0]),
        (b'"a,b",""""\n', [0]),
        (b'1,"x\ny"\n2,z\n', [0, 2]),
        (b'1,"x\n\ny"\n2,z', [0, 3]),
        (b'1,"x\ny"\r\n2,z\r\n', [0, 2]),
        (b'1,"x\r\ny"\n2,z\n', [0, 2]),
        (b"1,x\r\n2,y\n", None),
        (b"1,x\r2,y\r", None),
        (b'1,"x\ry"\n', None),
        (b"1,x\n\n2,y\n", None),
        (b"\n1,x\n", None),
        (b'1,x"y"\n', None),
        (b'1, "x"\n', None),
        (b'1,"x" \n', None),
        (b'1,"x\n', None),
        (b'1,x""\n', None),
        (b"1,\0\n", None),
    ],
)
def test_what_leaves_no_doubt(block: bytes, before: list[int] | None) -> None:
    found = quick.rows_of(block, ",")
    assert before == (None if found is None else found.before.tolist())
    assert found is None or found.lines == block.count(b"\n") + (not block.endswith(b"\n"))
