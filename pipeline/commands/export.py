"""`--export-embeddings` and `--export-occurrences`: the catalogue for other tools, written whole or not at all.

Reads committed tables only, in batches, so that the size of the catalogue does not matter. A text in a CSV that a
spreadsheet would take for a formula gets a leading quote; Parquet holds every text as it is.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console, size
from pipeline.commands.session import Options, load
from pipeline.config import Config
from pipeline.errors import UsageError, UserError
from pipeline.files import disk_errors, spreadsheet_safe
from pipeline.ledger import Generation, Ledger
from pipeline.provider.service import generation_of
from pipeline.tables.duck import read_anew, table_errors

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def export_embeddings(options: Options, console: Console, target: Path, form: str) -> int:
    """uuid, field, text, crc32, service, model, dimensions, created_at, vector; or V1 … Vd for R."""
    config, service = load(options)
    if form == "parquet" and target.suffix.lower() != ".parquet":
        raise UsageError(f"{target}: Parquet is written to a name that ends in .parquet; for CSV add --format csv-wide.")

    def write() -> int:
        with _ledger(config) as (place, ledger):
            generation = ledger.generation(generation_of(service, ledger).id)
            if generation is None or not ledger.files("embeddings", generation.id):
                raise UserError(f"Nothing is embedded yet for {service.name} {service.model}. First: python main.py")
            batches = _embeddings(config, place, ledger, generation)
            return _whole(options, target, _parquet(batches, _schema(generation)) if form == "parquet" else _csv_wide(batches))

    _tell(console, target, read_anew(write), "embeddings")
    return 0


def export_occurrences(options: Options, console: Console, target: Path) -> int:
    """id, field, uuid: which record holds which string. CSV when the path ends in .csv, else Parquet."""
    config, _ = load(options)
    if target.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError(f"{target}: occurrences are written to a name that ends in .parquet or .csv.")

    def write() -> int:
        with _ledger(config) as (place, ledger):
            if not ledger.files("occurrences"):
                raise UserError("Nothing is preprocessed yet. First: python main.py")
            batches = _occurrences(config, place, ledger)
            return _whole(options, target, _csv(batches) if target.suffix.lower() == ".csv" else _parquet(batches))

    _tell(console, target, read_anew(write), "occurrences")
    return 0


def _tell(console: Console, target: Path, rows: int, what: str) -> None:
    console.document({"path": str(target), "rows": rows, "bytes": target.stat().st_size})
    console.answer(f"{rows:,} {what} written to {target} ({size(target.stat().st_size)}).")


@contextlib.contextmanager
def _ledger(config: Config) -> Iterator[tuple[Checkpoint, Ledger]]:
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        if ledger is None:
            raise UserError(f"There is no catalogue in {place.root} yet. First: python main.py")
        with table_errors(place.tables):
            yield place, ledger


def _whole(options: Options, target: Path, write: Callable[[Path], int]) -> int:
    """Let `write` fill a temporary file beside the target, then give it its name and the user's usual rights."""
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give the path of a file.")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder; make it first.")
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(target):
            rows = write(draft)
            draft.chmod(0o666 & ~options.umask)
            draft.replace(target)
    except PermissionError as problem:
        raise UsageError(f"{target}: {problem.strerror}; choose a place that you may write.") from problem
    finally:
        draft.unlink(missing_ok=True)
    return rows


def _parquet(batches: Iterator[pa.RecordBatch], schema: pa.Schema | None = None) -> Callable[[Path], int]:
    import pyarrow.parquet as pq

    def write(draft: Path) -> int:
        rows = 0
        writer: pq.ParquetWriter | None = None
        try:
            for batch in batches:
                writer = writer or pq.ParquetWriter(draft, schema or batch.schema, compression="zstd")
                writer.write_batch(batch)
                rows += batch.num_rows
        finally:
            if writer is not None:
                writer.close()
        return rows

    return write


def _csv(batches: Iterator[pa.RecordBatch]) -> Callable[[Path], int]:
    def write(draft: Path) -> int:
        rows = 0
        # All texts in quotes: the csv module itself leaves a lone carriage return bare, which ends a row for most readers.
        with draft.open("w", encoding="utf-8", newline="") as file:
            for batch in batches:
                frame = batch.to_pandas()
                for column in ("id", "text"):
                    if column in frame:
                        frame[column] = frame[column].map(spreadsheet_safe)
                frame.to_csv(file, index=False, header=rows == 0, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
                rows += batch.num_rows
        return rows

    return write


def _csv_wide(batches: Iterator[pa.RecordBatch]) -> Callable[[Path], int]:
    """The vector as columns V1 … Vd, each number with the digits that give back the same float32."""
    from pipeline.tables.embeddings import matrix_of

    def widened() -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            matrix = matrix_of(batch.column("vector"))
            named = {name: batch.column(name) for name in batch.schema.names if name != "vector"}
            numbers = {f"V{place + 1}": pa.array(matrix[:, place]) for place in range(matrix.shape[1])}
            yield pa.record_batch({**named, **numbers})

    return _csv(widened())


def _schema(generation: Generation) -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("uuid", "field", "text", "crc32", "service", "model")]
    vector = pa.list_(pa.float32(), generation.dimensions)
    return pa.schema([*texts, ("dimensions", pa.int32()), ("created_at", pa.timestamp("ms", "UTC")), ("vector", vector)])


def _embeddings(config: Config, place: Checkpoint, ledger: Ledger, generation: Generation) -> Iterator[pa.RecordBatch]:
    import datetime as dt

    import pyarrow as pa

    from pipeline import spans as span_sets
    from pipeline.identity import crc32_of, uuid_of
    from pipeline.indexing import string_files
    from pipeline.tables.embeddings import read_embeddings, vector_array
    from pipeline.tables.strings import read_strings

    schema = _schema(generation)
    with _duck(config) as duck:
        for file in ledger.files("embeddings", generation.id):
            created = dt.datetime.fromtimestamp(file.created_at, dt.UTC)
            whole = [(file.first_row, file.past_row)]
            for rows, vectors in read_embeddings([place.tables / file.name], whole):
                texts: list[str] = []
                for batch in read_strings(duck, string_files(place, ledger, file.field), span_sets.of_rows(rows.tolist())):
                    texts += batch.column("text").to_pylist()
                count = len(texts)
                columns = [
                    [str(uuid_of(file.field, text)) for text in texts], [file.field] * count,
                    texts, [crc32_of(text) for text in texts],
                    [generation.service] * count, [generation.model] * count, [generation.dimensions] * count, [created] * count,
                ]  # fmt: skip
                arrays = [pa.array(values, schema.types[place_]) for place_, values in enumerate(columns)]
                yield pa.record_batch([*arrays, vector_array(vectors)], schema=schema)


def _occurrences(config: Config, place: Checkpoint, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    from pipeline.indexing import snapshot_files, string_files
    from pipeline.tables.strings import read_occurrences

    records = snapshot_files(place, ledger, "records", "")
    with _duck(config) as duck:
        for field in ledger.fields():
            yield from read_occurrences(
                duck, records, snapshot_files(place, ledger, "occurrences", field), string_files(place, ledger, field), field
            )


@contextlib.contextmanager
def _duck(config: Config) -> Iterator[duckdb.DuckDBPyConnection]:
    import tempfile

    from pipeline.tables.duck import connect

    with tempfile.TemporaryDirectory(prefix="namesake-") as scratch:
        duck = connect(Path(scratch), config.memory_limit_gb)
        try:
            yield duck
        finally:
            duck.close()
