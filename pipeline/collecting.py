"""Collecting: results from the spool become embeddings in Parquet, in one ledger commit a spool file.

Reads only what is durable and writes only what can be thrown away until the commit, so it can be killed at any moment
and simply run again: the same spool gives the same tables. A result that is not a usable vector of its own string is
a failure with a reason; it never costs its neighbours. The generation comes from the result, never from the config.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline import spans as span_sets
from pipeline.checkpoint import Checkpoint
from pipeline.errors import ServiceError
from pipeline.files import disk_errors, publish_table, temporary
from pipeline.identity import parse_custom_id
from pipeline.ledger import Failure, Generation, Intent, Ledger, Spending, TableFile
from pipeline.log import event, logger
from pipeline.retry import Clock
from pipeline.spans import Spans
from pipeline.spool import Frame, frames, spool_files

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_log = logger(__name__)


class _Embedding(msgspec.Struct):
    embedding: Any = None


class _Body(msgspec.Struct):
    data: list[_Embedding] = []


class _Response(msgspec.Struct):
    body: _Body


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response


@dataclass(slots=True)
class Collected:
    """What a spool file gave."""

    embedded: int = 0
    failed: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Pile:
    """The usable results of one generation and field, until they are written."""

    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    tokens: int = 0


def collect_all(place: Checkpoint, ledger: Ledger, clock: Clock, price_of: dict[str, float]) -> Collected:
    """Collect every spool file that waits. `price_of` is USD for 1M tokens by generation."""
    total = Collected()
    for path in spool_files(place.spool):
        got = collect(path, place, ledger, clock, price_of)
        total = Collected(total.embedded + got.embedded, total.failed + got.failed, total.tokens + got.tokens)
    return total


def collect(path: Path, place: Checkpoint, ledger: Ledger, clock: Clock, price_of: dict[str, float]) -> Collected:
    """Bring one spool file into the tables, book what it cost, close its intents, and delete it."""
    intents = ledger.intents()
    # Answers of a model that the config no longer names cost what was announced for them.
    announced = {one.generation: one.usd / one.tokens * 1_000_000 for one in intents.values() if one.tokens}
    price_of = announced | price_of
    piles: dict[tuple[str, str], _Pile] = {}
    answered: list[int] = []
    lost: list[tuple[Intent, int]] = []
    dimensions: dict[str, int] = {}
    for frame in frames(path):
        envelope = frame.envelope
        intent = intents.get(envelope.intent)
        if intent is None:  # booked by an earlier collecting that was killed before it could delete the file
            continue
        answered.append(envelope.intent)
        if envelope.lost_answers:
            lost.append((intent, envelope.lost_answers))
        pile = piles.setdefault((envelope.generation, envelope.field), _Pile())
        pile.tokens += envelope.tokens
        _read_frame(frame, intent, pile, _dimensions(ledger, envelope.generation, dimensions))
    written = _write_tables(place, ledger, clock, piles, price_of)
    result = Collected(
        sum(len(pile.vectors) for pile in piles.values()),
        sum(len(pile.failures) for pile in piles.values()),
        sum(pile.tokens for pile in piles.values()),
    )
    now = clock.now()
    with ledger.transaction():
        for file, fresh in written:
            ledger.add_file(file)
            ledger.add_spans("embedded", file.scope, file.field, fresh)
        for (generation, name), pile in piles.items():
            _book(ledger, now, generation, name, pile, price_of.get(generation, 0.0))
        for generation, length in dimensions.items():
            known = ledger.generation(generation)
            if known is not None and known.dimensions == 0 and length:
                ledger.save_generation(Generation(known.service, known.model, known.asked, length), now)
        for intent, times in lost:
            for _ in range(times):
                ledger.add_doubt(intent, "the answer was lost; the request was sent again", now)
        ledger.close_intents(answered)
    path.unlink()
    event(
        _log,
        "spool.collected",
        level=logging.DEBUG,
        file=path.name,
        embedded=result.embedded,
        failed=result.failed,
        tokens=result.tokens,
    )
    return result


class _KnownLength:
    """The vector length of a generation: known before, or the commonest of its first answer, in which some may be wrong."""

    def __init__(self, generation: str, lengths: dict[str, int]) -> None:
        self._generation = generation
        self._lengths = lengths

    def learn(self, lengths: Counter[int]) -> None:
        if lengths and not self._lengths[self._generation]:
            self._lengths[self._generation] = lengths.most_common(1)[0][0]

    def fits(self, length: int) -> bool:
        return self._lengths[self._generation] == length

    def __str__(self) -> str:
        return str(self._lengths[self._generation])


def _dimensions(ledger: Ledger, generation: str, lengths: dict[str, int]) -> _KnownLength:
    if generation not in lengths:
        known = ledger.generation(generation)
        lengths[generation] = known.dimensions if known else 0
    return _KnownLength(generation, lengths)


def _read_frame(frame: Frame, intent: Intent, pile: _Pile, length: _KnownLength) -> None:
    """Sort the lines of a frame into vectors and failures; a string of the intent without a line has failed too."""
    import numpy as np

    from pipeline.vectors import parse_vector

    missing = set(span_sets.rows_of(intent.spans))
    found: list[tuple[str, int, NDArray[np.float32]]] = []
    for custom_id, embedding in _lines(frame):
        name = parse_custom_id(custom_id)
        if name is None or name.field != intent.field or not any(first <= name.index < past for first, past in intent.spans):
            event(_log, "result.unknown", custom_id=custom_id[:60])
            continue
        missing.discard(name.index)
        try:
            found.append((custom_id, name.index, parse_vector(embedding)))
        except ValueError as problem:
            pile.failures[name.index] = ("bad_vector", str(problem))
    length.learn(Counter(len(vector) for _, _, vector in found))
    for custom_id, row, vector in found:
        if not length.fits(len(vector)):
            pile.failures[row] = ("bad_vector", f"{len(vector)} dimensions instead of {length}")
            continue
        earlier = pile.vectors.setdefault(row, vector)
        if earlier is not vector and not np.array_equal(earlier, vector):
            pile.failures[row] = ("two_answers", "the service gave two different vectors for it")
        elif earlier is not vector:
            event(_log, "result.repeated", custom_id=custom_id)
    for row in sorted(missing):
        pile.failures[row] = ("no_answer", "the service's answer left it out")
    for row in pile.failures:
        pile.vectors.pop(row, None)


def _lines(frame: Frame) -> Iterator[tuple[str, Any]]:
    """(custom_id, embedding as the service wrote it) of each result line; an odd line is read leniently by itself."""
    import json

    for line in frame.lines:
        try:
            result = msgspec.json.decode(line, type=_Line)
            data = result.response.body.data
            yield result.custom_id, data[0].embedding if data else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            lenient = json.loads(line)
            yield lenient["custom_id"], lenient["response"]["body"]["data"][0]["embedding"]


def parse_answer(bodies: list[bytes], dimensions: int) -> NDArray[np.float32]:
    """The vector of a single answer that is used at once, not collected; ServiceError when it is unusable."""
    from pipeline.vectors import parse_vector

    try:
        if len(bodies) != 1:
            raise ValueError(f"{len(bodies)} answers instead of one")
        data = msgspec.json.decode(bodies[0], type=_Body).data
        vector = parse_vector(data[0].embedding if data else None)
        if len(vector) != dimensions:
            raise ValueError(f"{len(vector)} dimensions instead of {dimensions}")
    except (ValueError, msgspec.DecodeError) as problem:
        raise ServiceError(f"The service's answer is not usable: {problem}.") from problem
    return vector


def _book(ledger: Ledger, now: float, generation: str, name: str, pile: _Pile, price: float) -> None:
    """The money and the failures of a pile; a failed string was paid for as well."""
    failed = sorted(pile.failures.items())
    ledger.add_failures(Failure(generation, name, row, "service", code, reason, now) for row, (code, reason) in failed)
    strings = len(pile.vectors) + len(pile.failures)
    ledger.spend(Spending(generation, name, "realtime", strings, pile.tokens, pile.tokens * price / 1_000_000))


def _write_tables(
    place: Checkpoint, ledger: Ledger, clock: Clock, piles: dict[tuple[str, str], _Pile], price_of: dict[str, float]
) -> list[tuple[TableFile, Spans]]:
    """A file for each pile with something new in it, and its rows; none of it exists before the ledger names it."""
    import numpy as np

    from pipeline.tables.embeddings import Origin, write_embeddings

    written: list[tuple[TableFile, Spans]] = []
    number = ledger.next_file_number()
    for (generation, name), pile in piles.items():
        fresh = span_sets.subtract(span_sets.of_rows(sorted(pile.vectors)), ledger.spans("embedded", generation, name))
        rows = list(span_sets.rows_of(fresh))
        if not rows:
            continue
        final = place.tables / f"embeddings_{generation}_{name}_{number + len(written):06d}.parquet"
        known = ledger.generation(generation)
        origin = None if known is None else Origin.of(known, name, None, pile.tokens, price_of.get(generation, 0.0))
        vectors = np.stack([pile.vectors[row] for row in rows])
        with disk_errors(final):
            write_embeddings(temporary(final), np.array(rows, dtype=np.int64), vectors, origin)
        size, hashed = publish_table(final)
        file = TableFile("embeddings", generation, name, final.name, len(rows), rows[0], rows[-1] + 1, size, hashed, clock.now())
        written.append((file, fresh))
    return written
