"""`--reset`, `--forget-records`, `--drop-embeddings` and `--take-over`: forgetting, on purpose and by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline import spans as span_sets
from pipeline.belonging import STALE, scope_of
from pipeline.commands.console import Console, dollars, strings
from pipeline.commands.session import Options, changing
from pipeline.errors import UsageError
from pipeline.ledger import Generation, Ledger
from pipeline.provider.service import generation_of
from pipeline.stages import stage_named


def reset(options: Options, console: Console, names: Sequence[str]) -> int:
    """Forget what stages derived. What was paid for stays."""
    stages = [stage_named(name) for name in names]
    with changing(options, console, f"main.py --reset {' '.join(names)}") as context:
        for stage in stages:
            stage.reset(context)
            console.answer(f"{stage.name} is reset. Embeddings and row numbers stay.")
        console.document({"reset": list(names)})
    console.say("To derive it again: python main.py")
    return 0


def forget_records(options: Options, console: Console, path: Path) -> int:
    """Take records out of the catalogue. Typed again, it finds none of them."""
    from pipeline import preprocessing

    with changing(options, console, f"main.py --forget-records {path}") as context:
        done = preprocessing.forget_records(context, _ids(path))
        console.document(asdict(done))
        console.answer(
            f"Forgotten: {done.records:,} records, of {done.ids:,} ids; {done.left:,} are left. Strings that occur no more: "
            f"{done.strings:,}; they keep their numbers and vectors."
        )
        if done.records and context.config.input_mode == "snapshot":
            console.say(f"Those that {context.config.input} still holds come back when it is read again, after its next change.")
        if done.strings:
            console.say("To take strings that occur no more out of the index: python main.py --prune")
    return 0


def _ids(path: Path) -> Iterator[str]:
    """An id a line, exactly as the catalogue has it; empty lines say nothing."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line in file:
                identifier = line.rstrip("\r\n")
                if identifier:
                    yield identifier
    except UnicodeDecodeError:
        raise UsageError(f"--forget-records: {path} is not UTF-8. Nothing was changed; save it as UTF-8.") from None
    except OSError as problem:
        raise UsageError(f"--forget-records: {path} can't be read: {problem.strerror}. Nothing was changed.") from problem


def drop_embeddings(options: Options, console: Console, name: str) -> int:
    """Throw away what was paid for, of the generation of this name, or of the configured one; only with --yes."""
    with changing(options, console, f"main.py --drop-embeddings {name}".rstrip()) as context:
        from pipeline.dropping import drop

        ledger = context.ledger
        generation = _named(ledger, name) if name else generation_of(context.service, ledger)
        count = sum(span_sets.count(ledger.spans("embedded", generation.id, field)) for field in ledger.fields())
        paid = sum(spending.usd for spending in ledger.spendings() if spending.generation == generation.id)
        words = f"{strings(count)} of {generation.words}, for which {dollars(paid)} was paid"
        is_in_use = ledger.is_current(generation.id) and count > 0
        if name and is_in_use:
            raise UsageError(
                f"{name} ({words}) is in use: it is what is searched. Nothing was dropped. Let another model take its place "
                "first; or, to drop it all the same, with a config that names it: --drop-embeddings --yes"
            )
        if not options.yes:
            again = f"--drop-embeddings {name} --yes" if name else "--drop-embeddings --yes"
            use = "; they are in use" if is_in_use else ""
            raise UsageError(f"This would drop the embeddings of {words}{use}. Nothing was dropped; to do it: {again}")
        drop(context, generation)
        console.document({"generation": generation.id, "dropped": count, "paid_usd": paid})
        console.answer(f"Dropped: {words}, and their index. What was spent stays in the books.")
        if context.config.vector_store != "weaviate" and ledger.has_any(scope_of("weaviate", generation)):
            console.say("Their collection at the Weaviate server is left: with vector_store: weaviate, --drop-index NAME")
    return 0


def _named(ledger: Ledger, name: str) -> Generation:
    found = ledger.generation(name)
    if found is None:
        known = ", ".join(f"{one.id} ({one.words})" for one in ledger.generations()) or "none"
        raise UsageError(f"--drop-embeddings: there is no generation {name!r}; there are: {known}. Nothing was dropped.")
    return found


def drop_index(options: Options, console: Console, name: str) -> int:
    """Delete a collection that this program made, of whichever catalogue and model; only with --yes."""
    with changing(options, console, f"main.py --drop-index {name}") as context:
        if context.config.vector_store != "weaviate":
            raise UsageError("--drop-index deletes a collection at a Weaviate server: it needs vector_store: weaviate.")
        from pipeline.stores.weaviate.collections import drop, look_up, name_of

        found = look_up(context.config, name)
        whose = "this catalogue" if found.catalogue == context.ledger.meta("catalogue_id") else f"the catalogue {found.catalogue}"
        words = f"{name}: {strings(found.strings)} of {whose}, {found.service} {found.model}"
        if found.alias:
            words += f"; the alias {found.alias} points to it"
        if not options.yes:
            raise UsageError(f"This would delete {words}. Nothing was deleted; to do it: --drop-index {name} --yes")
        drop(context.config, name)
        for generation in context.ledger.generations():
            if whose == "this catalogue" and name == name_of(context.config, generation):
                for state in ("indexed", STALE, "writing"):
                    context.ledger.drop_spans(state, scope_of("weaviate", generation))
        console.document({"dropped": name, "strings": found.strings, "catalogue": found.catalogue})
        console.answer(f"Deleted: {words}. Embeddings are kept.")
    return 0


def take_over(options: Options, console: Console) -> int:
    """Accept a moved or copied checkpoint folder as the one to use from now on."""
    with changing(options, console, "main.py --take-over", take_over=True) as context:
        console.document({"checkpoint_dir": str(context.place.root), "catalogue_id": context.ledger.meta("catalogue_id")})
        console.answer(f"{context.place.root} is this machine's now. Do not use the other copy any more: it would pay again.")
    return 0
