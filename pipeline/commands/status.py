"""`main.py --status`: where things stand, from the ledger alone: no network, no lock, no table is opened."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pipeline import spans as span_sets
from pipeline.belonging import pending_in_index, refused, scope_of
from pipeline.checkpoint import Checkpoint, LockHolder, lock_holder, reading
from pipeline.commands.console import Console, dollars, strings
from pipeline.commands.session import Options, load
from pipeline.config import Config
from pipeline.ledger import Generation, Ledger, Snapshot
from pipeline.provider.service import Service, generation_of


def show_status(options: Options, console: Console) -> int:
    """Read, show; it neither waits nor changes anything."""
    config, service = load(options)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        if ledger is None or (ledger.snapshot("full") is None and ledger.snapshot("trial") is None):
            console.document({"state": "new", "checkpoint_dir": str(place.root), "next": "python main.py"})
            console.answer(f"Nothing is done yet in {place.root}. To begin: python main.py   (what it would cost first: --dry-run)")
            return 0
        found = status_of(ledger, config, service)
        found["running"] = _running(lock_holder(place))
        found["checkpoint_dir"] = str(place.root)
    console.document(found)
    if not console.as_json:
        _show(console, found, place)
    return 0


def status_of(ledger: Ledger, config: Config, service: Service) -> dict[str, Any]:
    """The state as plain values."""
    generation = generation_of(service, ledger)
    kind = "full" if ledger.snapshot("full") is not None else "trial"
    snapshot = ledger.snapshot(kind)
    scope = scope_of(config.vector_store, generation)
    configured = [field.name for field in config.fields]
    names = sorted(ledger.fields(), key=lambda name: (configured.index(name) if name in configured else len(configured), name))
    fields = {name: _field(ledger, generation, kind, scope, name) for name in names}
    doubtful, doubtful_usd = ledger.doubt_totals()
    on_the_wire = ledger.intents().values()
    return {
        "catalogue_id": ledger.meta("catalogue_id"),
        "input": _input(snapshot),
        "generation": {
            "id": generation.id,
            "service": generation.service,
            "model": generation.model,
            "dimensions": generation.dimensions,
        },
        "vector_store": config.vector_store,
        "fields": fields,
        "pending": sum(fields[field.name]["pending"] for field in config.fields if field.name in fields),
        "failures": [
            {"stage": stage, "code": code, "strings": count}
            for failed_in in (generation.id, scope)
            for (stage, code), count in ledger.failure_counts(failed_in).items()
        ],
        "spent_usd": sum(spending.usd for spending in ledger.spendings()),
        "tokens": sum(spending.tokens for spending in ledger.spendings()),
        "budget_usd": config.budget_usd,
        "possibly_paid_twice": {"strings": doubtful, "usd": doubtful_usd},
        "on_the_wire": {"requests": len(on_the_wire), "strings": sum(intent.strings for intent in on_the_wire)},
    }


def _input(snapshot: Snapshot | None) -> dict[str, Any]:
    if snapshot is None:
        return {}
    return {
        "records": snapshot.records,
        "rejected_rows": snapshot.rejected,
        "trial_of": snapshot.limited_to,
        "read_at": snapshot.created_at,
        "must_be_read_again": not snapshot.fingerprint,
    }


def _field(ledger: Ledger, generation: Generation, kind: str, scope: str, name: str) -> dict[str, int]:
    present = ledger.spans("present", kind, name)
    embedded = ledger.spans("embedded", generation.id, name)
    failed = span_sets.of_rows(failure.row for failure in ledger.failures(generation.id, name))
    in_jobs = span_sets.union(ledger.jobs.rows_in_jobs(generation.id, name))
    left = span_sets.subtract(span_sets.subtract(present, embedded), failed)
    known = ledger.fields()[name][1]
    return {
        "present": span_sets.count(present),
        "absent": known - span_sets.count(present),
        "embedded": span_sets.count(embedded),
        "indexed": span_sets.count(ledger.spans("indexed", scope, name)),
        "to_index": span_sets.count(pending_in_index(ledger, scope, generation, name)),
        "refused_by_index": span_sets.count(refused(ledger, scope, name)),
        "failed": span_sets.count(failed),
        "in_jobs": span_sets.count(in_jobs),
        "pending": span_sets.count(span_sets.subtract(left, in_jobs)),
    }


def _running(holder: LockHolder | None) -> dict[str, Any] | None:
    return None if holder is None else {"pid": holder.pid, "host": holder.host, "command": holder.command}


def _show(console: Console, found: dict[str, Any], place: Checkpoint) -> None:
    read, generation = found["input"], found["generation"]
    when = dt.datetime.fromtimestamp(read["read_at"], dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    trial = f" (a trial: --limit {read['trial_of']})" if read["trial_of"] else ""
    console.answer(f"Catalogue: {read['records']:,} records, read {when}{trial}; {read['rejected_rows']:,} rows rejected.")
    console.answer(f"Service: {generation['service']}, model {generation['model']}; index: {found['vector_store']}.")
    console.answer()
    console.answer(f"  {'field':<16}{'strings':>12}{'embedded':>12}{'indexed':>12}{'pending':>10}{'failed':>8}{'absent':>10}")
    for name, field in found["fields"].items():
        console.answer(
            f"  {name:<16}{field['present']:>12,}{field['embedded']:>12,}{field['indexed']:>12,}{field['pending']:>10,}"
            f"{field['failed']:>8,}{field['absent']:>10,}"
        )
    console.answer()
    console.answer(
        f"Spent: {dollars(found['spent_usd'])} for {found['tokens']:,} tokens, of a budget of {dollars(found['budget_usd'])}."
    )
    for line in _needs(found, place):
        console.answer(line)


def _needs(found: dict[str, Any], place: Checkpoint) -> list[str]:
    """What is worth knowing, and the command that goes with it."""
    lines = []
    indexed = found["vector_store"] != "none"
    lacking = sum(field["to_index"] for field in found["fields"].values()) if indexed else 0
    twice, wire, running = found["possibly_paid_twice"], found["on_the_wire"], found["running"]
    if twice["strings"]:
        words = f"Possibly paid twice: {strings(twice['strings'])}, {dollars(twice['usd'])}; listed in {place.possibly_paid_twice}"
        lines.append(words)
    if running:
        lines.append(
            f"At work now: process {running['pid']} on {running['host']}: {running['command']}; {wire['requests']} requests "
            "sent and not yet booked."
        )
    elif wire["requests"]:
        lines.append(
            f"A run ended with {wire['requests']} requests not yet booked ({strings(wire['strings'])}): the next run collects the "
            "answers that came, and counts the others as possibly paid twice."
        )
    where = f"; listed in {place.failures}" if place.failures.exists() else "; listed when the run ends"
    lines += [
        f"{'Not indexed' if failure['stage'] == 'index' else 'Not embedded'}: {strings(failure['strings'])}, {failure['stage']} "
        f"{failure['code']}{where}"
        for failure in found["failures"]
    ]
    if any(failure["stage"] != "preflight" for failure in found["failures"]):
        lines.append("To ask for the failed ones again: python main.py --retry-failed")
    in_jobs = sum(field["in_jobs"] for field in found["fields"].values())
    if in_jobs:
        lines.append(f"In batch jobs: {strings(in_jobs)}; to look at them: python batch_manager.py --status")
    if found["input"]["must_be_read_again"]:
        lines.append("The input will be read again: python main.py")
    elif found["pending"] and not running:
        lines.append(f"To go on with {strings(found['pending'])}: python main.py")
    if lacking and not running:
        lines.append(f"To index {strings(lacking)} that the index lacks: python main.py")
    if not (found["pending"] or in_jobs or lacking or running or found["input"]["must_be_read_again"]):
        lines.append("Nothing is pending.")
    return lines
