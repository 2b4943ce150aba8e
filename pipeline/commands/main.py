"""The command line of `main.py`: arguments, one call, one exit code. Errors become sentences here and nowhere else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.entry import INTERRUPTED, Parser, flags_of_all, options_of, run, set_log_level

if TYPE_CHECKING:
    from pipeline.commands.console import Console
    from pipeline.commands.session import Options

__all__ = ["INTERRUPTED", "main", "parser"]
_EPILOG = """exit codes: 0 done; 1 something failed, or needs a person; 2 the command line, config or input; 75 another run is at
work; 130 interrupted (run the same command again to go on). With --status --exit-code: 0 finished, 3 in progress, 1 needs a
person"""


def parser() -> argparse.ArgumentParser:
    """All commands and their flags; the README's table is held to this by a test."""
    made = Parser(
        prog="main.py",
        description="Embed every unique string of a catalogue once, and index it. Without a command: run every stage.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_argument_group("commands").add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="where things stand, from the ledger alone")
    what.add_argument("--batch-status", action="store_true", help="the jobs of batch mode (batch_manager.py --status)")
    what.add_argument("--batch-results", action="store_true", help="collect what is finished (batch_manager.py --download)")
    what.add_argument("--dry-run", action="store_true", help="what a run would do and cost; nothing is sent")
    what.add_argument("--check", action="store_true", help="folder, disk, clock, lock, service and key, before a run needs them")
    what.add_argument("--search", metavar="TEXT", help="the strings nearest to a text")
    what.add_argument("--verify", action="store_true", help="compare the index with the embeddings, and mend it")
    what.add_argument("--reindex", action="store_true", help="build the index anew from stored embeddings, at no cost")
    what.add_argument("--prune", action="store_true", help="take strings that left the catalogue out of the index")
    what.add_argument("--drop-index", metavar="NAME", help="delete a collection of ours at the server; needs --yes")
    what.add_argument("--retry-failed", action="store_true", help="ask for the failed strings again")
    what.add_argument("--export-embeddings", metavar="PATH", type=Path, help="all embeddings of the model as one file")
    what.add_argument("--export-occurrences", metavar="PATH", type=Path, help="which record holds which string (.parquet or .csv)")
    what.add_argument(
        "--audit",
        metavar="PATH",
        nargs="?",
        const="",
        help="who ran what; with PATH.csv: every job and run with its money and files",
    )
    what.add_argument("--init", metavar="NEW.yml", type=Path, help="write a commented config of your own")
    what.add_argument("--reset", metavar="STAGE", nargs="+", help="forget what stages derived; what was paid for stays")
    what.add_argument(
        "--drop-embeddings", metavar="GENERATION", nargs="?", const="",
        help="throw away paid embeddings, of the config's model or of a generation by its name (--status); needs --yes",
    )  # fmt: skip
    what.add_argument("--forget-records", metavar="IDS.txt", type=Path, help="take records out of the catalogue, an id a line")
    what.add_argument("--delete-remote", action="store_true", help="delete all our files at the service; needs --yes")
    what.add_argument(
        "--forget-text", metavar="FILE", type=Path, help="forget the strings of a list for good, everywhere; needs --yes"
    )
    what.add_argument("--take-over", action="store_true", help="use a checkpoint folder that was moved or copied")
    what.add_argument(
        "--restore-ledger", action="store_true", help="after the ledger was lost: its safe copy, brought up to date from all else"
    )
    moving = made.add_argument_group("moving in")
    moving.add_argument(
        "--import-embeddings", metavar="SOURCE", type=Path,
        help="take in vectors that were paid for elsewhere: a folder of request and result files, a table, or weaviate:COLLECTION; "
        "also with --dry-run",
    )  # fmt: skip
    moving.add_argument("--model", metavar="NAME", help="with --import-embeddings: the model that made the vectors")
    moving.add_argument("--columns", metavar="text=A,field=B,vector=C", help="with --import-embeddings: a table's own names")
    run = made.add_argument_group("a run")
    run.add_argument("--start", metavar="STAGE", help="the first stage to run")
    run.add_argument("--end", metavar="STAGE", help="the last stage to run")
    run.add_argument("--limit", metavar="N", type=int, help="a trial: only the first N records; marks nothing absent")
    run.add_argument("--fields", metavar="A,B", help="embed only these fields")
    run.add_argument(
        "--accept-new-input", action="store_true", help="go on although most known records left, or a definition changed"
    )
    details = made.add_argument_group("details")
    details.add_argument("--exit-code", action="store_true", help="with --status: 0 finished, 3 in progress, 1 needs a person")
    details.add_argument(
        "--field", metavar="NAME", help="with --search: only this field; with --import-embeddings: where none is told"
    )
    details.add_argument("--hybrid", action="store_true", help="with --search: by letters too (hybrid_fields)")
    details.add_argument("--top", metavar="N", type=int, help="with --search: how many (10)")
    details.add_argument("--format", choices=("parquet", "csv-wide"), default="parquet", help="with --export-embeddings")
    flags_of_all(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    return run(parser(), arguments, _call)


def _call(typed: argparse.Namespace, console: Console, umask: int) -> int:
    from pipeline.errors import UsageError

    _refuse_odd_flags(typed)
    options = options_of(
        typed,
        umask,
        limit=typed.limit,
        fields=tuple(name.strip() for name in typed.fields.split(",")) if typed.fields is not None else (),
        accept_new_input=typed.accept_new_input,
    )
    if typed.limit is not None and typed.limit < 1:
        raise UsageError(f"--limit is {typed.limit}; it must be at least 1.")
    if typed.init is not None:
        from pipeline.commands.init import init

        return init(options, console, typed.init)
    set_log_level(typed, options)
    return _command(typed, options, console)


def _refuse_odd_flags(typed: argparse.Namespace) -> None:
    """A flag without the command that it belongs to would be a silent no."""
    from pipeline.errors import UsageError

    if typed.exit_code and not typed.status:
        raise UsageError("--exit-code goes with --status.")
    moving_in = typed.import_embeddings is not None
    if typed.field is not None and typed.search is None and not moving_in:
        raise UsageError("--field goes with --search or --import-embeddings; to embed only some fields: --fields")
    if (typed.model is not None or typed.columns is not None) and not moving_in:
        raise UsageError("--model and --columns go with --import-embeddings.")
    if moving_in and (typed.retry_failed or not _reads_the_input(typed, but_importing=True)):
        raise UsageError("--import-embeddings goes with no other command but --dry-run.")
    if typed.hybrid and typed.search is None:
        raise UsageError("--hybrid goes with --search.")
    if typed.format != "parquet" and typed.export_embeddings is None:
        raise UsageError("--format goes with --export-embeddings.")
    if typed.top is not None and typed.search is None:
        raise UsageError("--top goes with --search.")
    if typed.top is not None and typed.top < 1:
        raise UsageError(f"--top is {typed.top}; it must be at least 1.")
    reads = _reads_the_input(typed)
    if (typed.start or typed.end) and (not reads or typed.dry_run or typed.retry_failed):
        raise UsageError("--start and --end go with a run, not with another command.")
    if (typed.limit is not None or typed.fields is not None) and not reads:
        raise UsageError("--limit and --fields go with a run, --dry-run or --retry-failed; to search one field: --field")
    if typed.accept_new_input and (not reads or typed.retry_failed):
        raise UsageError("--accept-new-input goes with a run or --dry-run.")


def _reads_the_input(typed: argparse.Namespace, *, but_importing: bool = False) -> bool:
    """A plain run, or a command that a run's flags narrow."""
    others = (
        typed.status, typed.batch_status, typed.batch_results, typed.check, typed.search is not None, typed.verify, typed.reindex,
        typed.prune, typed.drop_index is not None,
        typed.export_embeddings, typed.export_occurrences, typed.init, typed.reset, typed.drop_embeddings is not None,
        typed.forget_records, typed.take_over, typed.restore_ledger, typed.audit is not None, typed.delete_remote,
        typed.forget_text is not None, typed.import_embeddings is not None and not but_importing,
    )  # fmt: skip
    return not any(others)


def _command(typed: argparse.Namespace, options: Options, console: Console) -> int:
    """One of the commands; each imports what it needs when it is called."""
    from pipeline.commands import check, export, search, status
    from pipeline.commands.run import run_stages

    if typed.status:
        return status.show_status(options, console, as_exit_code=typed.exit_code)
    if typed.batch_status or typed.batch_results:
        from pipeline.commands import batch, jobs

        return (jobs.show_jobs if typed.batch_status else batch.download)(replace(options, batches=True), console)
    if typed.check:
        return check.check(options, console)
    if typed.search is not None:
        return search.search(options, console, typed.search, typed.field, typed.top or 10, by_letters=typed.hybrid)
    if typed.export_embeddings is not None:
        return export.export_embeddings(options, console, typed.export_embeddings, typed.format)
    if typed.export_occurrences is not None:
        return export.export_occurrences(options, console, typed.export_occurrences)
    if typed.import_embeddings is not None:
        from pipeline.commands.imports import Asked, import_embeddings

        asked = Asked(typed.import_embeddings, typed.model, typed.field, typed.columns)
        return import_embeddings(options, console, asked, is_dry=typed.dry_run)
    for commands in (_answering, _forgetting, _special):
        if (ended := commands(typed, options, console)) is not None:
            return ended
    return run_stages(options, console, typed.start, typed.end)


def _answering(typed: argparse.Namespace, options: Options, console: Console) -> int | None:
    """The commands of whoever must answer for the catalogue."""
    if typed.audit is not None:
        from pipeline.commands import audit

        return audit.write_audit(options, console, Path(typed.audit)) if typed.audit else audit.show_runs(options, console)
    if typed.delete_remote:
        from pipeline.commands import delete_remote

        return delete_remote.delete_remote(options, console)
    return None


def _forgetting(typed: argparse.Namespace, options: Options, console: Console) -> int | None:
    """Forgetting, on purpose and by name."""
    from pipeline.commands import forget, forget_text

    if typed.reset is not None:
        return forget.reset(options, console, typed.reset)
    if typed.drop_embeddings is not None:
        return forget.drop_embeddings(options, console, typed.drop_embeddings)
    if typed.drop_index is not None:
        return forget.drop_index(options, console, typed.drop_index)
    if typed.forget_records is not None:
        return forget.forget_records(options, console, typed.forget_records)
    if typed.forget_text is not None:
        return forget_text.forget_text(options, console, typed.forget_text)
    if typed.take_over:
        return forget.take_over(options, console)
    return None


def _special(typed: argparse.Namespace, options: Options, console: Console) -> int | None:
    """The other commands that change something, a plain run aside."""
    from pipeline.commands import dry_run, index
    from pipeline.commands.run import retry_failed

    if typed.dry_run:
        return dry_run.dry_run(options, console)
    if typed.verify:
        return index.verify(options, console)
    if typed.reindex:
        return index.reindex(options, console)
    if typed.prune:
        return index.prune(options, console)
    if typed.retry_failed:
        return retry_failed(options, console)
    if typed.restore_ledger:
        from pipeline.commands import restore

        return restore.restore_ledger(options, console)
    return None
