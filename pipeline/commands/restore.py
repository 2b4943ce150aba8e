"""`--restore-ledger`: the ledger was lost or damaged; its last safe copy is brought up to date and put in its place.

The work is done on a draft under a temporary name. Until that gets the ledger's name, in one rename, nothing has happened
that a second try would not do again; after it, all has.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.checkpoint import Checkpoint, restoring
from pipeline.commands.console import Console, dollars, strings
from pipeline.commands.session import Options, context_of, greet, load
from pipeline.context import Context
from pipeline.errors import CheckpointError
from pipeline.files import temporary
from pipeline.ledger import Ledger, open_draft, open_for_writing
from pipeline.provider.service import need_key
from pipeline.restoring.places import put_in_place, set_tables_aside
from pipeline.retry import NO_WAITS
from pipeline.tables.duck import table_errors

if TYPE_CHECKING:
    from pipeline.provider.batch_client import BatchClient
    from pipeline.restoring import Restored

COMMAND = "main.py --restore-ledger"
_SHOWN = 20
_LOOK_SECONDS = 5.0


def restore_ledger(options: Options, console: Console) -> int:
    """All of it under the lock."""
    config, service = load(options)
    greet(console, config, service)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with restoring(place, COMMAND, group=config.file_group):
        began = options.clock.now()
        with _draft(place) as draft, table_errors(place.tables):
            context = context_of(replace(options, batches=True), config, service, place, draft, console)
            done, moved = _restore(context), _was_moved(context)
            if done.lost and not options.yes:
                raise CheckpointError(_words_of_loss(done))
        set_tables_aside(place, [name for name in done.aside if (place.tables / name).exists()])
        aside = put_in_place(place, began)
        _close_books(context)
    _tell(context, console, done, aside, moved=moved)
    return 0


@contextmanager
def _draft(place: Checkpoint) -> Iterator[Ledger]:
    """The copy under a temporary name; it is thrown away when anything stops the work on it."""
    draft = open_draft(place.ledger, place.copy)
    try:
        yield draft
    except BaseException:
        draft.close()
        temporary(place.ledger).unlink(missing_ok=True)
        raise
    draft.close()


def _restore(context: Context) -> Restored:
    from pipeline.provider.batch_client import BatchClient
    from pipeline.provider.client import EmbeddingClient
    from pipeline.restoring import restore

    with ExitStack() as opened:

        def ask(patiently: bool) -> BatchClient:
            need_key(context.service, context.config)
            # Without a sign of any job this is a look, not a need: a service that is down must not hold up a restore.
            service = context.service if patiently else replace(context.service, timeout=_LOOK_SECONDS)
            client = EmbeddingClient(service, context.clock, context.transport() if context.transport else None)
            opened.callback(client.close)
            return BatchClient(client, context.clock, context.policy if patiently else NO_WAITS)

        return restore(context, ask)


def _was_moved(context: Context) -> bool:
    here = (platform.node(), str(context.place.root.resolve()))
    return (context.ledger.meta("host"), context.ledger.meta("path")) != here


def _close_books(context: Context) -> None:
    """The run is noted, and the safe copy is as new as the ledger."""
    place, now = context.place, context.clock.now()
    ledger = open_for_writing(place.ledger, place.copy)
    try:
        run = ledger.start_run(COMMAND, __version__, platform.node(), os.getpid(), now)
        ledger.end_run(run, now, 0)
        ledger.save_copy(place.copy)
    finally:
        ledger.close()


def _words_of_loss(done: Restored) -> str:
    named = "; ".join(done.lost[:_SHOWN])
    more = f"; and {len(done.lost) - _SHOWN:,} more" if len(done.lost) > _SHOWN else ""
    return (
        f"Paid work can't be taken in: {named}{more}. Nothing was changed. Bring these files back from a backup and type the same "
        "again; or go on without them, and what they held is paid for again: --restore-ledger --yes"
    )


def _tell(context: Context, console: Console, done: Restored, aside: list[str], *, moved: bool) -> None:
    place = context.place
    console.document({**asdict(done), "ledger": str(place.ledger), "moved_aside": aside, "take_over": moved})
    console.answer(f"{place.ledger} is restored from the last safe copy and what is newer than it:")
    for name, count in done.strings.items():
        console.answer(f"  {strings(count)} of {name} with their row numbers")
    for name, count in done.embeddings.items():
        console.answer(f"  {count:,} embeddings of {name}")
    if not done.strings and not done.embeddings:
        console.answer("  no tables were newer")
    if done.asked:
        states = ", ".join(f"{count} {state}" for state, count in sorted(done.jobs.items())) or "none"
        console.answer(f"  jobs, by the service's list: {states}; {done.new_jobs} of them the copy did not know")
    else:
        console.answer("  no batch jobs: there is no sign of any")
    if done.waiting:
        console.answer(f"  {strings(done.waiting)} answered and not in a table yet: the next run collects them")
    for name in aside:
        console.answer(f"What stood there is kept as {place.root / name}")
    for name, reason in sorted(done.aside.items()):
        where = place.not_restored / name if (place.not_restored / name).exists() else place.root / name
        console.answer(f"Not taken in, and kept: {where}: {reason}")
    for words in done.lost:
        console.answer(f"Gone: {words}")
    _tell_what_is_unknown(context, console, done)
    _tell_next(console, done, moved=moved)


def _tell_what_is_unknown(context: Context, console: Console, done: Restored) -> None:
    if done.told_usd:
        console.answer(f"Booked for these embeddings, as their files say: {dollars(done.told_usd)}.")
    if done.estimated_usd:
        how = "tokens counted" if done.is_exact else "at most: a token for each byte"
        console.answer(f"Booked as an estimate for those whose files do not say it: {dollars(done.estimated_usd)} ({how}).")
    at_most = context.config.max_concurrent_requests
    console.answer(
        "What can't be known: which strings had failed, were possibly paid twice, pruned or searched for since the copy; and "
        f"whether real-time requests were on the wire when the ledger was lost. If so, at most {at_most} of them were paid for "
        "nothing, and are not in the books."
    )


def _tell_next(console: Console, done: Restored, *, moved: bool) -> None:
    console.say("What to type next:")
    if moved:
        console.say("  python main.py --take-over   (the copy was made in another place)")
    go_on = "  python main.py              (reads the input again, and goes on)"
    verify = "  python main.py --verify     (compares the tables with their hashes, and the index with the embeddings)"
    # Without the counts of the last reading every string would look changed to --verify.
    for line in (go_on, verify) if done.gone else (verify, go_on):
        console.say(line)
    if sum(count for state, count in done.jobs.items() if state not in ("collected", "returned")):
        console.say("  python batch_manager.py --advance")
