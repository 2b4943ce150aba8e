"""Stage 1, preprocessing: rows → records, strings, occurrences.

The input is a snapshot. An unchanged one is not read again; a changed one is read whole, known strings keep their
row numbers, new ones get the next, and what left is marked absent by not being present. One ledger commit brings in
the whole reading: until then nothing has happened, whatever kills the run. What a string costs, and what becomes of
it, is not known here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from pipeline import spans as span_sets
from pipeline.belonging import welcome_back
from pipeline.checkpoint import delete_tables, write_list
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.files import disk_errors, publish_table, spreadsheet_safe, temporary
from pipeline.ledger import Ledger, Snapshot, TableFile
from pipeline.log import event, logger
from pipeline.reading import Reader, Rejected, Source, find_sources, fingerprint_of
from pipeline.tables.duck import duck_errors
from pipeline.tables.snapshot import FieldCount, Work

NAME = "preprocessing"
_STRINGS_A_FILE = 1 << 20
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class FieldReport:
    """A field after this reading."""

    occurrences: int
    strings: int
    new: int


@dataclass(frozen=True, slots=True)
class PreprocessingReport:
    """What came in. `unchanged`: the input was not read again."""

    unchanged: bool
    records: int
    rejected: int
    fields: dict[str, FieldReport]


def run(context: Context) -> PreprocessingReport:
    """Read the input if it changed, and commit what it holds."""
    config, ledger = context.config, context.ledger
    sources = find_sources(config.folder, config.input)
    fingerprint = fingerprint_of(sources)
    names = [field.name for field in config.fields]
    known_as = _known_as(context, fingerprint)
    if known_as is not None:
        return report(ledger, names, known_as, unchanged=True)
    _refuse_changed_definitions(context)
    earlier = _earlier(context) if config.input_mode == "additions" and context.limit is None else None
    rejected: list[Rejected] = []
    scratch = context.place.scratch
    try:
        with disk_errors(scratch), duck_errors(scratch), closing(Work(scratch, config.memory_limit_gb)) as work:
            _read(context, work, sources, rejected, may_be_empty=earlier is not None)
            if fingerprint_of(find_sources(config.folder, config.input)) != fingerprint:
                raise InputError(
                    f"input: {config.input!r} changed while it was read. Nothing was changed; run again when it is complete."
                )
            if earlier is not None:
                work.add_to(earlier)
            else:
                _refuse_another_catalogue(context, work)
            files, counts = _write(context, work, adds=earlier is not None)
    finally:
        if rejected:
            write_list(context.place.rejected_rows, _rejected_csv(rejected))
    number_of_records = files[0].rows
    snapshot = Snapshot(
        context.scope,
        fingerprint,
        config.reading(),
        config.id_column,
        number_of_records,
        len(rejected),
        context.limit,
        context.clock.now(),
    )
    _take_in(context, snapshot, files, counts)
    if not rejected:
        write_list(context.place.rejected_rows, None)
    new = {name: count.new for name, count in counts.items()}
    event(_log, "input.read", records=number_of_records, rejected=len(rejected), new=sum(new.values()))
    return report(ledger, names, context.scope, unchanged=False, new=new)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `--forget-records` did: ids that were given, records that went and that are left, strings that occur no more."""

    ids: int
    records: int
    left: int
    strings: int


def forget_records(context: Context, ids: Iterable[str]) -> Forgotten:
    """Take records out of the catalogue by their ids, as one commit. Their strings keep numbers and vectors."""
    ledger, config, scratch = context.ledger, context.config, context.place.scratch
    earlier, snapshot = _earlier(context), ledger.snapshot("full")
    if earlier is None or snapshot is None:
        raise InputError("No catalogue was read yet, so there is nothing to forget. First: python main.py --end preprocessing")
    present = {field.name: ledger.spans("present", "full", field.name) for field in config.fields}
    with disk_errors(scratch), duck_errors(scratch), closing(Work(scratch, config.memory_limit_gb)) as work:
        work.take([], _reader(config, []), None)
        list(work.judge([]))  # nothing was read, and nothing is rejected
        given = work.forget(earlier, ids)
        left = work.count_records()
        if left * 2 < snapshot.records and not context.agreed:
            raise InputError(
                f"This would forget {snapshot.records - left:,} of {snapshot.records:,} records. Nothing was changed; if you mean "
                "it, add --yes."
            )
        files, counts = _write(context, work, adds=True)
    _take_in(context, replace(snapshot, records=left, created_at=context.clock.now()), files, counts)
    strings = sum(span_sets.count(span_sets.subtract(rows, counts[name].present)) for name, rows in present.items())
    event(_log, "records.forgotten", records=snapshot.records - left, left=left, strings=strings)
    return Forgotten(given, snapshot.records - left, left, strings)


def report(
    ledger: Ledger, names: Iterable[str], kind: str, *, unchanged: bool, new: dict[str, int] | None = None
) -> PreprocessingReport:
    """What the ledger says of a reading."""
    snapshot = ledger.snapshot(kind)
    fields = {}
    for name in names:
        occurrences = sum(file.rows for file in ledger.files("occurrences", kind, name))
        if occurrences:
            fields[name] = FieldReport(occurrences, span_sets.count(ledger.spans("present", kind, name)), (new or {}).get(name, 0))
    return PreprocessingReport(unchanged, snapshot.records if snapshot else 0, snapshot.rejected if snapshot else 0, fields)


def reset(ledger: Ledger) -> None:
    """Forget that the input was read: the next run reads it again. Strings keep their numbers, and what was paid stays."""
    for kind in ("full", "trial"):
        snapshot = ledger.snapshot(kind)
        if snapshot is not None:
            ledger.save_snapshot(Snapshot(**{**asdict(snapshot), "fingerprint": ""}))


def _known_as(context: Context, fingerprint: str) -> str | None:
    """The reading that covers this very input with these very definitions. A trial is content with a whole reading."""
    ledger, config = context.ledger, context.config
    definitions = ledger.fields()
    if any(definitions.get(field.name, ("", 0))[0] != field.source for field in config.fields):
        return None
    for kind in ("full", "trial"):
        snapshot = ledger.snapshot(kind)
        if snapshot is None or (snapshot.fingerprint, snapshot.reading) != (fingerprint, config.reading()):
            continue
        covers = snapshot.limited_to is None or snapshot.limited_to == context.limit
        if covers and all(ledger.files("occurrences", kind, field.name) for field in config.fields):
            return kind
    return None


def _refuse_changed_definitions(context: Context) -> None:
    """Under another definition, what was paid for would be set aside: that needs a word from the user."""
    if context.accept_new_input:
        return
    ledger, config = context.ledger, context.config
    paid = {file.field for file in ledger.files("embeddings")}
    way = (
        "Set it back, or say that you mean it (strings that are still there are not embedded again): python main.py "
        "--accept-new-input --end preprocessing"
    )
    for field in config.fields:
        was = ledger.fields().get(field.name)
        if was is not None and was[0] != field.source and field.name in paid:
            raise InputError(
                f"{config.path.name}: the field {field.name!r} was {was[0]!r} and is now {field.source!r}; its strings are "
                f"embedded. {way}"
            )
    snapshot = ledger.snapshot("full") or ledger.snapshot("trial")
    if snapshot is not None and paid and snapshot.id_column != config.id_column:
        raise InputError(f"{config.path.name}: id_column was {snapshot.id_column!r} and is now {config.id_column!r}. {way}")


def _earlier(context: Context) -> Path | None:
    """The records that the catalogue had before; None when it had none. Of them only tables are left, not the rows that they came
    from: what would need the rows is refused."""
    ledger, config = context.ledger, context.config
    snapshot = ledger.snapshot("full")
    if snapshot is None:
        return None
    files = {file.field: file for table in ("records", "occurrences") for file in ledger.files(table, "full")}
    way = "Read the whole catalogue once: input_mode: snapshot, with all of it as input."
    lost = "" not in files or any(not (context.place.tables / file.name).is_file() for file in files.values())
    if lost and snapshot.records:
        raise InputError(f"The tables of the {snapshot.records:,} earlier records are gone from {context.place.tables}. {way}")
    definitions = ledger.fields()
    for field in config.fields:
        if field.name not in files or definitions.get(field.name, ("", 0))[0] != field.source:
            raise InputError(
                f"{config.path.name}: the field {field.name!r} is new or changed; the earlier records were read without it. {way}"
            )
    for name in sorted(files.keys() - {""} - {field.name for field in config.fields}):
        raise InputError(
            f"{config.path.name}: the field {name!r} is left out, and the earlier records have it. Put it back, or: {way}"
        )
    if snapshot.id_column != config.id_column:
        raise InputError(f"{config.path.name}: id_column was {snapshot.id_column!r} and is now {config.id_column!r}. {way}")
    return context.place.tables / files[""].name


def _read(context: Context, work: Work, sources: list[Source], rejected: list[Rejected], *, may_be_empty: bool) -> None:
    config = context.config
    reader = _reader(config, rejected)
    work.take(sources, reader, context.limit)
    for bad in work.judge(sources):
        reader.reject(bad)
    if rejected:
        event(_log, "rows.rejected", count=len(rejected), first=f"{rejected[0].file} row {rejected[0].row}: {rejected[0].reason}")
    if work.count_records() == 0:
        if rejected:
            first = f"row {rejected[0].row}, {rejected[0].reason}"
            raise InputError(f"input: every row of {config.input!r} was rejected; the first: {first}.")
        if may_be_empty:
            return
        raise InputError(f"input: {config.input!r} holds no rows. Export it again, or mend the key 'input' in the config.")


def _reader(config: Config, rejected: list[Rejected]) -> Reader:
    named_by = {config.id_column: "id_column"}
    for field in config.fields:
        for column in field.columns:
            named_by.setdefault(column, f"fields.{field.name}")

    def reject(row: Rejected) -> None:
        rejected.append(row)
        if len(rejected) > config.max_rejected_rows:
            raise InputError(
                f"{row.file}: more than {config.max_rejected_rows:,} bad rows (max_rejected_rows); the last is row "
                f"{row.row}: {row.reason}. All of them so far are in rejected_rows.csv. Mend the input, or allow more."
            )

    return Reader(tuple(named_by), named_by, config.input_encoding, config.input_delimiter, reject)


def _refuse_another_catalogue(context: Context, work: Work) -> None:
    """Fewer than half of the known ids left: a wrong file, or somebody else's catalogue."""
    for kind in ("full", "trial"):
        snapshot, files = context.ledger.snapshot(kind), context.ledger.files("records", kind)
        if snapshot is None or not files:
            continue
        if snapshot.id_column != context.config.id_column:
            return  # ids of another kind say nothing; whether the change is meant was asked before
        known = work.count_known_ids(context.place.tables / files[0].name)
        comparable = snapshot.records if context.limit is None else min(snapshot.records, work.count_records())
        if known * 2 < comparable and not context.accept_new_input:
            share = 100 * (comparable - known) // comparable
            raise InputError(
                f"input: {known:,} of {snapshot.records:,} known records are in {context.config.input!r}: this looks like "
                f"another catalogue. Nothing was changed. It would remove {share} % of the records: if it is a delta, set "
                "input_mode: additions; if it is another catalogue, give it a checkpoint_dir of its own; if it is the same and "
                "whole: python main.py --accept-new-input --end preprocessing"
            )
        return


def _write(context: Context, work: Work, *, adds: bool) -> tuple[list[TableFile], dict[str, FieldCount]]:
    """Write the tables of this reading; nothing of it exists before `_commit`. One is made durable while the next is worked out."""
    ledger, place, kind = context.ledger, context.place, context.scope
    known = ledger.fields()
    counts: dict[str, FieldCount] = {}
    drafts: list[tuple[Callable[[int, str, float], TableFile], Future[tuple[int, str]]]] = []
    number = ledger.next_file_number()
    with ThreadPoolExecutor(1, "publish") as beside:

        def add(table: str, scope: str, field: str, rows: tuple[int, int], count: int, write: Callable[[Path], None]) -> None:
            final = place.tables / f"{'_'.join(filter(None, (table, field)))}_{number + len(drafts):06d}.parquet"
            write(temporary(final))
            drafts.append((partial(TableFile, table, scope, field, final.name, count, *rows), beside.submit(publish_table, final)))

        add("records", kind, "", (0, 0), work.count_records(), work.write_records)
        for field in context.config.fields:
            name = field.name
            work.need_room()
            next_row = known.get(name, ("", 0))[1]
            strings = [place.tables / file.name for file in ledger.files("strings", field=name)]
            # What an index knows of a trial is compared too when the whole catalogue is read for the first time.
            counted = ledger.files("frequencies", kind, name) or ledger.files("frequencies", "trial", name)
            frequencies = [place.tables / file.name for file in counted]
            occurrences = [place.tables / file.name for file in ledger.files("occurrences", kind, name)] if adds else []
            count = counts[name] = work.number_strings(field, strings, next_row, frequencies, occurrences)
            past_new = next_row + count.new
            for first in range(next_row, past_new, _STRINGS_A_FILE):
                rows = (first, min(first + _STRINGS_A_FILE, past_new))
                add("strings", "", name, rows, rows[1] - rows[0], partial(work.write_new_strings, field, rows))
            add("occurrences", kind, name, (0, 0), count.occurrences, partial(work.write_occurrences, name))
            add("frequencies", kind, name, (0, 0), count.strings, partial(work.write_frequencies, name))
            work.drop(name)
        return [file(*published.result(), context.clock.now()) for file, published in drafts], counts


def _take_in(context: Context, snapshot: Snapshot, files: list[TableFile], counts: dict[str, FieldCount]) -> None:
    old = _commit(context, snapshot, files, counts)
    context.ledger.save_copy(context.place.copy)  # before the files that the last copy names are gone
    delete_tables(context.place, old)


def _commit(context: Context, snapshot: Snapshot, files: list[TableFile], counts: dict[str, FieldCount]) -> list[str]:
    """One transaction makes the files the catalogue; the names of those that they replace are given back."""
    ledger, kind = context.ledger, snapshot.kind
    known = ledger.fields()
    old: list[str] = []
    with ledger.transaction():
        for table in ("records", "occurrences"):
            # Also those of a field that the config left out: they speak of records as they were numbered before.
            old += ledger.drop_files(table, kind)
        for field in context.config.fields:
            old += ledger.drop_files("frequencies", kind, field.name)
            count = counts[field.name]
            ledger.save_field(field.name, field.source, known.get(field.name, ("", 0))[1] + count.new)
            ledger.set_spans("present", kind, field.name, count.present)
            ledger.index_again(field.name, count.changed)
            welcome_back(ledger, field.name)
        if kind == "full":
            old += [name for table in ("records", "occurrences", "frequencies") for name in ledger.drop_files(table, "trial")]
            ledger.drop_spans("present", "trial")
            ledger.drop_snapshot("trial")
        for file in files:
            ledger.add_file(file)
        ledger.save_snapshot(snapshot)
    return old


def _rejected_csv(rejected: list[Rejected]) -> bytes:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    lines.writerow(("file", "row", "id", "reason"))
    for row in sorted(rejected, key=lambda row: (row.file, row.row)):
        shown = row.id.replace("\0", "\\0")
        lines.writerow((spreadsheet_safe(row.file), row.row, spreadsheet_safe(shown), spreadsheet_safe(row.reason)))
    return text.getvalue().encode()
