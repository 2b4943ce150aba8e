"""Looking at batch mode without changing anything: every job, what it cost, and the strings that failed."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pipeline.belonging import scope_of
from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console, dollars, strings
from pipeline.commands.session import Options, greet, load, transport_of
from pipeline.commands.standing import status_of
from pipeline.commands.status import needs_you
from pipeline.config import Config
from pipeline.errors import ServiceError, UserError
from pipeline.ledger import Job, Ledger
from pipeline.locking import lock_holder
from pipeline.provider.service import Service, generation_of, need_key
from pipeline.retry import NO_WAITS

if TYPE_CHECKING:
    from pipeline.provider.client import EmbeddingClient

_ASK_SECONDS = 5.0  # how long `--status` waits for the service
_HOUR = 3600.0


def show_jobs(options: Options, console: Console) -> int:
    """Every job; the service's own word for the open ones, if it answers within some seconds."""
    config, service = load(options)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        if ledger is None:
            console.document({"jobs": []})
            console.answer("There are no jobs yet. To begin: python batch_manager.py --create")
            return 0
        jobs = ledger.jobs.all()
        here = {known.id for known in ledger.generations() if known.service == service.name}
        open_ = [job for job in jobs if job.state == "open" and job.generation in here]
        now, remark = _ask(options, config, service, place, open_)
        document = {"jobs": [asdict(job) | {"status_now": now.get(job.id)} for job in jobs], "as_of": remark or "now"}
        found = status_of(ledger, config, service, options.clock.now(), lock_holder(place.lock))
        console.document(document | {"status": found})
        _show_jobs(console, jobs, now, remark)
        console.answer(_sums(ledger, jobs, service))
        for line in needs_you(found):
            console.answer(line)
    return 0


def list_remote(options: Options, console: Console) -> int:
    """The batches at the service as it lists them; ours are marked. It takes no lock, so it can be asked while a run is at work."""
    from pipeline.provider.batch_client import BatchClient

    config, service = load(options)
    need_key(service, config)
    greet(console, config, service)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        if ledger is None or not ledger.fields():
            raise UserError("There is nothing here yet. To begin: python batch_manager.py --create")
        ours = ledger.meta("catalogue_id")
    with _client(options, service, place) as client:
        listed = BatchClient(client, options.clock, options.policy).batches()
        found = [asdict(batch) | {"ours": batch.metadata.get("catalogue_id") == ours} for batch in listed]
    console.document({"batches": found})
    for batch in found:
        when = dt.datetime.fromtimestamp(batch["created_at"], dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        mark = f"ours, job {batch['metadata'].get('job')}" if batch["ours"] else "not ours"
        console.answer(f"  {batch['id']}  {batch['status']:<12} {when}  {mark}")
    console.answer(f"{len(found)} batches at the service, {sum(batch['ours'] for batch in found)} of them ours.")
    return 0


@contextlib.contextmanager
def _client(options: Options, service: Service, place: Checkpoint) -> Iterator[EmbeddingClient]:
    from pipeline.provider.client import EmbeddingClient

    mount = transport_of(service, place, batches=True)
    client = EmbeddingClient(service, options.clock, mount() if mount else None)
    try:
        yield client
    finally:
        client.close()


def _ask(options: Options, config: Config, service: Service, place: Checkpoint, open_: Sequence[Job]) -> tuple[dict[int, str], str]:
    """The service's word for the open jobs now, or since when ours is known."""
    from pipeline.provider.batch_client import BatchClient

    if not open_:
        return {}, ""
    need_key(service, config)
    found: dict[int, str] = {}
    began = options.clock.elapsed()
    try:
        with _client(options, replace(service, timeout=_ASK_SECONDS), place) as client:
            for job in open_:
                if options.clock.elapsed() - began > _ASK_SECONDS:
                    return found, "partly now: the service is slow"
                shown = BatchClient(client, options.clock, NO_WAITS).retrieve(job.batch or "")
                found[job.id] = f"{shown.status} {shown.completed + shown.failed:,}/{shown.total or job.requests:,}"
    except ServiceError as problem:
        hours = max(0.0, options.clock.now() - max(job.prepared_at for job in open_)) / _HOUR  # the clock may have been set back
        return found, f"as of up to {hours:.0f} hours ago; the service could not be asked: {problem}"
    return found, ""


def _show_jobs(console: Console, jobs: Sequence[Job], now: dict[int, str], remark: str) -> None:
    if remark:
        console.answer(f"({remark})")
    console.answer(f"  {'job':>5}  {'state':<10} {'at the service':<26} {'requests':>9} {'embedded':>9} {'price':>9}  batch")
    for job in jobs:
        paid = (job.paid_tokens if job.paid_tokens is not None else job.tokens) * job.price / 1_000_000
        word = now.get(job.id) or job.status or "-"
        embedded = f"{job.embedded:,}" if job.state == "collected" else "-"
        console.answer(
            f"  {job.id:>5}  {job.state:<10} {word:<26} {job.requests:>9,} {embedded:>9} {dollars(paid):>9}  {job.batch or '-'}"
        )
        if job.reason:
            console.answer(f"         {job.reason}")


def _sums(ledger: Ledger, jobs: Sequence[Job], service: Service) -> str:
    """Counts, money, and for what is collected the estimate beside the bill and what real time would have cost."""
    open_ = sum(job.state in ("creating", "open") for job in jobs)
    ended = sum(job.state == "ended" for job in jobs)
    words = (
        f"{len(jobs)} jobs: {open_} at the service, {ended} to be collected. Spent or on its way: {dollars(ledger.spent_usd())}."
    )
    words += saving(jobs, service)
    return words + (" To collect what is finished: python batch_manager.py --download" if open_ or ended else "")


def saving(jobs: Sequence[Job], service: Service) -> str:
    """Of what is collected: the estimate, the bill, and what real time would have cost more."""
    done = [job for job in jobs if job.state == "collected" and job.price]
    if not done:
        return ""
    estimate = sum(job.tokens * job.price for job in done) / 1_000_000
    paid = sum((job.paid_tokens or 0) * job.price for job in done) / 1_000_000
    saved = sum((job.paid_tokens or 0) * (service.price - job.price) for job in done) / 1_000_000
    return f" Collected: estimated {dollars(estimate)}, paid {dollars(paid)}, {dollars(saved)} less than in real time."


def failures(options: Options, console: Console) -> int:
    """Strings that have failed, with reasons; all of them stand in failures.csv."""
    config, service = load(options)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with reading(place) as ledger:
        found = (
            [] if ledger is None else [asdict(one) for scope in _scopes(ledger, config, service) for one in ledger.failures(scope)]
        )
    console.document({"failures": found})
    for failure in found[:50]:
        console.answer(f"  {failure['field']} {failure['row']}: {failure['stage']} {failure['code']}: {failure['reason']}")
    console.answer(f"{strings(len(found))} failed; listed with their texts in {place.failures}" if found else "Nothing has failed.")
    return 0


def _scopes(ledger: Ledger, config: Config, service: Service) -> tuple[str, str]:
    """Where failures are kept: those of the service, and those of the index."""
    generation = generation_of(service, ledger)
    return generation.id, scope_of(config.vector_store, generation)
