"""`--audit`: who ran what; and with a path, every job and every run that paid, with its money, its files and their receipts.

From the ledger alone: no network, no lock. What the audit's rows add up to is what the ledger's own sums say: what no row
accounts for, because it was booked before the ledger kept it by run and job, stands in a row of its own.
"""

from __future__ import annotations

import csv
import datetime as dt
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console, dollars, shown, size
from pipeline.commands.export import write_whole
from pipeline.commands.session import Options, load
from pipeline.errors import UsageError, UserError
from pipeline.files import spreadsheet_safe
from pipeline.ledger import Job, Ledger, Receipt, Run, Spending
from pipeline.locking import lock_holder
from pipeline.provider.batch_client import RESULTS_KEPT_SECONDS

_SHOWN = 50
_KINDS = {"realtime": "real time", "batch": "job", "search": "search", "estimate": "estimate of a restore"}
PAID, ON_ITS_WAY, TWICE = "paid", "on its way", "possibly paid twice"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the audit; what does not apply is empty. `booked` says in which sum `usd` stands."""

    what: str
    booked: str = ""
    usd: float = 0.0
    tokens: int = 0
    price_per_million: float | None = None
    strings: int = 0
    embedded: int | None = None
    failed: int | None = None
    fields: str = ""
    service: str = ""
    model: str = ""
    dimensions: int | None = None
    generation: str = ""
    began_at: str = ""
    created_at: str = ""
    ended_at: str = ""
    run: int | None = None
    user: str = ""
    host: str = ""
    version: str = ""
    command: str = ""
    job: int | None = None
    state: str = ""
    status: str = ""
    reason: str = ""
    estimated_tokens: int | None = None
    request_file: str = ""
    request_sha256: str = ""
    batch: str = ""
    batch_expires_at: str = ""
    input_file: str = ""
    output_file: str = ""
    error_file: str = ""
    files_expire_by: str = ""
    receipts: str = ""


@dataclass(slots=True)
class _Paid:
    """What one run booked for one job, or for none: over all fields."""

    strings: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    usd: float = 0.0

    def add(self, spending: Spending) -> None:
        self.strings[spending.field] += spending.strings
        self.tokens += spending.tokens
        self.usd += spending.usd


def show_runs(options: Options, console: Console) -> int:
    """The log of runs; the last ones, when a person reads it."""
    config, _ = load(options)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        runs = [] if ledger is None else list(ledger.runs.all())
    holder = lock_holder(place.lock)
    at_work = {run.id for run in runs if holder is not None and (run.pid, run.host) == (holder.pid, holder.host)}
    ends = {run.id: _end(run, is_at_work=run.id in at_work) for run in runs}
    console.document({"runs": [asdict(run) | {"end": ends[run.id]} for run in runs]})
    if len(runs) > _SHOWN:
        console.answer(f"The last {_SHOWN} of {len(runs):,} runs; all of them: python main.py --audit --json")
    for run in runs[-_SHOWN:]:
        console.answer(
            f"{run.id:>6}  {_local(run.started_at)}  {_local(run.ended_at):<16}  {ends[run.id]:<11}  "
            f"{run.user or '?'}@{run.host}  {run.version}  {shown(run.command, 200)}"
        )
    if not runs:
        console.answer("No run is in the log yet. To begin: python main.py")
    return 0


def write_audit(options: Options, console: Console, target: Path) -> int:
    """The CSV; its sums are told, and are those of the ledger."""
    config, _ = load(options)
    if target.suffix.lower() != ".csv":
        raise UsageError(f"{target}: the audit is written to a name that ends in .csv.")
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        if ledger is None:
            raise UserError(f"There is no catalogue in {place.root} yet. First: python main.py")
        rows = list(rows_of(ledger))
    count = write_whole(options, target, lambda draft: _write(draft, rows))
    sums = {booked: sum(row.usd for row in rows if row.booked == booked) for booked in (PAID, ON_ITS_WAY, TWICE)}
    document = {f"{booked.replace(' ', '_')}_usd": usd for booked, usd in sums.items()}
    console.document({"path": str(target), "rows": count, "bytes": target.stat().st_size, **document})
    console.answer(
        f"{count:,} rows written to {target} ({size(target.stat().st_size)}): {dollars(sums[PAID])} paid, "
        f"{dollars(sums[ON_ITS_WAY])} on its way, {dollars(sums[TWICE])} possibly paid twice."
    )
    return 0


def rows_of(ledger: Ledger) -> Iterator[Row]:
    """Jobs, then runs by what they paid for, then what is open or in doubt, then what no row accounts for."""
    runs = {run.id: run for run in ledger.runs.all()}
    by_job: dict[int, tuple[int, _Paid]] = {}
    by_run: dict[tuple[int, str, str], _Paid] = {}
    left: dict[tuple[str, str], _Paid] = {}
    for spending in ledger.spendings():
        left.setdefault((spending.generation, spending.kind), _Paid()).add(spending)
    for booking in ledger.runs.bookings():
        said = booking.spending
        if booking.job:
            by_job.setdefault(booking.job, (booking.run, _Paid()))[1].add(said)
        else:
            by_run.setdefault((booking.run, said.generation, said.kind), _Paid()).add(said)
        _take(left, said.generation, said.kind, (said.strings, said.tokens, said.usd))
    known = [*ledger.jobs.past(), *((job, ledger.jobs.strings(job.id)) for job in ledger.jobs.all())]
    receipts = _by_job(ledger)
    for job, strings in sorted(known, key=lambda one: one[0].id):
        run, paid = by_job.pop(job.id, (0, None))
        if paid is None and job.state == "collected":  # booked before it was kept by job
            usd = (job.paid_tokens or 0) * job.price / 1_000_000
            paid = _Paid(Counter({"": job.embedded or 0}), job.paid_tokens or 0, usd)
            _take(left, job.generation, "batch", (job.embedded or 0, paid.tokens, paid.usd))
        yield _job(ledger, job, strings, paid, runs.get(run), receipts.get(job.id, []))
    for number, (run, paid) in by_job.items():  # a restored ledger may know what a job cost, and no more of it
        yield _paid("job", ledger, "", paid, runs.get(run), number)
    for (run, generation, kind), paid in by_run.items():
        yield _paid(_KINDS.get(kind, kind), ledger, generation, paid, runs.get(run))
    for intent in ledger.intents().values():
        yield _money(
            "on the wire", ON_ITS_WAY, ledger, intent.generation, intent.usd, intent.tokens, {intent.field: intent.strings}
        )
    for doubt in ledger.doubts():
        yield _money(
            TWICE,
            TWICE,
            ledger,
            doubt.generation,
            doubt.usd,
            doubt.tokens,
            {doubt.field: doubt.strings},
            _utc(doubt.at),
            doubt.reason,
        )
    for (generation, kind), rest in left.items():
        if rest.tokens or abs(rest.usd) > 1e-9:
            yield _paid(f"{_KINDS.get(kind, kind)}, not kept by run", ledger, generation, rest, None)


def _take(left: dict[tuple[str, str], _Paid], generation: str, kind: str, told: tuple[int, int, float]) -> None:
    """What a row accounts for is not left over."""
    rest = left.setdefault((generation, kind), _Paid())
    rest.strings[""] -= told[0]
    rest.tokens -= told[1]
    rest.usd -= told[2]


def _by_job(ledger: Ledger) -> dict[int, list[Receipt]]:
    found: dict[int, list[Receipt]] = {}
    for receipt in ledger.runs.receipts().values():
        found.setdefault(receipt.job, []).append(receipt)
    return found


def _job(
    ledger: Ledger, job: Job, strings: dict[str, int], paid: _Paid | None, run: Run | None, receipts: Sequence[Receipt]
) -> Row:
    """A job. While it is not collected its estimate is on its way, from the create on."""
    is_on_its_way = job.state in ("creating", "open", "ended", "lost")
    booked = PAID if paid is not None else ON_ITS_WAY if is_on_its_way else ""
    tokens = paid.tokens if paid is not None else job.tokens if is_on_its_way else 0
    usd = paid.usd if paid is not None else tokens * job.price / 1_000_000
    deleted = {receipt.file for receipt in receipts}
    has_files = bool(set(job.remote_files.values()) - deleted)
    last = max(filter(None, (job.prepared_at, job.created_at, job.expires_at, job.ended_at)))
    return Row(
        "job", booked, usd, tokens, job.price, job.requests, job.embedded, job.failed, _fields(strings),
        **_generation(ledger, job.generation),
        began_at=_utc(job.prepared_at), created_at=_utc(job.created_at), ended_at=_utc(job.ended_at),
        **_run(run),
        job=job.id, state=job.state, status=job.status or "", reason=job.reason or "", estimated_tokens=job.tokens,
        request_file=job.request_name, request_sha256=job.sha256,
        batch=job.batch or "", batch_expires_at=_utc(job.expires_at),
        input_file=job.input_file or "", output_file=job.output_file or "", error_file=job.error_file or "",
        files_expire_by=_utc(last + RESULTS_KEPT_SECONDS) if has_files else "",
        receipts="; ".join(f"{one.role} {one.file} {_utc(one.at)} {one.answer}" for one in receipts),
    )  # fmt: skip


def _paid(what: str, ledger: Ledger, generation: str, paid: _Paid, run: Run | None, job: int | None = None) -> Row:
    """What a run paid for, over its fields."""
    strings = {name: count for name, count in paid.strings.items() if name}
    return Row(
        what, PAID, paid.usd, paid.tokens, paid.usd * 1_000_000 / paid.tokens if paid.tokens else None, paid.strings.total(),
        fields=_fields(strings), job=job, **_generation(ledger, generation), **_run(run), **_when(run),
    )  # fmt: skip


def _money(
    what: str, booked: str, ledger: Ledger, generation: str, usd: float, tokens: int, strings: dict[str, int], at: str = "",
    reason: str = "",
) -> Row:  # fmt: skip
    return Row(
        what, booked, usd, tokens, usd * 1_000_000 / tokens if tokens else None, sum(strings.values()),
        fields=_fields(strings), began_at=at, reason=reason, **_generation(ledger, generation),
    )  # fmt: skip


def _fields(strings: dict[str, int]) -> str:
    return "; ".join(f"{name} {count}" for name, count in sorted(strings.items()))


def _generation(ledger: Ledger, identifier: str) -> dict[str, Any]:
    known = ledger.generation(identifier)
    if known is None:
        return {"generation": identifier}
    return {"generation": identifier, "service": known.service, "model": known.model, "dimensions": known.dimensions or None}


def _run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {}
    return {"run": run.id, "user": run.user, "host": run.host, "version": run.version, "command": run.command}


def _when(run: Run | None) -> dict[str, Any]:
    return {} if run is None else {"began_at": _utc(run.started_at), "ended_at": _utc(run.ended_at) or "did not end"}


def _write(draft: Path, rows: Sequence[Row]) -> int:
    """Texts in quotes: the csv module leaves a lone carriage return bare, which ends a row for most readers."""
    names = [column.name for column in fields(Row)]
    with draft.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        lines.writerow(names)
        for row in rows:
            values = (getattr(row, name) for name in names)
            lines.writerow([spreadsheet_safe(value) if isinstance(value, str) else value for value in values])
    return len(rows)


def _end(run: Run, *, is_at_work: bool) -> str:
    if run.exit_code is not None:
        return f"exit {run.exit_code}"
    return "at work" if is_at_work else "did not end"


def _utc(at: float | None) -> str:
    return "" if at is None else dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _local(at: float | None) -> str:
    return "" if at is None else dt.datetime.fromtimestamp(at, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M")
