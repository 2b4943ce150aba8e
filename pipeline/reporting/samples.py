"""A bounded look into lists, tables and index: examples of what was dropped, nearest neighbours, and how alike strings are.

Never more is read than is said here, however large the catalogue is, and the same state gives the same samples: rows are
drawn by a seed. The index is asked through the contract of stores alone; one that can't be asked is no error.
"""

from __future__ import annotations

import csv
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.belonging import scope_of
from pipeline.context import Context
from pipeline.errors import StoreError
from pipeline.identity import uuid_of
from pipeline.indexing import embedding_files, open_store
from pipeline.ledger import Generation
from pipeline.reporting.facts import field_names, first_failures, generation_with_vectors
from pipeline.reporting.numbers import (
    LONGEST,
    DroppedString,
    Facts,
    Near,
    Neighbours,
    RejectedRow,
    RejectedRows,
    Samples,
    Similarities,
)
from pipeline.spans import Spans
from pipeline.stores import VectorStore
from pipeline.tables.duck import connect
from pipeline.tables.embeddings import read_embeddings
from pipeline.tables.strings import read_strings

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    from numpy.typing import NDArray

SEED = 1
_EXAMPLES = 20  # rejected rows, and dropped strings, that are shown
_REASONS = 12
_STRINGS = 4  # of a field whose neighbours are shown
_NEAREST = 5
_MOST_SEARCHED = 2 << 30  # bytes of vectors that all searches of an exact index may read
_PLACES, _A_PLACE = 16, 16  # vectors of a field are drawn as so many runs of so many neighbours, which lie together on disk
_WIDTH = 0.025
_PAST_ALL = round(1 / _WIDTH)  # the bin of 1.0 is the one below it
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9][0-9,.]*")


def samples_of(context: Context, facts: Facts, cannot_ask: str) -> Samples:
    """Look; `cannot_ask` says why the index is not to be asked now."""
    generation = generation_with_vectors(context)
    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    try:
        neighbours, not_asked, is_whole = _neighbours(context, duck, generation, cannot_ask)
        return Samples(
            seed=SEED,
            is_whole=is_whole,
            rejected=_rejected(context, facts.input.rejected_rows),
            dropped=tuple(
                DroppedString(field, row, stage, code, reason[:LONGEST], _text(context, duck, field, row)[:LONGEST])
                for field, row, stage, code, reason in first_failures(context, _EXAMPLES)
            ),
            neighbours=neighbours,
            similarities=() if generation is None else tuple(_similarities(context, generation)),
            not_asked=not_asked,
            not_read="nothing is embedded yet" if generation is None else "",
        )
    finally:
        duck.close()


def _rejected(context: Context, expected: int) -> RejectedRows:
    """The list as the last reading left it. A reading that was refused afterwards left another one."""
    path = context.place.rejected_rows
    if not expected:
        return RejectedRows()
    reasons: Counter[str] = Counter()
    first: list[RejectedRow] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                reasons[_PARTICULAR.sub("…", row["reason"])] += 1
                if len(first) < _EXAMPLES:
                    first.append(RejectedRow(row["file"], row["row"], row["id"][:LONGEST], row["reason"][:LONGEST]))
    except (OSError, csv.Error, KeyError, TypeError, UnicodeDecodeError):
        return RejectedRows(trouble=f"{path.name} is gone or was changed")
    if reasons.total() != expected:
        return RejectedRows(trouble=f"{path.name} is of a later reading, which was refused")
    return RejectedRows(tuple(reasons.most_common(_REASONS)), tuple(first))


def _text(context: Context, duck: duckdb.DuckDBPyConnection, field: str, row: int) -> str:
    """The text of one row: a file, and of it a few thousand rows."""
    files = [file for file in context.ledger.files("strings", field=field) if file.first_row <= row < file.past_row]
    paths = [context.place.tables / file.name for file in files]
    for batch in read_strings(duck, paths, [(row, row + 1)]):
        return str(batch.column("text")[0].as_py())
    return ""


def _neighbours(
    context: Context, duck: duckdb.DuckDBPyConnection, generation: Generation | None, cannot_ask: str
) -> tuple[tuple[Neighbours, ...], str, bool]:
    """Some strings of each field with their nearest others, or why there are none, and whether a later look would be the same."""
    config, ledger = context.config, context.ledger
    if config.vector_store == "none":
        return (), "vector_store is none: there is no index", True
    scope = "" if generation is None else scope_of(config.vector_store, generation)
    indexed = {name: ledger.spans("indexed", scope, name) for name in field_names(context)}
    if generation is None or not any(indexed.values()):
        return (), "nothing is indexed yet", True
    if config.index_later:
        return (), "index_later is true, so the index is left alone", True
    if cannot_ask:
        return (), cannot_ask, False
    try:
        store = open_store(context.place, ledger, config, generation)
        try:
            most = _searches(store, generation, len(indexed))
            if most < 1:
                return (), f"the {config.vector_store} index reads every vector at each search, too many for a report", True
            found = [
                one
                for name, spans in indexed.items()
                for row in _drawn(spans, most, f"neighbours {generation.id} {name}")
                for one in _nearest(store, name, _text(context, duck, name, row))
            ]
        finally:
            store.close()
    except StoreError as problem:
        return (), str(problem).replace(str(context.place.root), context.place.root.name), False
    return tuple(found), "", True


def _searches(store: VectorStore, generation: Generation, fields: int) -> int:
    """How many strings of each field may be searched for."""
    if not store.is_exact:
        return _STRINGS
    a_search = max(1, store.count() * generation.dimensions * 4)
    return min(_STRINGS, _MOST_SEARCHED // (a_search * fields))


def _nearest(store: VectorStore, field: str, text: str) -> Iterator[Neighbours]:
    """The string with its nearest others, if the index has it."""
    key = uuid_of(field, text)
    own = store.get([key]).get(key)
    if own is not None:
        hits = [hit for hit in store.search(own.vector, _NEAREST + 1, field) if hit.uuid != key][:_NEAREST]
        nearest = (Near(hit.text[:LONGEST], round(hit.similarity, 4), hit.frequency) for hit in hits)
        yield Neighbours(field, text[:LONGEST], tuple(nearest))


def _drawn(spans: Spans, most: int, what: str) -> list[int]:
    """Rows drawn at random, the same ones each time."""
    total = span_sets.count(spans)
    numbers = sorted(random.Random(f"{SEED} {what}").sample(range(total), min(most, total)))  # noqa: S311 - a sample, no secret
    return list(span_sets.rows_of(_at(spans, [(number, number + 1) for number in numbers])))


def _at(spans: Spans, numbers: Spans) -> Spans:
    """The rows with these numbers, counted within the spans."""
    found: Spans = []
    before = 0
    for first, past in spans:
        here = span_sets.intersect([(before, before + past - first)], numbers)
        found += [(first + start - before, first + end - before) for start, end in here]
        before += past - first
    return found


def _similarities(context: Context, generation: Generation) -> Iterator[Similarities]:
    for name in field_names(context):
        spans = context.ledger.spans("embedded", generation.id, name)
        total = span_sets.count(spans)
        length = _A_PLACE if total > _PLACES * _A_PLACE else 1
        places = _drawn([(0, total // length)], _PLACES * _A_PLACE // length, f"similarities {generation.id} {name}")
        rows = _at(spans, [(place * length, place * length + length) for place in places])
        vectors = _vectors(context, generation, name, span_sets.union(rows))
        if len(vectors) > 1:
            yield _judge(name, vectors, length)


def _vectors(context: Context, generation: Generation, name: str, rows: Spans) -> NDArray[np.float64]:
    """The vectors of some rows, by row, each of length 1."""
    import numpy as np

    pieces = list(read_embeddings(embedding_files(context.place, context.ledger, generation, name, rows), rows))
    if not pieces:
        return np.empty((0, generation.dimensions))
    order = np.argsort(np.concatenate([numbers for numbers, _ in pieces]), kind="stable")
    vectors = np.concatenate([found for _, found in pieces])[order].astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _judge(name: str, vectors: NDArray[np.float64], length: int) -> Similarities:
    """Every pair but those of neighbours in the table, which often come from neighbours in the catalogue."""
    import numpy as np

    place = np.arange(len(vectors)) // length
    apart = np.triu(place[:, None] != place[None, :], k=1)
    similarity = np.clip((vectors @ vectors.T)[apart], -1.0, 1.0)
    low = min(math.floor(float(similarity.min()) / _WIDTH), _PAST_ALL - 1)
    bins = np.floor(similarity / _WIDTH).astype(np.int64) - low
    counts = np.bincount(np.minimum(bins, _PAST_ALL - 1 - low), minlength=_PAST_ALL - low)
    return Similarities(
        name, len(vectors), len(similarity), round(low * _WIDTH, 4), _WIDTH, tuple(counts.tolist()),
        round(float(np.median(similarity)), 4), round(float(similarity.max()), 4),
    )  # fmt: skip
