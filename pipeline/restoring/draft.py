"""One restore, from the safe copy as a draft to the draft brought up to date: tables, then jobs, spool and money."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.errors import NamesakeError
from pipeline.log import event, logger
from pipeline.preprocessing import reset as read_again
from pipeline.provider.batch_client import BatchClient
from pipeline.provider.service import LOCAL_URL
from pipeline.restoring.jobs import FromJobs, JobsAgain, has_jobs
from pipeline.restoring.money import adopt_spool, book_real_time
from pipeline.restoring.tables import adopt_tables
from pipeline.tables.duck import connect, duck_errors

_log = logger(__name__)


@dataclass(slots=True)
class Restored:
    """What a draft holds now that the copy did not. `aside`: files that were not taken in; `lost`: paid work that is gone;
    `asked`: whether the service was, about jobs; `gone`: derived tables that the next reading has to make again."""

    strings: dict[str, int] = field(default_factory=dict)
    embeddings: dict[str, int] = field(default_factory=dict)
    asked: bool = False
    new_jobs: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    told_usd: float = 0.0
    estimated_usd: float = 0.0
    is_exact: bool = True
    gone: int = 0
    aside: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def _may_ask(context: Context) -> bool:
    """Whether a service of batches may be there; the local one remembers in a folder, and is not made for the question."""
    return context.service.base_url != LOCAL_URL or context.place.local_service.exists()


def restore(context: Context, ask: Callable[[bool], BatchClient]) -> Restored:
    """Bring the draft up to date. `ask` opens the service: patiently when there was a job, for then it must answer; else one
    look is worth its while, and a catalogue that never had a job is restored offline too."""
    with closing(connect(context.place.scratch, context.config.memory_limit_gb)) as duck, duck_errors(context.place.scratch):
        tables = adopt_tables(context, duck)
        made_by = {piece.origin.job for piece in tables.pieces if piece.origin is not None and piece.origin.job is not None}
        had_jobs = has_jobs(context, bool(made_by))
        jobs, asked = FromJobs(), had_jobs or _may_ask(context)
        if asked:
            try:
                jobs = JobsAgain(context, duck, ask(had_jobs), made_by).restore()
            except NamesakeError:
                if had_jobs:
                    raise
                asked = False  # no sign of a job here, and nobody to ask: nothing of the draft was changed
        spool = adopt_spool(context, duck)
        booked = book_real_time(context, duck, tables.pieces, jobs)
    # Whatever the copy says of the input was said before what is restored here: it is read once more, whole.
    read_again(context.ledger)
    done = Restored(tables.strings, {}, asked, jobs.new, jobs.states, spool.waiting, booked.told, booked.estimated, booked.is_exact)
    for name, count in jobs.strings.items():
        done.strings[name] = done.strings.get(name, 0) + count
    for piece in tables.pieces:
        done.embeddings[piece.field] = done.embeddings.get(piece.field, 0) + span_sets.count(piece.rows)
    done.gone, done.aside = tables.gone, tables.aside | jobs.aside
    done.lost = [*tables.lost, *jobs.lost, *spool.lost]
    event(
        _log, "ledger.restored", strings=sum(done.strings.values()), embeddings=sum(done.embeddings.values()), jobs=done.new_jobs,
        aside=len(done.aside), lost=len(done.lost),
    )  # fmt: skip
    return done
