"""What the docs must say, made from the code: `python -m tests.docs --write` brings them up to date.

`tests/test_docs.py` compares; nothing here is imported by the product.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from pipeline.config.keys import KEYS
from pipeline.config.render import render_config

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BESIDE = {
    "config.yml": "the config of the sample; every key with its default",
    "requirements.txt": "what the program runs on, pinned",
    "requirements-dev.txt": "what testing and checking need beside it",
    "pyproject.toml": "the package, and the settings of ruff, mypy, pytest and import-linter",
    "compose.yml": "one Weaviate node in Docker",
    "compose.three-nodes.yml": "three Weaviate nodes in Docker, to try replication",
    ".ci/run": "what must pass before anything lands",
    "pipeline/provider/vocabulary/": "cl100k_base, the vocabulary behind exact token counts",
    "sample/persons.txt": "the table of real persons and works",
    "sample/records.csv": "the sample catalogue",
    "sample/gold.csv": "who each record really means",
    "sample/NOTE.md": "where the sample comes from, and what of it is true",
    "tests/": "see CONTRIBUTING.md",
}
CODE = ("main.py", "batch_manager.py", "pipeline/", "sample/", "benchmarks/")


def keys_table() -> list[str]:
    """A row for each config key."""
    rows = []
    for entry in KEYS:
        default = "`person`, `title`, `composite`" if entry.name == "fields" else f"`{json.dumps(entry.default)}`"
        comment = entry.metadata["comment"].replace("|", "\\|").replace("{", "`{").replace("}", "}`")
        rows.append(f"| `{entry.name}` | {default} | {comment} |")
    return rows


def tree() -> list[str]:
    """A line for each file of code: its path, and the first sentence of its docstring."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = {}
    for name in listed.stdout.decode().splitlines():
        if name.endswith(".py") and name.startswith(CODE):
            lines[name] = _first_sentence(ROOT / name)
    lines.update(BESIDE)
    return [f"{name:<44}{words}" for name, words in sorted(lines.items(), key=lambda line: ("/" in line[0], line[0]))]


def _first_sentence(path: Path) -> str:
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(words.split("\n\n")[0].split())


def between(text: str, start: str, end: str) -> tuple[str, str, str]:
    """The text before a mark's block, the block, and what follows."""
    head, rest = text.split(start, 1)
    body, tail = rest.split(end, 1)
    return head + start, body, end + tail


def expected_readme(text: str) -> str:
    """The README with its two generated parts as the code wants them."""
    head, _, tail = between(text, "| key | default | |\n| --- | --- | --- |\n", "\n\nA path is relative to the config file.")
    text = head + "\n".join(keys_table()) + tail
    head, _, tail = between(text, "## File tree\n\n```\n", "\n```")
    return head + "\n".join(tree()) + tail


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.docs --write")
    README.write_text(expected_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "config.yml").write_text(render_config({}), encoding="utf-8")
