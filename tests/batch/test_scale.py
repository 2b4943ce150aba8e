"""Batch mode at scale: hundreds of jobs over simulated days with everything going wrong, and a job of the largest kind.

By default 200 small jobs, and a largest job in base64 with a fifth of one as text. `NAMESAKE_FULL=1`: 900 jobs, and a
largest job as text too, which is a gigabyte on disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import pytest

from pipeline.commands import batch, session
from pipeline.commands import jobs as looks
from pipeline.commands.console import Console
from pipeline.commands.session import Options
from pipeline.errors import AlreadyToldError
from pipeline.local_service import LocalTransport, State
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import BatchLimits, Pace
from tests.clock import FakeClock
from tests.tools import Catalogue

FULL = os.environ.get("NAMESAKE_FULL") == "1"
JOBS = 900 if FULL else 200
STRINGS_A_JOB = 10
MOST_AT_ONCE = 20 * STRINGS_A_JOB  # tier 3: a million requests may wait, in jobs of 50,000
STUCK = 2
PAUSES = (1800.0, 2700.0, 3600.0)


@dataclass(slots=True)
class Refusals:
    """The answers to creations that were no batch, as they left the service."""

    codes: Counter[str] = field(default_factory=Counter)


class Watched(LocalTransport):
    """The local service, with an eye on what is refused."""

    def __init__(self, state: State, clock: Callable[[], float], refusals: Refusals) -> None:
        super().__init__(state, clock)
        self._refusals = refusals

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if request.method == "POST" and request.url.path.endswith("/batches") and response.status_code != 200:
            self._refusals.codes[json.loads(response.read())["error"]["code"] or str(response.status_code)] += 1
        return response


class Lines(logging.Handler):
    """The log at INFO, by simulated hour."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(logging.INFO)
        self._clock = clock
        self.by_hour: Counter[int] = Counter()
        self.by_event: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.by_hour[int(self._clock.now() // 3600)] += 1
        self.by_event[record.getMessage().split()[0]] += 1


@contextlib.contextmanager
def heard(clock: FakeClock) -> Iterator[Lines]:
    root, lines = logging.getLogger("namesake"), Lines(clock)
    before = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.removeHandler(lines)
        root.setLevel(before)


def said(command: Callable[..., int]) -> str:
    """Run a command as cron does, which goes on after one that failed; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(AlreadyToldError):
        command(console=Console())
    return out.getvalue()


def going_wrong() -> list[Misbehaviour]:
    """Of each kind some, spread over the creations; of an exhausted quota, six attempts in a row."""
    found = [
        Misbehaviour(kind="stuck", create=9, share=0.5),
        Misbehaviour(kind="stuck", create=JOBS // 2, share=0.0),
        Misbehaviour(kind="lose_reply", create=31),
        Misbehaviour(kind="lose_reply", create=101),
        Misbehaviour(kind="hide", create=101, seconds=30.0),
        Misbehaviour(kind="input_not_found", create=57),
        Misbehaviour(kind="refused_row", create=60, row=3),
        Misbehaviour(kind="unknown_status", create=70, status="pondering", seconds=3600.0),
        Misbehaviour(kind="no_counts", create=71),
    ]
    found += [Misbehaviour(kind="insufficient_quota", create=number) for number in range(120, 126)]
    for first, status, share in (
        (5, "expired", 0.4),
        (12, "failed", 0.0),
        (19, "failed", 0.5),
        (26, "cancelled", 0.7),
        (33, "expired", 0.0),
    ):
        found += [Misbehaviour(kind="end", create=number, status=status, share=share) for number in range(first, JOBS, 40)]
    return found


def test_many_jobs_over_days_with_everything_going_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strings = JOBS * STRINGS_A_JOB
    catalogue, clock, refusals = Catalogue(tmp_path), FakeClock(), Refusals()
    catalogue.configure(
        fields={"person": "person"},
        batch_embedding_size=STRINGS_A_JOB,
        max_enqueued_requests=MOST_AT_ONCE,
        openai_tier=3,
        use_batch_embeddings=True,
        batch_manual_polling=True,
    )
    catalogue.write((str(number), f"Person {number}, of somewhere", "") for number in range(strings))
    state = State(
        tmp_path / "service.sqlite",
        record=True,
        pace=Pace(validating=300.0, working=5400.0, finalizing=300.0, cancelling=600.0),
        # A stuck job is set aside by us, and is still one of the service's: room for those, and for nothing else.
        batch_limits=BatchLimits(requests=STRINGS_A_JOB, enqueued_requests=MOST_AT_ONCE + STUCK * STRINGS_A_JOB),
        misbehaviours=going_wrong(),
    )

    def transport_of(*_: object, **__: object) -> Callable[[], httpx2.BaseTransport]:
        return lambda: Watched(state, clock.now, refusals)

    monkeypatch.setattr(session, "transport_of", transport_of)
    monkeypatch.setattr(looks, "transport_of", transport_of)
    options = Options(config=catalogue.config, clock=clock, batches=True)
    began, first = clock.now(), time.perf_counter()
    passes: list[float] = []
    typed: list[str] = []
    with heard(clock) as lines:
        for number in range(2000):
            at = time.perf_counter()
            said(partial(batch.advance, options))
            passes.append(time.perf_counter() - at)
            with catalogue.ledger() as ledger:
                open_ = ledger.jobs.all(("creating", "open", "ended"))
                embedded = sum(past - first for first, past in ledger.spans("embedded", ledger.jobs.get(1).generation, "person"))
                failed = sum(1 for _ in ledger.failures(ledger.jobs.get(1).generation))
            if number % 8 == 7 or not open_:  # somebody looks
                words = said(partial(looks.show_jobs, options))
                for job in re.findall(r"batch_manager\.py --cancel (\d+)", words):
                    if f"--cancel {job}" not in typed:
                        typed.append(f"--cancel {job}")
                        said(partial(batch.cancel, options, numbers=[int(job)]))
            if embedded == strings:
                break
            if not open_ and failed:
                typed.append("--retry-failed")
                said(partial(batch.one_pass, options, command="--retry-failed"))
            clock.sleep(PAUSES[number % len(PAUSES)])
    hours = (clock.now() - began) / 3600
    with catalogue.ledger() as ledger:
        jobs = ledger.jobs.all()
        generation = jobs[0].generation
        still = [(job.id, job.state, job.reason) for job in jobs if job.state not in ("collected", "returned")]
        failures = list(ledger.failures(generation))
    counted = state.embedded()
    state.close()
    tenth = len(passes) // 10
    print(
        f"\n{strings:,} strings, {len(jobs)} jobs, {len(passes)} passes over {hours:.0f} simulated hours in "
        f"{time.perf_counter() - first:.1f} s: a pass {sum(passes[tenth : 2 * tenth]) / tenth:.3f} s early, "
        f"{sum(passes[-2 * tenth : -tenth]) / tenth:.3f} s late; {sum(lines.by_hour.values()) / hours:.1f} lines an hour, "
        f"at most {max(lines.by_hour.values())}: {dict(lines.by_event)}; typed: {typed}; refused: {dict(refusals.codes)}; "
        f"states: {dict(Counter(job.state + '/' + str(job.status) for job in jobs))}"
    )
    assert embedded == strings
    assert (still, failures) == ([], [])
    assert (len(counted), set(counted.values())) == (strings, {1})
    assert len(jobs) >= JOBS
    assert sum("--cancel" in words for words in typed) == STUCK
    assert typed[-1] == "--retry-failed"
    assert dict(refusals.codes) == {"insufficient_quota": 6}
    assert not [job.reason for job in jobs if "limit_exceeded" in (job.reason or "")]
    assert sum(lines.by_hour.values()) / hours < 10


def test_a_full_queue_at_the_service_costs_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the account fill its queue: more jobs are refused for that than a string has attempts."""
    catalogue, clock = Catalogue(tmp_path), FakeClock()
    catalogue.configure(fields={"person": "person"}, batch_embedding_size=10, batch_max_attempts=2, use_batch_embeddings=True)
    catalogue.write((str(number), f"Person {number}", "") for number in range(80))
    pace, limits = Pace(validating=60.0, working=3600.0), BatchLimits(enqueued_requests=20)
    state = State(tmp_path / "service.sqlite", record=True, pace=pace, batch_limits=limits)

    def transport_of(*_: object, **__: object) -> Callable[[], httpx2.BaseTransport]:
        return lambda: LocalTransport(state, clock.now)

    monkeypatch.setattr(session, "transport_of", transport_of)
    options = Options(config=catalogue.config, clock=clock, batches=True)
    for _ in range(40):
        said(partial(batch.advance, options))
        with catalogue.ledger() as ledger:
            jobs = ledger.jobs.all()
            if all(job.state in ("collected", "returned") for job in jobs):
                break
        clock.sleep(1800.0)
    with catalogue.ledger() as ledger:
        assert list(ledger.failures(jobs[0].generation)) == []
    counted = state.embedded()
    state.close()
    assert len(catalogue.embedded("person")) == 80
    assert (len(counted), set(counted.values())) == (80, {1})
    assert any("request_limit_exceeded" in (job.reason or "") for job in jobs if job.state == "returned")


# A job of the largest kind, collected in a process of its own whose peak is its own.

_COLLECT = """
import base64, json, logging, resource, sys, time, zlib
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pipeline.batch.collect import collect_job
from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.console import Console
from pipeline.commands.session import Options, context_of, load
from pipeline.ledger import Generation, Job, TableFile
from pipeline.tables.duck import connect
from tests.clock import FakeClock



def _peak() -> int:
    # Bytes, of this process alone: what getrusage says is inherited from the process that started this one.
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


folder, form, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
WIDTH, KINDS = 1536, 64
options = Options(config=folder / "config.yml", clock=FakeClock(), batches=True)
config, service = load(options)
place = Checkpoint(config.checkpoint_path)
vectors = np.random.default_rng(7).normal(size=(KINDS, WIDTH)).astype("<f4")
shown = [
    json.dumps(base64.b64encode(vector.tobytes()).decode() if form == "base64" else [float(value) for value in vector]).encode()
    for vector in vectors
]

class Deletes:
    deleted = []
    def delete(self, file):
        self.deleted.append(file)
        return True

with writing(place, "test") as ledger:
    context = context_of(options, config, service, place, ledger, Console())
    generation = Generation("local", "lexical", None, WIDTH)
    ledger.save_generation(generation, 0.0)
    texts, name = [f"Person {row}, of somewhere or other, 1685-1750" for row in range(count)], "strings_person_000001.parquet"
    pq.write_table(pa.table({"row": pa.array(range(count), pa.int64()), "text": texts}), place.tables / name)
    ledger.add_file(TableFile("strings", "", "person", name, count, 0, count, 0, "", 0.0))
    job = Job(1, generation.id, "ended", count, 0, count * 12, 0.01, "", 0.0, "in", 0.0, "b", "completed", 0.0, 0.0, "out", None)
    ledger.jobs.add(job, {"person": [(0, count)]})
    with (place.root / job.result_name).open("wb") as file:
        for row in np.random.default_rng(8).permutation(count).tolist():
            name = f"{zlib.crc32(texts[row].encode()):08x}_person_{row}"
            file.write(
                b'{"id": "batch_req_%d", "custom_id": "%s", "response": {"status_code": 200, "request_id": "r", "body": '
                b'{"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": %s}], "model": "m", '
                b'"usage": {"prompt_tokens": 12, "total_tokens": 12}}}, "error": null}\\n'
                % (row, name.encode(), shown[row % KINDS])
            )
    size = (place.root / job.result_name).stat().st_size
    del texts
    before, began = _peak(), time.perf_counter()
    job = collect_job(context, Deletes(), connect(place.scratch, config.memory_limit_gb), job)
    took, peak = time.perf_counter() - began, _peak()
    right = 0
    for file in ledger.files("embeddings"):
        with pq.ParquetFile(place.tables / file.name) as table:
            for batch in table.iter_batches(2048):
                rows, flat = batch.column("row").to_numpy(), batch.column("vector").flatten().to_numpy()
                right += int((flat.reshape(-1, WIDTH) == vectors[rows % KINDS]).all(axis=1).sum())
    print(json.dumps({
        "state": job.state, "embedded": job.embedded, "paid": job.paid_tokens, "right": right, "deleted": Deletes.deleted,
        "megabytes": size / 1e6, "seconds": took, "peak": peak / 1e6, "before": before / 1e6,
    }))
"""


@pytest.mark.parametrize(("form", "count"), [("base64", 50_000), ("float", 50_000 if FULL else 10_000)])
def test_a_job_of_the_largest_kind_is_collected_in_little_memory(tmp_path: Path, form: str, count: int) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure(fields={"person": "person"}, encoding_format=form)
    catalogue.write([("1", "Bach", "")])
    ran = subprocess.run(
        [sys.executable, "-c", _COLLECT, str(tmp_path), form, str(count)], capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    print(
        f"\n{count:,} × 1,536 as {form}, {found['megabytes']:,.0f} MB: {found['seconds']:.1f} s, "
        f"peak {found['peak']:.0f} MB (before: {found['before']:.0f} MB)"
    )
    assert (found["state"], found["embedded"], found["paid"], found["right"]) == ("collected", count, count * 12, count)
    assert found["deleted"] == ["in", "out"]
    assert found["peak"] < 400
