"""The sections of the page that say what the ledger says: what came in, was left out, became of it, and cost."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.amounts import dollars, size
from pipeline.reporting.markup import Markup, foreign, tag
from pipeline.reporting.numbers import Facts, JobLine, Samples
from pipeline.reporting.parts import moment, names, numbers, paragraph, table, texts, words
from pipeline.reporting.svg import Lane, Part, stacked, timeline

STATUSES = (
    ("done", "embedded", "embedded"),
    ("wait", "in_jobs", "in batch jobs"),
    ("idle", "pending", "pending"),
    ("never", "never_sent", "never sent"),
    ("bad", "failed", "failed"),
)
_JOB_KINDS = {"prepared": "idle", "uploaded": "idle", "collected": "done", "returned": "bad", "lost": "bad"}  # others wait
_WAYS = {"realtime": "real time", "batch": "batch", "search": "searches"}
_TOGETHER = "several fields"
_SHORT = "%Y-%m-%d %H:%M"
_MINUTES = 600.0  # what lasts no longer has its seconds on the time line


def came_in(facts: Facts) -> Iterator[Markup]:
    """Sources, records, strings by field."""
    came = facts.input
    yield tag("h2", "What came in")
    trial = f" A trial: only the first {came.trial_of:,} were read." if came.trial_of else ""
    yield paragraph(f"{came.records:,} records, read {moment(came.read_at)}.{trial}")
    if came.is_as_read:
        files = [tag("li", foreign(source.name), f", {size(source.bytes)}") for source in came.sources]
        more = came.files - len(came.sources)
        yield tag("ul", *files, *([tag("li", f"and {more:,} files more")] if more else []), class_="files")
    else:
        yield paragraph("The input has changed, or is gone, since it was read.", soft=True)
    saved = (f"{1 - one.present / one.occurrences:.0%}" if one.occurrences else "-" for one in facts.fields)
    yield table(
        "strings by field",
        (words("field"), *numbers("occurrences", "unique strings", "saved by deduplication", "left the catalogue")),
        [
            (one.name, f"{one.occurrences:,}", f"{one.present:,}", less, f"{one.absent:,}")
            for one, less in zip(facts.fields, saved, strict=True)
        ],
    )


def left_out(facts: Facts, samples: Samples) -> Iterator[Markup]:
    """Rejected rows and dropped strings, with reasons."""
    yield tag("h2", "What was left out, and why")
    if not facts.input.rejected_rows and not facts.dropped:
        yield paragraph("Nothing: no row was rejected, no string refused, and none has failed.")
    if facts.input.rejected_rows:
        yield tag("h3", f"Rows: {facts.input.rejected_rows:,}")
        yield paragraph(f"{samples.rejected.trouble or 'All of them are listed in rejected_rows.csv'}.", soft=True)
    if samples.rejected.first:
        reasons = [(foreign(reason), f"{count:,}") for reason, count in samples.rejected.reasons]
        yield table("reasons for rejected rows", (texts("reason"), *numbers("rows")), reasons)
        rows = [(foreign(row.file), row.row, foreign(row.id, 80), foreign(row.reason)) for row in samples.rejected.first]
        columns = (names("file"), *numbers("row"), names("id"), texts("reason"))
        yield table("the first rejected rows", columns, rows, tall=True)
    if facts.dropped:
        yield tag("h3", f"Strings: {sum(one.strings for one in facts.dropped):,}")
        yield paragraph(
            "Never sent (preflight), failed at the service, or refused by the index; all of them are listed in failures.csv.",
            soft=True,
        )
        counts = [(one.field, one.stage, foreign(one.code, 80), f"{one.strings:,}") for one in facts.dropped]
        yield table("dropped strings", (words("field"), words("where"), words("why"), *numbers("strings")), counts)
        first = [
            (one.field, f"{one.row:,}", foreign(one.text) if one.text.strip() else "(blank)", foreign(one.reason))
            for one in samples.dropped
        ]
        columns = (words("field"), *numbers("row"), texts("text"), texts("reason"))
        yield table("the first dropped strings", columns, first, tall=True)


def statuses(facts: Facts) -> Iterator[Markup]:
    """What became of the strings, by field."""
    yield tag("h2", "Results by status")
    for one in facts.fields:
        if one.present:
            parts = [Part(kind, getattr(one, name), f"{getattr(one, name):,} {said}") for kind, name, said in STATUSES]
            yield tag("div", tag("span", one.name), tag("span", f"{one.present:,} strings"), class_="name")
            yield stacked(parts, f"{one.name}: " + ", ".join(part.words for part in parts if part.count))
    swatches = (
        tag("li", tag("svg", tag("rect", class_=kind, width=10, height=10), width=10, height=10, aria_hidden="true"), said)
        for kind, _, said in STATUSES
    )
    yield tag("ul", *swatches, class_="legend")
    yield table(
        "results by status",
        (words("field"), *numbers(*(said for _, _, said in STATUSES))),
        [(one.name, *(f"{getattr(one, name):,}" for _, name, _ in STATUSES)) for one in facts.fields],
    )


def money(facts: Facts) -> Iterator[Markup]:
    """Tokens and money by field; what is not billed yet is told apart."""
    spent = facts.money
    yield tag("h2", "Tokens and money")
    rows: list[tuple[str, ...]] = [
        (one.field or (_TOGETHER if one.kind == "batch" else "-"), foreign(_WAYS.get(one.kind, one.kind)), f"{one.strings:,}",
         f"{one.tokens:,}", dollars(one.usd))
        for one in spent.paid
    ]  # fmt: skip
    not_billed = (
        ("jobs not collected", "estimated", "", "", spent.in_jobs_usd),
        ("on the wire", "estimated", "", "", spent.on_the_wire_usd),
        (
            "possibly paid twice",
            "estimated",
            f"{spent.doubtful_strings:,}" if spent.doubtful_strings else "",
            "",
            spent.doubtful_usd,
        ),
    )
    rows += [(*row[:4], dollars(row[4])) for row in not_billed if row[2] or row[4]]
    if rows:
        tokens = f"{sum(one.tokens for one in spent.paid):,}"
        columns = (words("field"), words("way"), *numbers("strings", "tokens", "price"))
        yield table("tokens and money by field", columns, rows, ("all", "", "", tokens, dollars(spent.spent_usd)))
    else:
        yield paragraph("Nothing was paid for yet.")
    yield paragraph(f"The budget, for the life of the catalogue, is {dollars(spent.budget_usd)}.", soft=True)


def jobs(facts: Facts) -> Iterator[Markup]:
    """The jobs of batch mode on a time line, and one by one."""
    known = facts.jobs
    if not known.total:
        return
    yield tag("h2", "Jobs")
    states = ", ".join(f"{count:,} {state}" for state, count in known.states.items())
    more = f" Shown are the latest {len(known.lines):,}." if len(known.lines) < known.total else ""
    yield paragraph(f"{known.total:,} jobs: {states}.{more}")
    moments = [at for one in known.lines for at in (one.began_at, one.ended_at) if at is not None]
    start, end = min(moments), max(moments)
    is_running = any(one.is_running for one in known.lines)
    past = end + (max((end - start) * 0.08, 60.0) if is_running or end == start else 0.0)
    form = "%d %b %H:%M" if past - start > _MINUTES else "%H:%M:%S"
    ticks = [(at, moment(at, form)) for at in (start, (start + past) / 2, past)]
    yield timeline([_lane(one) for one in known.lines], ticks, start, past, f"jobs from {moment(start)} to {moment(end)}")
    yield paragraph("From the create at the service to its end; a pale bar has not ended. All times are UTC.", soft=True)
    columns = (
        *numbers("job"),
        *(words(head) for head in ("state", "at the service", "fields")),
        *numbers("requests", "embedded", "tokens", "price"),
        *(words(head) for head in ("began", "ended", "expires")),
        texts("remark"),
    )
    yield table("jobs", columns, [_job(one) for one in known.lines], tall=True)


def _lane(one: JobLine) -> Lane:
    said = f"Job {one.id}: {one.state}, {moment(one.began_at)} to {moment(one.ended_at)}"
    end = None if one.is_running else one.ended_at or one.began_at
    return Lane(str(one.id), _JOB_KINDS.get(one.state, "wait"), one.began_at, end, said)


def _job(one: JobLine) -> tuple[str, ...]:
    about = "~" if one.is_estimate else ""
    return (
        f"{one.id}", one.state, foreign(one.status or "-", 60), ", ".join(one.fields), f"{one.requests:,}",
        "-" if one.embedded is None else f"{one.embedded:,}", f"{about}{one.tokens:,}", f"{about}{dollars(one.usd)}",
        *(moment(at, _SHORT) for at in (one.began_at, one.ended_at, one.expires_at)), foreign(one.reason),
    )  # fmt: skip


def index(facts: Facts) -> Iterator[Markup]:
    """What the index has confirmed, and when it was last compared."""
    yield tag("h2", "The index")
    if facts.index.store == "none":
        yield paragraph("vector_store is none: there is no index.")
        return
    compared = "It was never compared with what is stored here (python main.py --verify)."
    if facts.index.verified_at is not None:
        was = "all was well" if facts.index.was_well else "not all was well"
        compared = f"Last compared with what is stored here by --verify, {moment(facts.index.verified_at)}: {was}."
    yield paragraph(f"A string is confirmed when the index has given back its UUID. {compared}")
    yield table(
        "the index by field",
        (words("field"), *numbers("belong there", "confirmed", "to be written", "refused")),
        [
            (one.name, f"{one.belongs_in_index:,}", f"{one.confirmed:,}", f"{one.to_index:,}", f"{one.refused_by_index:,}")
            for one in facts.fields
        ],
    )
    if len(facts.models) > 1:
        yield tag("h3", "Models")
        models = [
            (foreign(one.service), foreign(one.model), f"{one.dimensions:,}", f"{one.embedded:,}", "yes" if one.is_current else "")
            for one in facts.models
        ]
        yield table("models", (words("service"), words("model"), *numbers("dimensions", "embedded"), words("current")), models)
