"""`service_headers`: headers of one's own for a service by URL, and where the secret ones come from.

A value is a text, or `env:NAME` or `file:PATH`. A header whose name says that it is secret must come from one of these:
nothing secret stands in the config. Where it comes from is looked up once, when the config is read; that it is there is
asked when the service is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.log import hide

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_MOST = 8192
_VALUE = re.compile(rf"[\x20-\x7e]{{1,{_MOST}}}")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_SECRET = re.compile(r"auth|key|token|secret|password|cookie|credential|signature", re.IGNORECASE)
_OURS = {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "te", "upgrade", "expect"}
KEY_HEADERS = frozenset({"authorization", "api-key"})  # one of them takes the place of the key that is sent otherwise


@dataclass(frozen=True, slots=True)
class Header:
    """A header; `value` is None when there is nothing at its source."""

    name: str
    source: str = field(repr=False)
    value: str | None = field(default=None, repr=False)

    @property
    def variable(self) -> str | None:
        """The variable of the environment that it comes from."""
        found = _VARIABLE.fullmatch(self.source)
        return None if found is None else found[1]


def headers(value: Any) -> tuple[Header, ...]:
    """name → text, env:NAME or file:PATH. What is wrong is told without a value: it may be the secret itself."""
    if not isinstance(value, dict):
        raise ValueError("lines such as 'api-key: env:AZURE_KEY', each the name of a header and where its value comes from")
    found = [_header(name, source) for name, source in value.items()]
    if len({header.name.lower() for header in found}) < len(found):
        raise ValueError("headers of different names")
    return tuple(found)


def _header(name: Any, source: Any) -> Header:
    if not isinstance(name, str) or not isinstance(source, str):
        raise ValueError("names and texts; put a number or a date in quotes")
    if not _NAME.fullmatch(name) or name.lower() in _OURS:
        raise ValueError("names of headers, and not Host, Content-Type or another that the request itself decides")
    is_elsewhere = _VARIABLE.fullmatch(source) or (source.startswith("file:") and source != "file:")
    if not is_elsewhere and (_SECRET.search(name) or source.startswith(("env:", "file:"))):
        raise ValueError(
            f"for {name} a variable of the environment (env:NAME) or a file (file:PATH), so that no secret stands here"
        )
    if not _VALUE.fullmatch(source) or source != source.strip():
        raise ValueError(f"plain ASCII without line ends, for {name}")
    return Header(name, source, None if is_elsewhere else source)


def with_value(header: Header, folder: Path, environment: Mapping[str, str]) -> Header:
    """The header with what is at its source now; None when nothing is, or nothing that can be sent."""
    if header.value is not None:
        return header
    if header.variable is not None:
        found = environment.get(header.variable, "")
    else:
        try:
            with (folder / Path(header.source.removeprefix("file:")).expanduser()).open(encoding="utf-8") as file:
                found = file.read(_MOST + 2)  # whatever it is: a device has no end
        except (OSError, UnicodeDecodeError):
            return header
    value = found.strip()
    hide(value)
    return replace(header, value=value) if _VALUE.fullmatch(value) else header
