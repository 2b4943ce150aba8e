"""`main.py --status`: where things stand, on one screen, from the ledger alone: no network, no lock, no table is opened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console, dollars, moment, strings
from pipeline.commands.session import Options, load
from pipeline.commands.standing import EXIT_CODES, NEEDS_PERSON, in_jobs, lacking, status_of
from pipeline.locking import lock_holder


def show_status(options: Options, console: Console, *, as_exit_code: bool = False) -> int:
    """Read, show; it neither waits nor changes anything. `as_exit_code`: 0 finished, 3 in progress, 1 needs a person."""
    config, service = load(options)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        if ledger is None or (ledger.snapshot("full") is None and ledger.snapshot("trial") is None):
            console.document({"state": "new", "checkpoint_dir": str(place.root), "next": "python main.py"})
            console.answer(f"Nothing is done yet in {place.root}. To begin: python main.py   (what it would cost first: --dry-run)")
            return EXIT_CODES["new"] if as_exit_code else 0
        found = status_of(ledger, config, service, options.clock.now(), lock_holder(place.lock))
        found["checkpoint_dir"] = str(place.root)
    console.document(found)
    if not console.as_json:
        _show(console, found, place)
    return EXIT_CODES[found["state"]] if as_exit_code else 0


def _show(console: Console, found: dict[str, Any], place: Checkpoint) -> None:
    read, generation = found["input"], found["generation"]
    trial = f" (a trial: --limit {read['trial_of']})" if read["trial_of"] else ""
    console.answer(
        f"Catalogue: {read['records']:,} records, read {moment(read['read_at'])}{trial}; {read['rejected_rows']:,} rows rejected."
    )
    console.answer(f"Service: {generation['service']}, model {generation['model']}; index: {found['vector_store']}.")
    console.answer()
    console.answer(f"  {'field':<16}{'strings':>12}{'embedded':>12}{'indexed':>12}{'pending':>10}{'failed':>8}{'absent':>10}")
    for name, field in found["fields"].items():
        console.answer(
            f"  {name:<16}{field['present']:>12,}{field['embedded']:>12,}{field['indexed']:>12,}{field['pending']:>10,}"
            f"{field['failed']:>8,}{field['absent']:>10,}"
        )
    console.answer()
    for line in (*_generations(found), *_jobs(found), _money(found), *_time(found), *_notes(found, place), *needs_you(found)):
        console.answer(line)


def _generations(found: dict[str, Any]) -> Iterator[str]:
    """By name, once there are several: which is in use, and what each has."""
    known = found["generations"]
    if len(known) < 2:
        return
    yield f"  {'model':<48}{'name':<12}{'embedded':>12}{'indexed':>12}{'paid':>10}"
    for one in known:
        mark = "  in use" if one["in_use"] else ""
        counts = f"{one['embedded']:>12,}{one['indexed']:>12,}{dollars(one['paid_usd']):>10}"
        yield f"  {one['words']:<48}{one['id']:<12}{counts}{mark}"
    if any(not (one["in_use"] or one["configured"]) for one in known):
        yield "  To drop one by its name, with its index: python main.py --drop-embeddings NAME"
    yield ""


def _jobs(found: dict[str, Any]) -> Iterator[str]:
    """Collected 412 of 900, and where the others are."""
    jobs = found["jobs"]
    others = {
        "at the service": jobs["at_the_service"], "to be collected": jobs["to_be_collected"], "lost": jobs["lost"],
        "to be submitted": jobs["to_be_submitted"], "still to be made": jobs["to_be_made"],
    }  # fmt: skip
    total = jobs["collected"] + sum(others.values())
    if total:
        about = "about " if jobs["to_be_made"] else ""
        where = "; ".join(f"{count:,} {words}" for words, count in others.items() if count)
        yield f"Jobs: {jobs['collected']:,} of {about}{total:,} collected{'; ' + where if where else ''}."


def _money(found: dict[str, Any]) -> str:
    on_its_way = f" {dollars(found['on_its_way_usd'])} on its way." if found["on_its_way_usd"] else ""
    return (
        f"Spent: {dollars(found['spent_usd'])} of {dollars(found['budget_usd'])} (budget_usd), for {found['tokens']:,} "
        f"tokens.{on_its_way}"
    )


def _time(found: dict[str, Any]) -> Iterator[str]:
    """When it will end, where that can be known, and what ends by itself at the service."""
    pace, left = found["pace"], found["pending"] + in_jobs(found)
    if left and found["state"] == NEEDS_PERSON:
        yield f"When it will end can't be known while it needs you; {strings(left)} are left."
    elif left and pace is None:
        yield f"When it will end can't be known yet: too little came home lately; {strings(left)} are left."
    elif left:
        yield (
            f"At this pace it ends about {moment(pace['ends_at'])}: {pace['strings_an_hour']:,.0f} strings an hour since "
            f"{moment(pace['since'])}, {left:,} left."
        )
    batch, results = found["expires"]["first_batch_at"], found["expires"]["first_results_at"]
    if batch:
        yield f"At the service: the first batch ends on {moment(batch)} at the latest; what it did by then is kept."
    if results:
        yield f"At the service: results that are not collected are deleted from {moment(results)} on."


def _notes(found: dict[str, Any], place: Checkpoint) -> list[str]:
    """What is worth knowing, and the command that goes with it; none of it needs a person now."""
    lines = []
    twice, wire, running = found["possibly_paid_twice"], found["on_the_wire"], found["running"]
    if twice["strings"]:
        words = f"Possibly paid twice: {strings(twice['strings'])}, {dollars(twice['usd'])}; listed in {place.possibly_paid_twice}"
        lines.append(words)
    if found["forgetting"] and not running:
        cut = f"Forgetting {strings(found['forgetting'])} was cut off"
        lines.append(f"{cut}: type python main.py --forget-text with the same list again.")
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
    if found["jobs"]["in_doubt"]:
        lines.append(
            f"In doubt: {found['jobs']['in_doubt']} jobs, the replies to whose creates were lost; settled by the next look at the "
            "service's list: python batch_manager.py --advance"
        )
    lines += [
        f"The last {stop['command']} was stopped, and the next one tries again: {stop['words']}"
        for stop in found["stopped_by"]
        if stop["passes"] and not running
    ]
    where = f"; listed in {place.failures}" if place.failures.exists() else "; listed when the run ends"
    lines += [
        f"{'Not indexed' if failure['stage'] == 'index' else 'Not embedded'}: {strings(failure['strings'])}, {failure['stage']} "
        f"{failure['code']}{where}"
        for failure in found["failures"]
    ]
    return lines + _left(found)


def _left(found: dict[str, Any]) -> list[str]:
    """What is still to be done, and how to go on."""
    lines = []
    running, to_index, waiting = found["running"], lacking(found), in_jobs(found)
    if waiting:
        lines.append(f"In batch jobs: {strings(waiting)}; to look at them: python batch_manager.py --status")
    if found["input"]["must_be_read_again"]:
        lines.append("The input will be read again: python main.py")
    elif found["pending"] and not running:
        lines.append(f"To go on with {strings(found['pending'])}: python main.py")
    if to_index and found["index_later"]:
        lines.append(f"index_later is true; {strings(to_index)} wait. To index them: index_later: false, and python main.py")
    elif to_index and not running:
        lines.append(f"To index {strings(to_index)} that the index lacks: python main.py")
    if not (found["pending"] or waiting or to_index or running or found["input"]["must_be_read_again"]):
        lines.append("Nothing is pending.")
    return lines


def needs_you(found: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that needs a person."""
    for need in found["needs"]:
        yield f"Needs you: {need['words']}: {need['command']}"
