"""The sample catalogue is what its generator makes, and it holds what the other tests and the first run lean on."""

import csv
import os
import re
import subprocess
import sys
import unicodedata
import zlib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parent.parent / "sample"
BACH = "Bach, Johann Sebastian, 1685-1750"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


@cache
def records() -> list[dict[str, str]]:
    return read(SAMPLE / "records.csv")


@cache
def gold() -> dict[str, str]:
    return {row["id"]: row["identity"] for row in read(SAMPLE / "gold.csv")}


def unique(column: str) -> int:
    return len({row[column] for row in records()})


def generate(out: Path, *arguments: str, hash_seed: str = "0") -> tuple[bytes, bytes]:
    subprocess.run(
        [sys.executable, "-W", "error", str(SAMPLE / "generate.py"), "--out", str(out), *arguments],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return (out / "records.csv").read_bytes(), (out / "gold.csv").read_bytes()


# Two hash seeds: an order taken from a set would differ between them.
@pytest.mark.parametrize("hash_seed", ["1", "4711"])
def test_the_generator_makes_the_committed_files_byte_for_byte(tmp_path: Path, hash_seed: str) -> None:
    made_records, made_gold = generate(tmp_path, hash_seed=hash_seed)
    assert made_records == (SAMPLE / "records.csv").read_bytes()
    assert made_gold == (SAMPLE / "gold.csv").read_bytes()


def test_another_seed_makes_another_catalogue_of_the_length_asked_for(tmp_path: Path) -> None:
    first, gold_of_first = generate(tmp_path / "first", "--seed", "1", "--records", "200")
    again, _ = generate(tmp_path / "again", "--seed", "1", "--records", "200")
    second, _ = generate(tmp_path / "second", "--seed", "2", "--records", "200")
    assert first == again
    assert first != second
    assert len(gold_of_first.splitlines()) == 201


def test_the_file_is_small_utf8_with_lf_line_ends() -> None:
    data = (SAMPLE / "records.csv").read_bytes()
    assert len(data) < 1_600_000
    assert b"\r" not in data
    assert not data.startswith(b"\xef\xbb\xbf")
    assert data.endswith(b"\n")
    data.decode("utf-8", errors="strict")


def test_columns_and_counts() -> None:
    assert list(records()[0]) == ["id", "person", "title", "composite", "roles", "subjects", "provision"]
    assert len(records()) == 3000
    assert 600 <= unique("person") <= 1100
    assert 1200 <= unique("title") <= 2200
    repeated = sum(count - 1 for count in Counter(row["composite"] for row in records()).values())
    assert 24 <= repeated <= 80


def test_ids_are_unique_and_all_in_gold() -> None:
    ids = [row["id"] for row in records()]
    assert len(set(ids)) == len(ids)
    assert list(gold()) == ids
    assert all(re.fullmatch(r"r\d{5}-[ab]", one) for one in ids)
    assert any(one.endswith("-b") for one in ids)
    assert all(gold().values())


def test_a_composite_is_its_columns_and_embeds_newlines() -> None:
    named = (
        ("Contributor", "person"),
        ("Title", "title"),
        ("Roles", "roles"),
        ("Subjects", "subjects"),
        ("Provision information", "provision"),
    )
    for row in records():
        assert row["composite"] == "\n".join(f"{name}: {row[column]}" for name, column in named if row[column].strip())
    assert sum("\n" in row["composite"] for row in records()) == len(records())


@pytest.mark.parametrize("script", ["CYRILLIC", "GREEK", "CJK", "KATAKANA", "ARABIC", "HEBREW", "DEVANAGARI"])
def test_scripts_other_than_latin(script: str) -> None:
    found = {row[column] for row in records() for column in ("person", "title") if _has_script(row[column], script)}
    assert len(found) >= 5


def _has_script(text: str, script: str) -> bool:
    return any(unicodedata.name(char, "").startswith(script) for char in text)


def test_namesakes_share_headings_that_gold_tells_apart() -> None:
    bearers: defaultdict[str, set[str]] = defaultdict(set)
    for row in records():
        bearers[row["person"]].add(gold()[row["id"]])
    shared = {heading for heading, identities in bearers.items() if len(identities) > 1}
    assert {"Schubert, Franz", "Butler, Samuel", "James, Henry"} <= shared
    assert len({frozenset(bearers[heading]) for heading in shared}) >= 12


def test_every_person_in_gold_is_in_the_table_and_every_one_of_the_table_in_gold() -> None:
    table = (SAMPLE / "persons.txt").read_text(encoding="utf-8")
    headings = [line.split(" | ")[0] for line in table.split("\n") if line and line[0] not in "%~=+#!"]
    assert len(headings) == len(set(headings)) >= 120
    invented = {"unnamed", "endoftext-invented", "nemo-invented"}
    assert len(set(gold().values()) - invented) == len(headings)


def test_nobody_in_the_table_died_in_1950_or_later() -> None:
    table = (SAMPLE / "persons.txt").read_text(encoding="utf-8")
    headings = [line.split(" | ")[0] for line in table.split("\n") if line and line[0] not in "%~=+#!"]
    died = [int(found[1]) for heading in headings if (found := re.search(r"-(\d{4})\??$", heading))]
    assert len(died) >= 120
    assert max(died) < 1950


def test_one_heading_occurs_often() -> None:
    assert sum(row["person"] == BACH for row in records()) >= 40


def test_two_titles_have_one_crc32() -> None:
    titles = [row["title"] for row in records()]
    assert titles.count("plumless") == titles.count("buckeroo") == 1
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo") == 0x4DDB0C25


def test_the_edge_rows() -> None:
    people, titles = [row["person"] for row in records()], [row["title"] for row in records()]
    assert "" in titles
    assert any(person and not person.strip() for person in people)
    assert any('"' in title and "," in title and "\n" in title for title in titles)
    assert "<|endoftext|>" in people
    assert any("<|endoftext|>" in title for title in titles)
    assert any(title.startswith("=") for title in titles)
    assert any(person.startswith("=") for person in people)
    assert any("\u2028" in title for title in titles)
    assert any(ord(char) > 0xFFFF for row in records() for char in row["subjects"])
    composed = "Dvo\u0159\u00e1k, Anton\u00edn, 1841-1904"
    assert composed in people
    assert unicodedata.normalize("NFD", composed) in people


def test_the_note_states_the_figures_of_the_file() -> None:
    note = (SAMPLE / "NOTE.md").read_text(encoding="utf-8")
    figures = {
        "records": len(records()),
        "unique persons": unique("person"),
        "unique titles": unique("title"),
        "unique composites": unique("composite"),
        "identities": len(set(gold().values())),
        f"`{BACH}`": sum(row["person"] == BACH for row in records()),
        "bytes of records.csv": (SAMPLE / "records.csv").stat().st_size,
    }
    for name, figure in figures.items():
        assert f"| {name} | {figure:,} |" in note
