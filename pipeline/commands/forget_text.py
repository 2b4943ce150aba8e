"""`--forget-text`: given strings go for good, from everything in the checkpoint folder and from the index; only with --yes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from pipeline.commands.console import Console, shown, strings
from pipeline.commands.lists import write_lists
from pipeline.commands.session import Options, changing
from pipeline.errors import UsageError, UserError


def forget_text(options: Options, console: Console, path: Path) -> int:
    """Find, refuse or say, and with --yes forget."""
    from pipeline import forgetting
    from pipeline import spans as span_sets
    from pipeline.commands.text_list import read_list
    from pipeline.tables.duck import connect

    with changing(options, console, "main.py --forget-text") as context:
        if not context.ledger.fields():
            raise UserError("There is nothing here yet, so there is nothing to forget.")
        wishes = read_list(path, list(context.ledger.fields()))
        with closing(connect(context.place.scratch, context.config.memory_limit_gb)) as duck:
            rows, unknown = forgetting.find_rows(context, duck, wishes)
            if why := forgetting.refusals(context, rows) if rows else []:
                raise UserError("Nothing was changed: " + "; ".join(why))
            count = sum(map(span_sets.count, rows.values()))
            by_field = ", ".join(f"{name} {span_sets.count(wanted):,}" for name, wanted in rows.items())
            if rows and not options.yes:
                raise UsageError(
                    f"This would forget {strings(count)} for good ({by_field}), with their embeddings, which were paid for. "
                    f"Nothing was changed; to do it: --forget-text {path} --yes"
                )
            done = forgetting.Forgotten()
            if options.yes:  # also when no string is left: a restored ledger may quote them again
                done = forgetting.forget(context, duck, rows, [wish.text for wish in wishes])
                write_lists(context)  # they quote texts
                forgetting.finish(context, rows)
            others = forgetting.others_with(context, duck, rows, len(wishes))
        aside = sorted(
            str(found) for found in (*context.place.root.glob("ledger.damaged-*"), *context.place.not_restored.glob("*"))
        )
        console.document(asdict(done) | {"unknown": unknown, "others": others, "not_looked_into": aside})
        if rows:
            console.answer(
                f"Forgotten: {strings(count)} ({by_field}), {done.embeddings:,} embeddings; {done.audit_files:,} request and "
                "result files were written anew. Their row numbers stay, and are given to nothing else."
            )
        if unknown:
            console.answer(f"{unknown:,} of the texts are no string of the catalogue, or forgotten already.")
        _tell_of_others(console, others)
        if aside:
            console.answer(f"Set aside by a restore and not looked into: {', '.join(aside)}. Delete what you need no more.")
    return 0


def _tell_of_others(console: Console, others: list[tuple[str, str]] | None) -> None:
    from pipeline.forgetting import MOST_SHOWN

    if others is None:
        console.answer("Whether other strings contain these texts was not looked for: the list is long.")
    elif others:
        console.answer("Other strings contain one of these texts; to forget them too, put them on the list, whole:")
        for name, text in others[:MOST_SHOWN]:
            console.answer(f"  {name:<10} {shown(text)}")
        if len(others) > MOST_SHOWN:
            console.answer("  … and more")
