"""`report.html` as a pure function of a report: one page that loads nothing, runs nothing, and escapes every text.

Its Content-Security-Policy allows the one style that stands in it, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

from pipeline.amounts import dollars
from pipeline.reporting import sampled, sections
from pipeline.reporting.markup import Markup, foreign, tag
from pipeline.reporting.numbers import Facts, Report
from pipeline.reporting.parts import paragraph, share
from pipeline.reporting.style import STYLE


def page_of(report: Report) -> str:
    """The whole page."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    facts, samples = report.facts, report.samples
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", "Report: ", facts.input.wanted),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "main",
        *_opening(report),
        *sections.came_in(facts),
        *sections.left_out(facts, samples),
        *sections.statuses(facts),
        *sections.money(facts),
        *sections.jobs(facts),
        *sections.index(facts),
        *sampled.neighbours(samples),
        *sampled.similarities(samples),
        _closing(report),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _opening(report: Report) -> Iterator[Markup]:
    """What it is about, when it was made, the figures, and how it stands."""
    facts, money = report.facts, report.facts.money
    yield tag("h1", "Report: ", foreign(facts.input.wanted, 120))
    model = next((one for one in facts.models if one.is_configured), None)
    by = "nothing embedded yet" if model is None else f"{model.service}, {model.model}, {model.dimensions:,} dimensions"
    made = report.written_at.replace("T", " ").replace("+00:00", " UTC")
    yield paragraph(f"{made} · ", foreign(by), f" · index: {facts.index.store}", soft=True)
    present, embedded, confirmed, belongs = (
        facts.sum_of(name) for name in ("present", "embedded", "confirmed", "belongs_in_index")
    )
    figures = [
        ("records", f"{facts.input.records:,}", f"{facts.input.rejected_rows:,} rows left out"),
        ("strings", f"{present:,}", f"in {len(facts.fields)} fields"),
        ("embedded", share(embedded, present), f"{embedded:,} strings"),
    ]
    if facts.index.store != "none":
        figures.append(("confirmed by the index", share(confirmed, belongs), f"{confirmed:,} of {belongs:,}"))
    figures.append(("spent", dollars(money.spent_usd), f"of {dollars(money.budget_usd)}"))
    boxes = (tag("div", tag("dt", name), tag("dd", value, tag("small", more))) for name, value, more in figures)
    yield tag("dl", *boxes, class_="figures")
    yield tag("p", _lead(facts), class_="lead")


def _lead(facts: Facts) -> str:
    """What is not as it should be, or that nothing is."""
    left = [(facts.sum_of(name), words) for _, name, words in sections.STATUSES[1:]]
    if facts.index.store != "none":
        left += [(facts.sum_of("to_index"), "to be indexed"), (facts.sum_of("refused_by_index"), "refused by the index")]
    left += [(facts.money.doubtful_strings, "possibly paid twice")]
    said = ", ".join(f"{count:,} {words}" for count, words in left if count)
    is_open = facts.sum_of("in_jobs") or facts.sum_of("pending") or (facts.index.store != "none" and facts.sum_of("to_index"))
    end = "" if is_open else "Nothing is pending."
    return f"Of {facts.sum_of('present'):,} strings: {said}. {end}" if said else end


def _closing(report: Report) -> Markup:
    return tag(
        "footer",
        paragraph(
            f"Namesake {report.version}. The same numbers for programs: report.json. Samples are drawn by seed "
            f"{report.samples.seed}: the same state gives the same page. It loads nothing, runs nothing, and quotes strings of the "
            "catalogue."
        ),
    )
