"""Forms as browsers and the SDK upload them (multipart/form-data), read in pieces.

The one file goes out as it comes in, and nothing of it is kept; fields are short. It doesn't know what the
fields mean, and never opens a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MAX_HEAD_BYTES = 1 << 13  # of one part
_MAX_FIELD_BYTES = 1 << 10
_MAX_PARTS = 32
_BOUNDARY = re.compile(r"""boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.ASCII)
_NAME = re.compile(r';\s*(name|filename)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"%22": '"', "%0A": "\n", "%0D": "\r", '\\"': '"', "\\\\": "\\"}
_ESCAPED = re.compile("|".join(map(re.escape, _ESCAPES)))


class FormError(Exception):
    """A body that is not a form, or not of the kind that is taken."""


@dataclass(slots=True)
class Form:
    """The fields, and what the client calls the file; None when it sent none."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


def read_form(content_type: str, pieces: Iterable[bytes], write: Callable[[bytes], object]) -> Form:
    """Read a form to its end; the content of the part `file` is given to `write` piece by piece."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith("multipart/form-data") or found is None:
        raise FormError("the Content-Type is not multipart/form-data with a boundary")
    mark = b"\r\n--" + (found[1] or found[2]).encode()
    form, stream = Form(), _Stream(pieces)
    _all(stream.until(mark), _MAX_HEAD_BYTES)  # the preamble, which nobody reads
    for _ in range(_MAX_PARTS):
        end = stream.take(2)
        if end == b"--":
            stream.drain()
            return form
        if end != b"\r\n":
            raise FormError("a boundary is not followed by a new line")
        names = _names(_all(stream.until(b"\r\n\r\n"), _MAX_HEAD_BYTES))
        name = names.get("name", "")
        if name != "file":
            form.fields[name] = _all(stream.until(mark), _MAX_FIELD_BYTES).decode("utf-8", "replace")
            continue
        if form.filename is not None:
            raise FormError("it holds more than one file")
        form.filename = names.get("filename", "")
        for piece in stream.until(mark):
            write(piece)
    raise FormError(f"it has more than {_MAX_PARTS} parts")


def _names(head: bytes) -> dict[str, str]:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            return {found[1]: _ESCAPED.sub(lambda code: _ESCAPES[code[0]], found[2]) for found in _NAME.finditer(value)}
    return {}


def _all(pieces: Iterator[bytes], limit: int) -> bytes:
    whole = bytearray()
    for piece in pieces:
        whole += piece
        if len(whole) > limit:
            raise FormError(f"a part that may have {limit} bytes has more")
    return bytes(whole)


class _Stream:
    """Pieces of any size, read up to marks; no more than a piece and a mark are held."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = bytearray(b"\r\n")  # so that the first boundary looks like all others

    def until(self, mark: bytes) -> Iterator[bytes]:
        """What comes before the mark, which is taken away as well."""
        while (at := self._buffer.find(mark)) < 0:
            keep = len(mark) - 1
            if len(self._buffer) > keep:
                yield bytes(self._buffer[:-keep])
                del self._buffer[:-keep]
            self._more()
        if at:
            yield bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]

    def take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def drain(self) -> None:
        """Read away what follows the form, so that the connection is clean."""
        for _ in self._pieces:
            pass

    def _more(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise FormError("it ends before its last boundary")
        self._buffer += piece
