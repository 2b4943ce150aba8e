"""Which files are the input: one file, a folder, or a glob; always in the same order, by name."""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.log import event, logger

KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_MAGIC = {
    b"\x1f\x8b": "gzip: unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel file: save it as CSV first",
    b"BZh": "bzip2: unpack it first",
    b"\xfd7zXZ": "xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save it as CSV first",
}
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input; `name` is how the user knows it."""

    path: Path
    name: str
    kind: str


def find_sources(folder: Path, wanted: str) -> list[Source]:
    """The files that `input` means, seen from the folder of the config."""
    target = folder / Path(wanted).expanduser()
    if target.is_dir():
        paths = [path for path in sorted(target.iterdir()) if path.is_file() and not path.name.startswith(".")]
        known = [path for path in paths if path.suffix.lower() in KINDS]
        if len(known) < len(paths):
            event(_log, "input.other_files_left_out", folder=wanted, count=len(paths) - len(known))
    elif target.exists() or not glob.has_magic(wanted):
        known = [target]
    else:
        known = [Path(found) for found in sorted(glob.glob(str(target), recursive=True)) if Path(found).is_file()]
    if not known:
        raise InputError(f"input: {wanted!r} names no file; {' '.join(KINDS)} are read. Mend the key 'input' in the config.")
    return [_source(path, folder) for path in known]


def _source(path: Path, folder: Path) -> Source:
    name = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"input: the file name {name!r} is not UTF-8, so no list could name it: rename it.") from None
    if not path.exists():
        where = "" if name == str(path.absolute()) else f" (looked for at {path.absolute()})"
        raise InputError(f"input: there is no file {name!r}{where}. Mend the key 'input' in the config.")
    if not path.is_file():
        raise InputError(f"input: {name!r} is neither a file nor a folder.")
    kind = KINDS.get(path.suffix.lower())
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as problem:
        raise InputError(f"{name}: can't be read: {problem.strerror}.") from problem
    if not start:
        raise InputError(f"{name}: the file is empty (0 bytes). Export it again, or mend the key 'input' in the config.")
    for magic, words in _MAGIC.items():
        if start.startswith(magic):
            raise InputError(f"{name}: this is {words}.")
    if kind is None:
        raise InputError(f"{name}: the ending says no format that is read here; known are {' '.join(KINDS)}.")
    if (kind == "parquet") != start.startswith(b"PAR1"):
        raise InputError(f"{name}: the ending and the content disagree about being Parquet.")
    return Source(path, name, kind)


def fingerprint_of(sources: list[Source]) -> str:
    """What changes whenever a file of the input is written, replaced, added or removed; content is not read."""
    digest = hashlib.sha256()
    for source in sources:
        found = source.path.stat()
        digest.update(f"{source.name}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\0".encode())
    return digest.hexdigest()
