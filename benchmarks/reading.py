"""(a) CSV → tables of records, strings, occurrences and frequencies: how fast, and how much of it is the work itself.

    python -m benchmarks.reading [--rows 500000] [--runs 5] [--folder DIR]      the full size: --rows 5000000

The product is `main.py --end preprocessing` on a fresh checkpoint folder. The floor is DuckDB alone, told everything
about the file, writing the same tables with the same UUIDs and no check of anything. The rival is the plain way: a
`csv` loop that counts each text in a dict and pickles it, and keeps no occurrences.
"""

from __future__ import annotations

import argparse
import csv
import pickle
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb

from benchmarks.racing import ROOT, race, report, seconds
from pipeline.tables.duck import connect, copy_sql, quoted, uuid_sql

FIELDS = {
    "person": "person",
    "title": "title",
    "composite": "'Contributor: ' || person || chr(10) || 'Title: ' || title || chr(10) || 'Roles: ' || roles",
}
_CONFIG = """input: {csv}
checkpoint_dir: checkpoints
max_rejected_rows: 0
fields:
  person: person
  title: title
  composite: "Contributor: {{person}}\\nTitle: {{title}}\\nRoles: {{roles}}"
"""
_SYLLABLES = (
    "ba", "da", "ge", "ki", "lo", "mu", "ne", "ri", "so", "tu", "va", "we", "zi", "fra", "gre", "sta", "ber", "hof", "mann", "sen",
    "ov", "ska", "lin", "dre", "mor", "tel",
)  # fmt: skip
_WORDS = (
    "Sonata", "Kunst", "Fuge", "Requiem", "Trio", "Klavier", "Werke", "Briefe", "letters", "Histoire", "opera", "Concerto",
    "Lieder", "Étude", "Reise", "treatise", "Versuch", "Symphonie", "quartet", "Orchester", "harmony", "sea", "Erinnerung",
    "monde", "winter", "Gedichte", "basso", "philosophy", "mountains", "Stadt", "memory", "lumière",
)  # fmt: skip
_ROLES = ("Composer", "Author", "Editor", "Librettist", "Translator")


def write_csv(path: Path, rows: int) -> None:
    """Rows made from their number alone: about a quarter of them have a person of their own, half a title."""
    with duckdb.connect(config={"threads": "2"}) as duck:
        duck.execute(
            f"CREATE MACRO part(k, n) AS {list(_SYLLABLES)!r}[1 + (k // pow({len(_SYLLABLES)}, n)::BIGINT) % {len(_SYLLABLES)}]"
        )
        duck.execute(f"CREATE MACRO word(k, n) AS {list(_WORDS)!r}[1 + (k // pow({len(_WORDS)}, n)::BIGINT) % {len(_WORDS)}]")
        duck.execute("CREATE MACRO surname(k) AS upper(part(k, 0)[1]) || part(k, 0)[2:] || part(k, 1) || part(k, 2)")
        born = "1500 + (p % 460)"
        person = f"surname(p) || ', ' || upper(part(p, 3)[1]) || part(p, 3)[2:] || part(p, 4) || ', ' || ({born}) || '-'"
        title = (
            "word(t, 0) || ' for ' || word(t, 1) || ' & ' || word(t, 2) || ', op. ' || (t % 150) || ' : ' || word(t, 3) || ' '"
            " || surname(t)"
        )
        numbers = (
            f"SELECT i, (hash(i * 7 + 1) % {max(1, rows // 4)})::BIGINT * 7919 % 11881376 AS p, "
            f"(hash(i * 7 + 2) % {max(1, rows // 2)})::BIGINT * 104729 % 1000000007 AS t FROM range({rows}) made(i)"
        )
        select = (
            f"SELECT 'r' || lpad(i::VARCHAR, 9, '0') AS id, {person} AS person, {title} AS title, "
            f"{list(_ROLES)!r}[1 + i % {len(_ROLES)}] AS roles FROM ({numbers})"
        )
        duck.execute(f"COPY ({select}) TO {quoted(path)} (FORMAT csv, HEADER)")


def floor(source: Path, folder: Path) -> None:
    """DuckDB, and nothing else: the same tables, in the same order, with the same UUIDs and files of the same size."""
    (folder / "scratch").mkdir(parents=True)
    with connect(folder / "scratch", 2.0, keeps_memory=True) as duck:
        columns = "{'id': 'VARCHAR', 'person': 'VARCHAR', 'title': 'VARCHAR', 'roles': 'VARCHAR'}"
        read = f"read_csv({quoted(source)}, header = true, auto_detect = false, delim = ',', quote = '\"', columns = {columns})"
        duck.execute(f"CREATE TABLE line AS SELECT * FROM {read}")
        duck.execute(
            copy_sql(
                f"SELECT rowid AS record, id, {quoted(source)} AS file, rowid + 2 AS row FROM line", folder / "records.parquet"
            )
        )
        for name, text in FIELDS.items():
            duck.execute(f"CREATE TABLE mention AS SELECT rowid AS record, {text} AS text FROM line")
            duck.execute(
                "CREATE TABLE string AS SELECT text, count(*) AS frequency, "
                "row_number() OVER (ORDER BY min(record)) - 1 AS row FROM mention GROUP BY text"
            )
            strings = f"SELECT row, {uuid_sql(name, 'text')} AS uuid, text FROM string ORDER BY row"
            duck.execute(copy_sql(strings, folder / f"strings_{name}.parquet"))
            occurrences = "SELECT record, row FROM mention JOIN string USING (text) ORDER BY record"
            duck.execute(copy_sql(occurrences, folder / f"occurrences_{name}.parquet"))
            duck.execute(copy_sql("SELECT row, frequency FROM string ORDER BY row", folder / f"frequencies_{name}.parquet"))
            duck.execute("DROP TABLE mention; DROP TABLE string")


def rival(source: Path, folder: Path) -> None:
    """The plain way: every text in a dict with its count, pickled."""
    folder.mkdir(parents=True)
    counts: dict[str, dict[str, int]] = {name: {} for name in FIELDS}
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            composite = f"Contributor: {row['person']}\nTitle: {row['title']}\nRoles: {row['roles']}"
            for name, text in (("person", row["person"]), ("title", row["title"]), ("composite", composite)):
                counts[name][text] = counts[name].get(text, 0) + 1
    with (folder / "strings.pkl").open("wb") as out:
        pickle.dump(counts, out)


def contest(source: Path, folder: Path, runs: int) -> None:
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(csv=source), encoding="utf-8")

    def fresh(name: str, *command: str) -> Sequence[str]:
        shutil.rmtree(folder / name, ignore_errors=True)
        return [sys.executable, *command]

    alone = ("-m", "benchmarks.reading", "--folder", str(folder))
    taken = race(
        {
            "product: preprocessing": lambda: fresh(
                "checkpoints", str(ROOT / "main.py"), "--config", str(config), "--end", "preprocessing", "--quiet"
            ),
            "floor: DuckDB alone, the same tables": lambda: fresh("floor", *alone, "--only", "floor"),
            "rival: csv, dict and pickle": lambda: fresh("rival", *alone, "--only", "rival"),
        },
        runs,
    )
    rows, names = _same_tables(folder)
    product, other, plain = (seconds(one) for one in taken.values())
    report(
        f"(a) CSV to tables, {rows:,} rows, {source.stat().st_size / 1e6:,.0f} MB, {sum(names.values()):,} strings",
        taken,
        [f"{product / other:.2f} x the floor (bar: 1.5); {plain / product:.2f} x as fast as the rival (bar: 2)"],
    )


def _same_tables(folder: Path) -> tuple[int, dict[str, int]]:
    """The floor wrote what the product wrote, row by row; else its time says nothing."""
    with duckdb.connect() as duck:
        tables = folder / "checkpoints" / "tables"
        for name in FIELDS:
            for kind in ("strings", "occurrences", "frequencies"):
                ours, other = (
                    f"read_parquet('{tables}/{kind}_{name}_*.parquet')",
                    f"read_parquet('{folder}/floor/{kind}_{name}.parquet')",
                )
                (different,) = duck.execute(
                    f"SELECT count(*) FROM ((FROM {ours} EXCEPT FROM {other}) UNION ALL (FROM {other} EXCEPT FROM {ours}))"
                ).fetchone() or (1,)
                if different:
                    sys.exit(f"{kind} of {name}: {different} rows differ between the product and the floor")
        rows = duck.execute(f"SELECT count(*) FROM read_parquet('{tables}/records_*.parquet')").fetchone()
        found = {
            name: duck.execute(f"SELECT count(*) FROM read_parquet('{tables}/strings_{name}_*.parquet')").fetchone()
            for name in FIELDS
        }
    return int((rows or (0,))[0]), {name: int((count or (0,))[0]) for name, count in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=500_000)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options.add_argument("--only", choices=["floor", "rival"], help=argparse.SUPPRESS)
    typed = options.parse_args()
    if typed.only:
        {"floor": floor, "rival": rival}[typed.only](typed.folder / "records.csv", typed.folder / typed.only)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = (typed.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "records.csv", typed.rows)
        contest(folder / "records.csv", folder, typed.runs)


if __name__ == "__main__":
    main()
