"""A DuckDB connection that surprises nobody: bounded memory, spilling where we say, nothing loaded from anywhere.

Also the few SQL expressions that the rest shares. What is in the tables is known to its neighbours.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import DamagedTableError, DiskError, NamesakeError
from pipeline.files import DISK_TROUBLE, disk_error

if TYPE_CHECKING:
    import duckdb

_NAMESPACE = uuid.NAMESPACE_DNS.hex
_UUID5 = (5 << 76) | (2 << 62)  # the version and the variant
_KEPT = ((1 << 128) - 1) & ~((15 << 76) | (3 << 62))
_SPACES = "".join(chr(point) for point in range(0x3001) if chr(point).isspace())

Found = TypeVar("Found")


def connect(scratch: Path, memory_gb: float, *, keeps_memory: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection whose work beyond the memory limit goes to `scratch`. One that keeps its memory until it is closed is faster
    by a tenth where much is sorted and grouped: memory that was given back is cleared anew for the next step."""
    import duckdb

    memory = f"{memory_gb * 1000:.0f}MB"
    return duckdb.connect(
        config={
            "memory_limit": memory,
            "block_allocator_memory": memory if keeps_memory else "0MB",
            "temp_directory": str(scratch / "duckdb"),
            "threads": str(min(os.cpu_count() or 1, 8)),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "true",
        },
    )


@contextlib.contextmanager
def duck_errors(place: Path) -> Iterator[None]:
    """Turn DuckDB's words for a full disk, or for too little memory, into ours."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as problem:
        if "temp_directory" in str(problem) or "max_temp_directory_size" in str(problem) or "disk" in str(problem).lower():
            raise disk_error(place, problem) from problem
        raise DiskError(
            f"The work on tables needs more memory than memory_limit_gb allows: {str(problem).splitlines()[0]}"
        ) from problem
    except duckdb.IOException as problem:
        if "No files found" in str(problem):
            raise  # a table is gone: `table_errors`
        raise disk_error(place, problem) from problem
    except duckdb.Error as problem:  # a commit that found the disk full is a TransactionException, for one
        if "fsync failed" in str(problem) or any(os.strerror(number) in str(problem) for number in DISK_TROUBLE):
            raise disk_error(place, problem) from problem
        raise


@contextlib.contextmanager
def table_errors(tables: Path) -> Iterator[None]:
    """Turn what DuckDB and Arrow say of a table file that is damaged or gone into a sentence; the rest passes through."""
    try:
        yield
    except Exception as problem:
        if isinstance(problem, NamesakeError) or not _is_damage(problem, tables):
            raise
        raise DamagedTableError(
            f"A table file can't be read: {str(problem).splitlines()[0].strip('.')}. To see which files are damaged "
            "or gone: python main.py --verify; bring them back from a backup."
        ) from problem


def read_anew(read: Callable[[], Found]) -> Found:
    """Read, and once more if a table was gone: a run deletes the tables that it has replaced, whoever reads them."""
    try:
        return read()
    except DamagedTableError:
        return read()


def _is_damage(problem: Exception, tables: Path) -> bool:
    """Whether a file was to blame, not our SQL and not a full disk. Both libraries have several ways to say it."""
    import duckdb
    import pyarrow as pa

    if isinstance(problem, pa.ArrowInvalid | duckdb.InvalidInputException) or type(problem) is duckdb.Error:
        return True
    words = str(problem)
    return isinstance(problem, OSError | duckdb.IOException) and (
        "thrift" in words or (str(tables) in words and isinstance(problem, FileNotFoundError | duckdb.IOException))
    )


def quoted(text: str | Path) -> str:
    """A text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def parquet(paths: Iterable[Path]) -> str:
    """The files as a table to select from; told by name, never by a glob."""
    return f"read_parquet([{', '.join(quoted(path) for path in paths)}], hive_partitioning = false)"


def uuid_sql(field: str, text: str) -> str:
    """`identity.uuid_of` as SQL: SHA-1 of namespace and name, with the version and variant bits of uuid5 put in as a number; by
    letters it would take half as long again."""
    digest = f"sha1(unhex('{_NAMESPACE}') || encode({quoted(field + ':')} || {text}))"
    return f"((unhex(left({digest}, 32))::UUID::UHUGEINT & {_KEPT}::UHUGEINT) | {_UUID5}::UHUGEINT)::UUID"


def blank_sql(text: str) -> str:
    """Whether a text is empty or holds white space only, as Python's str.isspace sees it; never NULL. Most texts are known to be
    none by their first letter, and are not looked through."""
    starts = ", ".join(str(ord(space)) for space in _SPACES)
    is_spaces = f"trim({text}, {quoted(_SPACES)}) = ''"
    return f"CASE WHEN {text} = '' THEN true WHEN unicode({text}) IN ({starts}) THEN {is_spaces} ELSE false END"


def copy_sql(select: str, target: Path) -> str:
    """Write a selection as Parquet, ordered as the selection says. The second version of the format writes a number as its
    difference to the one before: tables of row numbers take a hundredth. Texts take a twentieth more at the first level of
    zstd, and a fifth less time."""
    how = "FORMAT parquet, PARQUET_VERSION v2, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 16384"
    return f"COPY ({select}) TO {quoted(target)} ({how})"
