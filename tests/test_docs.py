"""The docs say what the code does: commands, keys, file tree, printed output, versions and pins."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest

from pipeline.commands import batch_manager
from pipeline.commands.main import INTERRUPTED, main, parser
from pipeline.commands.standing import EXIT_CODES
from pipeline.config.render import render_config
from pipeline.errors import LockedError, NamesakeError, UserError
from pipeline.local_service import model
from pipeline.provider import service
from pipeline.stages import STAGES
from tests.docs import README, ROOT, between, expected_readme

TEXT = README.read_text(encoding="utf-8")


def flags(made: argparse.ArgumentParser) -> set[str]:
    return {flag for action in made._actions for flag in action.option_strings if flag.startswith("--")} - {"--help"}


def test_every_command_is_in_the_readme_table_and_nothing_else_is() -> None:
    _, table, _ = between(TEXT, "## Commands\n", "Exit codes:")
    assert set(re.findall(r"--[a-z][a-z-]+", table)) - {"--download"} == flags(parser())


def test_every_command_of_batch_mode_is_in_its_table() -> None:
    _, table, _ = between(TEXT, "| `python batch_manager.py …` |", "| state of a job |")
    of_all = {"--config", "--set", "--json", "--quiet", "--debug", "--version"}
    assert set(re.findall(r"--[a-z][a-z-]+", table)) - {"--batch-results"} == flags(batch_manager.parser()) - of_all


def test_every_flag_that_the_docs_speak_of_exists() -> None:
    of_others = {
        "--quiet",
        "--write",
        "--port",
        "--help",
        "--detach",
        "--wait",
        "--file",
        "--data",
        "--points",
        "--seed",
        "--dist",
        "--workers",
    }
    readme, _, _ = between(TEXT, "## File tree", "## Licence")  # the tree quotes docstrings, those of the generator too
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    spoken = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme + contributing + changelog))
    assert spoken <= flags(parser()) | flags(batch_manager.parser()) | of_others


def test_every_state_and_its_exit_code_is_in_the_readme() -> None:
    _, table, _ = between(TEXT, "| `python main.py --status --exit-code` |", "All of it is read from the ledger")
    said = {state: int(row.split(",")[0].strip("| ")) for row in table.splitlines() for state in re.findall(r'"(\w+)"[,`|, ]', row)}
    assert {state: code for state, code in said.items() if state != "state"} == EXIT_CODES


def test_every_stage_and_exit_code_is_named() -> None:
    for stage in STAGES:
        assert f"`{stage.name}`" in TEXT
    _, codes, _ = between(TEXT, "Exit codes:", "## Configuration")
    expected = (0, NamesakeError.exit_code, UserError.exit_code, LockedError.exit_code, INTERRUPTED, *EXIT_CODES.values())
    assert set(re.findall(r"\b\d+\b", codes)) == {str(code) for code in expected}


def test_the_key_table_and_the_file_tree_are_those_of_the_code() -> None:
    assert expected_readme(TEXT) == TEXT, "bring it up to date: python -m tests.docs --write"


def test_the_shipped_config_is_the_rendered_one() -> None:
    assert (ROOT / "config.yml").read_text(encoding="utf-8") == render_config({})


def test_the_readme_shows_what_the_first_run_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--set", f"checkpoint_dir={tmp_path / 'checkpoints'}"]) == 0
    printed = capsys.readouterr().out.replace(f"{tmp_path}/", "")
    _, shown, _ = between(TEXT, "<!-- output of main.py on the sample -->\n```\n", "```\n")
    assert printed.splitlines() == shown.splitlines()


def test_the_pins_of_the_project_are_those_of_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    frozen = {line.lower() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()}
    assert {pin.lower() for pin in project["dependencies"]} <= frozen
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if line and not line.startswith(("#", "-r"))]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9A-Za-z.]+", pin) for pin in pins)


def test_the_pipeline_and_the_local_service_agree_about_the_model() -> None:
    assert (service.LOCAL_MODEL, service.LOCAL_DIMENSIONS) == (model.MODEL, model.DIMENSIONS)


def test_every_file_of_code_says_what_it_is_and_stays_readable() -> None:
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), f"{path} has no docstring"
        assert len(text.splitlines()) < 400, f"{path} is too long"


FORBIDDEN = {
    "pickle": re.compile(r"\bpickle\.loads?\b|from pickle|Unpickler|read_pickle|allow_pickle=True"),
    "yaml.load": re.compile(r"\byaml\.(unsafe_|full_)?load\("),
    "eval": re.compile(r"(?<![\w.])(eval|exec)\("),
    "swallowed errors": re.compile(r"except( Exception| BaseException)?:\s*\n?\s*pass\b"),
    "a machine's path": re.compile(r"/(work|home|root|Users)/"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_code_is_free_of(what: str) -> None:
    for folder in ("pipeline", "sample", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found = FORBIDDEN[what].search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found}"
