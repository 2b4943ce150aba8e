"""What belongs into the index of a generation, as arithmetic of spans: no store and no table is opened.

All that is embedded belongs, strings that left the catalogue included, until `--prune` takes those out. A string that
comes back belongs again. What a store refused for good is known by its failures.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import spans as span_sets
from pipeline.ledger import Generation, Ledger
from pipeline.spans import Spans

FORGETTING = "forgetting"  # by field alone: what `--forget-text` has begun with and not finished
STALE = "stale"  # by scope: the store has it, and perhaps not as it is now
PRUNED = "pruned"  # by field alone: what left the catalogue left it for every store and generation


def scope_of(store_name: str, generation: Generation) -> str:
    """What "indexed" is kept by: a store and a generation."""
    return f"{store_name}:{generation.id}"


def belonging(ledger: Ledger, generation: Generation, field: str) -> Spans:
    """The rows that the index of a generation should hold."""
    embedded = ledger.spans("embedded", generation.id, field)
    return span_sets.subtract(embedded, span_sets.subtract(ledger.spans(PRUNED, "", field), ledger.spans("present", "full", field)))


def is_whole(ledger: Ledger, generation: Generation, fields: Sequence[str]) -> bool:
    """Whether the catalogue as last read is embedded or given up, and not only what a trial or some fields needed."""
    if ledger.snapshot("full") is None:
        return False
    for field in fields:
        left = span_sets.subtract(ledger.spans("present", "full", field), ledger.spans("embedded", generation.id, field))
        if left and span_sets.subtract(left, span_sets.of_rows(gone.row for gone in ledger.failures(generation.id, field))):
            return False
    return True


def other_in_use(ledger: Ledger, generation: Generation) -> Generation | None:
    """The generation that is in use, when it is another than this one and anything of it is embedded."""
    current = ledger.current_generation()
    if current is None or current.id == generation.id:
        return None
    return current if any(ledger.spans("embedded", current.id, name) for name in ledger.fields()) else None


def refused(ledger: Ledger, scope: str, field: str) -> Spans:
    """The rows that the store would not take."""
    return span_sets.of_rows(failure.row for failure in ledger.failures(scope, field))


def pending_in_index(ledger: Ledger, scope: str, generation: Generation, field: str) -> Spans:
    """The rows that belong and are neither confirmed by the store nor refused."""
    left = span_sets.subtract(belonging(ledger, generation, field), ledger.spans("indexed", scope, field))
    return span_sets.subtract(left, refused(ledger, scope, field)) if left else left


def welcome_back(ledger: Ledger, field: str) -> None:
    """A pruned string that is in the catalogue again is as any other, also when it leaves once more."""
    pruned = ledger.spans(PRUNED, "", field)
    ledger.set_spans(PRUNED, "", field, span_sets.subtract(pruned, ledger.spans("present", "full", field)))


def prune(ledger: Ledger, generation: Generation) -> dict[str, Spans]:
    """What left the catalogue no longer belongs: by field, the rows that are taken out by this."""
    gone: dict[str, Spans] = {}
    with ledger.transaction():
        for field, (_, past) in ledger.fields().items():
            present = ledger.spans("present", "full", field)
            absent = span_sets.subtract(belonging(ledger, generation, field), present)
            # Also what this generation does not have: another one's index would keep it.
            ledger.add_spans(PRUNED, "", field, span_sets.subtract([(0, past)], present))
            if absent:
                gone[field] = absent
    return gone


def forget_failed(ledger: Ledger, store_name: str, generation: Generation, fields: Sequence[str]) -> int:
    """Failed strings may go again, those that the service refused and those that the index did; how many they are."""
    return ledger.drop_failed(generation.id, fields) + ledger.drop_failed(scope_of(store_name, generation), fields)
