"""Table files that are newer than the copy: strings first, for their row numbers are for life; then embeddings.

What a file says of itself decides, not its name alone: a strings file must follow the known rows without a gap, and the
UUIDs in it prove field and text; an embeddings file may hold known rows only, and none that stands in another file. What
can't be taken in is named and set aside. Records, occurrences, frequencies and tokens are derived: the next reading
makes them again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.files import disk_errors, publish, sha256_of, temporary
from pipeline.indexing import string_files
from pipeline.ledger import Generation, TableFile
from pipeline.log import event, logger
from pipeline.provider.service import generation_of
from pipeline.spans import Spans
from pipeline.tables.duck import parquet, uuid_sql
from pipeline.tables.embeddings import Origin, look_through, read_embeddings, rows_in, write_embedding_pieces
from pipeline.tables.strings import forgotten_rows

if TYPE_CHECKING:
    import duckdb

_FIELD = "(?P<field>[a-z][a-z0-9_]{0,31})"
_STRINGS = re.compile(f"strings_{_FIELD}_(?P<number>[0-9]{{6,}})\\.parquet")
_EMBEDDINGS = re.compile(f"embeddings_(?P<generation>[0-9a-f]{{8}})_{_FIELD}_(?P<number>[0-9]{{6,}})\\.parquet")
_DERIVED = re.compile(r"(records|occurrences|frequencies|tokens)_.*\.parquet|.*\.tmp")
_NUMBER = re.compile(r"_([0-9]{6,})\.parquet")
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """An embeddings file that was taken in: the rows that are new with it, and how it was paid for, if it says so."""

    generation: str
    field: str
    rows: Spans
    origin: Origin | None


@dataclass(slots=True)
class FromTables:
    """What the tables gave. `aside`: files that were not taken in, with reasons. `lost`: paid work that is not there any more,
    in words. `gone`: derived tables that the copy names and the folder lacks."""

    strings: dict[str, int] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    gone: int = 0


def adopt_tables(context: Context, duck: duckdb.DuckDBPyConnection) -> FromTables:
    """Make the draft name every file that belongs, and no file that is gone."""
    found = FromTables()
    folder = context.place.tables
    named = {file.name for file in context.ledger.files()}
    numbers = [int(number) for path in folder.rglob("*.parquet*") for number in _NUMBER.findall(path.name)]
    context.ledger.reserve_file_numbers(max(numbers, default=0))
    gone = {
        (file.field, file.first_row, file.past_row): file
        for file in context.ledger.files("strings")
        if not (folder / file.name).is_file()
    }
    before = _forget_what_is_gone(context, found)
    # By the number in the name: the order in which they were made.
    newer = sorted((path for path in folder.iterdir() if path.name not in named and not path.is_dir()), key=_made)
    _adopt_strings(context, duck, [path for path in newer if _STRINGS.fullmatch(path.name)], gone, found)
    for file in gone.values():
        found.lost.append(f"the texts of {file.rows:,} strings of {file.field}: {file.name} is gone from {folder}")
    for path in newer:
        if match := _EMBEDDINGS.fullmatch(path.name):
            _adopt_embeddings(context, path, match, found)
        elif not _STRINGS.fullmatch(path.name) and not _DERIVED.fullmatch(path.name):
            found.aside[path.name] = "it is none of ours"
    for (generation, name), rows in before.items():
        left = span_sets.subtract(rows, context.ledger.spans("embedded", generation, name))
        left = span_sets.subtract(left, forgotten_rows(duck, string_files(context.place, context.ledger, name)) if left else [])
        if left:
            found.lost.append(f"the embeddings of {span_sets.count(left):,} strings of {name}: their files are gone from {folder}")
    return found


def _made(path: Path) -> tuple[int, str]:
    number = _NUMBER.search(path.name)
    return int(number[1]) if number else 0, path.name


def _forget_what_is_gone(context: Context, found: FromTables) -> dict[tuple[str, str], Spans]:
    """Files that the copy names and the folder lacks. Derived ones are made again; of embeddings, the rows they may have held."""
    ledger, folder = context.ledger, context.place.tables
    before: dict[tuple[str, str], Spans] = {}
    for file in [file for file in ledger.files() if not (folder / file.name).is_file()]:
        if file.kind == "strings":
            continue
        ledger.drop_file(file.name)
        if file.kind == "embeddings":
            key = (file.scope, file.field)
            before.setdefault(key, ledger.spans("embedded", *key))
        else:
            found.gone += 1
            if file.kind == "tokens":
                ledger.set_spans("counted", file.scope, file.field, [])
                for other in ledger.drop_files("tokens", file.scope, file.field):
                    event(_log, "restore.recount", file=other)
    for (generation, name), rows in before.items():
        there = rows_in(folder / file.name for file in ledger.files("embeddings", generation, name))
        ledger.set_spans("embedded", generation, name, there)
        ledger.index_again(name, span_sets.subtract(rows, there))  # what an index holds of them may be another vector now
    return before


def _adopt_strings(
    context: Context,
    duck: duckdb.DuckDBPyConnection,
    paths: list[Path],
    gone: dict[tuple[str, int, int], TableFile],
    found: FromTables,
) -> None:
    """Strings that follow the known ones. A file with the very rows of one that is gone took its place: texts were forgotten."""
    ledger = context.ledger
    sources = {entry.name: entry.source for entry in context.config.fields}
    ready: list[tuple[int, int, Path, str]] = []
    for path in paths:
        name = _field_of(path)
        try:
            ready.append((*_rows_of_strings(duck, path, name), path, name))
        except ValueError as problem:
            found.aside[path.name] = str(problem)
            found.lost.append(f"the strings of {path.name}: {problem}")
    for first, past, path, name in sorted(ready, key=lambda one: (one[0], _made(one[2]))):
        definition, next_row = ledger.fields().get(name, (sources.get(name, ""), 0))
        if (old := gone.pop((name, first, past), None)) is not None:
            with ledger.transaction():
                ledger.drop_file(old.name)
                ledger.add_file(_named(path, "strings", "", name, past - first, first, past))
            continue
        if first != next_row:
            there = first < next_row
            found.aside[path.name] = f"its rows {first:,} to {past - 1:,} {'are known already' if there else 'leave a gap behind'}"
            if not there:
                found.lost.append(f"the strings of {path.name}: the file with those before row {first:,} is not there")
            continue
        known = string_files(context.place, ledger, name)
        if known and _count(duck, f"SELECT count(*) FROM {parquet([path])} SEMI JOIN {parquet(known)} known USING (uuid)"):
            found.aside[path.name] = "it holds strings that have their numbers already"
            continue
        with ledger.transaction():
            ledger.add_file(_named(path, "strings", "", name, past - first, first, past))
            ledger.save_field(name, definition, past)
        found.strings[name] = found.strings.get(name, 0) + past - first


def _field_of(path: Path) -> str:
    match = _STRINGS.fullmatch(path.name)
    return match["field"] if match else ""


def _rows_of_strings(duck: duckdb.DuckDBPyConnection, path: Path, name: str) -> tuple[int, int]:
    """first and past of a sound strings file of this field; ValueError says what is wrong with it."""
    import duckdb

    wrong = f"count(*) FILTER (uuid IS DISTINCT FROM {uuid_sql(name, 'text')} OR text IS NULL OR row IS NULL)"
    try:
        query = f"SELECT min(row), max(row) + 1, count(*), count(DISTINCT row), {wrong} FROM {parquet([path])}"
        first, past, rows, different, bad = duck.execute(query).fetchone() or (0, 0, 0, 0, 0)
    except duckdb.Error as problem:
        raise ValueError(f"it can't be read: {str(problem).splitlines()[0]}") from problem
    if not rows:
        raise ValueError("it is empty")
    if bad or different != rows or past - first != rows:
        raise ValueError(f"it is no table of strings of {name}: the row numbers or UUIDs in it are wrong")
    return int(first), int(past)


def _count(duck: duckdb.DuckDBPyConnection, query: str) -> int:
    return int((duck.execute(query).fetchone() or (0,))[0])


def _named(path: Path, kind: str, scope: str, name: str, rows: int, first: int, past: int) -> TableFile:
    found = path.stat()
    return TableFile(kind, scope, name, path.name, rows, first, past, found.st_size, sha256_of(path), found.st_mtime)


def _adopt_embeddings(context: Context, path: Path, match: re.Match[str], found: FromTables) -> None:
    """Take a file in, or the part of it that is missing, written anew."""
    ledger = context.ledger
    try:
        looked = look_through(path)
        generation, name = _belongs_to(context, looked.origin, match["generation"], match["field"], looked.dimensions)
    except ValueError as problem:
        found.aside[path.name] = str(problem)
        found.lost.append(f"the embeddings in {path.name}: {problem}")
        return
    if beyond := span_sets.subtract(looked.rows, [(0, ledger.fields().get(name, ("", 0))[1])]):
        found.aside[path.name] = "it holds rows whose strings are not there"
        found.lost.append(
            f"{span_sets.count(looked.rows):,} embeddings in {path.name}: the strings of {span_sets.count(beyond):,} are gone"
        )
        return
    fresh = span_sets.subtract(looked.rows, ledger.spans("embedded", generation.id, name))
    if not fresh:
        found.aside[path.name] = "all its rows stand in other files"
        return
    kept = path
    if fresh != looked.rows:
        number = ledger.next_file_number()
        kept = path.with_name(f"embeddings_{generation.id}_{name}_{number:06d}.parquet")
        with disk_errors(kept):
            write_embedding_pieces(temporary(kept), looked.dimensions, read_embeddings([path], fresh), looked.origin)
        publish(kept)
        ledger.reserve_file_numbers(number)
        found.aside[path.name] = f"some of its rows stand in other files; the others were written anew, to {kept.name}"
    with ledger.transaction():
        ledger.save_generation(generation, context.clock.now())
        ledger.add_file(_named(kept, "embeddings", generation.id, name, span_sets.count(fresh), fresh[0][0], fresh[-1][1]))
        ledger.add_spans("embedded", generation.id, name, fresh)
    found.pieces.append(Piece(generation.id, name, fresh, looked.origin))


def _belongs_to(context: Context, origin: Origin | None, said: str, name: str, dimensions: int) -> tuple[Generation, str]:
    """The generation and field of a file: as it says itself; else one that is known by the name it has."""
    if origin is not None:
        generation = origin.generation(dimensions)
        if (generation.id, origin.field) != (said, name):
            raise ValueError(f"it has the name of {said} {name}, and says that it holds {generation.id} {origin.field}")
    else:
        configured = generation_of(context.service, context.ledger)
        generation = next((known for known in _known(context, configured) if known.id == said), configured)
        if generation.id != said:
            raise ValueError(f"it does not say what model its vectors are of, and the generation {said} is not known")
    known = context.ledger.generation(generation.id)
    if known is not None and known.dimensions not in (0, dimensions):
        raise ValueError(f"its vectors have {dimensions} dimensions instead of {known.dimensions}")
    return Generation(generation.service, generation.model, generation.asked, dimensions), name


def _known(context: Context, configured: Generation) -> Iterator[Generation]:
    yield from context.ledger.generations()
    yield configured
