"""The ledger's tables, as numbered migrations: each is one transaction, and none is ever edited after a release.

`PRAGMA user_version` says which is the last one applied. A ledger of a newer version is refused untouched.
"""

from __future__ import annotations

import sqlite3

MIGRATIONS: tuple[str, ...] = (
    """
    -- What this catalogue is and where it lives.
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    -- Every immutable file that exists. A file that is not named here is not there. An id is never given again.
    CREATE TABLE file (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, scope TEXT NOT NULL, field TEXT NOT NULL,
        name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL,
        first_row INTEGER NOT NULL, past_row INTEGER NOT NULL, bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL, created_at REAL NOT NULL
    );
    CREATE INDEX file_by_kind ON file (kind, scope, field);

    -- A field, what it meant when its strings were made, and the next row number, which only ever grows.
    CREATE TABLE field (name TEXT PRIMARY KEY, definition TEXT NOT NULL, next_row INTEGER NOT NULL) WITHOUT ROWID;

    -- The input as last read: `full`, or `trial` for a run with --limit.
    CREATE TABLE snapshot (
        kind TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, reading TEXT NOT NULL, id_column TEXT NOT NULL, records INTEGER NOT NULL,
        rejected INTEGER NOT NULL, limited_to INTEGER, created_at REAL NOT NULL
    ) WITHOUT ROWID;

    -- State is spans of row numbers. state: present (scope: snapshot), counted (scope: tokenizer),
    -- embedded (scope: generation), indexed (scope: store and generation).
    CREATE TABLE span (
        state TEXT NOT NULL, scope TEXT NOT NULL, field TEXT NOT NULL, first INTEGER NOT NULL, past INTEGER NOT NULL,
        CHECK (first < past), PRIMARY KEY (state, scope, field, first)
    ) WITHOUT ROWID;

    -- (service, model, dimensions). `asked` is what the config said; `dimensions` what the vectors have (0: not known yet).
    CREATE TABLE generation (
        id TEXT PRIMARY KEY, service TEXT NOT NULL, model TEXT NOT NULL, asked INTEGER, dimensions INTEGER NOT NULL,
        is_current INTEGER NOT NULL, created_at REAL NOT NULL
    ) WITHOUT ROWID;

    -- One row for each exceptional string: refused by preflight, failed at the service, refused by the index.
    CREATE TABLE failure (
        scope TEXT NOT NULL, field TEXT NOT NULL, row INTEGER NOT NULL, stage TEXT NOT NULL, code TEXT NOT NULL,
        reason TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (scope, field, row)
    ) WITHOUT ROWID;

    -- A real-time request that was about to be sent. It is deleted once its outcome is booked.
    CREATE TABLE intent (
        id INTEGER PRIMARY KEY AUTOINCREMENT, generation TEXT NOT NULL, field TEXT NOT NULL, spans TEXT NOT NULL,
        strings INTEGER NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, at REAL NOT NULL
    );

    -- Requests whose answer never came: their strings were, or will be, sent again, so they are possibly paid twice.
    CREATE TABLE doubt (
        id INTEGER PRIMARY KEY AUTOINCREMENT, generation TEXT NOT NULL, field TEXT NOT NULL, spans TEXT NOT NULL,
        strings INTEGER NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL
    );

    -- What was paid, as the service's own usage says.
    CREATE TABLE spending (
        generation TEXT NOT NULL, field TEXT NOT NULL, kind TEXT NOT NULL, strings INTEGER NOT NULL, tokens INTEGER NOT NULL,
        usd REAL NOT NULL, PRIMARY KEY (generation, field, kind)
    ) WITHOUT ROWID;

    -- Each command that may change something.
    CREATE TABLE run (
        id INTEGER PRIMARY KEY AUTOINCREMENT, command TEXT NOT NULL, version TEXT NOT NULL, host TEXT NOT NULL,
        pid INTEGER NOT NULL, started_at REAL NOT NULL, ended_at REAL, exit_code INTEGER
    );
    """,
    """
    -- One provider batch. `state` is ours (ledger/jobs.py says which there are); `status` is the service's own word.
    CREATE TABLE job (
        id INTEGER PRIMARY KEY AUTOINCREMENT, generation TEXT NOT NULL, state TEXT NOT NULL, requests INTEGER NOT NULL,
        bytes INTEGER NOT NULL, tokens INTEGER NOT NULL, price REAL NOT NULL, sha256 TEXT NOT NULL, prepared_at REAL NOT NULL,
        input_file TEXT, intent_at REAL, batch TEXT, status TEXT, created_at REAL, expires_at REAL,
        output_file TEXT, error_file TEXT, embedded INTEGER, failed INTEGER, paid_tokens INTEGER, ended_at REAL, reason TEXT,
        cleaned INTEGER NOT NULL DEFAULT 0
    );

    -- The rows of a job. While it is not collected they are not pending.
    CREATE TABLE job_span (
        job INTEGER NOT NULL, field TEXT NOT NULL, first INTEGER NOT NULL, past INTEGER NOT NULL, PRIMARY KEY (job, field, first)
    ) WITHOUT ROWID;

    -- Strings that a job brought back without a vector, and how often; they go again until a limit.
    CREATE TABLE attempt (
        generation TEXT NOT NULL, field TEXT NOT NULL, row INTEGER NOT NULL, count INTEGER NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (generation, field, row)
    ) WITHOUT ROWID;
    """,
    """
    -- Who typed a command; of older runs nobody knows. From now on `command` is the whole line, without secrets.
    ALTER TABLE run ADD COLUMN user TEXT NOT NULL DEFAULT '';

    -- The money of `spending` once more, by the run that booked it and the job that it is for (0: none).
    CREATE TABLE booking (
        run INTEGER NOT NULL, job INTEGER NOT NULL, generation TEXT NOT NULL, field TEXT NOT NULL, kind TEXT NOT NULL,
        strings INTEGER NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (run, job, generation, field, kind)
    ) WITHOUT ROWID;

    -- A job that a reset forgot, for the audit: as it was, and how many strings of each field it had (both JSON).
    CREATE TABLE past_job (id INTEGER PRIMARY KEY, job TEXT NOT NULL, strings TEXT NOT NULL);

    -- A file that is deleted at the service, and what the service answered; nothing yet: it was about to be deleted.
    CREATE TABLE receipt (
        file TEXT PRIMARY KEY, job INTEGER NOT NULL, role TEXT NOT NULL, run INTEGER NOT NULL, at REAL NOT NULL,
        answer TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- How the last command of a kind (`work`, `download`) was stopped; gone when one of that kind ends well.
    CREATE TABLE stop (
        kind TEXT PRIMARY KEY, command TEXT NOT NULL, error TEXT NOT NULL, words TEXT NOT NULL, passes INTEGER NOT NULL,
        at REAL NOT NULL
    ) WITHOUT ROWID;

    -- What notify_command was told, by event, so that it is told once.
    CREATE TABLE told (event TEXT PRIMARY KEY, detail TEXT NOT NULL, at REAL NOT NULL, failed INTEGER NOT NULL) WITHOUT ROWID;
    """,
)


def migrate(database: sqlite3.Connection) -> None:
    """Apply what is missing, each migration and its number in one transaction."""
    version = version_of(database)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        database.executescript(f"BEGIN IMMEDIATE;{script};PRAGMA user_version = {number};COMMIT;")


def version_of(database: sqlite3.Connection) -> int:
    """The number of the last migration applied."""
    return int(database.execute("PRAGMA user_version").fetchone()[0])
