"""The list of texts that `--forget-text` is given.

    texts.txt     one text a line; a line ends with a newline, or with carriage return and newline
    texts.jsonl   {"text": "…", "field": "person"} a line; without a field, in every field
    texts.csv     a header with `text`, and `field` if wanted

A text is taken letter by letter, spaces included. One that holds a newline needs JSON Lines or CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.forgetting import Wish


def read_list(path: Path, fields: list[str]) -> list[Wish]:
    """Each wish once, in the order of the file."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise UsageError(f"{path}: {problem.strerror}. --forget-text needs a file with the texts to forget.") from problem
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path} is not UTF-8 ({problem.reason} at byte {problem.start}).") from problem
    read = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv}.get(path.suffix.lower(), _lines)
    wishes = list(dict.fromkeys(wish for wish in read(path, content) if wish.text))
    if not wishes:
        raise UsageError(f"{path} holds no text.")
    for wish in wishes:
        if wish.field is not None and wish.field not in fields:
            raise UsageError(f"{path}: there is no field {wish.field!r}; the catalogue has {', '.join(fields)}.")
    return wishes


def _lines(_path: Path, content: str) -> Iterator[Wish]:
    return (Wish(line.removesuffix("\r")) for line in content.split("\n"))


def _jsonl(path: Path, content: str) -> Iterator[Wish]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as problem:
            raise UsageError(f"{path} line {number} is no JSON: {problem}.") from problem
        text, field = (said.get("text"), said.get("field")) if isinstance(said, dict) else (None, None)
        if not isinstance(text, str) or not (field is None or isinstance(field, str)):
            raise UsageError(f'{path} line {number}: {{"text": "…"}} is needed, or {{"text": "…", "field": "person"}}.')
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"{path} line {number}: a lone surrogate is no text, and no string of the catalogue has one.")
        yield Wish(text, field)


def _csv(path: Path, content: str) -> Iterator[Wish]:
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        if "text" not in (rows.fieldnames or ()):
            raise UsageError(f"{path}: the first line must name the column text, and field if wanted.")
        for row in rows:
            yield Wish(row["text"] or "", row.get("field") or None)
    except csv.Error as problem:
        raise UsageError(f"{path} near line {rows.line_num}: {problem}.") from problem
