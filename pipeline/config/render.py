"""Writing a commented config: every key with its default and one line of comment.

`python main.py --init my.yml` writes this, and the shipped `config.yml` is this for the sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.config.keys import KEYS, SAMPLE_FIELDS

_HEAD = """# Namesake: the configuration. Every key there is, with its default; delete what you leave as it is.
# A path is relative to this file. `python main.py --dry-run` shows what a run would do and cost.
"""


def render_config(values: Mapping[str, Any]) -> str:
    """The text of a config file: the defaults, with `values` in their place (`fields` as name → source)."""
    lines = [_HEAD]
    for entry in KEYS:
        if entry.metadata["title"]:
            lines.append(f"\n# {entry.metadata['title']}")
        if entry.name == "fields":
            lines.append(f"fields:  # {entry.metadata['comment']}")
            fields = values.get("fields", SAMPLE_FIELDS)
            lines += [f"  {name}: {_scalar(source)}" for name, source in fields.items()]
            continue
        value = values.get(entry.name, entry.default)
        lines.append(f"{entry.name}: {_scalar(value)}  # {entry.metadata['comment']}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = value.replace("_", "a").replace("-", "a").replace("/", "a").replace(".", "a").isalnum()
        return value if plain and value not in ("true", "false", "null", "yes", "no") else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)
