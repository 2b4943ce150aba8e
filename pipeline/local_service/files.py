"""`/v1/files`: upload, list, retrieve, content, delete, and the end that comes by itself.

A row in the state says that a file exists; its content lies in the state's folder under our id. What a client
calls it is kept to be shown, and never opens anything. It doesn't know what the files hold.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from pipeline.local_service.messages import Answer, Call, Content, RefusedError
from pipeline.local_service.multipart import FormError, read_form
from pipeline.local_service.settings import MAX_FILE_BYTES, MONTH
from pipeline.local_service.state import is_shared, new_id

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from pipeline.local_service.state import State

MIN_LIFE, MAX_LIFE = 3600, MONTH

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data")
_COLUMNS = "number, id, filename, purpose, bytes, created_at, expires_at"
_MAX_PAGE = 10_000
_SWEPT = 100  # expired files that one request clears away
_LEFT_SECONDS = 24 * 3600  # after this, an upload that never ended is no longer under way


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that exists."""

    number: int
    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float | None

    def shape(self) -> dict[str, object]:
        """As OpenAI shows it."""
        return {
            "object": "file",
            "id": self.id,
            "purpose": self.purpose,
            "filename": self.filename,
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "expires_at": None if self.expires_at is None else int(self.expires_at),
            "status": "processed",
            "status_details": None,
        }


def upload(call: Call) -> Answer:
    """Take a file; its content goes to the disk as it comes."""
    _sweep(call.state, call.now)
    _sweep_uploads(call.state.folder)
    part = call.state.folder / f"upload-{secrets.token_hex(8)}.part"
    pieces = call.request.pieces if call.request.pieces is not None else iter((call.request.body,))
    try:
        with create_file(part) as file:
            sink = _Sink(file)
            try:
                form = read_form(call.request.header("content-type") or "", pieces, sink.write)
            except FormError as error:
                raise RefusedError(f"We could not parse your multipart form: {error}.") from error
        purpose, expires_at = _wanted(form.fields, form.filename, call)
        if purpose == "batch" and sink.size > call.state.batch_limits.file_bytes:
            raise RefusedError(
                f"The file has {sink.size} bytes; for a batch at most {call.state.batch_limits.file_bytes} are taken.",
                param="file",
                code="file_too_large",
            )
        with call.state.transaction() as connection:
            file_id = new_id(connection, "file", "file-")
            stored = insert(connection, file_id, str(form.filename), purpose, sink.size, call.now, expires_at)
            # Before the commit: an id that exists has its content. Undone, the same id is given again.
            part.replace(call.state.folder / file_id)
    finally:
        part.unlink(missing_ok=True)
    return Answer(msgspec.json.encode(stored.shape()))


def listed(call: Call) -> Answer:
    """A page of the files, newest first unless asked otherwise."""
    _sweep(call.state, call.now)
    limit = call.limit(_MAX_PAGE, _MAX_PAGE)
    order = call.one("order") or "desc"
    if order not in ("asc", "desc"):
        raise RefusedError(f"Invalid 'order': '{order[:20]}' is neither 'asc' nor 'desc'.", param="order", code="invalid_value")
    purpose, after = call.one("purpose"), call.one("after")
    sign = ">" if order == "asc" else "<"
    where, parameters = ["(expires_at IS NULL OR expires_at > ?)"], list[object]((call.now,))
    with call.state.transaction("BEGIN") as connection:
        if purpose:
            where.append("purpose = ?")
            parameters.append(purpose)
        if after:
            last = find(connection, after, call.now)
            where.append(f"(created_at, number) {sign} (?, ?)")
            parameters += [last.created_at, last.number]
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM files WHERE {' AND '.join(where)} ORDER BY created_at {order}, number {order} LIMIT ?",
            (*parameters, limit + 1),
        ).fetchall()
    return Answer(page([StoredFile(*row).shape() for row in rows], limit))


def retrieve(call: Call) -> Answer:
    """One file's facts."""
    with call.state.transaction("BEGIN") as connection:
        return Answer(msgspec.json.encode(find(connection, call.argument, call.now).shape()))


def content(call: Call) -> Answer:
    """One file's content."""
    with call.state.transaction("BEGIN") as connection:
        stored = find(connection, call.argument, call.now)
        file = (call.state.folder / stored.id).open("rb")
    return Answer(headers={"content-type": "application/octet-stream"}, content=Content(file, stored.bytes))


def delete(call: Call) -> Answer:
    """Forget one file."""
    with call.state.transaction() as connection:
        remove(connection, call.state.folder, find(connection, call.argument, call.now))
    return Answer(msgspec.json.encode({"object": "file", "id": call.argument, "deleted": True}))


def find(connection: sqlite3.Connection, file_id: str, now: float) -> StoredFile:
    """A file by its id; a 404 when there is none, or none any more."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM files WHERE id = ?", (file_id,)).fetchone()
    if row is not None:
        found = StoredFile(*row)
        if found.expires_at is None or found.expires_at > now:
            return found
    raise RefusedError(f"No such File object: {file_id[:100]}", status=404, param="id")


def insert(
    connection: sqlite3.Connection, file_id: str, filename: str, purpose: str, size: int, now: float, expires_at: float | None
) -> StoredFile:
    """Write down that a file exists, whose content is in its place when the transaction ends."""
    number = connection.execute(
        "INSERT INTO files VALUES (NULL, ?, ?, ?, ?, ?, ?)", (file_id, filename, purpose, size, now, expires_at)
    ).lastrowid
    return StoredFile(int(number or 0), file_id, filename, purpose, size, now, expires_at)


def remove(connection: sqlite3.Connection, folder: Path, stored: StoredFile) -> None:
    """Delete a file; the content of one that a job still reads goes when that job ends, see `jobs`."""
    connection.execute("DELETE FROM files WHERE number = ?", (stored.number,))
    if connection.execute("SELECT 1 FROM batches WHERE active AND input_file_id = ?", (stored.id,)).fetchone() is None:
        # Before the commit: if that fails, the row names a content that is gone, and asking for it is an error of ours.
        (folder / stored.id).unlink(missing_ok=True)


def create_file(path: Path) -> BinaryIO:
    """A new file to write, for the eyes of those only who may see the folder; never one that is there, nor what a link leads to."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o660 if is_shared(path.parent) else 0o600), "wb")


def page(shapes: list[dict[str, object]], limit: int) -> bytes:
    """A list as OpenAI sends it, from one entry more than were asked for."""
    shown = shapes[:limit]
    return msgspec.json.encode(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(shapes) > limit,
        }
    )


def life(value: object, param: str) -> int:
    """The seconds of an `expires_after` or `output_expires_after`."""
    if not isinstance(value, int) or isinstance(value, bool) or not MIN_LIFE <= value <= MAX_LIFE:
        raise RefusedError(
            f"Invalid '{param}': expected a whole number from {MIN_LIFE} to {MAX_LIFE}.", param=param, code="invalid_value"
        )
    return value


class _Sink:
    """Writes what comes, up to the largest file there may be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > MAX_FILE_BYTES:
            raise RefusedError(f"Maximum content size limit ({MAX_FILE_BYTES}) exceeded.", status=413, param="file")
        self._file.write(piece)


def _wanted(fields: dict[str, str], filename: str | None, call: Call) -> tuple[str, float | None]:
    """The purpose, and when the file is to end."""
    if filename is None:
        raise RefusedError("'file' is a required property", param="file")
    purpose = fields.get("purpose")
    if not purpose:
        raise RefusedError("'purpose' is a required property", param="purpose")
    if purpose not in _PURPOSES:
        raise RefusedError(f"'{purpose[:100]}' is not one of {list(_PURPOSES)} - 'purpose'", param="purpose")
    if purpose == "batch" and not filename.endswith(".jsonl"):
        raise RefusedError("Invalid file format for Batch API. Must be .jsonl")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return purpose, call.now + MONTH if purpose == "batch" else None
    if anchor != "created_at":
        raise RefusedError("Invalid 'expires_after[anchor]': it must be 'created_at'.", param="expires_after[anchor]")
    digits = seconds is not None and seconds.isascii() and seconds.isdigit()
    return purpose, call.now + life(int(seconds[:12]) if digits and seconds else None, "expires_after[seconds]")


def _sweep(state: State, now: float) -> None:
    """Clear away some of what has expired, so that the disk doesn't fill with what nobody can reach."""
    query = f"SELECT {_COLUMNS} FROM files WHERE expires_at <= ? LIMIT {_SWEPT}"
    with state.transaction("BEGIN") as connection:
        if connection.execute(query, (now,)).fetchone() is None:
            return
    with state.transaction() as connection:
        for row in connection.execute(query, (now,)).fetchall():
            remove(connection, state.folder, StoredFile(*row))


def _sweep_uploads(folder: Path) -> None:
    """Clear away what is left of uploads whose process was killed a day ago, by the clock that dates files."""
    before = time.time() - _LEFT_SECONDS
    for part in folder.glob("upload-*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process was first, or the upload has ended
            if part.stat().st_mtime < before:
                part.unlink()
