"""Strings that share a CRC32 are different strings: embedded, indexed and found, each by itself."""

from __future__ import annotations

import csv
import json
import zlib
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.commands.main import main


def colliding_names(count: int) -> list[str]:
    """The strings among a generated million that share their CRC32 with another one."""
    seen: dict[int, list[int]] = defaultdict(list)
    for number in range(count):
        seen[zlib.crc32(b"Person %d" % (number * 7919))].append(number)
    return [f"Person {number * 7919}" for numbers in seen.values() if len(numbers) > 1 for number in numbers]


def test_strings_of_equal_crc32_are_all_embedded_indexed_and_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["plumless", "buckeroo", *colliding_names(1_000_000)]
    assert len(names) > 100, "a million strings hold about 116 pairs"
    assert len({zlib.crc32(name.encode()) for name in names}) <= len(names) // 2
    with (tmp_path / "names.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows((f"id of {name}", name) for name in names)
    config = tmp_path / "my.yml"
    config.write_text("input: names.csv\nfields: {person: person}\n", encoding="utf-8")
    assert main(["--config", str(config), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["--config", str(config), "--status", "--json"]) == 0
    person = json.loads(capsys.readouterr().out)["fields"]["person"]
    assert (person["embedded"], person["indexed"]) == (len(names), len(names))
    for name in [*names[:12], *names[-12:]]:
        assert main(["--config", str(config), "--search", name, "--top", "1", "--json"]) == 0
        [hit] = json.loads(capsys.readouterr().out)["results"]
        assert (hit["text"], hit["first_record_ids"]) == (name, [f"id of {name}"])
