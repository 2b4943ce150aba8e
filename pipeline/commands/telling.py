"""Who is told what, and when: `notify_command` at the end of a command, once for each event; `ping_url` after `--advance`.

    finished       nothing is left; again only when more came in and is finished too
    needs_person   something new needs a person
    no_progress    nothing has moved for `notify_no_progress_hours`

What was told is in the ledger. A telling that failed is tried again after an hour; none ever changes what a command
answers, or its exit code.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pipeline.commands.console import Console, dollars, moment, strings
from pipeline.commands.standing import FINISHED, IN_PROGRESS, in_jobs, status_of
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import AlreadyToldError, NamesakeError
from pipeline.ledger import Stop, Told
from pipeline.log import event, logger, without_secrets
from pipeline.notify import ping, run_program

_AGAIN = 3600.0  # seconds after which a telling that failed is tried again
_WORK = (
    "main.py",
    "main.py --retry-failed",
    *(f"batch_manager.py {flag}" for flag in ("--advance", "--create", "--wait", "--retry-failed")),
)
_DOWNLOAD = "batch_manager.py --download"
_log = logger(__name__)


def goes_on(command: str) -> bool:
    """Whether this command goes on with the work, so that its end is worth telling."""
    return command in (*_WORK, _DOWNLOAD)


def note_end(context: Context, command: str, problem: BaseException | None) -> None:
    """Keep what stopped a command that goes on with the work; one that ends well settles what stopped those before it."""
    if not goes_on(command) or isinstance(problem, KeyboardInterrupt | BrokenPipeError):  # the reader of our words went away
        return
    if isinstance(problem, AlreadyToldError):
        problem = problem.__cause__  # what failed by itself is in the ledger anyway
    kind, news = ("download" if command == _DOWNLOAD else "work"), context.ledger.news
    with context.ledger.transaction():
        if news.stops():
            news.drop_stop("download" if kind == "download" else None)
        if problem is not None:
            passes = isinstance(problem, NamesakeError) and problem.passes
            words = without_secrets(str(problem)) or type(problem).__name__
            news.save_stop(kind, Stop(command, type(problem).__name__, words, passes, context.clock.now()))


def tell(context: Context, console: Console, *, at_work: bool = False) -> None:
    """Run `notify_command` for what is new. `at_work`: the command goes on after this."""
    if context.config.notify_command is None:
        return
    try:
        found = status_of(context.ledger, context.config, context.service, context.clock.now(), at_work=at_work)
        for name, detail, words in _news(context, found) if found["input"] else ():
            _tell(context, console, found, name, detail, words)
    except (NamesakeError, sqlite3.Error) as problem:
        console.complain(f"Warning: notify_command was not run, for what is told could not be noted down: {problem}")


def ping_after(config: Config, console: Console) -> None:
    """The dead man's switch: whoever misses it knows that nothing runs here any more."""
    url = config.ping_url
    if url is not None and (trouble := ping(url)):
        console.complain(f"Warning: ping_url ({urlsplit(url).hostname}): {trouble}")


def _news(context: Context, found: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """(event, what it is known by, the sentences) of what is to be told now."""
    if found["state"] == FINISHED:
        done = json.dumps([found["input"]["read_at"], *_counts(found, "embedded", "indexed", "failed")])
        if _is_due(context, "finished", done):
            yield "finished", done, [_finished(found)]
    yield from _new_needs(context, found)
    yield from _standstill(context, found)


def _new_needs(context: Context, found: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Told once for each thing that needs a person; one that is settled, and comes back, is told again.

    Strings that failed are known by their number: they are no need while work goes on, as it does each day where additions
    come each day, and are not settled by that. More of them are news.
    """
    news = context.ledger.news
    failed = sum(failure["strings"] for failure in found["failures"] if failure["stage"] != "preflight")
    keys = {f"failed {failed}" if key == "failed" else key for need in found["needs"] for key in need["keys"]}
    told = news.told("needs_person")
    known = set() if told is None else {*json.loads(told.detail)}
    still = min(failed, max((int(key.split()[1]) for key in known if key.startswith("failed ")), default=0))
    known_still = {f"failed {still}"} if still else set()
    if not keys <= known | known_still or (keys and told is not None and _is_due(context, "needs_person", told.detail)):
        detail = json.dumps(sorted(keys | (known_still if f"failed {failed}" not in keys else set())))
        yield "needs_person", detail, [f"{need['words']}: {need['command']}" for need in found["needs"]]
    elif (
        told is not None and keys | known_still != known and not found["stopped_by"]
    ):  # a service that is down says nothing of them
        news.save_told(replace(told, detail=json.dumps(sorted(keys | known_still))))


def _standstill(context: Context, found: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Since when nothing has moved is the moment at which all that moves was first seen as it is now."""
    news, now, hours = context.ledger.news, context.clock.now(), context.config.notify_no_progress_hours
    jobs = found["jobs"]
    counts = _counts(found, "embedded", "indexed", "pending", "in_jobs", "to_index")
    mark = json.dumps([found["input"]["read_at"], *counts, jobs["collected"], jobs["at_the_service"], jobs["to_be_collected"]])
    seen = news.told("progress")
    if seen is None or seen.detail != mark:
        news.save_told(Told("progress", mark, now))
    elif (
        hours is not None
        and found["state"] == IN_PROGRESS
        and now - seen.at >= hours * 3600
        and _is_due(context, "no_progress", mark)
    ):
        words = f"No progress since {moment(seen.at)}: {strings(found['pending'])} pending, {in_jobs(found):,} in batch jobs"
        stops = [f"The last {stop['command']} was stopped: {stop['words']}" for stop in found["stopped_by"]]
        yield "no_progress", mark, [f"{words}. To look: python main.py --status", *stops]


def _counts(found: dict[str, Any], *names: str) -> list[int]:
    return [sum(field[name] for field in found["fields"].values()) for name in names]


def _is_due(context: Context, name: str, detail: str) -> bool:
    """Not told yet as it is now, or told in vain a while ago."""
    told = context.ledger.news.told(name)
    if told is None or told.detail != detail:
        return True
    return told.failed and not 0 <= context.clock.now() - told.at < _AGAIN


def _tell(context: Context, console: Console, found: dict[str, Any], name: str, detail: str, words: Sequence[str]) -> None:
    """Noted down before it is told: a kill in between costs an hour, and never a second telling of what arrived."""
    news, now = context.ledger.news, context.clock.now()
    news.save_told(Told(name, detail, now, failed=True))
    document = {
        "event": name,
        "words": [console.ready(sentence) for sentence in words],
        "at": dt.datetime.fromtimestamp(now, dt.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "checkpoint_dir": str(context.place.root),
        "status": found,
    }
    config = context.config
    trouble = run_program(config.notify_command or (), document, config.folder, os.environ, config.secret_variables)
    event(_log, "told", what=name, trouble=trouble or "none")
    if trouble:
        console.complain(f"Warning: notify_command: {trouble}. It is tried again in an hour.")
    else:
        news.save_told(Told(name, detail, now))


def _finished(found: dict[str, Any]) -> str:
    embedded, failed = _counts(found, "embedded", "failed")
    listed = f", {failed:,} listed in failures.csv" if failed else ""
    return f"Finished: {strings(embedded)} embedded{listed}; {dollars(found['spent_usd'])} of {dollars(found['budget_usd'])} spent."
