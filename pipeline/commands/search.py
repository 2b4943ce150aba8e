"""`--search`: the strings nearest to a text. A text that is stored is searched by its stored vector, at no cost.

While the index of another model is being built, the one in use is searched, whatever the config says by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.belonging import is_whole, other_in_use, pending_in_index, scope_of
from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console, shown
from pipeline.commands.session import Options, begin, greet, load, transport_of
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import BudgetError, ServiceError, UsageError, UserError
from pipeline.ledger import Generation, Ledger, Spending
from pipeline.provider.service import Service, generation_of, need_key, service_of
from pipeline.retry import POLICY, SystemClock
from pipeline.tables.duck import read_anew, table_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.indexing import Index
    from pipeline.stores import Hit

_RECORDS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Result:
    """A string that was found, and the first records in which it occurs."""

    field: str
    text: str
    similarity: float
    frequency: int
    record_ids: list[str]
    records: int

    def records_shown(self) -> str:
        more = self.records - len(self.record_ids)
        return ", ".join(self.record_ids) + (f" and {more:,} more" if more > 0 else "")


def search(options: Options, console: Console, text: str, field: str | None, limit: int, *, by_letters: bool = False) -> int:
    """Find, show; it takes no lock, so it can be asked while a run is at work."""
    config, service = load(options)
    if field is not None and field not in (known := [entry.name for entry in config.fields]):
        raise UsageError(f"--field: there is no field {field!r}; the config has {', '.join(known)}.")
    if not text.strip():
        raise UsageError("--search needs a text to search for.")
    if config.vector_store == "none":
        raise UserError("vector_store is none: there is no index to search. Set vector_store: embedded, and run python main.py")
    greet(console, config, service)
    place = Checkpoint(config.checkpoint_path, config.data_path)

    def look() -> tuple[list[Result], Generation, str]:
        return _look(options, config, service, place, text, field, limit, by_letters=by_letters)

    results, generation, note = read_anew(look)
    if note:
        console.say(note)
    console.document({"query": text, "generation": generation.id, "results": [_plain(result) for result in results]})
    if not console.as_json:
        for result in results:
            console.answer(f"  {result.similarity:.3f}  {result.field:<10} {shown(result.text, 60):<60}  {result.records_shown()}")
    return 0


def _look(
    options: Options,
    config: Config,
    service: Service,
    place: Checkpoint,
    text: str,
    field: str | None,
    limit: int,
    *,
    by_letters: bool,
) -> tuple[list[Result], Generation, str]:
    with reading(place) as ledger:
        generation, note = (None, "") if ledger is None else _in_use(ledger, config, service)
        if ledger is None or generation is None:
            raise UserError(f"Nothing is indexed yet in {place.root} for {service.name} {service.model}. First: python main.py")
        with table_errors(place.tables), _opened(config, place, ledger, generation) as index:
            vector = _stored_vector(index, text)
            if vector is None:
                vector = _embed(options, config, service, ledger, generation, text)
            store = index.store
            hits = store.search_hybrid(text, vector, limit, field) if by_letters else store.search(vector, limit, field)
            return [_result(index, hit) for hit in hits], generation, note


def _in_use(ledger: Ledger, config: Config, service: Service) -> tuple[Generation | None, str]:
    """Which generation is searched, with what to say of it: the configured one once it is complete; until then the one in use."""
    configured = generation_of(service, ledger)
    known, before = ledger.generation(configured.id), other_in_use(ledger, configured)
    if before is not None and _is_indexed(ledger, config, before) and not (known and _is_complete(ledger, config, known)):
        return before, f"Note: {configured.words} is not complete; until it is, {before.words} is searched."
    return (known, "") if known is not None and _is_indexed(ledger, config, known) else (None, "")


def _is_complete(ledger: Ledger, config: Config, generation: Generation) -> bool:
    scope = scope_of(config.vector_store, generation)
    left = any(pending_in_index(ledger, scope, generation, name) for name in ledger.fields())
    return not left and is_whole(ledger, generation, [field.name for field in config.fields])


def nearest_to_most_frequent(context: Context, limit: int) -> tuple[str, list[Result]] | None:
    """The most frequent string of the first field, and its neighbours; None when that string has no vector."""
    ledger = context.ledger
    generation = ledger.generation(generation_of(context.service, ledger).id)
    field = context.config.fields[0].name
    if generation is None or not _is_indexed(ledger, context.config, generation):
        return None
    with _opened(context.config, context.place, ledger, generation) as index:
        text = _most_frequent(index, field)
        vector = None if text is None else _stored_vector(index, text, [field])
        if text is None or vector is None:
            return None
        hits = [hit for hit in index.store.search(vector, limit + 1) if (hit.field, hit.text) != (field, text)]
        return text, [_result(index, hit) for hit in hits[:limit]]


def _plain(result: Result) -> dict[str, object]:
    return {
        "field": result.field,
        "text": result.text,
        "similarity": round(result.similarity, 6),
        "frequency": result.frequency,
        "records": result.records,
        "first_record_ids": result.record_ids,
    }


def _is_indexed(ledger: Ledger, config: Config, generation: Generation) -> bool:
    scope = scope_of(config.vector_store, generation)
    return config.vector_store != "none" and any(ledger.spans("indexed", scope, field) for field in ledger.fields())


@contextlib.contextmanager
def _opened(config: Config, place: Checkpoint, ledger: Ledger, generation: Generation) -> Iterator[Index]:
    """The index of a command that only reads, with a scratch folder of its own: the shared one is the writer's."""
    import tempfile

    from pipeline.indexing import open_index

    with tempfile.TemporaryDirectory(prefix="namesake-") as scratch:
        index = open_index(place, ledger, config, generation, SystemClock(), POLICY, scratch=Path(scratch))
        try:
            yield index
        finally:
            index.close()


def _most_frequent(index: Index, field: str) -> str | None:
    from pipeline.indexing import snapshot_files, string_files
    from pipeline.tables.strings import most_frequent_text

    frequencies = snapshot_files(index.place, index.ledger, "frequencies", field)
    return most_frequent_text(index.duck, string_files(index.place, index.ledger, field), frequencies)


def _stored_vector(index: Index, text: str, fields: Sequence[str] = ()) -> NDArray[np.float32] | None:
    """The vector of exactly this text, in whichever field it stands: a text has the same one in each."""
    from pipeline.identity import uuid_of

    keys = [uuid_of(field, text) for field in fields or index.fields()]
    found = index.store.get(keys)
    return next((found[key].vector for key in keys if key in found), None)


def _embed(
    options: Options, config: Config, service: Service, ledger: Ledger, generation: Generation, text: str
) -> NDArray[np.float32]:
    """Ask the service for the vector of a text that is not stored, and book what it cost."""
    from pipeline.collecting import parse_answer
    from pipeline.provider.client import Answered, EmbeddingClient
    from pipeline.provider.tokens import count_tokens

    service = _service_of(config, service, ledger, generation, text)
    need_key(service, config)
    tokens = count_tokens([text])[0] if service.is_exact else len(text.encode())
    if service.price and ledger.spent_usd() + service.usd(tokens) > config.budget_usd:
        raise BudgetError(
            f"budget_usd is {config.budget_usd:g} and is used up; this text is not stored, so searching it would cost more."
        )
    mount = transport_of(service, Checkpoint(config.checkpoint_path, config.data_path))
    client = EmbeddingClient(service, options.clock, mount() if mount else None)
    try:
        outcome = client.ask([text])
    finally:
        client.close()
    if not isinstance(outcome, Answered):
        raise ServiceError(f"{service.name}: {outcome.reason}.")
    paid = tokens if outcome.tokens is None else outcome.tokens
    _book(options, config, Spending(generation.id, "", "search", 1, paid, service.usd(paid)))
    return parse_answer(outcome.bodies[0], generation.dimensions)


def _service_of(config: Config, service: Service, ledger: Ledger, generation: Generation, text: str) -> Service:
    """The service as it is asked for the model of a generation, which the config no longer names, perhaps."""
    if generation_of(service, ledger).id == generation.id:
        return service
    if generation.service != service.name or service.deployment:
        raise UserError(
            f"{shown(text, 60)!r} is not a string of the catalogue, and its vector would be one of {generation.words}, which is "
            "searched until the new model is complete, and which this config does not name. Search for a stored string, or with "
            "the config of before."
        )
    return service_of(replace(config, embedding_model=generation.model, embedding_dimensions=generation.asked))


def _book(options: Options, config: Config, spending: Spending) -> None:
    """A search holds no lock: one short transaction of its own books what it paid, and who did."""
    from pipeline.ledger import open_for_booking

    if spending.usd:
        with open_for_booking(Checkpoint(config.checkpoint_path, config.data_path).ledger) as ledger, ledger.transaction():
            run = begin(options, ledger, "main.py --search")
            ledger.spend(spending)
            ledger.runs.end(run, options.clock.now(), 0)


def _result(index: Index, hit: Hit) -> Result:
    from pipeline.indexing import snapshot_files, string_files
    from pipeline.tables.strings import find_text, record_ids_of

    row = find_text(index.duck, string_files(index.place, index.ledger, hit.field), hit.text)
    records = snapshot_files(index.place, index.ledger, "records", "")
    occurrences = snapshot_files(index.place, index.ledger, "occurrences", hit.field)
    ids, total = ([], 0) if row is None else record_ids_of(index.duck, records, occurrences, row, _RECORDS_SHOWN)
    return Result(hit.field, hit.text, hit.similarity, hit.frequency, ids, total)
