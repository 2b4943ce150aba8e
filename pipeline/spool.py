"""The spool: answers of the service, durable before their worker asks for the next.

A spool file is a run of frames: a header (magic, length, CRC32 of the body), then the body. A body is lines, split on
`b"\\n"`: first what the request was (its intent, and how many answers were lost before this one came), then one line a
string in the form of a batch result. A file is appended to by one run only and never continued, so a torn frame can
stand only at its end, and is dropped: its request then counts as one whose answer never came. So does a frame that
the disk damaged; what lies behind it is found by its magic and proved by its checksum. Vectors are not looked at
here: that is `collecting.py`.
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
from typing import BinaryIO

import msgspec

from pipeline.files import disk_errors, fsync_folder, fsync_handle
from pipeline.log import event, logger
from pipeline.rights import file_mode

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
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, file_mode(path.parent))
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
    """The whole frames of a spool file. A damaged one is reported and costs itself only; so does a torn end."""
    with path.open("rb") as file:
        at = 0
        while file.read(1):
            body = _body_at(file, at)
            if body is None:
                behind = _next_frame(file, at + 1)
                name = "spool.torn" if behind is None else "spool.damaged"
                event(_log, name, level=logging.WARNING, file=path.name, at=at)
                if behind is None:
                    return
                at = behind
            else:
                first, *lines = body.split(b"\n")
                yield Frame(msgspec.json.decode(first, type=Envelope), lines)
                at += _HEADER.size + len(body)
            file.seek(at)


def _body_at(file: BinaryIO, at: int) -> bytes | None:
    """The body of the frame that begins here; None when there is no whole and sound one."""
    file.seek(at)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    magic, length, crc32 = _HEADER.unpack(header)
    if magic != _MAGIC or not 0 < length <= _LARGEST:
        return None
    body = file.read(length)
    return body if len(body) == length and zlib.crc32(body) == crc32 else None


def _next_frame(file: BinaryIO, start: int) -> int | None:
    """Where the next sound frame begins, behind a damaged one whose length can't be trusted."""
    file.seek(start)
    rest = file.read()
    found = rest.find(_MAGIC)
    while found >= 0:
        if _body_at(file, start + found) is not None:
            return start + found
        found = rest.find(_MAGIC, found + 1)
    return None


def spool_files(folder: Path) -> list[Path]:
    """The spool files that wait to be collected, oldest first."""
    return sorted(folder.glob("*.spool"))


def new_spool(folder: Path) -> SpoolWriter:
    """A fresh spool file, numbered after the ones that wait."""
    waiting = spool_files(folder)
    number = int(waiting[-1].stem) + 1 if waiting else 1
    return SpoolWriter(folder / f"{number:08d}.spool")
