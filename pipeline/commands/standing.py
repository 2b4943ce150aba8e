"""Where things stand, as plain values from the ledger alone: finished, in progress, or in need of a person, and why.

finished      nothing is left of what was last read: nothing to embed, in a job, on the wire or to be indexed
in_progress   something is left, and the next run goes on with it by itself
needs_person  something that no further run settles, whatever else goes on beside it

What is shown of it is `status.py`, and who is told `telling.py`. It asks neither the input, nor the service, nor the index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import spans as span_sets
from pipeline.belonging import FORGETTING, pending_in_index, refused, scope_of
from pipeline.commands.console import moment, strings
from pipeline.commands.pace import Arrival, pace_of
from pipeline.config import Config
from pipeline.ledger import Generation, Job, Ledger, Snapshot
from pipeline.ledger.jobs import UNSENT
from pipeline.locking import LockHolder
from pipeline.provider.service import Service, generation_of

FINISHED, IN_PROGRESS, NEEDS_PERSON = "finished", "in_progress", "needs_person"
EXIT_CODES = {FINISHED: 0, IN_PROGRESS: 3, "new": 3, NEEDS_PERSON: 1}
_KEPT_SECONDS = 2_592_000  # results, at the service: what we ask for with each create
_NEARLY_GONE = 3 * 86_400.0


@dataclass(frozen=True, slots=True)
class Need:
    """What needs a person: the sentence, and the command to type. `keys` is what it is known by, so that it is told once."""

    keys: tuple[str, ...]
    words: str
    command: str


def status_of(
    ledger: Ledger, config: Config, service: Service, now: float, holder: LockHolder | None = None, *, at_work: bool = False
) -> dict[str, Any]:
    """The state as plain values. `holder` has the lock now; `at_work`: we have it, and go on."""
    generation = generation_of(service, ledger)
    kind = "full" if ledger.snapshot("full") is not None else "trial"
    scope = scope_of(config.vector_store, generation)
    configured = [field.name for field in config.fields]
    names = sorted(ledger.fields(), key=lambda name: (configured.index(name) if name in configured else len(configured), name))
    fields = {name: _field(ledger, generation, kind, scope, name) for name in names}
    doubtful, doubtful_usd = ledger.doubt_totals()
    on_the_wire = ledger.intents().values()
    jobs = ledger.jobs.all()
    spent = sum(spending.usd for spending in ledger.spendings())
    found: dict[str, Any] = {
        "catalogue_id": ledger.meta("catalogue_id"),
        "input": _input(ledger.snapshot(kind)),
        "generation": {
            "id": generation.id,
            "service": generation.service,
            "model": generation.model,
            "dimensions": generation.dimensions,
        },
        "generations": list(_generations(ledger, config.vector_store, generation)),
        "vector_store": config.vector_store,
        "index_later": config.index_later,
        "fields": fields,
        "pending": sum(fields[field.name]["pending"] for field in config.fields if field.name in fields),
        "failures": [
            {"stage": stage, "code": code, "strings": count}
            for failed_in in (generation.id, scope)
            for (stage, code), count in ledger.failure_counts(failed_in).items()
        ],
        "spent_usd": spent,
        "on_its_way_usd": ledger.on_its_way_usd(),
        "tokens": sum(spending.tokens for spending in ledger.spendings()),
        "budget_usd": config.budget_usd,
        "possibly_paid_twice": {"strings": doubtful, "usd": doubtful_usd},
        "forgetting": sum(span_sets.count(ledger.spans(FORGETTING, "", name)) for name in names),
        "on_the_wire": {"requests": len(on_the_wire), "strings": sum(intent.strings for intent in on_the_wire)},
        "running": None if holder is None else {"pid": holder.pid, "host": holder.host, "command": holder.command},
        "stopped_by": [asdict(stop) for stop in ledger.news.stops()],
    }
    found["jobs"] = _jobs(jobs, found["pending"], config)
    found["expires"] = _expiring(jobs)
    is_going_on = at_work or holder is not None
    needs = list(_needs(found, jobs, config, now, is_going_on=is_going_on))
    found["needs"] = [asdict(need) for need in needs]
    found["state"] = NEEDS_PERSON if needs else IN_PROGRESS if is_going_on or _is_left(found) else FINISHED
    found["pace"] = _pace(ledger, generation, jobs, _to_embed(found), now)
    return found


def _generations(ledger: Ledger, store: str, configured: Generation) -> Iterator[dict[str, Any]]:
    """Each model that anything is kept of, or is to come home for; the oldest first."""
    paid: dict[str, float] = {}
    for spending in ledger.spendings():
        paid[spending.generation] = paid.get(spending.generation, 0.0) + spending.usd
    for known in ledger.generations():
        scope = scope_of(store, known)
        counts = {
            "embedded": sum(span_sets.count(ledger.spans("embedded", known.id, name)) for name in ledger.fields()),
            "indexed": sum(span_sets.count(ledger.spans("indexed", scope, name)) for name in ledger.fields()),
            "in_jobs": sum(span_sets.count(ledger.jobs.rows_in_jobs(known.id, name)) for name in ledger.fields()),
        }
        if any(counts.values()):
            marks = {"in_use": ledger.is_current(known.id), "configured": known.id == configured.id}
            yield {"id": known.id, "words": known.words, **counts, "paid_usd": paid.get(known.id, 0.0), **marks}


def _input(snapshot: Snapshot | None) -> dict[str, Any]:
    if snapshot is None:
        return {}
    return {
        "records": snapshot.records,
        "rejected_rows": snapshot.rejected,
        "trial_of": snapshot.limited_to,
        "read_at": snapshot.created_at,
        "must_be_read_again": not snapshot.fingerprint,
    }


def _field(ledger: Ledger, generation: Generation, kind: str, scope: str, name: str) -> dict[str, int]:
    present = ledger.spans("present", kind, name)
    embedded = ledger.spans("embedded", generation.id, name)
    failed = span_sets.of_rows(failure.row for failure in ledger.failures(generation.id, name))
    in_jobs = span_sets.union(ledger.jobs.rows_in_jobs(generation.id, name))
    left = span_sets.subtract(span_sets.subtract(present, embedded), failed)
    known = ledger.fields()[name][1]
    return {
        "present": span_sets.count(present),
        "absent": known - span_sets.count(present),
        "embedded": span_sets.count(embedded),
        "indexed": span_sets.count(ledger.spans("indexed", scope, name)),
        "to_index": span_sets.count(pending_in_index(ledger, scope, generation, name)),
        "refused_by_index": span_sets.count(refused(ledger, scope, name)),
        "failed": span_sets.count(failed),
        "in_jobs": span_sets.count(in_jobs),
        "pending": span_sets.count(span_sets.subtract(left, in_jobs)),
    }


def in_jobs(found: dict[str, Any]) -> int:
    """Strings in jobs that are not collected."""
    return sum(field["in_jobs"] for field in found["fields"].values())


def lacking(found: dict[str, Any]) -> int:
    """Strings that the index should hold and does not."""
    return sum(field["to_index"] for field in found["fields"].values()) if found["vector_store"] != "none" else 0


def _to_embed(found: dict[str, Any]) -> int:
    return int(found["pending"]) + in_jobs(found)


def _is_left(found: dict[str, Any]) -> bool:
    """Whether a further run would find something to do. With `index_later` the index waits as the config says."""
    jobs = found["jobs"]
    uncollected = jobs["to_be_submitted"] + jobs["at_the_service"] + jobs["to_be_collected"]
    return bool(
        found["pending"]
        or uncollected
        or found["on_the_wire"]["requests"]
        or (lacking(found) and not found["index_later"])
        or found["input"].get("must_be_read_again")
        or found["stopped_by"]
    )


def _jobs(jobs: Sequence[Job], pending: int, config: Config) -> dict[str, int]:
    """How many jobs are where. Those to be made are an estimate: a request file is written when it may go."""
    count = {state: sum(job.state == state for job in jobs) for state in {job.state for job in jobs}}
    usual = max((job.requests for job in jobs), default=min(config.batch_embedding_size, config.max_requests_per_file))
    return {
        "collected": count.get("collected", 0),
        "at_the_service": count.get("open", 0) + count.get("creating", 0),
        "to_be_collected": count.get("ended", 0),
        "to_be_submitted": sum(count.get(state, 0) for state in UNSENT),
        "in_doubt": count.get("creating", 0),
        "lost": count.get("lost", 0),
        "to_be_made": math.ceil(pending / usual) if jobs or config.use_batch_embeddings else 0,
    }


def _expiring(jobs: Sequence[Job]) -> dict[str, float | None]:
    """When the first batch at the service ends by itself, and when the first results there are deleted, at the earliest."""
    ends = [job.expires_at for job in jobs if job.state == "open" and job.expires_at is not None]
    kept = [_gone_at(job) for job in jobs if job.state in ("open", "ended")]
    return {"first_batch_at": min(ends, default=None), "first_results_at": min(kept, default=None)}


def _gone_at(job: Job) -> float:
    return (job.created_at or job.intent_at or job.prepared_at) + _KEPT_SECONDS


def _needs(found: dict[str, Any], jobs: Sequence[Job], config: Config, now: float, *, is_going_on: bool) -> Iterator[Need]:
    if not is_going_on:  # else it has been typed again already
        for stop in found["stopped_by"]:
            if not stop["passes"]:
                yield Need((f"stopped {stop['error']}",), f"{stop['words'].rstrip('.')}. Then", f"python {stop['command']}")
    yield from _needs_of_jobs(jobs, config, now)
    failed = sum(failure["strings"] for failure in found["failures"] if failure["stage"] != "preflight")
    if failed and not (_to_embed(found) or is_going_on):
        words = f"{strings(failed)} failed at the service or the index; listed in failures.csv. To ask for the failed ones again"
        yield Need(("failed",), words, "python main.py --retry-failed")


def _needs_of_jobs(jobs: Sequence[Job], config: Config, now: float) -> Iterator[Need]:
    from pipeline.batch.poll import ENDED, is_stuck

    lost = [job for job in jobs if job.state == "lost"]
    if lost:
        way = "to send their strings again, booked as possibly paid twice"
        if gone := [job for job in lost if job.status in ENDED]:
            way = (
                f"if another copy of this folder collected them: bring {gone[0].result_name} and the like from there into "
                f"{config.data_path or config.checkpoint_path}, and: python batch_manager.py --download. If not, {way}"
            )
        words = f"{_named(lost)} lost at the service, perhaps paid. {way[0].upper()}{way[1:]}"
        yield Need(_keys("lost", lost), words, "python batch_manager.py --retry-failed --yes")
    stuck = [job for job in jobs if is_stuck(job)]
    if stuck:
        yield _to_cancel("stuck", stuck, "stuck: two hours past the end that the service gave, and still not ended")
    late = [job for job in jobs if job.state == "open" and job not in stuck and _since(job) < now - config.batch_max_wait_time]
    if late:
        yield _to_cancel("late", late, f"at the service for longer than batch_max_wait_time ({config.batch_max_wait_time:,} s)")
    going = [job for job in jobs if job.state in ("open", "ended") and _gone_at(job) - _NEARLY_GONE < now]
    if going:
        when = moment(min(map(_gone_at, going)))
        words = f"{_named(going)} paid, not collected, and the service deletes results from {when} on. To collect what is there"
        yield Need(_keys("expiring", going), words, "python batch_manager.py --download")


def _to_cancel(why: str, jobs: Sequence[Job], words: str) -> Need:
    numbers = " ".join(str(job.id) for job in jobs)
    words = f"{_named(jobs)} {words}. To wait is safe; to give up, and collect what was done"
    return Need(_keys(why, jobs), words, f"python batch_manager.py --cancel {numbers}")


def _since(job: Job) -> float:
    return job.created_at or job.intent_at or job.prepared_at


def _keys(why: str, jobs: Sequence[Job]) -> tuple[str, ...]:
    return tuple(f"{why} {job.id}" for job in jobs)


def _named(jobs: Sequence[Job]) -> str:
    """`Job 7 is`, `Jobs 7, 9 are`; of very many, the first ones."""
    shown = ", ".join(str(job.id) for job in jobs[:8]) + (f" and {len(jobs) - 8} more" if len(jobs) > 8 else "")
    return f"Job {shown} is" if len(jobs) == 1 else f"Jobs {shown} are"


def _pace(ledger: Ledger, generation: Generation, jobs: Sequence[Job], left: int, now: float) -> dict[str, Any] | None:
    """How fast strings came home lately, and when the last one will at this pace; None where nobody can know."""
    arrivals = (Arrival(file.created_at, file.rows) for file in ledger.files("embeddings", generation.id))
    asked_at = [job.created_at for job in jobs if job.state == "collected" and job.created_at is not None]
    pace = pace_of(arrivals, asked_at, now) if left else None
    return None if pace is None else {"since": pace.since, "strings_an_hour": pace.per_hour, "ends_at": pace.end(left)}
