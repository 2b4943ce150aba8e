"""What belongs in an index, as arithmetic over a real ledger: no store, no table, no run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import belonging as ours
from pipeline import spans as span_sets
from pipeline.ledger import Failure, Generation, Ledger
from pipeline.ledger.schema import migrate

UNHURRIED = settings(deadline=None, max_examples=150)  # the machine may be busy
FIRST, SECOND = Generation("local", "m", None, 3), Generation("local", "m", 2, 2)
SCOPE = ours.scope_of("embedded", FIRST)
KNOWN = 12
rows = st.frozensets(st.integers(0, KNOWN - 1))


@contextmanager
def new_ledger() -> Iterator[Ledger]:
    database = sqlite3.connect(":memory:", isolation_level=None)
    migrate(database)
    ledger = Ledger(database, Path("ledger.sqlite"))
    ledger.save_field("person", "person", KNOWN)
    ledger.save_generation(FIRST, 1.0)
    try:
        yield ledger
    finally:
        ledger.close()


def spans(some: frozenset[int]) -> list[tuple[int, int]]:
    return span_sets.of_rows(sorted(some))


def put(ledger: Ledger, state: str, scope: str, some: frozenset[int]) -> None:
    ledger.set_spans(state, scope, "person", spans(some))


def belong(ledger: Ledger, generation: Generation = FIRST) -> set[int]:
    return set(span_sets.rows_of(ours.belonging(ledger, generation, "person")))


def pruned(ledger: Ledger) -> set[int]:
    return set(span_sets.rows_of(ledger.spans(ours.PRUNED, "", "person")))


def fail(ledger: Ledger, scope: str, some: frozenset[int], stage: str = "index") -> None:
    ledger.add_failures(Failure(scope, "person", row, stage, "refused", "why", 1.0) for row in some)


@UNHURRIED
@given(rows, rows, rows)
def test_what_is_embedded_belongs_unless_it_was_pruned_and_is_absent(
    embedded: frozenset[int], present: frozenset[int], out: frozenset[int]
) -> None:
    with new_ledger() as ledger:
        put(ledger, "embedded", FIRST.id, embedded)
        put(ledger, "present", "full", present)
        put(ledger, ours.PRUNED, "", out)
        assert belong(ledger) == embedded - (out - present)


@UNHURRIED
@given(rows, rows, rows)
def test_before_a_prune_the_absent_belong_after_it_they_do_not_and_who_returns_does(
    embedded: frozenset[int], present: frozenset[int], later: frozenset[int]
) -> None:
    with new_ledger() as ledger:
        put(ledger, "embedded", FIRST.id, embedded)
        put(ledger, "present", "full", present)
        assert belong(ledger) == embedded
        gone = ours.prune(ledger, FIRST)
        assert gone == ({"person": spans(embedded - present)} if embedded - present else {})
        assert belong(ledger) == embedded & present
        assert ours.prune(ledger, FIRST) == {}
        put(ledger, "present", "full", later)
        assert belong(ledger) == embedded & (present | later), "who came back, and who left since the prune"


@UNHURRIED
@given(rows, rows, rows)
def test_what_left_left_every_generation_also_one_that_is_not_asked_about_now(
    first: frozenset[int], second: frozenset[int], present: frozenset[int]
) -> None:
    with new_ledger() as ledger:
        put(ledger, "embedded", FIRST.id, first)
        put(ledger, "embedded", SECOND.id, second)
        put(ledger, "present", "full", present)
        gone = ours.prune(ledger, SECOND)
        assert span_sets.count(gone.get("person", [])) == len(second - present)
        assert belong(ledger, FIRST) == first & present
        assert belong(ledger, SECOND) == second & present


@UNHURRIED
@given(rows, rows, rows, rows, rows)
def test_pending_is_what_belongs_and_is_neither_confirmed_nor_refused(
    embedded: frozenset[int], present: frozenset[int], out: frozenset[int], indexed: frozenset[int], unwanted: frozenset[int]
) -> None:
    with new_ledger() as ledger:
        put(ledger, "embedded", FIRST.id, embedded)
        put(ledger, "present", "full", present)
        put(ledger, ours.PRUNED, "", out)
        put(ledger, "indexed", SCOPE, indexed)
        fail(ledger, SCOPE, unwanted)
        fail(
            ledger, ours.scope_of("weaviate", FIRST), frozenset(range(KNOWN))
        )  # what another store refuses is no matter of this one
        found = ours.pending_in_index(ledger, SCOPE, FIRST, "person")
        assert set(span_sets.rows_of(found)) == embedded - (out - present) - indexed - unwanted
        assert set(span_sets.rows_of(ours.refused(ledger, SCOPE, "person"))) == unwanted


@UNHURRIED
@given(rows, rows)
def test_to_retry_forgets_what_service_and_index_refused_and_keeps_what_is_never_sent(
    at_service: frozenset[int], at_index: frozenset[int]
) -> None:
    with new_ledger() as ledger:
        fail(ledger, FIRST.id, at_service, "service")
        fail(ledger, FIRST.id, frozenset({KNOWN}), "preflight")
        fail(ledger, SCOPE, at_index)
        fail(ledger, ours.scope_of("weaviate", FIRST), frozenset({1, 2}))
        assert ours.forget_failed(ledger, "embedded", FIRST, ["title"]) == 0
        assert ours.forget_failed(ledger, "embedded", FIRST, ["person", "title"]) == len(at_service) + len(at_index)
        assert [failure.row for failure in ledger.failures(FIRST.id)] == [KNOWN]
        assert list(ledger.failures(SCOPE)) == []
        assert [failure.row for failure in ledger.failures("weaviate:" + FIRST.id)] == [1, 2]


def test_a_scope_is_of_a_store_and_a_generation() -> None:
    scopes = {ours.scope_of(store, generation) for store in ("embedded", "weaviate") for generation in (FIRST, SECOND)}
    assert len(scopes) == 4
    assert ours.scope_of("embedded", FIRST) == f"embedded:{FIRST.id}"


def test_nothing_belongs_in_a_ledger_that_knows_nothing() -> None:
    with new_ledger() as ledger:
        assert belong(ledger) == set()
        assert ours.pending_in_index(ledger, SCOPE, FIRST, "person") == []
        assert ours.prune(ledger, FIRST) == {}
        assert pruned(ledger) <= set(range(KNOWN))
