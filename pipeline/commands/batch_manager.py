"""The command line of `batch_manager.py`: arguments, one call, one exit code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.commands.entry import Parser, flags_of_all, options_of, run, set_log_level

if TYPE_CHECKING:
    from pipeline.commands.console import Console


def parser() -> argparse.ArgumentParser:
    """All commands and their flags; the README's table is held to this by a test."""
    made = Parser(
        prog="batch_manager.py",
        description="Batch mode by hand or by cron: half the price, results within 24 hours.",
        allow_abbrev=False,
    )
    what = made.add_argument_group("commands").add_mutually_exclusive_group(required=True)
    what.add_argument("--create", action="store_true", help="read the input, prepare jobs, and submit what the limits allow")
    what.add_argument("--status", action="store_true", help="every job, with the service's own word for the open ones")
    what.add_argument("--list", action="store_true", help="the batches at the service, ours and others'")
    what.add_argument("--failures", action="store_true", help="strings that have failed, with reasons")
    what.add_argument("--download", action="store_true", help="collect what is finished, and index it")
    what.add_argument("--advance", action="store_true", help="collect, submit, index, once: the line for cron")
    what.add_argument("--wait", action="store_true", help="advance until everything is done")
    what.add_argument("--cancel", metavar="JOB", nargs="*", type=int, help="cancel these jobs (all open ones, if none is named)")
    what.add_argument("--retry-failed", action="store_true", help="let failed strings go again, and submit them")
    what.add_argument("--finish-realtime", action="store_true", help="embed what is in no job now, in real time")
    what.add_argument("--sweep", action="store_true", help="delete our files at the service that no open job needs")
    flags_of_all(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    return run(parser(), arguments, _call)


def _call(typed: argparse.Namespace, console: Console, umask: int) -> int:
    from pipeline.commands import batch, jobs

    options = options_of(typed, umask, batches=True)
    set_log_level(typed, options)
    if typed.status:
        return jobs.show_jobs(options, console)
    if typed.list:
        return jobs.list_remote(options, console)
    if typed.failures:
        return jobs.failures(options, console)
    if typed.download:
        return batch.download(options, console)
    if typed.cancel is not None:
        return batch.cancel(options, console, typed.cancel)
    if typed.sweep:
        return batch.sweep(options, console)
    if typed.finish_realtime:
        return batch.finish_realtime(options, console)
    if typed.wait:
        return batch.wait(options, console)
    if typed.create or typed.retry_failed:
        return batch.one_pass(options, console, "--create" if typed.create else "--retry-failed")
    return batch.advance(options, console)
