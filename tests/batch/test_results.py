"""Result files: the same harvest with one process or several, and each line taken for what it is."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.batch.lines import cut, lines_of
from pipeline.batch.results import Harvest, Wanted, read_results
from pipeline.identity import custom_id

DIMENSIONS = 4


def vector_of(row: int) -> NDArray[np.float32]:
    return np.array([row + 1, -row, 0.25, 1e-7], np.float32)


def name_of(row: int) -> str:
    return custom_id("title", row, f"text {row}")


def line(row: int, embedding: Any, **more: Any) -> dict[str, Any]:
    body = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": embedding}], "usage": {"total_tokens": 3}}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "x", "custom_id": name_of(row), "response": response, "error": None, **more}


def as_text(row: int) -> list[float]:
    return [float(value) for value in vector_of(row)]


def as_base64(row: int) -> str:
    return base64.b64encode(vector_of(row).tobytes()).decode()


def refused(row: int, status: int, code: str) -> dict[str, Any]:
    body = {"error": {"code": code, "message": f"about {row}"}}
    return line(row, None, response={"status_code": status, "body": body})


def wanted(rows: int) -> Callable[[], Wanted]:
    return lambda: {name_of(row): ("title", row) for row in range(rows)}


def write(path: Path, lines: list[dict[str, Any] | bytes]) -> Path:
    path.write_bytes(b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines))
    return path


def shown(harvest: Harvest) -> tuple[Any, ...]:
    """All of it, with the vectors instead of their places."""
    vectors = {key: harvest.vectors([key])[0].tolist() for key in harvest.slots}
    return harvest.dimensions, vectors, harvest.failed, harvest.again, harvest.tokens, harvest.unknown


KINDS = st.sampled_from(["text", "base64", "other", "bad", "refused", "later", "expired", "unknown", "noise"])


def made(kind: str, row: int) -> dict[str, Any] | bytes:
    lines: dict[str, dict[str, Any] | bytes] = {
        "text": line(row, as_text(row)),
        "base64": line(row, as_base64(row)),
        "other": line(row, as_text(row + 1)),
        "bad": line(row, [0.0] * DIMENSIONS),
        "refused": refused(row, 400, "bad_input"),
        "later": refused(row, 500, "server_error"),
        "expired": line(row, None, response=None, error={"code": "batch_expired", "message": "too late"}),
        "unknown": line(row + 1000, as_text(row)),
        "noise": b"\xe2\x80\xa8 no JSON\n",
    }
    return lines[kind]


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.tuples(KINDS, st.integers(0, 3)), max_size=12), cuts=st.integers(1, 5), end=st.booleans())
def test_cut_anywhere_the_lines_are_the_same(lines: list[tuple[str, int]], cuts: int, end: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "a.jsonl", [made(kind, row) for kind, row in lines])
        if not end:
            path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        whole = list(lines_of(path, 0, path.stat().st_size))
        pieces = list(cut(path, max(1, path.stat().st_size // cuts)))
        assert [one for start, stop in pieces for one in lines_of(path, start, stop)] == whole
        assert len(pieces) <= cuts + 1


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    kinds = ["text", "base64", "bad", "refused", "later", "expired", "unknown", "noise", "other"]
    lines = [made(kinds[number % len(kinds)], number % 390) for number in range(400)]
    path = write(tmp_path / "a.jsonl", lines)
    piece = path.stat().st_size // 4
    alone = read_results([path], wanted(390), DIMENSIONS, tmp_path / "alone", cores=1, piece_bytes=1 << 30)
    together = read_results([path], wanted(390), DIMENSIONS, tmp_path / "together", cores=3, piece_bytes=piece)
    assert (len(alone.scratch), len(together.scratch)) == (1, 4)
    assert shown(together) == shown(alone)
    assert alone.slots
    assert alone.failed
    assert alone.again
    assert alone.unknown


def test_each_line_is_taken_for_what_it_is(tmp_path: Path) -> None:
    lines = [made("text", 0), made("base64", 1), made("refused", 2), made("later", 3), made("expired", 4), made("bad", 5)]
    found = read_results([write(tmp_path / "a.jsonl", lines)], wanted(7), 0, tmp_path / "s")
    assert found.dimensions == DIMENSIONS
    assert np.array_equal(found.vectors([("title", 1), ("title", 0)]), np.stack([vector_of(1), vector_of(0)]))
    assert found.failed == {("title", 2): ("bad_input", "400: about 2")}
    assert found.again == {
        ("title", 3): ("server_error: about 3", True),
        ("title", 4): ("batch_expired: too late", False),
        ("title", 5): ("bad vector: a vector of zeros only", True),
    }
    assert (found.tokens, found.unknown) == (9, 0)


@pytest.mark.parametrize(
    ("kinds", "vector", "failed", "again"),
    [
        (["text", "base64"], True, False, False),
        (["text", "other"], True, True, False),
        (["bad", "text"], True, False, False),
        (["text", "bad"], True, False, False),
        (["text", "refused"], True, False, False),
        (["refused", "base64"], True, False, False),
    ],
)
def test_a_row_that_stands_twice(tmp_path: Path, kinds: list[str], vector: bool, failed: bool, again: bool) -> None:
    path = write(tmp_path / "a.jsonl", [made(kind, 2) for kind in kinds])
    found = read_results([path], wanted(3), DIMENSIONS, tmp_path / "s")
    key = ("title", 2)
    assert (key in found.slots, key in found.failed, key in found.again) == (vector, failed, again)
    assert np.array_equal(found.vectors([key])[0], vector_of(2))


@pytest.mark.parametrize(
    "embedding", ["[1.0, NaN, 0.0, 1.0]", "[1.0, Infinity, 0.0, 1.0]", "[1e39, 1, 1, 1]", "[true, 1, 1, 1]", '"AA"']
)
def test_a_vector_that_is_none_costs_its_own_row(tmp_path: Path, embedding: str) -> None:
    odd = json.dumps(line(0, "HERE")).replace('"HERE"', embedding).encode() + b"\n"
    found = read_results([write(tmp_path / "a.jsonl", [odd, made("text", 1)])], wanted(2), DIMENSIONS, tmp_path / "s")
    assert list(found.slots) == [("title", 1)]
    assert found.again[("title", 0)][0].startswith("bad vector")
