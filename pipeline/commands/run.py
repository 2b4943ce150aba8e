"""`python main.py`: the stages, one after the other, and what came of them in plain words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline.belonging import forget_failed
from pipeline.commands.console import Console, dollars, shown, strings
from pipeline.commands.session import Options, changing, load
from pipeline.commands.standing import status_of
from pipeline.context import Context
from pipeline.errors import AlreadyToldError, NamesakeError, ServiceError, StoreError
from pipeline.ledger.jobs import UNCOLLECTED
from pipeline.provider.service import generation_of
from pipeline.stages import Stage, stage_named, stages_between

if TYPE_CHECKING:
    from pipeline.embedding_and_indexing import EmbeddingReport
    from pipeline.preprocessing import PreprocessingReport


def run_stages(options: Options, console: Console, start: str | None, end: str | None) -> int:
    """Every stage from `start` to `end`."""
    stages = stages_between(start, end)
    config, _ = load(options)
    embeds = any(stage.name == "embedding_and_indexing" for stage in stages)
    by_batch = config.use_batch_embeddings and embeds
    with changing(replace(options, batches=by_batch), console, "main.py", needs_key=embeds) as context:
        return _run_by_batch(context, console, stages) if by_batch else _run(context, console, stages)


def _run_by_batch(context: Context, console: Console, stages: Sequence[Stage]) -> int:
    """The same stages through the Batch API: create and exit, or wait for everything."""
    from pipeline.batch.life import opened
    from pipeline.commands.batch import collecting_all_the_same, create_and_exit, run_to_the_end
    from pipeline.embedding_and_indexing import need_a_reading

    for stage in stages:
        if stage.name == "preprocessing":
            with collecting_all_the_same(context, console):
                report: Any = stage.run(context)
            _tell_preprocessing(context, console, report)
    need_a_reading(context)
    console.say()
    with opened(context) as batches:
        return (create_and_exit if context.config.batch_manual_polling else run_to_the_end)(context, console, batches)


def retry_failed(options: Options, console: Console) -> int:
    """Ask for the failed strings again."""
    config, service = load(options)
    by_batch = config.use_batch_embeddings
    with changing(replace(options, batches=by_batch), console, "main.py --retry-failed", needs_key=True) as context:
        generation = generation_of(service, context.ledger)
        dropped = forget_failed(context.ledger, config.vector_store, generation, context.fields)
        console.say(f"{strings(dropped)} that had failed will be tried again." if dropped else "Nothing had failed.")
        context.ledger.jobs.forget_attempts(generation.id)
        return (_run_by_batch if by_batch else _run)(context, console, (stage_named("embedding_and_indexing"),))


def _run(context: Context, console: Console, stages: Sequence[Stage]) -> int:
    document: dict[str, Any] = {"stages": {}}
    stop: NamesakeError | None = None
    worked = False
    failed = 0
    for stage in stages:
        report: Any = stage.run(context)
        if stage.name == "preprocessing":
            document["stages"][stage.name] = asdict(report)
            worked = worked or not report.unchanged
            _tell_preprocessing(context, console, report)
        else:
            document["stages"][stage.name] = _embedding_document(report)
            stop, failed = report.stop, report.failed + report.unindexed
            did = (
                report.embedded,
                report.indexed,
                report.removed,
                report.mended,
                report.refused,
                report.set_aside,
                report.to_index,
            )
            worked = worked or any(did)
            _tell_embedding(context, console, report)
            if report.set_aside and stop is None:
                stop = ServiceError(
                    f"{strings(report.set_aside)} could not be embedded now ({report.trouble}). Run the same command again."
                )
    document["status"] = status_of(context.ledger, context.config, context.service, context.clock.now())
    if stop is not None:
        console.say()
        raise stop
    _close(context, console, stages, worked)
    console.document(document)
    if failed:
        raise AlreadyToldError
    return 0


def _tell_preprocessing(context: Context, console: Console, report: PreprocessingReport) -> None:
    config = context.config
    console.say()
    if report.unchanged:
        console.say(f"Preprocessing: {config.input} is unchanged; {report.records:,} records.")
    else:
        console.say(f"Preprocessing: {report.records:,} records read from {config.input}.")
    if context.limit is not None:
        console.say(f"  A trial: only strings of the first {context.limit:,} rows are embedded now; nothing is marked absent.")
    if report.rejected:
        console.say(f"  {report.rejected:,} bad rows left out; each is listed with its reason in {context.place.rejected_rows}")
    occurrences = unique = 0
    for name, field in report.fields.items():
        occurrences += field.occurrences
        unique += field.strings
        absent = context.ledger.fields()[name][1] - field.strings
        console.say(
            f"  {name:<16}{field.strings:>10,} unique strings in {field.occurrences:>10,} occurrences, {field.new:>10,} of them new"
            + (f"; {absent:,} known ones are absent" if absent and context.limit is None else "")
        )
    if occurrences:
        saved = occurrences - unique
        console.say(f"  Deduplication saved {saved:,} of {occurrences:,} embeddings ({saved / occurrences:.0%}).")


def _tell_embedding(context: Context, console: Console, report: EmbeddingReport) -> None:
    console.say()
    if report.doubtful:
        console.say(
            f"An earlier run was cut off: possibly paid twice: {strings(report.doubtful)}, {dollars(report.doubtful_usd)}; "
            f"listed in {context.place.possibly_paid_twice}"
        )
    if report.embedded or report.refused or report.failed or report.set_aside or report.stop:
        console.say(f"Embedding: {strings(report.embedded)} embedded now, {report.already:,} before.")
    else:
        console.say(f"Embedding: nothing to do; {strings(report.already)} embedded already.")
    if report.refused:
        console.say(f"  {strings(report.refused)} never sent (empty, white space or too long); listed in {context.place.failures}")
    if report.failed:
        console.say(f"  {strings(report.failed)} failed at the service; each is listed with its reason in {context.place.failures}")
        console.say("  To ask for them again: python main.py --retry-failed")
    if context.service.price:
        console.say(
            f"  Spent on this catalogue so far: {dollars(context.ledger.spent_usd())} of {dollars(context.config.budget_usd)}."
        )
    _tell_indexing(context, console, report)
    if report.switched:
        console.say(report.switched)


def _tell_indexing(context: Context, console: Console, report: EmbeddingReport) -> None:
    from pipeline.stores.embedded import LARGE

    store = context.config.vector_store
    if store == "none":
        console.say("Indexing: vector_store is none; the embeddings are in the tables.")
        return
    if report.mended:
        console.say(
            "  The index had lost strings behind our back, or it is another server or collection than before; it was compared "
            "with the embeddings and mended."
        )
    if context.config.index_later:
        console.say(
            f"Indexing: index_later is true; {strings(report.to_index)} wait. To index them, at no cost: index_later: false, and "
            "python main.py"
        )
        return
    if report.removed:
        console.say(f"Indexing: {strings(report.removed)} that left the catalogue and were pruned are out of the index.")
    if report.unindexed:
        console.say(
            f"  {strings(report.unindexed)} refused by the {store} index; each is listed with its reason in "
            f"{context.place.failures}. To try them again: python main.py --retry-failed"
        )
    if report.indexed:
        others = (
            f" ({report.indexed - report.embedded:,} of them occur more or less often now)"
            if 0 < report.embedded < report.indexed
            else ""
        )
        console.say(f"Indexing: {strings(report.indexed)} written to the {store} index, and each one confirmed{others}.")
    if report.to_index:
        console.say(f"Indexing: {strings(report.to_index)} are embedded and not indexed yet; the next run goes on with them.")
    elif not report.indexed and isinstance(report.stop, StoreError):
        console.say("Indexing: the index was not reached.")
    elif not report.indexed:
        console.say(
            f"Indexing: nothing to do; {'the ' + store + ' index is complete' if report.in_index else 'nothing is embedded yet'}."
        )
    if report.in_index > LARGE and store == "embedded":
        console.say(
            f"  Note: {strings(report.in_index)} are much for the embedded index, which reads every vector at each search; "
            "Weaviate is the place for them (vector_store: weaviate; README, With Weaviate)."
        )


def _embedding_document(report: EmbeddingReport) -> dict[str, Any]:
    return {
        "embedded": report.embedded,
        "already_embedded": report.already,
        "refused": report.refused,
        "failed": report.failed,
        "set_aside": report.set_aside,
        "indexed": report.indexed,
        "removed_from_index": report.removed,
        "refused_by_index": report.unindexed,
        "left_to_index": report.to_index,
        "index_mended": report.mended,
        "possibly_paid_twice": {"strings": report.doubtful, "usd": report.doubtful_usd},
    }


def _close(context: Context, console: Console, stages: Sequence[Stage], worked: bool) -> None:
    """Where things are, a taste of the index, and what to type next."""
    in_jobs = sum(job.requests for job in context.ledger.jobs.all(UNCOLLECTED))
    if in_jobs:
        console.say()
        console.say(f"{strings(in_jobs)} are in batch jobs; to collect them: python batch_manager.py --download")
    elif not worked:
        console.say()
        what = "all of it" if context.limit is None else "the trial's part of it"
        console.say(f"Nothing was left to do: the input is unchanged, and {what} is embedded and indexed.")
    if not any(stage.name == "embedding_and_indexing" for stage in stages):
        return
    taste = _taste(context, console)
    place = context.place
    console.say()
    console.say("Where things are:")
    console.say(f"  {place.root}  all state: keep this folder, and paid work is never paid again")
    console.say(f"  {place.tables}  records, strings, occurrences and embeddings as Parquet")
    console.say("What to type next:")
    console.say(f"  python main.py --search {shlex.quote(taste or 'Schubert, Franz')}")
    console.say("  python main.py --status")
    if context.limit is not None:
        console.say("  python main.py   (this was a trial: without --limit, all of it)")
    else:
        console.say("  python main.py --init my.yml   (a commented config for your own catalogue)")


def _taste(context: Context, console: Console) -> str | None:
    """The strings nearest to the most frequent one, from stored vectors: no request is sent. That string is given back."""
    from pipeline.commands.search import nearest_to_most_frequent

    if console.as_json or console.quiet or context.config.vector_store == "none":
        return None
    found = nearest_to_most_frequent(context, 5)
    if found is None:
        return None
    text, results = found
    console.say()
    by = "the local model: alike in letters, not in meaning" if context.service.name == "local" else context.service.model
    console.say(f"A taste of the index, by {by}. Closest to {shown(text)!r}:")
    for result in results:
        console.say(f"  {result.similarity:.3f}  {result.field:<10} {shown(result.text, 60):<60}  {result.records_shown()}")
    return text
