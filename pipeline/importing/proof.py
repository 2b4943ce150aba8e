"""The proof of a model: some strings are embedded anew, and their vectors compared with those of the source.

Paid like any request in real time: intent, spool, budget, books. What was paid is kept as the vectors of these strings. The
ledger remembers who was asked until the import is done, so that a further attempt compares and does not pay again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline import spans as span_sets
from pipeline.collecting import collect
from pipeline.context import Context
from pipeline.errors import BudgetError, InputError, ServiceError
from pipeline.importing.looking import Looked, sample_key, texts_of_sample, unit
from pipeline.indexing import embedding_files
from pipeline.provider.client import EmbeddingClient
from pipeline.provider.tokens import count_tokens
from pipeline.realtime import Chunk, RealTime, Terms, pack
from pipeline.spans import Spans
from pipeline.tables.embeddings import read_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

LEAST_MEAN = 0.99  # cosine; two models are near 0, one model asked twice above 0.999
LEAST = 0.9


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is compared, (field, row, where the source's vector lies), and who of them is asked for it; `tokens` are exact or at
    most so many."""

    sample: list[tuple[str, int, int]]
    texts: dict[tuple[str, int], str]
    asked: list[tuple[str, int]]
    tokens: dict[tuple[str, int], int]
    usd: float
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """How it came out. `asked` strings were paid for now."""

    compared: int
    asked: int
    mean: float
    lowest: float


def plan_proof(context: Context, duck: duckdb.DuckDBPyConnection, looked: Looked) -> Plan:
    """The strings of an earlier sample first: they are paid for. Then some that are to be imported."""
    most = context.config.import_sample
    sample = looked.sampled[:most]
    more = looked.findings.some(most - len(sample)) if len(sample) < most else []
    asked = [(name, row) for name, row, _ in more]
    texts = texts_of_sample(context, duck, sample + more)
    if context.service.is_exact:
        counts = count_tokens([texts[key] for key in asked])
    else:
        counts = [len(texts[key].encode()) for key in asked]
    usd = context.service.usd(sum(counts))
    return Plan(sample + more, texts, asked, dict(zip(asked, counts, strict=True)), usd, context.service.is_exact)


def need_budget(context: Context, plan: Plan) -> None:
    """Before the first call."""
    spent, budget = context.ledger.spent_usd(), context.config.budget_usd
    if plan.usd and spent + plan.usd > budget:
        raise BudgetError(
            f"budget_usd is {budget:g}: ${spent:.4f} is spent, and the proof of the model would cost ${plan.usd:.4f} more. Nothing "
            "was sent and nothing imported. Raise budget_usd, or lower import_sample."
        )


def prove(context: Context, looked: Looked, plan: Plan) -> tuple[Looked, Proof]:
    """Ask and compare; InputError when the vectors are of another model. What was answered is no candidate any more."""
    ledger, generation = context.ledger, looked.generation
    with ledger.transaction():
        ledger.save_generation(generation, context.clock.now())
        ledger.set_meta(sample_key(generation), json.dumps(_spans(plan.sample)))
        for name, spans in _spans(plan.sample).items():
            ledger.drop_failures_of(generation.id, name, spans)  # they are asked again
    if plan.asked:
        _ask(context, looked, plan)
    generation = ledger.generation(generation.id) or generation
    if generation.dimensions != looked.vectors.dimensions:
        raise InputError(
            f"{looked.order.source.path}: its vectors have {looked.vectors.dimensions:,} numbers, and those of "
            f"{generation.service} {generation.model} have {generation.dimensions:,}. Nothing was imported."
        )
    for name, spans in _spans(plan.sample).items():
        looked.findings.leave_out(name, span_sets.intersect(spans, ledger.spans("embedded", generation.id, name)))
    looked = replace(looked, generation=generation)
    return looked, _compare(context, looked, plan)


def _spans(sample: list[tuple[str, int, int]]) -> dict[str, Spans]:
    rows: dict[str, list[int]] = defaultdict(list)
    for name, row, _ in sample:
        rows[name].append(row)
    return {name: span_sets.of_rows(sorted(of_field)) for name, of_field in rows.items()}


def _ask(context: Context, looked: Looked, plan: Plan) -> None:
    """Through real time, as any pending string goes; what is answered is embedded when this returns or raises."""
    ledger, service, generation = context.ledger, context.service, looked.generation
    client = EmbeddingClient(service, context.clock, context.transport() if context.transport else None)
    terms = Terms(
        service=service, generation=generation.id, client=client, clock=context.clock, policy=context.policy,
        workers=context.config.max_concurrent_requests, budget_usd=context.config.budget_usd, say=context.say,
        has_embedded_before=any(ledger.spans("embedded", generation.id, name) for name in ledger.fields()),
    )  # fmt: skip
    prices = {generation.id: service.price}
    try:
        with context.progress.bar("embedding the sample", len(plan.asked)) as bar:
            run = RealTime(
                terms, ledger, context.place.spool, lambda path: collect(path, context.place, ledger, context.clock, prices), bar
            )
            done = run.run(_chunks(context, plan))
    finally:
        client.close()
    if done.stop is not None:
        raise done.stop
    if done.set_aside:
        raise ServiceError(
            f"The proof of the model could not be made now ({done.trouble}). Nothing was imported. Run the same command again."
        )


def _chunks(context: Context, plan: Plan) -> Iterator[Chunk]:
    for name in sorted({name for name, _ in plan.asked}):
        strings = sorted((row, plan.texts[name, row], plan.tokens[name, row]) for of, row in plan.asked if of == name)
        yield from pack(name, iter(strings), context.config.max_inputs_per_request)


def _compare(context: Context, looked: Looked, plan: Plan) -> Proof:
    """The cosines of the sample's fresh vectors with the source's."""
    ledger, generation = context.ledger, looked.generation
    cosines: list[tuple[float, str, int]] = []
    places = {(name, row): at for name, row, at in plan.sample}
    for name, spans in _spans(plan.sample).items():
        for rows, fresh in read_embeddings(embedding_files(context.place, ledger, generation, name, spans), spans):
            known = looked.vectors.read(places[name, row] for row in rows.tolist())
            dots = np.sum(unit(fresh) * unit(known), axis=1)
            cosines += [(cosine, name, row) for cosine, row in zip(dots.tolist(), rows.tolist(), strict=True)]
    if 2 * len(cosines) < len(plan.sample):
        raise ServiceError(
            f"{generation.service} gave a vector for only {len(cosines)} of {len(plan.sample)} strings, which proves no model. "
            f"Nothing was imported; the reasons are in {context.place.failures}. To go on: the same command again."
        )
    lowest, name, row = min(cosines)
    proof = Proof(len(cosines), len(plan.asked), sum(cosine for cosine, _, _ in cosines) / len(cosines), lowest)
    if proof.mean < LEAST_MEAN or proof.lowest < LEAST:
        far = sum(cosine < LEAST for cosine, _, _ in cosines)
        raise InputError(
            f"{looked.order.source.path}: these are not the vectors of {generation.service} {generation.model}. Of "
            f"{len(cosines):,} strings that were embedded anew, {far:,} have another vector there: the mean cosine is "
            f"{proof.mean:.4f} (wanted is {LEAST_MEAN} at least), the lowest {proof.lowest:.4f} ({LEAST}), of the {name} "
            f"{plan.texts[name, row][:80]!r}. Nothing was imported; the sample's own vectors are kept. Give the model and the "
            "embedding_dimensions that made these vectors, or leave out the files that are not of it."
        )
    return proof
