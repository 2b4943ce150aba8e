"""The commands of batch mode, in plain words: what each did, what waits for what, and what to type next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.belonging import forget_failed
from pipeline.commands.console import Console, dollars, strings
from pipeline.commands.jobs import saving
from pipeline.commands.session import Options, changing, load
from pipeline.commands.telling import ping_after, tell
from pipeline.context import Context
from pipeline.errors import AlreadyToldError, BudgetError, InputError, LockedError, StoreError, UsageError, UserError
from pipeline.ledger import Generation, Job
from pipeline.ledger.jobs import UNCOLLECTED, UNSENT

if TYPE_CHECKING:
    from pipeline.batch.life import Batches, Pass


def advance(options: Options, console: Console) -> int:
    """One pass, from cron. Another run at work is no alarm: cron will be back."""
    config, _ = load(options)
    try:
        exit_code = one_pass(options, console, "--advance")
    except LockedError as problem:  # and no ping: a run that hangs would go unnoticed
        console.answer(str(problem))
        console.document({"locked": True})
        return 0
    ping_after(config, console)
    return exit_code


def one_pass(options: Options, console: Console, command: str) -> int:
    """`--advance`, `--create`, which leaves alone what is at the service, or `--retry-failed`."""
    with _session(options, console, command) as (context, batches):
        if command == "--retry-failed":
            dropped = forget_failed(context.ledger, context.config.vector_store, batches.generation, context.fields)
            context.ledger.jobs.forget_attempts(batches.generation.id)
            _resend_lost(context, console, agreed=options.yes)
            console.say(f"{strings(dropped)} that had failed will go again.")
        if command != "--create":
            return create_and_exit(context, console, batches)
        done = _pass(batches, collect_first=False)
        _tell(console, done)
        return _end(context, console, batches, done)


def wait(options: Options, console: Console) -> int:
    """Pass after pass until nothing is open and nothing is pending."""
    with _session(options, console, "--wait") as (context, batches):
        return run_to_the_end(context, console, batches)


def create_and_exit(context: Context, console: Console, batches: Batches) -> int:
    """Manual polling: what is finished is collected, what may go is submitted, and the command ends."""
    done = _pass(batches, collect_first=True)
    _index(batches, done)
    _tell(console, done)
    return _end(context, console, batches, done)


def run_to_the_end(context: Context, console: Console, batches: Batches) -> int:
    """Automatic mode: submit, poll with a bar, collect, submit what waits, index, until all is done."""

    total = sum(job.requests for job in context.jobs_here(("creating", "open", "ended"))) + batches.pending()
    collected: list[Job] = []
    submitted: list[Job] = []
    copied = -1
    with console.bar("batches", total) as bar:
        while True:
            done = _pass(batches, collect_first=True, wait=True)
            collected += done.collected
            submitted += done.submitted
            bar.advance(sum(job.embedded or 0 for job in done.collected))
            _index(batches, done)
            if context.ledger.changes != copied:  # this goes on for days: a ledger that is lost then is restored from here
                context.ledger.save_copy(context.place.copy)
                copied = context.ledger.changes
            at_the_service = context.jobs_here(("creating", "open"))
            still = [job for job in at_the_service if not _given_up(context, job, batches.client.now())]
            # With nothing at the service, what waits for an hour's creations to pass is all that is left to wait for.
            waits = bool(done.waits_for) and not at_the_service
            if done.stop is not None or not (still or waits):
                break
            tell(context, console, at_work=True)
            context.clock.sleep(context.config.batch_poll_interval)
    done.collected, done.submitted = collected, submitted
    _tell(console, done)
    return _end(context, console, batches, done)


def download(options: Options, console: Console) -> int:
    """Collect what is finished, index it, submit nothing."""
    try:
        with _session(options, console, "--download", reads_input=False) as (context, batches):
            from pipeline.batch.life import Pass, collect

            done = Pass()
            collect(batches, done, repeat=False)
            _index(batches, done)
            _tell(console, done)
            return _end(context, console, batches, done)
    except LockedError as problem:
        console.answer(str(problem))
        console.document({"locked": True})
        return 0


def cancel(options: Options, console: Console, numbers: Sequence[int]) -> int:
    """Ask the service to stop; what it did until then is paid and is collected by the next `--download`."""
    with _session(options, console, "--cancel", reads_input=False) as (context, batches):
        jobs = {job.id: job for job in context.jobs_here(("open",))}
        for number in numbers:
            if number not in jobs:
                open_ = ", ".join(map(str, jobs)) or "none"
                raise UsageError(f"Job {number} is not open at {context.service.name}; open are: {open_}.")
        for number in numbers or list(jobs):
            found = batches.client.cancel(jobs[number].batch or "")
            context.ledger.jobs.change(number, status=found.status)
            console.answer(
                f"Job {number}: {found.status}. What was done by then is collected with: python batch_manager.py --download"
            )
        console.document({"cancelled": list(numbers or jobs)})
    return 0


def sweep(options: Options, console: Console) -> int:
    """Delete our request files that no uncollected job needs; list first, and touch nothing of others."""
    with _session(options, console, "--sweep", reads_input=False) as (context, batches):
        from pipeline.batch.collect import delete_file
        from pipeline.batch.remote_files import job_of

        ours = f"{context.ledger.meta('catalogue_id')}_"
        needed = {job.input_file for job in context.ledger.jobs.all(("uploaded", "creating", "open", "ended"))}
        names = {job.remote_name(ours[:-1]) for job in context.ledger.jobs.all(("prepared",))}
        found = [file for file in batches.client.files() if file.name.startswith(ours) and file.name not in names]
        over = [file for file in found if file.id not in needed]
        for file in over:
            delete_file(context, batches.client, file.id, job_of(file.name, ours[:-1]) or 0, "input")
        deleted = [file.id for file in over]
        console.document({"deleted": deleted})
        console.answer(f"{len(deleted)} of our files at the service deleted; {len(found) - len(deleted)} are still needed.")
    return 0


def finish_realtime(options: Options, console: Console) -> int:
    """What is pending goes through real time now; open jobs are left to finish, and are paid already."""
    from pipeline.commands.run import run_stages

    return run_stages(replace(options, settings=[*options.settings, "use_batch_embeddings=false"]), console, None, None)


@contextlib.contextmanager
def _session(options: Options, console: Console, command: str, *, reads_input: bool = True) -> Iterator[tuple[Context, Batches]]:
    """Lock, ledger, service and tables; the input is read first where strings may be submitted."""
    from pipeline.batch.life import opened
    from pipeline.stages import stage_named

    with changing(options, console, f"batch_manager.py {command}", needs_key=True) as context:
        if reads_input:
            with collecting_all_the_same(context, console):
                stage_named("preprocessing").run(context)
        elif not context.ledger.fields():
            raise UserError("There is nothing here yet. To begin: python batch_manager.py --create")
        with opened(context) as batches:
            yield context, batches


@contextlib.contextmanager
def collecting_all_the_same(context: Context, console: Console) -> Iterator[None]:
    """An input that can't be read stops what would be submitted, not what comes home: paid results expire."""
    from pipeline.batch.life import Pass, collect, opened

    try:
        yield
    except InputError:
        if context.ledger.jobs.all(("creating", "open", "ended")):
            with opened(context) as batches:
                done = Pass()
                collect(batches, done, repeat=False)
                _index(batches, done)
                _tell(console, done)
        raise


def _pass(batches: Batches, *, collect_first: bool, wait: bool = False) -> Pass:
    from pipeline.batch.deadline import cancel_open, is_past, note_work
    from pipeline.batch.life import Pass, collect, send

    context = batches.context
    done = Pass()
    if collect_first or context.ledger.jobs.all(("creating",)):
        collect(batches, done, wait=wait)
    if is_past(context, batches.client):
        late = cancel_open(context, batches.client)
        collect(batches, done)  # a service that cancels at once has the partial output ready
        done.waits_for = f"batch_deadline_hours is over: {late} jobs were cancelled, and what they did is collected"
        if not context.jobs_here(("creating", "open", "ended")):
            _finish_late_rest(batches, done)
    else:
        send(batches, done)
    is_left = bool(context.ledger.jobs.all(("prepared", "uploaded", "creating", "open", "ended"))) or batches.pending() > 0
    note_work(context, is_left=is_left)
    return done


def _finish_late_rest(batches: Batches, done: Pass) -> None:
    """Past the deadline with nothing left at the service: the rest goes through real time; its extra cost is shown first."""
    from pipeline.embedding_and_indexing import run
    from pipeline.pending import estimate

    context, service = batches.context, batches.context.service
    left = [estimate(context, batches.duck, batches.generation, name, exact=service.is_exact) for name in context.fields]
    count, tokens = sum(one.strings for one in left), sum(one.tokens for one in left)
    if not count:
        return
    extra = (service.price - service.job_price) * tokens / 1_000_000
    context.say(f"  batch_deadline_hours is over: {strings(count)} go through real time, for {dollars(extra)} more than by batch.")
    try:
        done.stop = run(context).stop
    except BudgetError as problem:
        done.stop = problem


def _index(batches: Batches, done: Pass) -> None:
    """A second model's generation takes over only when nothing of it is missing. A broken index stops no collecting."""
    from pipeline.embedding_and_indexing import index_all

    try:
        report = index_all(batches.context)
    except StoreError as problem:
        done.index_trouble = problem
        return
    done.unindexed += report.unindexed
    if report.switched:
        batches.context.say(f"  {report.switched}")


def _given_up(context: Context, job: Job, now: float) -> bool:
    """A stuck job, or one past `batch_max_wait_time`, by the service's clock `now`: automatic mode leaves it and says so."""
    from pipeline.batch.poll import is_stuck

    since = job.created_at or job.intent_at or job.prepared_at
    return is_stuck(job) or now - since > context.config.batch_max_wait_time


def _resend_lost(context: Context, console: Console, *, agreed: bool) -> None:
    """Strings of lost jobs may have been paid: they go again only on --yes, and are booked as possibly paid twice."""
    from pipeline.batch.adopt import book_as_paid_twice

    lost = context.ledger.jobs.all(("lost",))
    if not lost:
        return
    if not agreed:
        console.say(f"{len(lost)} jobs are lost at the service, perhaps paid; to send their strings again: --retry-failed --yes")
        return
    for job in lost:
        with context.ledger.transaction():
            book_as_paid_twice(context, job, f"job {job.id} was lost at the service: {job.reason}")
            context.ledger.jobs.change(job.id, state="returned", cleaned=1)


def _tell(console: Console, done: Pass) -> None:
    for job in done.submitted:
        console.say(f"  Job {job.id} submitted: {job.batch}, {job.requests:,} requests, {dollars(job.tokens * job.price / 1e6)}")
    for job in done.in_doubt:
        console.say(f"  Job {job.id} is in doubt: the reply to its create was lost; settled by the next look at the service's list")
    for job in done.collected:
        console.say(f"  Job {job.id} {job.state}: {job.status}; {job.embedded or 0:,} of {job.requests:,} embedded")
    if done.waits_for:
        console.say(f"  More waits: {done.waits_for}.")


def _elsewhere(context: Context, generation: Generation) -> Iterator[str]:
    """Jobs that this config leaves alone: of another model and not sent, or at another service."""
    ledger, numbers = context.ledger, dict[str, list[int]]()
    here = {job.id for job in context.ledger.jobs.all(UNCOLLECTED) if job.generation == generation.id}
    here |= {job.id for job in context.jobs_here(UNCOLLECTED) if job.state not in UNSENT}
    for job in ledger.jobs.all(UNCOLLECTED):
        if job.id not in here:
            numbers.setdefault(job.generation, []).append(job.id)
    for name, jobs in numbers.items():
        known = ledger.generation(name)
        whose = name if known is None else known.words
        some = ", ".join(map(str, jobs))
        yield f"Left alone: job {some} of {whose}: with a config that names it, python batch_manager.py --advance"


def _end(context: Context, console: Console, batches: Batches, done: Pass) -> int:
    """One line of summary, and the exit code."""
    from pipeline.batch.exports import drop_old_results, write_exports

    ledger = context.ledger
    open_ = context.jobs_here(("creating", "open"))
    left = batches.pending()
    failed = sum(count for (stage, _), count in ledger.failure_counts(batches.generation.id).items() if stage == "service")
    collected = sum(job.embedded or 0 for job in done.collected)
    write_exports(context, batches.generation, embedded_more=bool(collected))
    drop_old_results(context)
    line = (
        f"collected {len(done.collected)} jobs ({strings(collected)}), submitted {len(done.submitted)}, {len(open_)} at the "
        f"service, {left:,} wait, {failed:,} failed, {dollars(ledger.spent_usd())} spent or on its way"
    )
    stopped_by = str(done.stop or done.index_trouble or "")
    console.document({
        "collected": [job.id for job in done.collected], "submitted": [job.id for job in done.submitted],
        "open": [job.id for job in open_], "waiting": left, "failed": failed, "stopped_by": stopped_by,
    })  # fmt: skip
    console.answer(line + ".")
    if not open_ and not left and (less := saving(ledger.jobs.all(), context.service)):
        console.say(less.strip())
    if open_:
        console.say("To collect what is finished: python batch_manager.py --download   (or --advance, from cron)")
    if unsent := sum(job.generation == batches.generation.id for job in ledger.jobs.all(UNSENT)):
        console.say(f"Jobs that wait to be submitted: {unsent}. python batch_manager.py --create   (or --advance, from cron)")
    for words in _elsewhere(context, batches.generation):
        console.say(words)
    for trouble in (done.stop, done.index_trouble):
        if trouble is not None:
            console.complain(str(trouble))
    if done.stop or done.index_trouble or done.unindexed:
        raise AlreadyToldError from done.stop or done.index_trouble
    if ledger.jobs.all(("lost",)):
        console.complain("Jobs are lost at the service: python batch_manager.py --status")
        raise AlreadyToldError
    if failed and not open_ and not left:
        raise AlreadyToldError
    return 0
