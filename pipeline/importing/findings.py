"""What was found in a source, as tables of a DuckDB connection: joined by custom_id, matched by field and whole text.

Texts, numbers and places of vectors are here, and no vector; what the memory limit has no room for lies in scratch. A
vector is known by its slot, the place where it lies. Order and number of the processes that read leave no trace: of what
stands twice the first counts, by file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.importing.lines import Read
from pipeline.spans import Spans
from pipeline.tables.duck import blank_sql, parquet, quoted, uuid_sql

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_READ_ROWS = 4096
_SHOWN = 200  # letters of a text in the list of what was rejected
_TABLES = """
    CREATE TABLE asked (pair INTEGER, line BIGINT, name VARCHAR, place INTEGER, text VARCHAR);
    CREATE TABLE answered (pair INTEGER, line BIGINT, name VARCHAR, place INTEGER, slot BIGINT, digest BIGINT);
    CREATE TABLE found (file INTEGER, line BIGINT, field VARCHAR, text VARCHAR, slot BIGINT, digest BIGINT);
    CREATE TABLE rejected (file INTEGER, line BIGINT, what VARCHAR, reason VARCHAR);
    CREATE TABLE matched (field VARCHAR, row BIGINT, uuid UUID, slot BIGINT, digest BIGINT);
"""
# What would be taken for the answer to another text.
_AMBIGUOUS = "SELECT pair, name FROM asked GROUP BY pair, name, place HAVING count(DISTINCT text) > 1"
_JOIN = f"""
    CREATE TABLE ambiguous AS SELECT DISTINCT pair, name FROM ({_AMBIGUOUS});
    INSERT INTO rejected SELECT 2 * pair, line, name, 'its custom_id stands twice in the file, with different texts' FROM asked
        SEMI JOIN ambiguous USING (pair, name) WHERE place = 0;
    INSERT INTO rejected SELECT 2 * pair + 1, line, name, 'no usable request of its pair has this custom_id' FROM answered
        ANTI JOIN asked USING (pair, name, place);
    DELETE FROM asked USING ambiguous twice WHERE asked.pair = twice.pair AND asked.name = twice.name;
    INSERT INTO found SELECT pair * 2 + 1, line, NULL, text, slot, digest FROM answered
        JOIN (SELECT pair, name, place, any_value(text) AS text FROM asked GROUP BY pair, name, place) USING (pair, name, place);
"""
_UNANSWERED = """SELECT count(*) FROM (SELECT DISTINCT pair, name, place FROM asked) ANTI JOIN answered USING (pair, name, place)"""


class Findings:
    """The tables of one import."""

    def __init__(self, duck: duckdb.DuckDBPyConnection) -> None:
        self._duck = duck
        self._duck.execute(_TABLES)

    # What was read

    def add(self, read: Read, file: int, kind: str, before: int) -> None:
        """Take what a piece gave: `kind` is requests, results or rows, `before` the lines of the file before it."""
        columns = {
            "requests": ("asked", ("line", "name", "place", "text")),
            "results": ("answered", ("line", "name", "place", "slot", "digest")),
            "rows": ("found", ("line", "field", "text", "slot", "digest")),
        }
        table, names = columns[kind]
        owner = ("file", file) if kind == "rows" else ("pair", file // 2)
        self._insert(table, owner, names, read.found, before)
        bad = [(one.line, one.what, one.reason) for one in read.rejected]
        self._insert("rejected", ("file", file), ("line", "what", "reason"), bad, before)

    def _insert(
        self, table: str, owner: tuple[str, int], names: Sequence[str], rows: Sequence[tuple[Any, ...]], before: int
    ) -> None:
        import pyarrow as pa

        if not rows:
            return
        texts = ("name", "text", "field", "what", "reason")
        arrays = {
            name: pa.array(column, pa.large_string() if name in texts else pa.int64())
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        chosen = ", ".join("line + $before" if name == "line" else name for name in names)
        with_ = {"before": before, "owner": owner[1]}
        self._duck.register("incoming", pa.table(arrays))
        self._duck.execute(f"INSERT INTO {table} ({owner[0]}, {', '.join(names)}) SELECT $owner, {chosen} FROM incoming", with_)
        self._duck.unregister("incoming")

    def join(self) -> int:
        """Results and their requests become texts with vectors; how many texts were asked and have none."""
        self._duck.execute(_JOIN)
        unanswered = self._one(_UNANSWERED)
        self._duck.execute("DROP TABLE asked; DROP TABLE answered")
        return unanswered

    # What it means to the catalogue

    def refuse_blank(self) -> None:
        """An empty text is never embedded, whatever another pipeline made of it."""
        blank = blank_sql("text")
        words = quoted("an empty text is never embedded")
        self._duck.execute(f"INSERT INTO rejected SELECT file, line, left(text, {_SHOWN}), {words} FROM found WHERE {blank}")
        self._duck.execute(f"DELETE FROM found WHERE {blank}")

    def match(self, field: str, files: Sequence[Path], present: Spans, told: str | None) -> None:
        """Match the texts of a field, or of none, with its strings; `told` is the field of those that say none."""
        if not files or not present:
            return
        self._spans(present)
        ours = quoted(field)
        self._duck.execute(
            f"""INSERT INTO matched SELECT {ours}, string.row, string.uuid, slot, digest
            FROM (SELECT *, {uuid_sql(field, "text")} AS uuid FROM found
                  WHERE coalesce(field, {ours if told is None else quoted(told)}) = {ours}) text
            JOIN {parquet(files)} string ON string.uuid = text.uuid
            JOIN given ON string.row >= given.first AND string.row < given.past"""
        )

    def choose(self) -> tuple[int, int]:
        """Of each string the first vector; how many strings, and how many further vectors of theirs."""
        self._duck.execute(
            """CREATE TABLE candidate AS SELECT field, row, any_value(uuid) AS uuid, min(slot) AS slot,
            count(DISTINCT digest) > 1 AS differs FROM matched GROUP BY field, row"""
        )
        strings = self._one("SELECT count(*) FROM candidate")
        return strings, self._one("SELECT count(*) FROM matched") - strings

    def unmatched(self) -> tuple[int, list[str]]:
        """How many texts are none of the catalogue's, and the first of them."""
        others = "FROM found ANTI JOIN matched USING (slot)"
        count = self._one(f"SELECT count(*) FROM (SELECT DISTINCT field, text {others})")
        first = self._duck.execute(f"SELECT text {others} ORDER BY slot LIMIT 3").fetchall() if count else []
        return count, [text for (text,) in first]

    def other_fields(self, known: Sequence[str]) -> list[str]:
        """Fields that the source tells and the catalogue does not have."""
        names = ", ".join(map(quoted, known))
        found = self._duck.execute(f"SELECT DISTINCT field FROM found WHERE field NOT IN ({names}) ORDER BY field LIMIT 5")
        return [name for (name,) in found.fetchall()]

    def count(self, table: str) -> int:
        return self._one(f"SELECT count(*) FROM {table}")

    def leave_out(self, field: str, spans: Spans) -> int:
        """These rows are not to be imported; how many of the candidates they were."""
        if not spans:
            return 0
        self._spans(spans)
        where = f"field = {quoted(field)} AND row >= given.first AND row < given.past"
        return self._one(f"DELETE FROM candidate USING given WHERE {where}")

    def reject(self, rows: Sequence[tuple[str, int, str]]) -> None:
        """Candidates of no use, (field, row, reason); each line that has a vector for one is told."""
        import pyarrow as pa

        if not rows:
            return
        fields, numbers, reasons = zip(*rows, strict=True)
        self._duck.register("unfit", pa.table({"field": fields, "row": numbers, "reason": reasons}))
        lines = "unfit JOIN matched USING (field, row) JOIN found USING (slot)"
        self._duck.execute(f"INSERT INTO rejected SELECT DISTINCT file, line, left(text, {_SHOWN}), reason FROM {lines}")
        self._duck.execute("DELETE FROM candidate USING unfit WHERE candidate.field = unfit.field AND candidate.row = unfit.row")
        self._duck.unregister("unfit")

    def differing(self) -> Iterator[list[tuple[str, int, int]]]:
        """(field, row, slot) of candidates whose vectors are not all the same to the bit, the first vector of each first."""
        cursor = self._duck.cursor()
        cursor.execute(
            """SELECT field, row, min(slot) AS slot FROM matched SEMI JOIN (SELECT * FROM candidate WHERE differs) chosen
            USING (field, row) GROUP BY field, row, digest ORDER BY field, row, slot"""
        )
        while rows := cursor.fetchmany(_READ_ROWS):
            yield rows

    def long_texts(self, field: str, files: Sequence[Path], most_bytes: int) -> list[tuple[int, str]]:
        """(row, text) of the candidates that are longer."""
        query = f"SELECT row, text FROM candidate JOIN {parquet(files)} string USING (row) WHERE field = {quoted(field)}"
        return self._duck.execute(f"{query} AND strlen(text) > {most_bytes} ORDER BY row").fetchall()

    def candidates(self, field: str) -> Iterator[pa.RecordBatch]:
        """(row, slot) of what is to be imported, ascending."""
        query = f"SELECT row, slot FROM candidate WHERE field = {quoted(field)} ORDER BY row"
        yield from self._duck.cursor().sql(query).to_arrow_reader(_READ_ROWS)

    def some(self, most: int) -> list[tuple[str, int, int]]:
        """(field, row, slot) of some candidates: always the same, and as good as drawn by lot, since a UUID is a hash."""
        return self._duck.execute(f"SELECT field, row, slot FROM candidate ORDER BY uuid LIMIT {most}").fetchall()

    def these(self, field: str, spans: Spans) -> list[tuple[str, int, int]]:
        """(field, row, slot) of those candidates that lie in the spans."""
        self._spans(spans)
        query = f"SELECT field, row, slot FROM candidate JOIN given ON row >= first AND row < past WHERE field = {quoted(field)}"
        return self._duck.execute(f"{query} ORDER BY row").fetchall()

    # What is told

    def reasons(self) -> list[tuple[str, int]]:
        """Why lines were rejected, the commonest reason first."""
        found = self._duck.execute("SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY count(*) DESC, reason")
        return [(reason, count) for reason, count in found.fetchall()]

    def rejected(self, most: int) -> list[tuple[int, int, str, str]]:
        """(file, line, custom_id or text, reason) of the first rejected lines."""
        query = f"SELECT file, line, what, reason FROM rejected ORDER BY file, line, what, reason LIMIT {most}"
        return self._duck.execute(query).fetchall()

    def _spans(self, spans: Spans) -> None:
        import pyarrow as pa

        table = pa.table({"first": [first for first, _ in spans], "past": [past for _, past in spans]})
        self._duck.register("spans", table)
        self._duck.execute("CREATE OR REPLACE TEMP TABLE given AS SELECT * FROM spans")
        self._duck.unregister("spans")

    def _one(self, query: str) -> int:
        ((count,),) = self._duck.execute(query).fetchall()  # whole: an open result makes the connection refuse other work
        return int(count)
