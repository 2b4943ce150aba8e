"""The spool: answers of the service, durable before their worker asks for the next.

A spool file is a run of frames: a header (magic, length, CRC32 of the body), then the body. A body is lines, split on
`b"\\n"`: first what the request was (its intent, and how many answers were lost before this one came), then one line a
string in the form of a batch result. A file is appended to by one run only and never continued, so a torn frame can
stand only at its end, and is dropped: its request then counts as one whose answer never came. Vectors are not
looked at here: that is `collecting.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.files import disk_errors, fsync_folder, fsync_handle
from pipeline.log import event, logger

_HEADER = struct.Struct("<4sII")
_MAGIC = b"NSF1"
_LARGEST = 1 << 30
_log = logger(__name__)


class Envelope(msgspec.Struct, frozen=True):
    """The first line of a frame: which request this answers, and the generation it belongs to."""

    intent: int
    generation: str
    field: str
    tokens: int
    lost_answers: int
    at: float


@dataclass(frozen=True, slots=True)
class Frame:
    """An answer as it lies in the spool: its envelope and its result lines."""

    envelope: Envelope
    lines: list[bytes]


class SpoolWriter:
    """Appends frames from several threads; `size` says how much has come together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._broken = False
        self._lock = threading.Lock()
        with disk_errors(path):
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            fsync_folder(path.parent)

    def append(self, envelope: Envelope, lines: list[bytes]) -> None:
        """Add a frame; when this returns, the answer survives a power cut."""
        body = b"\n".join((msgspec.json.encode(envelope), *lines))
        frame = _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body
        with self._lock, disk_errors(self.path):
            if self._broken:
                raise OSError(errno.EIO, "an earlier write to this file failed")
            self._broken = True  # until this frame is whole: nothing may be appended behind half a frame
            view = memoryview(frame)
            while view:
                view = view[os.write(self._handle, view) :]
            fsync_handle(self._handle)
            self.size += len(frame)
            self._broken = False

    def close(self) -> None:
        os.close(self._handle)


def frames(path: Path) -> Iterator[Frame]:
    """The whole frames of a spool file. A damaged frame is reported and left out; behind a torn end there is nothing."""
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            magic, length, crc32 = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            body = file.read(length) if magic == _MAGIC and length <= _LARGEST else b""
            if magic != _MAGIC or len(body) < length:
                event(_log, "spool.torn", level=logging.WARNING, file=path.name, at=file.tell() - len(header) - len(body))
                return
            if zlib.crc32(body) != crc32:
                event(_log, "spool.damaged", level=logging.WARNING, file=path.name, at=file.tell() - len(body))
                continue
            first, *lines = body.split(b"\n")
            yield Frame(msgspec.json.decode(first, type=Envelope), lines)


def spool_files(folder: Path) -> list[Path]:
    """The spool files that wait to be collected, oldest first."""
    return sorted(folder.glob("*.spool"))


def new_spool(folder: Path) -> SpoolWriter:
    """A fresh spool file, numbered after the ones that wait."""
    waiting = spool_files(folder)
    number = int(waiting[-1].stem) + 1 if waiting else 1
    return SpoolWriter(folder / f"{number:08d}.spool")
