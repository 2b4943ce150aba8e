"""From rows to records, strings, occurrences and frequencies: the SQL of preprocessing.

A database in memory holds the rows of this reading; what the memory limit has no room for lies in scratch. A string is
grouped by its UUID, not by its text, so that 17 million composites need 16 bytes each in a hash table. Nothing here is
committed: the files lie under temporary names until `preprocessing.py` publishes them and the ledger names them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.arrays import to_arrow
from pipeline.fields import Field
from pipeline.files import need_room
from pipeline.reading import Reader, Rejected, Source, read_rows
from pipeline.spans import Spans
from pipeline.tables.duck import blank_sql, connect, copy_sql, parquet, quoted, uuid_sql

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_BYTES_A_RECORD = 72
LARGEST_CELL = 1 << 20  # bytes; what is longer is no name or title, and would be refused by every embedding model


@dataclass(frozen=True, slots=True)
class FieldCount:
    """A field of the snapshot: how many occurrences and strings, how many of them new, which rows are present, and which
    known rows occur more or less often than before."""

    occurrences: int
    strings: int
    new: int
    present: Spans
    changed: Spans


class Work:
    """The rows of one reading. In memory and spilled from there, not in a database file: nobody opens them again, and a file
    would be compressed and made durable, which took as long as reading the input."""

    def __init__(self, scratch: Path, memory_gb: float) -> None:
        self._scratch = scratch
        self._memory = int(memory_gb * 1e9)
        self._duck: duckdb.DuckDBPyConnection = connect(scratch, memory_gb, keeps_memory=True)
        self._columns: tuple[str, ...] = ()
        self._names: list[str] = []  # of the sources, by their number
        self._records = "line"  # the table of the good rows
        self._earlier: Path | None = None  # the records of an earlier reading, of which some stay
        self._read = 0

    def need_room(self) -> None:
        """DiskError before a field that the disk has no room for. Its work tables and its tables of numbers hold 72 bytes a record
        at most; its texts, compressed, take less than what was read."""
        need_room(self._scratch, self.count_records() * _BYTES_A_RECORD + self._read)

    def _need_room_to_spill(self, read: int) -> None:
        """Half of the memory is for the work; what was read and is beyond the other half will be spilled, if it is not yet."""
        need_room(self._scratch, read - self._memory // 2 - spilled(self._scratch))

    def close(self) -> None:
        """End the reading, and give back the space: embedding what was read may take days."""
        self._duck.close()

    def take(self, sources: Sequence[Source], reader: Reader, limit: int | None) -> None:
        """Read the sources into scratch, the id first among the columns; at most the first `limit` rows."""
        import pyarrow as pa

        self._columns = reader.columns
        schema = pa.schema(
            [("file", pa.int32()), ("row", pa.int64()), *((f"c{i}", pa.large_string()) for i in range(len(reader.columns)))]
        )
        stopped: list[BaseException] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for batch in _batches(sources, reader, limit, schema):
                    self._read += batch.nbytes
                    self._need_room_to_spill(self._read)
                    yield batch
            except BaseException as problem:  # noqa: BLE001 - DuckDB would make it an error of its own; raised again below
                stopped.append(problem)

        self._duck.register("incoming", pa.RecordBatchReader.from_batches(schema, batches()))
        self._duck.execute("CREATE TABLE line AS SELECT * FROM incoming")
        self._duck.unregister("incoming")
        if stopped:
            raise stopped[0]

    def judge(self, sources: Sequence[Source], largest_cell: int = LARGEST_CELL) -> Iterator[Rejected]:
        """Number the good rows as records, and give the bad ones with their reasons.

        Of rows with the same id the first, by file and row, is the record; the others are rejected. The rule does not
        depend on what they hold, so that it gives the same every run. Lines lie in their table in the order of the input.
        """
        duck = self._duck
        cells = [f"c{index}" for index in range(len(self._columns))]
        nul = " OR ".join(f"contains({cell}, chr(0))" for cell in cells)
        large = " OR ".join(f"strlen({cell}) > {largest_cell}" for cell in cells)
        self._names = [source.name for source in sources]
        too_large = f"has a cell of more than {largest_cell:,} bytes"
        reason = (
            f"CASE WHEN {nul} THEN 'holds a NUL byte' WHEN {large} THEN '{too_large}' "
            f"WHEN c0 IS NULL OR {blank_sql('c0')} THEN 'has no id' END"
        )
        duck.execute(
            f"CREATE TABLE bad AS SELECT line, reason FROM (SELECT rowid AS line, {reason} AS reason FROM line) WHERE reason "
            "IS NOT NULL"
        )
        others = "WHERE rowid NOT IN (SELECT line FROM bad)" if self._one("SELECT count(*) FROM bad") else ""
        if self._one(f"SELECT count(*) - count(DISTINCT c0) FROM line {others}"):
            duck.execute(f"CREATE TABLE again AS SELECT c0, min(rowid) AS first FROM line {others} GROUP BY c0 HAVING count(*) > 1")
            duck.execute(
                f"""INSERT INTO bad
                SELECT line.rowid, 'the id stands already in row ' || kept.row || ' of ' || {self._file_sql("kept.file")} FROM line
                JOIN again USING (c0) JOIN line kept ON kept.rowid = again.first
                WHERE line.rowid <> again.first AND line.rowid NOT IN (SELECT line FROM bad)"""
            )
        if self._one("SELECT count(*) FROM bad"):
            self._records = "kept"
            duck.execute("CREATE TABLE kept AS SELECT * FROM line WHERE rowid NOT IN (SELECT line FROM bad) ORDER BY rowid")
        duck.execute(f"CREATE VIEW record AS SELECT rowid AS record, * FROM {self._records}")
        columns = f"{self._file_sql('file')}, row, coalesce(left(c0, 200), ''), reason"
        found = duck.execute(f"SELECT {columns} FROM bad JOIN line ON line.rowid = bad.line ORDER BY bad.line")
        while rows := found.fetchmany(1000):
            yield from (Rejected(*row) for row in rows)

    def add_to(self, records: Path) -> None:
        """What was read are additions: the records of an earlier reading stay, but for those that are here again."""
        self._keep(records, "SELECT c0 FROM record")

    def forget(self, records: Path, ids: Iterable[str]) -> int:
        """The records of an earlier reading stay, but for those with these ids. How many different ids were given."""
        import pyarrow as pa

        self._duck.execute("CREATE TABLE forgotten (id VARCHAR)")
        for piece in _pieces(ids, 10_000):
            self._duck.register("ids", pa.table({"id": piece}))
            self._duck.execute("INSERT INTO forgotten SELECT id FROM ids")
            self._duck.unregister("ids")
        self._keep(records, "SELECT id FROM forgotten")
        return self._one("SELECT count(DISTINCT id) FROM forgotten")

    def _keep(self, records: Path, gone: str) -> None:
        """Those that stay come first, in their old order; what was read is numbered after them."""
        self._earlier = records
        known = f"SELECT record AS was FROM {parquet([records])} known WHERE id NOT IN ({gone})"
        self._duck.execute(f"CREATE TABLE stays AS SELECT was, row_number() OVER (ORDER BY was) - 1 AS record FROM ({known})")
        stay = self._one("SELECT count(*) FROM stays")
        self._duck.execute(f"CREATE OR REPLACE VIEW record AS SELECT rowid + {stay} AS record, * FROM {self._records}")

    def count_records(self) -> int:
        stay = self._one("SELECT count(*) FROM stays") if self._earlier else 0
        return stay + self._one("SELECT count(*) FROM record")

    def count_known_ids(self, records: Path) -> int:
        """How many of the ids of an earlier records file are here again."""
        return self._one(f"SELECT count(*) FROM {parquet([records])} known SEMI JOIN record ON known.id = record.c0")

    def write_records(self, target: Path) -> None:
        # A table gives its rows in the order in which they came: no sort.
        select = f"SELECT record, c0 AS id, {self._file_sql('file')} AS file, row FROM record"
        if self._earlier:
            known = f"{parquet([self._earlier])} known JOIN stays ON was = known.record"
            select = f"SELECT * FROM (SELECT stays.record, id, file, row FROM {known} UNION ALL {select}) ORDER BY record"
        self._duck.execute(copy_sql(select, target))

    def number_strings(
        self,
        field: Field,
        known: Sequence[Path],
        next_row: int,
        frequencies: Sequence[Path],
        occurrences: Sequence[Path] = (),
    ) -> FieldCount:
        """Find the strings of a field; new ones get the next numbers in the order of their first record. `occurrences`: those of
        the earlier reading, of which some records stay."""
        name = field.name
        text = f"SELECT record, {self._text_sql(field)} AS text FROM record"
        mentions = f"SELECT record, {uuid_sql(name, 'text')} AS uuid FROM ({text})"
        if occurrences and known:
            old = f"{parquet(occurrences)} old JOIN stays ON was = old.record JOIN {parquet(known)} string ON string.row = old.row"
            mentions += f" UNION ALL SELECT stays.record, uuid FROM {old}"
        self._duck.execute(f"CREATE TABLE mention_{name} AS {mentions}")
        old = f"SELECT uuid, row FROM {parquet(known)}" if known else "SELECT NULL::UUID AS uuid, 0::BIGINT AS row WHERE false"
        self._duck.execute(
            f"""CREATE TABLE string_{name} AS
            WITH seen AS (SELECT uuid, min(record) AS first, count(*) AS frequency FROM mention_{name} GROUP BY uuid),
            known AS (SELECT uuid, first, frequency, old.row FROM seen LEFT JOIN ({old}) old USING (uuid))
            SELECT uuid, first, frequency, row IS NULL AS is_new,
                coalesce(row, {next_row} + row_number() OVER (PARTITION BY row IS NULL ORDER BY first) - 1) AS row FROM known"""
        )
        ((strings, new, mentioned),) = self._duck.execute(
            f"SELECT count(*), count(*) FILTER (is_new), coalesce(sum(frequency), 0)::BIGINT FROM string_{name}"
        ).fetchall()
        changed: Spans = []
        if frequencies:
            before = f"(SELECT row, frequency AS was FROM {parquet(frequencies)}) before"
            changed = self._spans(
                f"SELECT row FROM string_{name} FULL JOIN {before} USING (row) WHERE row < {next_row} AND frequency IS DISTINCT "
                "FROM was"
            )
        elif next_row:  # their last counts are not known (a restored ledger): what an index keeps of any may be out of date
            changed = [(0, next_row)]
        return FieldCount(int(mentioned), int(strings), int(new), self._spans(f"SELECT row FROM string_{name}"), changed)

    def _spans(self, rows: str) -> Spans:
        """The rows of a selection as spans."""
        islands = f"SELECT row, row - row_number() OVER (ORDER BY row) AS island FROM ({rows})"
        found = self._duck.execute(f"SELECT min(row), max(row) + 1 FROM ({islands}) GROUP BY island ORDER BY 1").fetchall()
        return [(int(first), int(past)) for first, past in found]

    def write_new_strings(self, field: Field, rows: tuple[int, int], target: Path) -> None:
        """Some of the new strings. To sort millions of texts at once takes twice as long as to sort them in parts, and spills."""
        strings = f"(SELECT * FROM string_{field.name} WHERE is_new AND row >= {rows[0]} AND row < {rows[1]})"
        text = f"(SELECT record, {self._text_sql(field)} AS text FROM record)"
        self._duck.execute(copy_sql(f"SELECT row, uuid, text FROM {strings} JOIN {text} ON record = first ORDER BY row", target))

    def write_occurrences(self, field: str, target: Path) -> None:
        select = f"SELECT record, row FROM mention_{field} JOIN string_{field} USING (uuid) ORDER BY record"
        self._duck.execute(copy_sql(select, target))

    def write_frequencies(self, field: str, target: Path) -> None:
        self._duck.execute(copy_sql(f"SELECT row, frequency FROM string_{field} ORDER BY row", target))

    def drop(self, field: str) -> None:
        for table in ("mention", "string"):
            self._duck.execute(f"DROP TABLE {table}_{field}")

    def _one(self, query: str) -> int:
        found = self._duck.execute(query).fetchall()  # whole: while a result is open, the connection may refuse other work
        return int(found[0][0])

    def _text_sql(self, field: Field) -> str:
        """The text of a field: lines with something in them, joined; empty when no column says anything."""
        if field.is_column:
            return f"coalesce({self._cell(field.columns[0])}, '')"
        lines = []
        for line in field.lines:
            pieces = [f"coalesce({self._cell(part.text)}, '')" if part.is_column else quoted(part.text) for part in line]
            words = " || ".join(pieces) or "''"
            cells = [blank_sql(f"coalesce({self._cell(part.text)}, '')") for part in line if part.is_column]
            lines.append(f"CASE WHEN {' AND '.join(cells)} THEN NULL ELSE {words} END" if cells else words)
        nothing = " AND ".join(blank_sql(f"coalesce({self._cell(column)}, '')") for column in field.columns)
        return f"CASE WHEN {nothing} THEN '' ELSE concat_ws(chr(10), {', '.join(lines)}) END"

    def _file_sql(self, number: str) -> str:
        """The name of a source."""
        return f"[{', '.join(map(quoted, self._names or ['']))}][{number} + 1]"

    def _cell(self, column: str) -> str:
        return f"c{self._columns.index(column)}"


def _pieces(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while piece := list(itertools.islice(rest, most)):
        yield piece


def spilled(scratch: Path) -> int:
    """The bytes of it that DuckDB keeps in scratch."""
    size = 0
    for path in (scratch / "duckdb").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it goes when DuckDB likes
            size += path.stat().st_size
    return size


def _batches(sources: Sequence[Source], reader: Reader, limit: int | None, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of all sources, each with the number of its file."""
    import numpy as np
    import pyarrow as pa

    left = limit
    for number, source in enumerate(sources):
        for batch in read_rows(source, reader):
            kept = batch if left is None else batch.slice(0, left)
            files = to_arrow(np.full(kept.num_rows, number, np.int32))
            yield pa.record_batch([files, *kept.columns], schema=schema)
            left = None if left is None else left - kept.num_rows
            if left == 0:
                return
