"""What tests of commands share: a catalogue in a folder of its own, one command run in this process, what it left.

    catalogue = Catalogue(tmp_path)
    catalogue.configure(max_rejected_rows=2)
    catalogue.write([("1", "Bach", "Fugue")])
    ran = catalogue.run("--end", "preprocessing")

Output is captured here and not by a fixture, so that Hypothesis may run as many commands as it likes.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import yaml

from pipeline import spans as span_sets
from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.main import main
from pipeline.ledger import Ledger
from pipeline.local_service import Request, Response, State, handle

if TYPE_CHECKING:
    import pytest

HEADER = ("id", "person", "title")
_LOG_OF_RUNS = {"run", "booking", "receipt", "stop", "sqlite_sequence"}  # each command that takes the lock leaves its line there
SIDE_FILES = {"lock", "ledger.sqlite-wal", "ledger.sqlite-shm"}
_LEDGERS = {"ledger.sqlite", "ledger.copy.sqlite"}


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)


def run(config: Path, *arguments: str) -> Ran:
    """`python main.py --config CONFIG ARGUMENTS…`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["--config", str(config), *arguments])
        except SystemExit as ended:  # argparse
            code = ended.code if isinstance(ended.code, int) else 1
    # The commands to type next carry this config; what they say else is easier to compare without it.
    return Ran(code, *(stream.getvalue().replace(f" --config {config}", "") for stream in (out, err)))


def write_csv(path: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = HEADER) -> None:
    """A CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def record_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on, each text that the local service is asked to embed."""
    texts: list[str] = []

    def recording(request: Request, state: State, clock: Any) -> Response:
        if request.path.endswith("/embeddings"):
            texts.extend(json.loads(request.body)["input"])
        return handle(request, state, clock)

    monkeypatch.setattr("pipeline.local_service.transport.handle", recording)
    return texts


def files_of(folder: Path) -> dict[str, str]:
    """Each file below a folder and the hash of its bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def untouched(folder: Path) -> dict[str, str]:
    """The same without who held the lock and SQLite's side files, which even a reader of a ledger leaves."""
    return {name: digest for name, digest in files_of(folder).items() if name not in SIDE_FILES}


def state_of(folder: Path) -> dict[str, Any]:
    """All that a checkpoint folder knows: its files byte by byte, its ledger and the copy row by row.

    Left out: who held the lock, the log of runs (a run that stopped is in it), and SQLite's own side files.
    """
    state: dict[str, Any] = {name: digest for name, digest in untouched(folder).items() if name not in _LEDGERS}
    for name in _LEDGERS:
        if (folder / name).exists():
            with contextlib.closing(sqlite3.connect(folder / name)) as database:
                tables = [row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
                state[name] = {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
            for table in _LOG_OF_RUNS:
                state[name].pop(table, None)
    return state


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A folder with `config.yml`, `records.csv` and, after a run, `checkpoints`."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints"

    def configure(self, **keys: object) -> None:
        """Write the config: two fields of columns, the local service, the embedded index, and what is given."""
        known = {"input": "records.csv", "fields": {"person": "person", "title": "title"}}
        self.config.write_text(yaml.safe_dump({**known, **keys}, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def write(self, rows: Iterable[Sequence[str]], header: Sequence[str] = HEADER, name: str = "records.csv") -> None:
        write_csv(self.folder / name, rows, header)

    def run(self, *arguments: str) -> Ran:
        return run(self.config, *arguments)

    def state(self) -> dict[str, Any]:
        return state_of(self.checkpoint)

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with reading(Checkpoint(self.checkpoint)) as ledger:
            assert ledger is not None, "nothing was run yet"
            yield ledger

    def table(self, kind: str, scope: str | None = None, field: str | None = None) -> list[dict[str, Any]]:
        """The rows of all tables of a kind, as the ledger lists them."""
        with self.ledger() as ledger:
            names = [file.name for file in ledger.files(kind, scope, field)]
        return [row for name in names for row in pq.read_table(self.checkpoint / "tables" / name).to_pylist()]

    def ids(self, scope: str = "full") -> list[str]:
        """The ids of the records, in their order."""
        return [row["id"] for row in self.table("records", scope)]

    def strings(self, field: str) -> dict[int, str]:
        """row → text of every string that a field ever had."""
        return {row["row"]: row["text"] for row in self.table("strings", field=field)}

    def rows(self, state: str, scope: str, field: str) -> list[int]:
        """The row numbers of a state."""
        with self.ledger() as ledger:
            return list(span_sets.rows_of(ledger.spans(state, scope, field)))

    def present(self, field: str, scope: str = "full") -> list[str]:
        """The texts that are in the catalogue now."""
        strings = self.strings(field)
        return [strings[row] for row in self.rows("present", scope, field)]

    def embedded(self, field: str) -> list[str]:
        """The texts that have an embedding."""
        strings = self.strings(field)
        with self.ledger() as ledger:
            generation = ledger.current_generation()
            assert generation is not None, "nothing was embedded yet"
        return [strings[row] for row in self.rows("embedded", generation.id, field)]

    def rejected(self) -> list[dict[str, str]]:
        """`rejected_rows.csv`."""
        with (self.checkpoint / "rejected_rows.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
