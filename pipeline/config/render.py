"""Writing a commented config: every key with its default and one line of comment.

`python main.py --init my.yml` writes this, and the shipped `config.yml` is this for the sample.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.config.keys import KEYS, SAMPLE_FIELDS

_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

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
            lines += [f"  {_scalar(name)}: {_scalar(source)}" for name, source in fields.items()]
            continue
        value = values.get(entry.name, entry.default)
        lines.append(f"{entry.name}: {_scalar(value)}  # {entry.metadata['comment']}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and _read_back(value) == value else _quoted(value)
    if isinstance(value, float) and value.is_integer() and value < 1e15:
        return str(int(value))
    words = json.dumps(value)
    # YAML 1.1 takes 1e-05 for a text; 1.0e-05 is a number.
    return words.replace("e", ".0e") if isinstance(value, float) and "." not in words else words


def _read_back(value: str) -> Any:
    """What YAML makes of a text without quotes: 123, 1.5, null, off and 2024-01-01 would not stay texts."""
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return None


def _quoted(value: str) -> str:
    """In double quotes; what YAML takes for a line end, or refuses, is escaped."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
