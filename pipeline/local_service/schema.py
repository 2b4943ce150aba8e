"""The tables of the state file, as numbered steps: an older file is brought up to date when it is opened.

A step is never edited once a release has it. It doesn't know what the tables are used for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

_APPLICATION = 0x4E534C53  # "NSLS", in the file's `application_id`: it is ours

_STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE totals (requests INTEGER, answered INTEGER, texts INTEGER, tokens INTEGER)",
        "INSERT INTO totals VALUES (0, 0, 0, 0)",
        "CREATE TABLE buckets (kind TEXT PRIMARY KEY, available REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
        "CREATE TABLE requests (number INTEGER PRIMARY KEY, arrived REAL NOT NULL, answered REAL)",
        "CREATE INDEX open_requests ON requests (number) WHERE answered IS NULL",
        # Appended, and counted when asked for: a row for each text, ordered by hash, costs more than the model.
        "CREATE TABLE embedded (request INTEGER PRIMARY KEY, sha256s BLOB NOT NULL)",
        f"PRAGMA application_id = {_APPLICATION}",
    ),
    (
        # Ids come from this and a count: never the same twice, not even in another file.
        "CREATE TABLE seeds (seed BLOB NOT NULL)",
        "INSERT INTO seeds VALUES (randomblob(16))",
        "CREATE TABLE counts (kind TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE embedded_in_batches (number INTEGER PRIMARY KEY, batch TEXT NOT NULL, sha256s BLOB NOT NULL)",
        (
            "CREATE TABLE files (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, filename TEXT NOT NULL,"
            " purpose TEXT NOT NULL, bytes INTEGER NOT NULL, created_at REAL NOT NULL, expires_at REAL)"
        ),
        "CREATE INDEX files_by_age ON files (created_at, number)",
        "CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL",
        (
            "CREATE TABLE batches (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, input_file_id TEXT NOT NULL,"
            " input_file_name TEXT NOT NULL, metadata TEXT, output_expires_after INTEGER,"
            " pace TEXT NOT NULL, misbehaviours TEXT NOT NULL,"
            " created_at REAL NOT NULL, expires_at REAL NOT NULL, status TEXT NOT NULL, active INTEGER NOT NULL,"
            " in_progress_at REAL, finalizing_at REAL, cancelling_at REAL, ended_at REAL, ends_at REAL, left_at REAL,"
            " model TEXT, errors TEXT, total INTEGER NOT NULL, tokens INTEGER NOT NULL,"
            " completed INTEGER NOT NULL, failed INTEGER NOT NULL, tokens_used INTEGER NOT NULL,"
            " read_bytes INTEGER NOT NULL, read_rows INTEGER NOT NULL, output_name TEXT NOT NULL, output_bytes INTEGER NOT NULL,"
            " error_name TEXT NOT NULL, error_bytes INTEGER NOT NULL, output_file_id TEXT, error_file_id TEXT)"
        ),
        "CREATE INDEX active_batches ON batches (number) WHERE active",
        "CREATE INDEX batches_by_age ON batches (created_at)",
        "CREATE INDEX batches_by_input ON batches (input_file_id) WHERE active",
    ),
)
VERSION = len(_STEPS)  # in the file's `user_version`


class SchemaError(Exception):
    """A file that isn't ours, or is of a newer version."""


def version_of(connection: sqlite3.Connection) -> int:
    """How many steps a file has seen, 0 for a new one; nothing is written."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner == _APPLICATION and not 1 <= version <= VERSION:
        raise SchemaError(f"it has version {version}, and this program knows version {VERSION}")
    if owner != _APPLICATION and (tables or owner or version):
        raise SchemaError("it is another program's database; name a file of the service's own")
    return int(version)


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Take the steps that are missing, within the caller's transaction."""
    for step in _STEPS[version_of(connection) :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
