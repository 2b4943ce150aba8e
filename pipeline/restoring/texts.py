"""Strings that were read after the copy was made, and whose table is gone: from the request files that asked for them.

A request holds the whole text, and its custom_id the row number for life. Numbers in between that no request names belonged
to strings that were never sent; nobody can say which, so a mark stands there that no input can hold, as under a forgotten
string, and the next reading gives those strings new numbers. What does not fit is left alone: its job then says what is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipeline.context import Context
from pipeline.files import disk_errors, publish_table, temporary
from pipeline.identity import crc32_of, parse_custom_id
from pipeline.indexing import string_files
from pipeline.ledger import TableFile
from pipeline.tables.duck import copy_sql, parquet, quoted, uuid_sql
from pipeline.tables.strings import forgotten_mark_sql

if TYPE_CHECKING:
    import duckdb

_CHUNK = 8192


class _Body(msgspec.Struct):
    input: str


class _Request(msgspec.Struct):
    custom_id: str
    body: _Body


def learn_strings(context: Context, duck: duckdb.DuckDBPyConnection, paths: Iterable[Path]) -> dict[str, int]:
    """Give the draft the strings of these request files that it does not know; how many they are, by field."""
    import pyarrow as pa

    duck.execute("CREATE OR REPLACE TABLE asked (field VARCHAR, row BIGINT, text VARCHAR)")
    for path in paths:
        found = _beyond(context, path)
        while some := list(islice(found, _CHUNK)):
            fields, rows, texts = zip(*some, strict=True)
            duck.register("some_asked", pa.table({"field": fields, "row": rows, "text": texts}))
            duck.execute("INSERT INTO asked SELECT field, row, text FROM some_asked")
            duck.unregister("some_asked")
    names = [name for (name,) in duck.execute("SELECT DISTINCT field FROM asked ORDER BY field").fetchall()]
    learned = {name: _learn(context, duck, name) for name in names}
    duck.execute("DROP TABLE asked")
    return {name: count for name, count in learned.items() if count}


def _beyond(context: Context, path: Path) -> Iterator[tuple[str, int, str]]:
    """(field, row, text) of requests for rows that the draft does not know; a line that is none ends the file."""
    known = {name: past for name, (_, past) in context.ledger.fields().items()}
    configured = {entry.name for entry in context.config.fields}
    with path.open("rb") as file:
        for line in file:
            try:
                request = msgspec.json.decode(line, type=_Request)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return
            name, text = parse_custom_id(request.custom_id), request.body.input
            if name is None or name.crc32 != crc32_of(text) or name.field not in known.keys() | configured:
                return
            if name.index >= known.get(name.field, 0):
                yield name.field, name.index, text


def _learn(context: Context, duck: duckdb.DuckDBPyConnection, name: str) -> int:
    ledger, folder = context.ledger, context.place.tables
    sources = {entry.name: entry.source for entry in context.config.fields}
    definition, first = ledger.fields().get(name, (sources.get(name, ""), 0))
    asked = f"SELECT max(row) + 1, count(DISTINCT row), count(DISTINCT text) FROM asked WHERE field = {quoted(name)}"
    past, rows, texts = duck.execute(asked).fetchall()[0]
    if rows != texts or past - first > 2 * rows + _CHUNK or _are_known(context, duck, name):
        return 0
    number = ledger.next_file_number()
    final = folder / f"strings_{name}_{number:06d}.parquet"
    one_each = f"SELECT row, any_value(text) AS text FROM asked WHERE field = {quoted(name)} GROUP BY row"
    text = f"coalesce(asked.text, {forgotten_mark_sql(name, 'every.row')})"
    select = (
        f"SELECT every.row, {uuid_sql(name, text)} AS uuid, {text} AS text FROM "
        f"(SELECT range AS row FROM range({first}, {past})) every LEFT JOIN ({one_each}) asked ON "
        "asked.row = every.row ORDER BY every.row"
    )
    with disk_errors(final):
        duck.execute(copy_sql(select, temporary(final)))
        size, hashed = publish_table(final)
    with ledger.transaction():
        ledger.reserve_file_numbers(number)
        now = context.clock.now()
        ledger.add_file(TableFile("strings", "", name, final.name, past - first, first, past, size, hashed, now))
        ledger.save_field(name, definition, past)
    return int(rows)


def _are_known(context: Context, duck: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Whether one of the texts has a number already: then these are the requests of another history."""
    files = string_files(context.place, context.ledger, name)
    query = f"SELECT 1 FROM asked SEMI JOIN {parquet(files)} known ON known.text = asked.text WHERE field = {quoted(name)} LIMIT 1"
    return bool(files) and bool(duck.execute(query).fetchall())
