"""Forgetting strings for good: out of the indexes, the tables, the request and result files, and the ledger with its copy.

A forgotten string keeps its row number; under it stands a mark that no input can hold, since it begins with a NUL. So all
other rows stay what they are. The rows are marked in the ledger before anything is done, and the marks go when everything
is: cut off anywhere, the same can be done again. The index comes first, for its keys are made of the texts; then the
tables, the ledger and its copy; then the files that only the old copy would miss. What the disk itself keeps of a deleted
file, and backups, are out of reach.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from pipeline import spans as span_sets
from pipeline.belonging import FORGETTING, STALE, scope_of
from pipeline.checkpoint import delete_tables, write_list
from pipeline.context import Context
from pipeline.errors import DamagedTableError
from pipeline.files import disk_errors, need_room, publish, publish_table, temporary
from pipeline.identity import parse_custom_id
from pipeline.indexing import open_store, string_files
from pipeline.ledger import Generation, Job, TableFile
from pipeline.ledger.erasing import forms_of
from pipeline.ledger.jobs import UNCOLLECTED, UNSENT
from pipeline.spans import Spans
from pipeline.spool import spool_files
from pipeline.stores import STORES
from pipeline.tables.duck import copy_sql, duck_errors, parquet, quoted, uuid_sql
from pipeline.tables.embeddings import look_through, read_embeddings, rows_in, write_embedding_pieces
from pipeline.tables.strings import FORGOTTEN_SQL, forgotten_mark_sql, read_strings

if TYPE_CHECKING:
    import duckdb

MOST_SHOWN = 20
_MOST_COMPARED = 100  # texts; each is looked for in every string of the catalogue
_KEYS = 4096
_AUDIT = re.compile(r"batch_(requests|results|errors)_(?P<number>[0-9]{4,})\.jsonl")
_THERE = ("indexed", STALE, "writing")

Rows = dict[str, Spans]


class _Named(msgspec.Struct):
    custom_id: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """A text to forget; in one field, or in whichever has it."""

    text: str
    field: str | None = None


@dataclass(slots=True)
class Forgotten:
    """What was done."""

    strings: dict[str, int] = field(default_factory=dict)
    embeddings: int = 0
    audit_files: int = 0


def find_rows(context: Context, duck: duckdb.DuckDBPyConnection, wishes: Sequence[Wish]) -> tuple[Rows, int]:
    """The rows of these texts, with those that a run before was killed over; and how many wishes no string answers."""
    import pyarrow as pa

    ledger = context.ledger
    table = pa.table({"field": [wish.field for wish in wishes], "text": [wish.text for wish in wishes]})
    duck.register("wish_list", table.cast(pa.schema([("field", pa.string()), ("text", pa.string())])))
    duck.execute("CREATE OR REPLACE TABLE wish AS SELECT * FROM wish_list")
    duck.unregister("wish_list")
    found: Rows = {}
    known: set[tuple[str | None, str]] = set()
    for name in ledger.fields():
        if files := string_files(context.place, ledger, name):
            query = (
                f"SELECT row, wish.field, string.text FROM {parquet(files)} string JOIN wish ON string.text = wish.text AND "
                f"coalesce(wish.field, {quoted(name)}) = {quoted(name)}"
            )
            rows = duck.execute(query).fetchall()
            known |= {(of_field, text) for _, of_field, text in rows}
            found[name] = span_sets.of_rows(sorted({row for row, _, _ in rows}))
        found[name] = span_sets.union(found.get(name, []), ledger.spans(FORGETTING, "", name))
    return {name: rows for name, rows in found.items() if rows}, len({(wish.field, wish.text) for wish in wishes} - known)


def refusals(context: Context, rows: Rows) -> list[str]:
    """Why these strings can't be forgotten now, each with the way out."""
    ledger = context.ledger
    why = []
    if ledger.intents() or spool_files(context.place.spool):
        why.append("a run was cut off, and its answers are not collected: python main.py")
    for name, wanted in rows.items():
        present = span_sets.union(*(span_sets.intersect(wanted, ledger.spans("present", kind, name)) for kind in ("full", "trial")))
        if present:
            why.append(
                f"{span_sets.count(present):,} strings of {name} are in the input as last read (row {present[0][0]}), and would "
                "come back with the next reading: take them out of the input, then: python main.py --end preprocessing"
            )
    for job in ledger.jobs.all():
        if not _holds(ledger.jobs.rows(job.id), rows):
            continue
        if job.state in UNCOLLECTED:
            why.append(f"job {job.id} is {job.state} and holds some of them: python batch_manager.py {_way(job)}")
        elif job.remote_files and not job.cleaned:
            why.append(f"the service still has the files of job {job.id}: python main.py --delete-remote --yes")
    return why


def _way(job: Job) -> str:
    if job.state == "lost":
        return "--retry-failed --yes gives it up"
    if job.state in UNSENT:
        return "--advance submits it, and collects it when it is finished"
    return "--download when it is finished; to end it before: --cancel"


def _holds(of_job: Rows, rows: Rows) -> bool:
    return any(span_sets.intersect(of_job.get(name, []), wanted) for name, wanted in rows.items())


def others_with(context: Context, duck: duckdb.DuckDBPyConnection, rows: Rows, wishes: int) -> list[tuple[str, str]] | None:
    """(field, text) of other strings in which one of the wished texts stands, some of them; None when there are too many wishes
    to look: each is looked for in every string."""
    if wishes > _MOST_COMPARED:
        return None
    found: list[tuple[str, str]] = []
    for name in context.ledger.fields():
        files = string_files(context.place, context.ledger, name)
        if files:
            _gone(duck, rows.get(name, []))
            query = (
                f"SELECT DISTINCT text FROM {parquet(files)} string ANTI JOIN gone USING (row) WHERE EXISTS "
                f"(SELECT 1 FROM wish WHERE contains(string.text, wish.text) AND wish.text <> '') LIMIT {MOST_SHOWN + 1}"
            )
            found += [(name, text) for (text,) in duck.execute(query).fetchall()]
    return found


def forget(context: Context, duck: duckdb.DuckDBPyConnection, rows: Rows, texts: Sequence[str]) -> Forgotten:
    """All of it, in an order that can be cut off anywhere and begun again."""
    ledger, place = context.ledger, context.place
    done = Forgotten({name: span_sets.count(wanted) for name, wanted in rows.items()})
    with ledger.transaction():
        for name, wanted in rows.items():
            ledger.add_spans(FORGETTING, "", name, wanted)
            for generation in ledger.generations():  # from here on nothing indexes them again
                embedded = ledger.spans("embedded", generation.id, name)
                done.embeddings += span_sets.count(span_sets.intersect(embedded, wanted))
                ledger.set_spans("embedded", generation.id, name, span_sets.subtract(embedded, wanted))
    _leave_indexes(context, duck, rows)
    old: list[str] = []
    with disk_errors(place.tables), duck_errors(place.scratch):
        for name, wanted in rows.items():
            old += _rewrite_strings(context, duck, name, wanted)
            old += _rewrite_embeddings(context, name, wanted)
    for name, wanted in rows.items():
        ledger.eraser.exceptions(name, wanted)
    ledger.eraser.words(texts)
    ledger.eraser.compact()
    ledger.save_copy(place.copy)  # before the files that the last copy names are gone
    delete_tables(place, old)
    done.audit_files = sum(_drop_lines(context, path, rows, texts) for path in _audit_files(context, rows))
    # Exports, reports and lists: the next command that has something new writes them anew.
    for name in ("batch_jobs.pkl", "batch_processed_hashes.pkl", "report.html", "report.json", "import_rejected.csv"):
        write_list(place.root / name, None)
    return done


def finish(context: Context, rows: Rows) -> None:
    """Everything is done: the marks go."""
    with context.ledger.transaction():
        for name in rows:
            context.ledger.set_spans(FORGETTING, "", name, [])


def _gone(duck: duckdb.DuckDBPyConnection, spans: Spans) -> None:
    """The rows of spans as a table."""
    import pyarrow as pa

    duck.register("gone_rows", pa.table({"row": pa.array(span_sets.rows_of(spans), pa.int64())}))
    duck.execute("CREATE OR REPLACE TABLE gone AS SELECT * FROM gone_rows")
    duck.unregister("gone_rows")


def _leave_indexes(context: Context, duck: duckdb.DuckDBPyConnection, rows: Rows) -> None:
    ledger, place = context.ledger, context.place
    for store_name, generation in _indexes(context, rows):
        store = open_store(place, ledger, replace(context.config, vector_store=store_name), generation)
        try:
            for name, wanted in rows.items():
                for window in span_sets.windows(wanted, _KEYS):
                    files = string_files(place, ledger, name)
                    for batch in read_strings(duck, files, window, "row, uuid::VARCHAR AS uuid"):
                        store.delete([UUID(key) for key in batch.column("uuid").to_pylist()])
            store.scrub()
        finally:
            store.close()
        scope = scope_of(store_name, generation)
        with ledger.transaction():
            for name, wanted in rows.items():
                for state in _THERE:
                    ledger.set_spans(state, scope, name, span_sets.subtract(ledger.spans(state, scope, name), wanted))


def _indexes(context: Context, rows: Rows) -> Iterator[tuple[str, Generation]]:
    """Every index that may hold one of the rows, whatever the config names now. An embedded one is looked at if it is there: what
    was deleted from it before may still be in its files."""
    ledger = context.ledger
    for generation in ledger.generations():
        for store_name in STORES if generation.dimensions else ():
            scope = scope_of(store_name, generation)
            there = {name: span_sets.union(*(ledger.spans(state, scope, name) for state in _THERE)) for name in rows}
            is_file = store_name == "embedded" and (context.place.store / f"{generation.id}.sqlite").exists()
            if is_file or _holds(there, rows):
                yield store_name, generation


def _rewrite_strings(context: Context, duck: duckdb.DuckDBPyConnection, name: str, wanted: Spans) -> list[str]:
    """Strings files with marks in the place of texts; the names of the old ones."""
    ledger, folder = context.ledger, context.place.tables
    mark = forgotten_mark_sql(name, "string.row")
    _gone(duck, wanted)
    old = []
    for file in ledger.files("strings", field=name):
        path = folder / file.name
        left = f"SELECT count(*) FROM {parquet([path])} string SEMI JOIN gone USING (row) WHERE NOT {FORGOTTEN_SQL}"
        if not span_sets.intersect(wanted, [(file.first_row, file.past_row)]) or not duck.execute(left).fetchall()[0][0]:
            continue
        need_room(folder, file.bytes)
        final = _next(context, f"strings_{name}")
        select = (
            f"SELECT string.row, CASE WHEN gone.row IS NULL THEN uuid ELSE {uuid_sql(name, mark)} END AS uuid, "
            f"CASE WHEN gone.row IS NULL THEN text ELSE {mark} END AS text "
            f"FROM {parquet([path])} string LEFT JOIN gone ON gone.row = string.row ORDER BY string.row"
        )
        duck.execute(copy_sql(select, temporary(final)))
        _exchange(context, file, final, [(file.first_row, file.past_row)])
        old.append(file.name)
    return old


def _rewrite_embeddings(context: Context, name: str, wanted: Spans) -> list[str]:
    """Embeddings files without these rows; the names of the old ones."""
    ledger, folder = context.ledger, context.place.tables
    old = []
    for file in ledger.files("embeddings", field=name):
        path = folder / file.name
        if not span_sets.intersect(wanted, [(file.first_row, file.past_row)]):
            continue
        there = rows_in([path])
        left = span_sets.subtract(there, wanted)
        if left == there:
            continue
        if left:
            need_room(folder, file.bytes)
            try:
                looked = look_through(path)
            except ValueError as problem:
                raise DamagedTableError(
                    f"{path}: {problem}. Bring it back from a backup, and run the same command again."
                ) from problem
            final = _next(context, f"embeddings_{file.scope}_{name}")
            write_embedding_pieces(temporary(final), looked.dimensions, read_embeddings([path], left), looked.origin)
            _exchange(context, file, final, left)
        else:
            ledger.drop_file(file.name)
        old.append(file.name)
    return old


def _next(context: Context, start: str) -> Path:
    """A name that no file has or had. Its number is taken before the file is there: of a run that is killed then, nobody takes
    it for a file of a newer ledger."""
    number = context.ledger.next_file_number()
    context.ledger.reserve_file_numbers(number)
    return context.place.tables / f"{start}_{number:06d}.parquet"


def _exchange(context: Context, old: TableFile, final: Path, rows: Spans) -> None:
    """The new file is published, and one commit makes it take the old one's place."""
    size, hashed = publish_table(final)
    new = replace(
        old, name=final.name, rows=span_sets.count(rows), first_row=rows[0][0], past_row=rows[-1][1], bytes=size, sha256=hashed
    )
    with context.ledger.transaction():
        context.ledger.drop_file(old.name)
        context.ledger.add_file(new)


def _audit_files(context: Context, rows: Rows) -> Iterator[Path]:
    """Request, result and error files that may name one of the rows; those of a job that nobody knows any more as well."""
    known = {job.id for job in context.ledger.jobs.all()}
    for path in sorted(context.place.data.glob("batch_*.jsonl")):
        found = _AUDIT.fullmatch(path.name)
        if found is not None:
            number = int(found["number"])
            if number not in known or _holds(context.ledger.jobs.rows(number), rows):
                yield path


def _drop_lines(context: Context, path: Path, rows: Rows, texts: Sequence[str]) -> bool:
    """Write a file anew without the lines of these rows; whether it had any."""
    forms = [form.encode() for text in texts for form in forms_of(text)]
    with path.open("rb") as file:
        if not any(_is_of(line, rows, forms) for line in file):
            return False
    need_room(context.place.data, path.stat().st_size)
    temporary(path).unlink(missing_ok=True)
    with disk_errors(path), path.open("rb") as file, temporary(path).open("xb") as out:
        out.writelines(line for line in file if not _is_of(line, rows, forms))
    publish(path)
    return True


def _is_of(line: bytes, rows: Rows, forms: Sequence[bytes]) -> bool:
    """Whether a line is about one of the rows; one that can't be read, whether it quotes a text."""
    try:
        said = msgspec.json.decode(line, type=_Named).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            found = json.loads(line)
        except ValueError:
            return any(form in line for form in forms)
        said = found.get("custom_id") if isinstance(found, dict) else None
    name = parse_custom_id(said) if isinstance(said, str) else None
    if name is None:
        return any(form in line for form in forms)
    return any(first <= name.index < past for first, past in rows.get(name.field, []))
