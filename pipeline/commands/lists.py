"""The lists for people in the checkpoint folder: `failures.csv` and `possibly_paid_twice.csv`. Never read back."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from pipeline import spans as span_sets
from pipeline.belonging import scope_of
from pipeline.checkpoint import write_list
from pipeline.context import Context
from pipeline.errors import CheckpointError
from pipeline.files import spreadsheet_safe
from pipeline.provider.service import generation_of

_TEXT_SHOWN = 500


def write_lists(context: Context) -> None:
    """Write what there is to list; a list of nothing is removed."""
    generation = generation_of(context.service, context.ledger)
    failures = [
        {"field": f.field, "row": f.row, "stage": f.stage, "code": f.code, "reason": f.reason}
        for scope in (generation.id, scope_of(context.config.vector_store, generation))
        for f in context.ledger.failures(scope)
    ]
    write_list(context.place.failures, _csv(context, failures))
    doubts = [
        {"field": doubt.field, "row": row, "generation": doubt.generation, "reason": doubt.reason}
        for doubt in context.ledger.doubts()
        for row in span_sets.rows_of(doubt.spans)
    ]
    write_list(context.place.possibly_paid_twice, _csv(context, doubts))


def _csv(context: Context, rows: list[dict[str, Any]]) -> bytes | None:
    """The rows with their texts, safe to open in a spreadsheet."""
    if not rows:
        return None
    import pandas as pd

    try:
        texts = dict(_texts(context, rows))
    except CheckpointError:  # a damaged table: whoever needs it says so, and --verify names it
        texts = {}
    for row in rows:
        row["text"] = spreadsheet_safe(texts.get((row["field"], row["row"]), "")[:_TEXT_SHOWN].replace("\0", "\\0"))
        row["reason"] = spreadsheet_safe(row["reason"])
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).encode()


def _texts(context: Context, rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, int], str]]:
    from pipeline.indexing import string_files
    from pipeline.tables.duck import connect, table_errors
    from pipeline.tables.strings import texts_of

    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    try:
        for field in sorted({row["field"] for row in rows}):
            wanted = [row["row"] for row in rows if row["field"] == field]
            with table_errors(context.place.tables):
                found = texts_of(duck, string_files(context.place, context.ledger, field), wanted)
            yield from (((field, row), text) for row, text in found.items())
    finally:
        duck.close()
