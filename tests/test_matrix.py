"""`tests/README.md` says which fault is tested where; each test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROWS = [
    line for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "---" not in line
]
FAULTS = [line for line in ROWS if line.split(" | ")[1].strip(" |") != "test"]
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def functions_of(path: Path) -> set[str]:
    """The tests of a file, those of its classes too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_each_fault_names_tests_that_exist(row: str) -> None:
    named = NAMED.findall(row)
    assert named, "a fault without a test belongs to the list at the end"
    assert row.count("::") == len(named), "a name that is not written as `folder/file.py::test`"
    for file, name in named:
        assert name in functions_of(HERE / file), f"{file} has no {name}"


def test_no_fault_stands_twice() -> None:
    faults = [row.split(" | ")[0] for row in FAULTS]
    assert len(set(faults)) == len(faults) > 50
