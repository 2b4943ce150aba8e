"""What a string is: its field and its whole text, and the names that follow from that.

The UUID is the one key. CRC32 is a label for people and for `custom_id`: among millions of strings many pairs share
one, so nothing is ever looked up by it. Pure functions; nothing here depends on an order, a run, a machine or a model.
"""

from __future__ import annotations

import re
import uuid
import zlib
from dataclasses import dataclass

FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_CUSTOM_ID = re.compile(r"(?P<crc32>[0-9a-f]{8})_(?P<field>[a-z][a-z0-9_]{0,31})_(?P<index>0|[1-9][0-9]{0,17})")


def name_of(field: str, text: str) -> str:
    """The one unambiguous text of a string: a field name holds no colon, so no two strings share it."""
    return f"{field}:{text}"


def uuid_of(field: str, text: str) -> uuid.UUID:
    """The key of a string; the same as Weaviate's `generate_uuid5(name_of(field, text))`."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, name_of(field, text))


def crc32_of(text: str) -> str:
    """The label of a text: eight hex digits, the same for a text in every field."""
    return f"{zlib.crc32(text.encode()):08x}"


@dataclass(frozen=True, slots=True)
class CustomId:
    """The parsed name of a request: which row of which field, and the CRC32 that proves the text."""

    crc32: str
    field: str
    index: int

    def __str__(self) -> str:
        return f"{self.crc32}_{self.field}_{self.index}"


def custom_id(field: str, index: int, text: str) -> str:
    """The name of the request for a string, e.g. `a1b2c3d4_composite_0`."""
    return f"{zlib.crc32(text.encode()):08x}_{field}_{index}"  # not by way of the class: one is made for each request


def parse_custom_id(name: str) -> CustomId | None:
    """Read a name from both ends, since a field may hold underscores; None when it is not one of ours."""
    found = _CUSTOM_ID.fullmatch(name)
    if found is None:
        return None
    return CustomId(found["crc32"], found["field"], int(found["index"]))
