"""Names of strings: the UUID is the key, CRC32 only a label, and `custom_id` reads back to what it was made of."""

from __future__ import annotations

import uuid
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weaviate.util import generate_uuid5

from pipeline.fields import parse_field
from pipeline.identity import FIELD_NAME, CustomId, crc32_of, custom_id, name_of, parse_custom_id, uuid_of
from pipeline.tables.duck import connect, uuid_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

UNHURRIED = settings(deadline=None)  # the machine may be busy
FIELDS = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def duck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = connect(tmp_path_factory.mktemp("scratch"), 0.5)
    yield connection
    connection.close()


@UNHURRIED
@given(FIELDS, TEXTS)
def test_the_uuid_is_what_weaviate_would_make(field: str, text: str) -> None:
    """An index filled by anybody who follows the documented rule has the same keys."""
    assert str(uuid_of(field, text)) == generate_uuid5(name_of(field, text))


@UNHURRIED
@given(FIELDS, st.lists(TEXTS, min_size=1, max_size=20))
@example("person", ["it's", "a:b", ":", "", '"', "''", "\\", "%s", "{x}", "\U0001f3b5", "e\u0301", "\u00e9", "\u2028", "\ufeff"])
def test_the_uuid_in_sql_is_the_same(duck: duckdb.DuckDBPyConnection, field: str, texts: list[str]) -> None:
    """DuckDB computes the key of millions of strings; Python must agree on each, whatever is in it."""
    query = f"SELECT {uuid_sql(field, 'text')} FROM (SELECT unnest(?::VARCHAR[]) AS text)"
    assert [row[0] for row in duck.execute(query, [texts]).fetchall()] == [uuid_of(field, text) for text in texts]


@UNHURRIED
@given(FIELDS, st.integers(0, 10**18 - 1), TEXTS)
@example("a1b2c3d4_0", 0, "")
@example("deadbeef", 7, "x")
@example("f_00_1", 12, "x")
@example("a_", 0, "x")
def test_a_custom_id_reads_back(field: str, index: int, text: str) -> None:
    """Field names with underscores, digits, or the looks of a CRC32 are read from both ends without a doubt."""
    name = custom_id(field, index, text)
    found = parse_custom_id(name)
    assert found == CustomId(f"{zlib.crc32(text.encode()):08x}", field, index)
    assert str(found) == name


def test_a_custom_id_looks_as_documented() -> None:
    """`{crc32}_{field}_{index}`, with leading zeros of the CRC32 kept."""
    assert custom_id("composite", 0, "hello") == "3610a686_composite_0"
    assert crc32_of("") == "00000000"


@pytest.mark.parametrize(
    "name",
    [
        "", "a1b2c3d4", "a1b2c3d4_person", "a1b2c3d4_person_", "a1b2c3d4__0", "a1b2c3d4_person_-1", "a1b2c3d4_person_01",
        "a1b2c3d4_person_1 ", " a1b2c3d4_person_1", "a1b2c3d4_person_1\n", "A1B2C3D4_person_1", "a1b2c3d_person_1",
        "a1b2c3d4_Person_1", "a1b2c3d4_1person_1", "a1b2c3d4_per-son_1", "a1b2c3d4_person_\u0661", "a1b2c3d4_person_1\0",
        "../../etc/passwd", "a1b2c3d4_../../x_1", f"a1b2c3d4_{'p' * 33}_1", f"a1b2c3d4_person_{10**18}", "x" * 300,
    ],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_none(name: str) -> None:
    """What a service answers is never trusted as a name: not quite ours is not ours."""
    assert parse_custom_id(name) is None


@UNHURRIED
@given(st.text())
def test_whatever_is_parsed_is_what_it_says(name: str) -> None:
    """A parsed name has one spelling only: no two names mean the same string."""
    found = parse_custom_id(name)
    assert found is None or str(found) == name


@UNHURRIED
@given(st.text(max_size=40))
def test_field_names_hold_no_colon_and_are_ascii(name: str) -> None:
    """This is what makes `field:text` unambiguous; a config can't bring in another kind of name."""
    try:
        parse_field(name, "column")
    except ValueError:
        return
    assert FIELD_NAME.fullmatch(name)
    assert ":" not in name
    assert name.isascii()


def test_two_texts_that_share_a_crc32_are_two_strings() -> None:
    """At 31 million strings about 112,000 pairs share one: none may be dropped."""
    assert crc32_of("plumless") == crc32_of("buckeroo")
    assert uuid_of("person", "plumless") != uuid_of("person", "buckeroo")
    assert custom_id("person", 1, "plumless") != custom_id("person", 2, "buckeroo")


@UNHURRIED
@given(FIELDS, FIELDS, TEXTS, TEXTS)
@example("a", "b", "x", "x")
@example("a", "a", "b:x", "x")
def test_another_field_or_another_text_is_another_string(field: str, other: str, text: str, words: str) -> None:
    """The same text in two fields is two strings, and no text can pretend to be in another field."""
    assert (uuid_of(field, text) == uuid_of(other, words)) == ((field, text) == (other, words))


def test_a_uuid_is_of_version_5() -> None:
    """It is a name-based UUID in the namespace that Weaviate's helper uses."""
    assert uuid_of("title", "Selections") == uuid.uuid5(uuid.NAMESPACE_DNS, "title:Selections")
    assert uuid_of("title", "Selections").version == 5
