"""When a report is written: at the end of a command that left another state than the one last reported.

`report.json` says which state it is of, by a hash over all that a report is made from. A run with nothing to do compares
that, and looks at no table and no index. Only the date of a report depends on when it is made.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import astuple, replace

import msgspec

from pipeline import __version__
from pipeline.checkpoint import Checkpoint, write_list
from pipeline.context import Context
from pipeline.log import without_secrets
from pipeline.reporting.facts import facts_of
from pipeline.reporting.numbers import FORMAT, Facts, Report


class _Look(msgspec.Struct):
    is_whole: bool


class _Head(msgspec.Struct):
    """As much of a `report.json` as tells whether it is up to date."""

    state: str
    samples: _Look


def write_report(context: Context, cannot_ask: str = "") -> bool:
    """Write both files unless they are up to date; whether they were written. `cannot_ask` says why the index is left alone."""
    facts = facts_of(context)
    if facts is None:
        return False
    state = _state(context, facts)
    if _is_reported(context.place, state):
        return False
    from pipeline.reporting.page import page_of
    from pipeline.reporting.samples import samples_of

    now = dt.datetime.fromtimestamp(context.clock.now(), dt.UTC).isoformat(timespec="seconds")
    report = Report(FORMAT, state, now, __version__, facts, samples_of(context, facts, cannot_ask))
    numbers = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
    # The numbers last: they are what says that both are there.
    for path, content in ((context.place.report_page, page_of(report)), (context.place.report_numbers, numbers)):
        write_list(path, without_secrets(content).encode())
    return True


def _state(context: Context, facts: Facts) -> str:
    """A hash of what a report is made from: the facts, and the tables that samples are drawn from. Not of what the input is by
    now: it counts once it is read."""
    facts = replace(facts, input=replace(facts.input, files=0, sources=(), is_as_read=True))
    tables = [(file.name, file.sha256) for file in context.ledger.files() if file.kind in ("strings", "embeddings", "frequencies")]
    generations = [astuple(generation) for generation in context.ledger.generations()]
    made_from = (FORMAT, __version__, facts, context.config.index_later, tables, generations)
    return hashlib.sha256(msgspec.json.encode(made_from)).hexdigest()


def _is_reported(place: Checkpoint, state: str) -> bool:
    if not (place.report_page.is_file() and place.report_numbers.is_file()):
        return False
    try:
        head = msgspec.json.decode(place.report_numbers.read_bytes(), type=_Head)
    except msgspec.DecodeError:  # not ours, or of another version
        return False
    return head.state == state and head.samples.is_whole
