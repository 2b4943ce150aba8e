"""Fields: a name and how its text comes from a row, a column or a template of lines.

`"Contributor: {person}\\nTitle: {title}"` is a template: a line whose columns are all empty is left out, and a template
whose columns are all empty gives the empty text. What is not known here: where rows come from, and the SQL that
renders a template over millions of them (`tables/snapshot.py`).
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from pipeline.identity import FIELD_NAME


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a template line: fixed words, or the name of a column."""

    text: str
    is_column: bool


@dataclass(frozen=True, slots=True)
class Field:
    """A field as configured: `source` is the words of the config, `lines` what they mean."""

    name: str
    source: str
    lines: tuple[tuple[Part, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the field needs, in order, each once."""
        named = (part.text for line in self.lines for part in line if part.is_column)
        return tuple(dict.fromkeys(named))

    @property
    def is_column(self) -> bool:
        """A field that is one column as it stands."""
        return len(self.lines) == 1 and len(self.lines[0]) == 1 and self.lines[0][0].is_column


def parse_field(name: str, source: str) -> Field:
    """The field of a config entry; ValueError says what is wrong with it, and where."""
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(
            f"the field name {name!r} must start with a small letter and hold at most 32 small letters, digits and underscores"
        )
    if not source.strip():
        raise ValueError(f"the field {name!r} names no column; give it a column, or a template such as '{{person}}'")
    if "\0" in source:
        raise ValueError(f"the field {name!r} holds a NUL; neither a column nor a text has one")
    if "{" not in source and "}" not in source:
        return Field(name, source, ((Part(source, True),),))
    lines = tuple(_parse_line(name, line) for line in source.rstrip("\n").split("\n"))
    field = Field(name, source, lines)
    if not field.columns:
        raise ValueError(f"the template of the field {name!r} names no column in braces, e.g. '{{person}}'")
    return field


def _parse_line(name: str, line: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    try:
        pieces = list(string.Formatter().parse(line))
    except ValueError as problem:
        raise ValueError(
            f"the template of the field {name!r} has a lone brace in the line {line!r} ({problem}); "
            "write {{ or }} for a brace that is meant"
        ) from None
    for words, column, form, conversion in pieces:
        if words:
            parts.append(Part(words, False))
        if column is None:
            continue
        if not column or form or conversion:
            raise ValueError(f"the template of the field {name!r} has braces that hold no plain column name in the line {line!r}")
        parts.append(Part(column, True))
    return tuple(parts)
