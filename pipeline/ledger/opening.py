"""Opening the ledger: for the one writer, readers, one booking, or a restore; and saying what is wrong with a damaged one.

A ledger of a newer version, an empty or a damaged one is refused before anything is written to it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import CheckpointError, DamagedLedgerError
from pipeline.files import disk_error, disk_errors, publish, temporary
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.schema import MIGRATIONS, migrate, version_of
from pipeline.rights import make_file

_BUSY_SECONDS = 10.0


def open_for_writing(path: Path, copy: Path) -> Ledger:
    """The ledger of a folder whose lock we hold; made if there is none, brought to this version if it is older."""
    if not path.exists():
        _create(path)
    _roll_back(path)
    # Looked at read-only first: even closing a connection that may write would write a killed run's WAL into the file.
    _examined(path, copy)[0].close()
    database = _connect(f"{path.as_uri()}?mode=rw", path)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA fullfsync = ON")
        migrate(database)
    except sqlite3.DatabaseError as problem:
        database.close()
        raise _translated(problem, path, copy) from problem
    except BaseException:
        database.close()
        raise
    return Ledger(database, path)


def open_for_reading(path: Path, copy: Path) -> Ledger:
    """The ledger as it stands at one moment, without the lock; it never waits for a writer and changes nothing."""
    database, version = _examined(path, copy)
    if version < len(MIGRATIONS):
        database.close()
        raise CheckpointError(f"{path} was written by an older version; run python main.py once to bring it up to date.")
    if database.execute("PRAGMA journal_mode").fetchone()[0] == "wal":  # without its log, a reader would hold up the writer
        database.execute("BEGIN")  # all that is read is of one moment, whatever a run commits meanwhile
        version_of(database)
    return Ledger(database, path)


@contextlib.contextmanager
def open_for_booking(path: Path) -> Iterator[Ledger]:
    """The ledger for one short transaction without the lock: what a search paid. It changes no state of a stage."""
    database = _connect(f"{path.as_uri()}?mode=rw", path)
    try:
        database.execute("PRAGMA synchronous = FULL")
        yield Ledger(database, path)
    finally:
        database.close()


def is_sound(path: Path, copy: Path) -> bool:
    """Whether a run could open the ledger. One of a newer version is refused, not called damaged."""
    if not path.exists():
        return False
    try:
        _examined(path, copy)[0].close()
    except DamagedLedgerError:
        return False
    return True


def open_draft(path: Path, copy: Path) -> Ledger:
    """The safe copy under the ledger's temporary name, brought to this version: it is changed, closed and then published."""
    draft = temporary(path)
    for leftover in (draft, *(draft.with_name(draft.name + end) for end in ("-journal", "-wal", "-shm"))):
        leftover.unlink(missing_ok=True)  # a journal of a killed restore would be rolled back into this one
    source = _examined(copy, copy)[0]
    try:
        with disk_errors(draft):
            make_file(draft)
        database = _connect(f"{draft.as_uri()}?mode=rw", draft)
        try:
            source.backup(database)
            database.execute("PRAGMA journal_mode = DELETE")
            migrate(database)
        except sqlite3.OperationalError as problem:
            database.close()
            raise disk_error(draft, problem) from problem
        except BaseException:
            database.close()
            raise
    finally:
        source.close()
    return Ledger(database, draft)


def _connect(uri: str, path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    except sqlite3.OperationalError as problem:
        raise CheckpointError(f"{path}: can't be opened: {problem}. Is the folder yours to write?") from problem


def _create(path: Path) -> None:
    """Make a new ledger under a temporary name, so that the real name never stands for half a one."""
    draft = temporary(path)
    draft.unlink(missing_ok=True)
    with disk_errors(path):
        make_file(draft)
    database = sqlite3.connect(draft, isolation_level=None)
    try:
        migrate(database)
    except sqlite3.OperationalError as problem:
        raise disk_error(path, problem) from problem
    finally:
        database.close()
    publish(path)


def _roll_back(path: Path) -> None:
    """A kill while a ledger was switched to its log leaves a journal, which only a writer can roll back. What else is wrong
    with the file is told by the look at it that follows."""
    if not _journal(path).exists() or path.stat().st_size == 0:
        return
    database = _connect(f"{path.as_uri()}?mode=rw", path)
    try:
        with contextlib.suppress(sqlite3.DatabaseError):
            version_of(database)
    finally:
        database.close()


def _journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


def _examined(path: Path, copy: Path) -> tuple[sqlite3.Connection, int]:
    """A read-only connection to a ledger that is neither damaged nor too new, and its version."""
    if path.stat().st_size == 0:
        raise DamagedLedgerError(_damaged(path, copy, "it is empty"))
    database = _connect(f"{path.as_uri()}?mode=ro", path)
    try:
        version = version_of(database)
        if version == 0 and copy.exists():  # there was a ledger, and this is none: a run would begin an empty one in it
            raise DamagedLedgerError(_damaged(path, copy, "it is a database without a ledger in it"))
        if version > len(MIGRATIONS):
            raise CheckpointError(_newer(path, version))
        found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise DamagedLedgerError(_damaged(path, copy, " ".join(found.split())))
    except sqlite3.DatabaseError as problem:
        database.close()
        raise _translated(problem, path, copy) from problem
    except BaseException:
        database.close()
        raise
    return database, version


def _translated(problem: sqlite3.DatabaseError, path: Path, copy: Path) -> Exception:
    words = str(problem)
    if "not a database" in words or "malformed" in words:
        return DamagedLedgerError(_damaged(path, copy, words))
    if "readonly" in words and _journal(path).exists():
        return CheckpointError(f"{path} was being made when a run was killed; the next run brings it in order: python main.py")
    if "readonly" in words or "unable to open" in words:
        return CheckpointError(f"{path}: {words}. Are the folder and the file yours to write?")
    if "full" in words or "disk I/O" in words:
        return disk_error(path, problem)
    return problem


def _damaged(path: Path, copy: Path, found: str) -> str:
    if path == copy:
        return (
            f"{copy}, the safe copy of the ledger, is damaged too ({found}). Nothing was changed. Bring {copy.name} back from a "
            "backup (an older one will do), and then: python main.py --restore-ledger"
        )
    if copy.exists():
        way = f"The last safe copy is {copy}. To bring it up to date from the other files and put it in place"
    else:
        way = f"There is no copy of it. Keep the whole folder as it is, bring {copy.name} back from a backup, and then"
    return f"{path} is damaged ({found}). Nothing was changed. {way}: python main.py --restore-ledger"


def _newer(path: Path, version: int) -> str:
    return (
        f"{path} was written by a newer version of this program (schema {version}, known here: {len(MIGRATIONS)}). "
        "Nothing was changed. Update the program, or give this one a checkpoint_dir of its own."
    )
