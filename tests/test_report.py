"""The report: what it says, that nothing in it can do harm, when it is written, and that it costs a run nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.commands.search  # noqa: F401 - before a test changes what it takes from `session`
from pipeline.commands import main as main_module
from pipeline.commands.entry import options_of
from pipeline.errors import StoreError
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import Pace
from pipeline.reporting import numbers
from pipeline.reporting.markup import foreign, safe, tag
from pipeline.reporting.numbers import Report
from pipeline.reporting.page import page_of
from pipeline.reporting.svg import Lane, Part, histogram, stacked, timeline
from tests.batch.conftest import make as make  # noqa: PLC0414 - a fixture
from tests.batch.world import Maker
from tests.clock import FakeClock
from tests.tools import Catalogue

HOSTILE = (
    "<script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    '"\' onmouseover="alert(1)" x=\'',
    "javascript:alert(1)",
    "</style><style>*{display:none}</style>",
    "]]><!-- --></title><!--",
    "&lt;b&gt; &amp; &#x3c;i>",
    "\u202egnp.exe\u202c \u2066isolated",
    "x\u0000y\u0007z\u001b[31mred",
    "W" * 5000,
    "👩‍👩‍👧‍👦🎻",
    "שלום עולם و مرحبا",
)
ALLOWED = {
    "html": {"lang"}, "head": set(), "body": set(), "main": set(), "title": set(), "style": set(),
    "meta": {"charset", "http-equiv", "content", "name"},
}  # fmt: skip
ATTRIBUTES = {
    "class", "tabindex", "role", "scope", "aria-label", "aria-hidden", "width", "height", "x", "y", "x1", "x2", "y1", "y2",
    "text-anchor",
}  # fmt: skip
ELEMENTS = {
    "h1", "h2", "h3", "p", "div", "span", "bdi", "dl", "dt", "dd", "small", "ul", "li", "table", "thead", "tbody", "tfoot", "tr",
    "th", "td", "svg", "rect", "line", "text", "title", "footer",
}  # fmt: skip


class Page(HTMLParser):
    """A page taken apart: its elements, and that each is closed where it should be."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name != "meta":
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")


def harmless(content: str) -> Page:
    """Only the elements and attributes that the page is made of, nothing that loads or runs, and one style: the allowed one."""
    page = Page(content)
    for name, attributes in page.elements:
        assert name in ALLOWED or name in ELEMENTS, name
        assert set(attributes) <= (ALLOWED[name] if name in ALLOWED and name != "title" else ATTRIBUTES), (name, attributes)
    (style,) = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [given["content"] for _, given in page.elements if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style
    assert "@import" not in style
    assert "http:" not in content
    assert "https:" not in content
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", content), (
        "what is not seen, or turns text around"
    )
    return page


def example(kind: Any, text: str, number: int) -> Any:
    """A value of a type, with the same text wherever a text stands, and the same number."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{entry.name: example(hints[entry.name], text, number) for entry in fields(kind)})
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return (example(inner[0], text, number),) * 2 if inner[1:] == (...,) else tuple(example(one, text, number) for one in inner)
    if get_origin(kind) is dict:
        return {text: number}
    if get_origin(kind) is not None or get_args(kind):
        return example(get_args(kind)[0], text, number)
    return {str: text, int: number, float: 0.25, bool: True}[kind]


@contextmanager
def on(clock: FakeClock) -> Iterator[None]:
    """Commands of `main.py` by this clock."""
    with pytest.MonkeyPatch.context() as patch:
        import dataclasses

        patch.setattr(
            main_module, "options_of", lambda *given, **more: dataclasses.replace(options_of(*given, **more), clock=clock)
        )
        yield


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_bytes())


def page_in(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write([(str(number), f"Bach, Johann {number % 30}", f"Fugue {number}") for number in range(60)])
    return made


# What can't do harm


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:16]))
def test_hostile_text_anywhere_in_a_report_is_shown_and_does_nothing(text: str) -> None:
    """In every place where a report can hold a text: names, ids, texts, reasons, words of a service."""
    page = harmless(page_of(example(Report, text, 3)))
    plain = harmless(page_of(example(Report, "plain", 3)))
    assert [name for name, _ in page.elements] == [name for name, _ in plain.elements], "a text made or closed an element"
    if text.isprintable() and len(text) < 60:
        assert any(text in shown for shown in page.texts)


@given(st.text())
def test_any_text_is_escaped(text: str) -> None:
    shown = tag("p", text, aria_label=text)
    parsed = Page(shown)
    assert [name for name, _ in parsed.elements] == ["p"]
    assert safe(text).count("<") == 0
    assert '"' not in safe(text)
    shown.encode()  # a lone surrogate has no UTF-8


def test_what_would_not_be_seen_is_named_and_what_is_long_is_cut() -> None:
    assert safe("a\0b\x1bc\x7f\u202e\ud800") == "a␀b␛c␡⟨U+202E⟩⟨U+D800⟩"
    assert safe("one\ntwo\tthree") == "one\ntwo\tthree"
    assert len(foreign("W" * 5000)) < 300
    assert foreign("<b>") == "<bdi>&lt;b&gt;</bdi>"


def test_a_catalogue_of_hostile_texts_names_and_ids(tmp_path: Path) -> None:
    """From the file to the page, through tables, lists and the index."""
    made = Catalogue(tmp_path)
    name = "<img src=x onerror=alert(1)>&'\u202e.csv"
    made.configure(input=name)
    rows = [(f"{number} {text[:40]}".replace("\0", ""), text.replace("\0", ""), f"{text[:90]} {number}".replace("\0", ""))
            for number, text in enumerate(HOSTILE)]  # fmt: skip
    made.write([*rows, rows[0], ("NUL \0 <b>", "x", "y"), ("</td>", "   ", "")], name=name)
    ran = made.run()
    assert ran.code == 0, ran.err
    page = harmless(page_in(made.checkpoint))
    assert any(text == "<script>alert(1)</script> 0" for text in page.texts), "as a text, it is shown"
    assert any("<img src=x onerror=alert(1)>&'⟨U+202E⟩.csv" in text for text in page.texts)
    assert any(text == "NUL \\0 <b>" for text in page.texts)
    assert report_of(made.checkpoint)["facts"]["input"]["wanted"] == name


# What it says


def test_a_run_leaves_a_report_of_what_came_in_was_left_out_and_became_of_it(catalogue: Catalogue) -> None:
    catalogue.write([("1", "Bach", "Fugue"), ("2", "Bach", "Mass"), ("3", "Händel", "  "), ("3", "again", "x"), ("", "no id", "x")])
    assert catalogue.run().code == 0
    said = report_of(catalogue.checkpoint)
    facts, samples = said["facts"], said["samples"]
    assert {key: facts["input"][key] for key in ("wanted", "records", "rejected_rows", "files", "is_as_read")} == {
        "wanted": "records.csv", "records": 3, "rejected_rows": 2, "files": 1, "is_as_read": True,
    }  # fmt: skip
    assert facts["input"]["sources"] == [{"name": "records.csv", "bytes": (catalogue.folder / "records.csv").stat().st_size}]
    person, title = facts["fields"]
    assert (person["occurrences"], person["present"], person["embedded"], person["confirmed"]) == (3, 2, 2, 2)
    assert (title["present"], title["embedded"], title["never_sent"], title["pending"], title["to_index"]) == (3, 2, 1, 0, 0)
    assert facts["dropped"] == [{"field": "title", "stage": "preflight", "code": "blank", "strings": 1}]
    assert samples["rejected"]["reasons"] == [["the id stands already in row … of records.csv", 1], ["has no id", 1]]
    assert [row["row"] for row in samples["rejected"]["first"]] == ["5", "6"]
    assert [(one["field"], one["text"], one["reason"]) for one in samples["dropped"]] == [
        ("title", "  ", "white space only (2 characters)")
    ]
    assert [(one["field"], one["kind"], one["strings"]) for one in facts["money"]["paid"]] == [
        ("person", "realtime", 2), ("title", "realtime", 2),
    ]  # fmt: skip
    page = page_in(catalogue.checkpoint)
    for words in ("What came in", "What was left out, and why", "Results by status", "Tokens and money", "The index",
                  "Nearest neighbours", "How alike strings are"):  # fmt: skip
        assert f"<h2>{words}</h2>" in page


def test_statuses_of_a_field_are_all_of_it_and_money_adds_up(make: Maker) -> None:
    """Jobs at the service, jobs that came home, rows that failed, a field that is not begun: each string is counted once."""
    world = make(
        Misbehaviour(kind="refused_row", create=1, row=2),
        Misbehaviour(kind="end", create=2, status="failed", share=0),
        titles=[f"Fugue {number}" for number in range(40)],
        pace=Pace(working=5000),
        price=10.0,
        batch_embedding_size=8,
        max_active_batches=3,
        use_batch_embeddings=True,
        batch_max_attempts=1,
    )
    seen = set()
    for _ in range(8):
        assert world.run("--advance").code in (0, 1)
        world.clock.sleep(3000)
        facts = report_of(world.catalogue.checkpoint)["facts"]
        (field,) = facts["fields"]
        parts = [field[name] for name in ("embedded", "in_jobs", "pending", "never_sent", "failed")]
        assert sum(parts) == field["present"] == 40
        seen.add(tuple(bool(part) for part in parts))
        money = facts["money"]
        total = sum(paid["usd"] for paid in money["paid"]) + sum(
            money[f"{name}_usd"] for name in ("in_jobs", "on_the_wire", "doubtful")
        )
        assert money["spent_usd"] == pytest.approx(total)
        with world.catalogue.ledger() as ledger:
            assert money["spent_usd"] == pytest.approx(ledger.spent_usd())
        assert facts["jobs"]["total"] == len(world.jobs())
        harmless(page_in(world.catalogue.checkpoint))
    assert len(seen) > 2
    assert {"collected", "returned"} <= set(facts["jobs"]["states"])
    assert [paid["field"] for paid in money["paid"]] == ["title"], "a job of one field is that field's"
    ended = [job for job in facts["jobs"]["lines"] if job["state"] == "collected"]
    assert all(job["ended_at"] > job["began_at"] and not job["is_estimate"] for job in ended)


def test_jobs_of_several_fields_are_billed_together_and_said_so(make: Maker) -> None:
    world = make(titles=["Fugue", "Mass"], fields={"person": "person", "title": "title"}, price=10.0)
    world.catalogue.write([("1", "Bach", "Fugue"), ("2", "Händel", "Mass")])
    assert world.advance(2).code == 0
    facts = report_of(world.catalogue.checkpoint)["facts"]
    assert [(paid["field"], paid["kind"], paid["strings"]) for paid in facts["money"]["paid"]] == [("", "batch", 4)]
    assert facts["jobs"]["lines"][0]["fields"] == ["person", "title"]
    assert ">several fields<" in page_in(world.catalogue.checkpoint)


def test_neighbours_are_what_a_search_finds(catalogue: Catalogue) -> None:
    assert catalogue.run().code == 0
    found = report_of(catalogue.checkpoint)["samples"]["neighbours"]
    assert [one["field"] for one in found] == ["person"] * 4 + ["title"] * 4
    for one in found:
        ran = catalogue.run("--search", one["text"], "--field", one["field"], "--top", "6", "--json")
        searched = [(hit["text"], round(hit["similarity"], 4)) for hit in ran.document["results"] if hit["text"] != one["text"]]
        assert [(near["text"], near["similarity"]) for near in one["nearest"]] == searched


def test_similarities_are_counted_whole(catalogue: Catalogue) -> None:
    assert catalogue.run().code == 0
    person, title = report_of(catalogue.checkpoint)["samples"]["similarities"]
    for one, strings in ((person, 30), (title, 60)):
        assert one["strings"] == strings
        assert sum(one["counts"]) == one["pairs"] == strings * (strings - 1) // 2
        assert one["low"] + one["width"] * len(one["counts"]) == pytest.approx(1.0)
        assert one["low"] <= one["median"] <= one["highest"] <= 1.0


@pytest.mark.parametrize("other", [1.0, -1.0, 0.0], ids=["the same", "opposite", "unlike"])
def test_similarities_at_both_ends_are_counted(other: float) -> None:
    import numpy as np

    from pipeline.reporting.samples import _judge

    vectors = np.array([[0.6, 0.8], [0.6 * other, 0.8 * other] if other else [0.8, -0.6]])
    found = _judge("person", vectors, 1)
    assert (found.pairs, sum(found.counts)) == (1, 1)
    assert found.low <= other <= found.low + found.width * len(found.counts) + 1e-9
    assert found.highest == pytest.approx(other)
    histogram(found.low, found.width, found.counts, [other], "a field")


def test_what_a_compared_index_was_is_said(catalogue: Catalogue) -> None:
    assert catalogue.run().code == 0
    assert report_of(catalogue.checkpoint)["facts"]["index"] == {"store": "embedded", "verified_at": None, "was_well": False}
    assert catalogue.run("--verify").code == 0
    index = report_of(catalogue.checkpoint)["facts"]["index"]
    assert index["verified_at"] is not None
    assert index["was_well"]


def test_without_an_index_and_before_any_embedding_the_page_says_what_is_not_there(catalogue: Catalogue) -> None:
    catalogue.configure(vector_store="none")
    assert catalogue.run("--end", "preprocessing").code == 0
    page = page_in(catalogue.checkpoint)
    assert "There are none to show: <bdi>vector_store is none: there is no index</bdi>." in page
    assert "There is nothing to show: nothing is embedded yet." in page


def test_nobodys_folder_and_no_key_stands_in_a_report(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-canary-7Hq2vXz9Lw4TnB8cQe5"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    catalogue.write([("1", f"Bach {key}", "Fugue")])
    assert catalogue.run().code == 0
    for name in ("report.html", "report.json"):
        content = (catalogue.checkpoint / name).read_text(encoding="utf-8")
        assert str(catalogue.folder) not in content
        assert key not in content


# When it is written


def test_the_same_state_gives_the_same_report_but_for_its_date(catalogue: Catalogue) -> None:
    clock = FakeClock()
    with on(clock):
        assert catalogue.run().code == 0
        first = (page_in(catalogue.checkpoint), (catalogue.checkpoint / "report.json").read_text())
        date = report_of(catalogue.checkpoint)["written_at"]
        clock.sleep(3600)
        (catalogue.checkpoint / "report.html").unlink()
        assert catalogue.run().code == 0
    later = report_of(catalogue.checkpoint)["written_at"]
    assert (date, later) == ("2026-09-21T14:13:20+00:00", "2026-09-21T15:13:20+00:00")
    again = (page_in(catalogue.checkpoint), (catalogue.checkpoint / "report.json").read_text())
    assert again[1].replace(later, date) == first[1]
    assert again[0].replace("2026-09-21 15:13:20 UTC", "2026-09-21 14:13:20 UTC") == first[0]


def test_a_run_with_nothing_to_do_looks_at_no_table_and_writes_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalogue.run().code == 0
    before = {name: (catalogue.checkpoint / name).stat() for name in ("report.html", "report.json")}

    def looked(*given: object) -> None:
        raise AssertionError("a report was made anew")

    monkeypatch.setattr("pipeline.reporting.samples.samples_of", looked)
    for command in ((), ("--retry-failed",)):
        assert catalogue.run(*command).code == 0
    after = {name: (catalogue.checkpoint / name).stat() for name in before}
    assert {name: (found.st_ino, found.st_mtime_ns) for name, found in after.items()} == {
        name: (found.st_ino, found.st_mtime_ns) for name, found in before.items()
    }


@pytest.mark.parametrize("damage", [b"", b"{", b'{"state": 7}', b"\xff"])
def test_a_report_that_was_damaged_is_written_anew(catalogue: Catalogue, damage: bytes) -> None:
    assert catalogue.run().code == 0
    good = report_of(catalogue.checkpoint)["state"]
    (catalogue.checkpoint / "report.json").write_bytes(damage)
    assert catalogue.run().code == 0
    assert report_of(catalogue.checkpoint)["state"] == good


def test_new_records_make_a_new_report(catalogue: Catalogue) -> None:
    assert catalogue.run().code == 0
    before = report_of(catalogue.checkpoint)
    catalogue.write([(str(number), f"Bach, Johann {number % 30}", f"Fugue {number}") for number in range(61)])
    assert catalogue.run().code == 0
    after = report_of(catalogue.checkpoint)
    assert after["state"] != before["state"]
    assert after["facts"]["input"]["records"] == 61


def test_a_reading_that_was_refused_leaves_the_report_as_it_is(catalogue: Catalogue) -> None:
    assert catalogue.run().code == 0
    before = (catalogue.checkpoint / "report.json").read_bytes()
    catalogue.write([("x1", "other", "catalogue")])
    assert catalogue.run().code == 2
    assert (catalogue.checkpoint / "report.json").read_bytes() == before
    catalogue.write([("1", "Bach", "Fugue"), ("2", "Bach", "Mass")])
    (catalogue.checkpoint / "report.html").unlink()
    assert catalogue.run("--retry-failed").code == 0
    said = report_of(catalogue.checkpoint)["facts"]["input"]
    assert (said["records"], said["is_as_read"], said["sources"]) == (60, False, []), "what was read is what it is about"
    assert "The input has changed, or is gone, since it was read." in page_in(catalogue.checkpoint)


def test_an_index_that_can_not_be_asked_costs_its_samples_and_is_asked_again(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise StoreError(f"{catalogue.checkpoint}/store can't be used")

    monkeypatch.setattr("pipeline.reporting.samples.open_store", broken)
    assert catalogue.run().code == 0
    samples = report_of(catalogue.checkpoint)["samples"]
    assert (samples["neighbours"], samples["not_asked"]) == ([], "checkpoints/store can't be used")
    assert samples["similarities"], "they come from the tables"
    monkeypatch.undo()
    assert catalogue.run().code == 0
    assert report_of(catalogue.checkpoint)["samples"]["neighbours"]


def test_an_index_that_ended_the_run_is_not_asked_for_a_report(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*given: object, **more: object) -> None:
        raise StoreError("the index is down")

    assert catalogue.run().code == 0
    monkeypatch.setattr("pipeline.stores.embedded.EmbeddedStore.upsert", down)
    monkeypatch.setattr("pipeline.reporting.samples.open_store", down)
    catalogue.write([(str(number), f"Bach, Johann {number % 30}", f"Fugue {number}") for number in range(61)])
    ran = catalogue.run()
    assert ran.code == 1
    said = report_of(catalogue.checkpoint)
    assert said["samples"]["not_asked"] == "the index could not be reached"
    assert said["facts"]["fields"][1]["to_index"] == 1


# What must not happen to a run


@pytest.mark.parametrize("in_the_way", [Path.mkdir, lambda path: path.symlink_to("elsewhere")], ids=["a folder", "a link"])
def test_a_report_that_can_not_be_written_is_a_warning(catalogue: Catalogue, in_the_way: Callable[[Path], None]) -> None:
    catalogue.checkpoint.mkdir(mode=0o700)
    ran = catalogue.run("--end", "preprocessing")
    assert ran.code == 0
    (catalogue.checkpoint / "report.html").unlink()
    in_the_way(catalogue.checkpoint / "report.html")
    ran = catalogue.run()
    assert ran.code == 0, "the run is what it was"
    assert "The report was not written, and nothing else is touched by that:" in ran.err
    assert "report.html" in ran.err
    assert len(catalogue.embedded("title")) == 60


def test_a_damaged_list_or_a_damaged_table_costs_no_run(catalogue: Catalogue) -> None:
    catalogue.write([("1", "Bach", "Fugue"), ("1", "again", "x"), ("2", "Händel", "Mass")])
    assert catalogue.run().code == 0
    (catalogue.checkpoint / "rejected_rows.csv").write_bytes(b'"file\xff')
    (catalogue.checkpoint / "report.html").unlink()
    assert catalogue.run().code == 0
    assert report_of(catalogue.checkpoint)["samples"]["rejected"]["trouble"] == "rejected_rows.csv is gone or was changed"
    for table in (catalogue.checkpoint / "tables").glob("embeddings_*"):
        table.write_bytes(b"no table")
    (catalogue.checkpoint / "report.html").unlink()
    ran = catalogue.run()
    assert ran.code == 0
    assert "The report was not written" in ran.err
    assert not (catalogue.checkpoint / "report.html").exists()


def test_a_report_is_for_its_owner_and_in_a_shared_folder_for_the_group(catalogue: Catalogue) -> None:
    assert catalogue.run().code == 0
    assert {(catalogue.checkpoint / name).stat().st_mode & 0o777 for name in ("report.html", "report.json")} == {0o600}
    catalogue.configure(file_group=os.getegid())
    (catalogue.checkpoint / "report.html").unlink()
    assert catalogue.run().code == 0
    assert {(catalogue.checkpoint / name).stat().st_mode & 0o777 for name in ("report.html", "report.json")} == {0o660}


# Bounds


def test_samples_of_many_strings_are_bounded_and_come_from_everywhere(tmp_path: Path) -> None:
    from pipeline import spans as span_sets
    from pipeline.reporting.samples import _at, _drawn

    spans = [(0, 10), (1_000_000, 41_000_000)]
    drawn = _drawn(spans, 16, "a test")
    assert drawn == _drawn(spans, 16, "a test")
    assert drawn != _drawn(spans, 16, "another")
    assert len(set(drawn)) == 16
    assert all(any(first <= row < past for first, past in spans) for row in drawn)
    assert max(drawn) - min(drawn) > 10_000_000
    assert _drawn([(5, 8)], 16, "few") == [5, 6, 7]
    assert _at(spans, [(8, 12)]) == [(8, 10), (1_000_000, 1_000_002)]
    assert span_sets.count(_at(spans, [(0, 40_000_010)])) == 40_000_010


def test_a_long_text_is_quoted_in_part(catalogue: Catalogue) -> None:
    catalogue.write([("1", "Bach " * 1000, " " * 5000), ("2", "Bach " * 999, "Fugue")])
    assert catalogue.run().code == 0
    samples = report_of(catalogue.checkpoint)["samples"]
    assert [len(one["text"]) for one in samples["dropped"]] == [500]
    assert {len(one["text"]) for one in samples["neighbours"] if one["field"] == "person"} == {500}
    assert len(page_in(catalogue.checkpoint)) < 30_000


def test_an_exact_index_of_many_strings_is_not_asked(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reporting.samples._MOST_SEARCHED", 60 * 384 * 4)
    assert catalogue.run().code == 0
    samples = report_of(catalogue.checkpoint)["samples"]
    assert samples["neighbours"] == []
    assert samples["not_asked"] == "the embedded index reads every vector at each search, too many for a report"
    assert samples["is_whole"], "the next run need not ask again"


def test_a_service_that_tells_nonsense_of_time_breaks_no_page() -> None:
    report = example(Report, "x", 3)
    page = page_of(msgspec.convert(msgspec.to_builtins(report), Report))
    odd = msgspec.to_builtins(report)
    for job in odd["facts"]["jobs"]["lines"]:
        job.update(began_at=1e30, ended_at=-1e30, expires_at=1e18)
    harmless(page_of(msgspec.convert(odd, Report)))
    assert page_of(msgspec.convert(odd, Report)) != page


def test_a_thousand_jobs_are_drawn_no_taller_than_forty() -> None:
    lanes = [Lane(str(number), "done", number, number + 50.0, f"Job {number}") for number in range(1000)]
    drawn = timeline(lanes, [(0.0, "begin"), (1050.0, "end")], 0.0, 1050.0, "jobs")
    assert int(re.findall(r'height="(\d+)"', drawn)[0]) <= 40 * 16 + 30
    assert len(drawn) < 200_000
    assert drawn.count("<rect") == 1000


def test_a_part_of_a_million_that_is_one_string_is_seen() -> None:
    drawn = stacked([Part("done", 999_999, "embedded"), Part("bad", 1, "failed"), Part("idle", 0, "pending")], "a field")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)%" height="14.00"', drawn)]
    assert len(widths) == 2
    assert widths[1] >= 0.39
    assert sum(widths) == pytest.approx(100, abs=0.02)


@given(st.integers(-40, 39), st.lists(st.integers(0, 10_000), min_size=1, max_size=80))
def test_a_histogram_stays_within_its_picture(low: int, counts: list[int]) -> None:
    drawn = histogram(low / 40, 0.025, [*counts, 1], [1.0], "a field")
    assert all(0 <= float(place) <= 100.01 for place in re.findall(r' x="([\d.-]+)%"', drawn))
    assert drawn.count("<rect") == sum(count > 0 for count in counts) + 1


def test_every_number_of_a_report_is_said_on_the_page_or_in_its_json() -> None:
    """`report.json` is the dataclasses as they are: what they hold, it holds."""
    report = example(Report, "x", 3)
    assert msgspec.convert(json.loads(msgspec.json.encode(report)), Report) == report
    assert {name for name in dir(numbers) if is_dataclass(getattr(numbers, name))} >= {"Report", "Facts", "Samples"}
