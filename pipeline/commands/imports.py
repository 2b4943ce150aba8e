"""`--import-embeddings`: what another pipeline has paid for is taken in, once a sample has proved its model; and indexed."""

from __future__ import annotations

import csv
import io
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint import Checkpoint, reading, write_list
from pipeline.commands.console import Console, dollars, shown, strings
from pipeline.commands.session import Options, changing, context_of, greet, load
from pipeline.context import Context
from pipeline.errors import AlreadyToldError, ConfigError, UsageError, UserError
from pipeline.files import spreadsheet_safe
from pipeline.provider.service import generation_of, need_key
from pipeline.rights import make_folder
from pipeline.tables.duck import connect, duck_errors, table_errors

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.embedding_and_indexing import EmbeddingReport
    from pipeline.importing.looking import Looked, Order
    from pipeline.importing.proof import Plan, Proof
    from pipeline.provider.service import Service

_MOST_LISTED = 100_000
_REASONS_SHOWN, _REASONS_TOLD = 5, 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed: where the vectors are, the model that made them, and how the source is to be read."""

    source: Path
    model: str | None
    field: str | None = None
    columns: str | None = None


def import_embeddings(options: Options, console: Console, asked: Asked, *, is_dry: bool) -> int:
    """Look, prove, take in, index; a dry run only looks."""
    config, service = load(options)
    order = _order(config, service, asked)
    if is_dry:
        return _dry_run(options, console, config, service, order)
    need_key(service, config)
    with changing(options, console, f"main.py --import-embeddings {asked.source} --model {asked.model}") as context:
        return _import(context, console, order)


def _order(config: Config, service: Service, asked: Asked) -> Order:
    """What was typed, made sense of; nothing is read yet."""
    from pipeline.importing.looking import Order
    from pipeline.importing.sources import find_source, parse_columns

    if asked.model is None:
        raise UsageError(
            f"--import-embeddings needs --model NAME, the model that made the vectors; by the config it is {service.model}."
        )
    if asked.model != service.model:
        raise ConfigError(
            f"--model is {asked.model!r}, but {config.path.name} says {service.name} {service.model!r}. Vectors of two models are "
            f"never mixed. Nothing was imported. If a run is to go on with that model: embedding_model: {asked.model}"
        )
    known = [entry.name for entry in config.fields]
    if asked.field is not None and asked.field not in known:
        raise UsageError(f"--field: there is no field {asked.field!r}; the config has {', '.join(known)}.")
    columns = parse_columns(asked.columns, asked.field)
    return Order(find_source(asked.source), columns, asked.field)


def _dry_run(options: Options, console: Console, config: Config, service: Service, order: Order) -> int:
    """Beside any run: no lock, nothing written but scratch of its own, nothing sent."""
    from pipeline.importing.looking import look_through
    from pipeline.importing.proof import plan_proof

    greet(console, config, service)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger, tempfile.TemporaryDirectory(prefix="namesake-") as scratch:
        if ledger is None:
            raise UserError(f"There is no catalogue in {place.root} yet. First: python main.py --end preprocessing")
        context = context_of(options, config, service, place, ledger, console)
        _need_a_reading(context)
        duck = connect(Path(scratch), config.memory_limit_gb)
        try:
            with duck_errors(Path(scratch)), table_errors(place.tables):
                looked = look_through(context, duck, order, generation_of(service, ledger), None)
                plan = plan_proof(context, duck, looked)
        finally:
            duck.close()
    _tell_looked(console, looked, None)
    if looked.report.to_import:
        _tell_plan(console, context, plan)
    console.answer("Nothing was written, and nothing sent. To import: the same without --dry-run.")
    console.document({**_document(looked, plan), "dry_run": True})
    return 0


def _import(context: Context, console: Console, order: Order) -> int:
    from pipeline.collecting import collect_all
    from pipeline.embedding_and_indexing import index_all
    from pipeline.importing.adopting import adopt
    from pipeline.importing.looking import look_through
    from pipeline.importing.proof import need_budget, plan_proof, prove
    from pipeline.indexing import need_an_index
    from pipeline.realtime import settle_intents

    _need_a_reading(context)
    generation = generation_of(context.service, context.ledger)
    collect_all(context.place, context.ledger, context.clock, {generation.id: context.service.price})
    doubtful, usd = settle_intents(context.ledger, context.clock)
    if doubtful:
        console.say(f"An earlier run was cut off: possibly paid twice: {strings(doubtful)}, {dollars(usd)}.")
    scratch = context.place.scratch / "import"
    make_folder(scratch)
    duck = connect(context.place.scratch, context.config.memory_limit_gb)
    proof: Proof | None = None
    imported: dict[str, int] = {}
    try:
        with duck_errors(context.place.scratch):
            looked = look_through(context, duck, order, generation_of(context.service, context.ledger), scratch)
            _write_rejected(context, looked)
            _tell_looked(console, looked, context.place)
            plan = plan_proof(context, duck, looked)
            if looked.report.to_import:
                _tell_plan(console, context, plan)
                need_an_index(context, looked.generation)
                need_budget(context, plan)
                looked, proof = prove(context, looked, plan)
                console.say(f"  Mean cosine {proof.mean:.4f}, lowest {proof.lowest:.4f}: they are of one model.")
                imported = adopt(context, looked)
                context.ledger.save_copy(context.place.copy)  # indexing may take hours
    finally:
        duck.close()
        _remove(scratch)
    _tell_imported(console, imported, looked)
    report = index_all(context)
    _tell_index(console, context, report)
    console.document({
        **_document(looked, plan), "dry_run": False, "imported": sum(imported.values()), "imported_by_field": imported,
        "proof": None if proof is None else asdict(proof), "indexed": report.indexed, "refused_by_index": report.unindexed,
    })  # fmt: skip
    if report.unindexed:
        raise AlreadyToldError
    return 0


def _need_a_reading(context: Context) -> None:
    """Texts are matched with the catalogue as last read, all of it."""
    ledger = context.ledger
    if ledger.snapshot("full") is None:
        what = "Only a trial was read (--limit)" if ledger.snapshot("trial") is not None else "Nothing is preprocessed yet"
        raise UserError(f"{what}, so there are no strings to match with. First, at no cost: python main.py --end preprocessing")
    if new := [name for name in context.fields if name not in ledger.fields()]:
        raise UserError(f"The field {new[0]!r} is not preprocessed yet. First, at no cost: python main.py --end preprocessing")


def _remove(folder: Path) -> None:
    """Give the space back before indexing needs it; what a kill leaves, the next command sweeps."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _write_rejected(context: Context, looked: Looked) -> None:
    """The list of what was rejected; when it is cut, its last line says so."""
    files = [path.name for path in looked.order.source.files()]
    content = io.StringIO(newline="")
    rows = csv.writer(content, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    rows.writerow(("file", "line", "custom_id_or_text", "reason"))
    for file, line, what, reason in looked.findings.rejected(_MOST_LISTED):
        rows.writerow((files[file], line, spreadsheet_safe(shown(what, 200)), spreadsheet_safe(reason)))
    if looked.report.rejected > _MOST_LISTED:
        rows.writerow(("", "", "", f"{looked.report.rejected - _MOST_LISTED:,} more are not listed"))
    write_list(context.place.import_rejected, content.getvalue().encode() if looked.report.rejected else None)


def _tell_looked(console: Console, looked: Looked, place: Checkpoint | None) -> None:
    report, source, say = looked.report, looked.order.source, console.answer
    pairs = "1 pair" if len(source.pairs) == 1 else f"{len(source.pairs):,} pairs"
    what = f" in {pairs} of request and result files" if source.pairs else ""
    say()
    say(f"{source.path}: {report.vectors:,} vectors with their texts{what}, {report.dimensions:,} numbers each.")
    if source.alone:
        say(f"  Without their partner, and not read: {', '.join(source.alone[:5])}{' …' if len(source.alone) > 5 else ''}")
    say(f"  matched    {report.matched:>12,}  strings of the catalogue as last read")
    for count, words in (
        (report.known, "have an embedding of this model already"),
        (report.in_jobs, "are in a batch job, and come home by: python batch_manager.py --download"),
        (report.never_embedded, "are never embedded (empty, white space or too long)"),
    ):
        if count:
            say(f"             {count:>12,}    of them {words}")
    examples = "; ".join(shown(text, 40) for text in report.unmatched_texts)
    such_as = f", such as: {examples}" if examples else ""
    say(f"  unmatched  {report.unmatched:>12,}  texts that the catalogue does not have{such_as}")
    if report.other_fields:
        say(f"             fields of the source that the catalogue does not have: {', '.join(report.other_fields)}; see --field")
    if report.unanswered:
        say(f"  unanswered {report.unanswered:>12,}  texts were asked and have no vector")
    if report.repeated:
        say(f"  repeated   {report.repeated:>12,}  vectors of a text that has one already: the first counts, by file and line")
    if report.differing:
        say(f"             {report.differing:>12,}  strings have vectors that differ; an import takes none of those far apart")
    where = f"; each is listed in {place.import_rejected}" if place is not None and report.rejected else ""
    say(f"  rejected   {report.rejected:>12,}  lines{where}")
    for reason, count in report.reasons[:_REASONS_SHOWN]:
        say(f"             {count:>12,}  {shown(reason, 100)}")
    if len(report.reasons) > _REASONS_SHOWN:
        say(f"             {sum(count for _, count in report.reasons[_REASONS_SHOWN:]):>12,}  for other reasons")
    if report.not_unit:
        say(f"  {report.not_unit:,} vectors are not of unit length; they are kept as they are, and compared by their angle.")
    say(f"  to import  {report.to_import:>12,}  strings")


def _tell_plan(console: Console, context: Context, plan: Plan) -> None:
    """The price comes before the request."""
    service = context.service
    about = "" if plan.is_exact else "at most "
    again = len(plan.sample) - len(plan.asked)
    console.answer(
        f"Proof of the model: {strings(len(plan.asked))} embedded anew by {service.name} {service.model}, {about}"
        f"{sum(plan.tokens.values()):,} tokens, {f'{about}{dollars(plan.usd)}' if plan.usd else 'free'}"
        + (f"; {strings(again)} compared at no cost, since an earlier attempt has paid for them." if again else ".")
    )


def _tell_imported(console: Console, imported: dict[str, int], looked: Looked) -> None:
    if not imported:
        more = " beyond the sample" if looked.report.to_import else ""
        console.answer(f"Nothing was left to import{more}.")
        return
    by_field = ", ".join(f"{name} {count:,}" for name, count in imported.items())
    console.answer(f"Imported: {strings(sum(imported.values()))} ({by_field}), at no cost. They are never sent again.")


def _tell_index(console: Console, context: Context, report: EmbeddingReport) -> None:
    store = context.config.vector_store
    if report.indexed:
        console.answer(f"Indexing: {strings(report.indexed)} written to the {store} index, and each one confirmed.")
    if report.unindexed:
        console.answer(f"  {strings(report.unindexed)} refused by the index; each is listed in {context.place.failures}")
    if report.to_index:
        console.answer(f"{strings(report.to_index)} wait for the index, at no cost: python main.py")
    console.say("What the source did not have is pending: python main.py --dry-run   (what it would cost), python main.py")


def _document(looked: Looked, plan: Plan) -> dict[str, Any]:
    facts = asdict(looked.report)
    reasons = facts.pop("reasons")
    return {
        "source": str(looked.order.source.path),
        "pairs": len(looked.order.source.pairs),
        "without_partner": list(looked.order.source.alone),
        **facts,
        "rejected_reasons": dict(reasons[:_REASONS_TOLD]),
        "rejected_for_other_reasons": sum(count for _, count in reasons[_REASONS_TOLD:]),
        "sample": {"strings": len(plan.sample), "asked": len(plan.asked), "tokens": sum(plan.tokens.values()), "usd": plan.usd},
    }
