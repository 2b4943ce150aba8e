"""Any interleaving of commands, kills and changes of the input ends in the same index, and nothing is paid twice unseen.

A Hypothesis state machine over real commands (`tests/forks.py`): rows come, go and change, jobs are open for hours, end
early or bring back useless rows, the mode is switched, and whatever is typed may be killed at any durable call or lose a
request. Each command must end with 0; with 1 and the reason; with 2 and a sentence that is known here to be right; or
with the kill. At the end of each example some undisturbed commands are typed, and then asserted, by the service's own
record and the files of the index alone:

- The index equals that of a fresh folder with the same final input, run once: text, frequency, vector, byte for byte.
- A text was embedded at most once, and once more for each answer that the service made useless and for each time that
  it stands in possibly_paid_twice.csv. By batches alone it was usefully embedded at most once, and once more for each
  job of it whose output the service lost.
- possibly_paid_twice.csv lists no more than was on the wire at the kills and losses.
- Two further runs, one of each mode, ask for no embedding and create no batch, and leave the index's files as they are;
  no temporary file and no spool is left.

`NAMESAKE_EXAMPLES=500 NAMESAKE_SEED=7 python -m pytest tests/test_interleavings.py -s` is a long run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pipeline.local_service import State
from pipeline.local_service.misbehaviour import Kind, Misbehaviour
from pipeline.local_service.settings import AT_ONCE, Pace
from tests.evidence import USELESS, by_batches, index_of, reported_in
from tests.forks import KILLED, Asked, Call, Ended, Fault, Forks, requests_to, uploaded_to
from tests.tools import Catalogue, files_of

EXAMPLES = int(os.environ.get("NAMESAKE_EXAMPLES", "14"))
SEED = int(os.environ.get("NAMESAKE_SEED", "3"))  # whose first examples are killed right after each kind of paid request
STEPS = 12
# Where there is one: files in memory survive a SIGKILL as well, and an fsync costs nothing.
MEMORY = Path("/dev/shm")  # noqa: S108  # in a folder of its own

HOUR = 3600.0
INPUTS = 3  # of one request, and of one job
MOST_TURNS = 8
KEYS: dict[str, object] = {
    "fields": {"person": "person", "work": "Title: {title}"},
    "embedding_service": "http://127.0.0.1:9/v1",  # a URL, whose dimensions are not known before the first answer
    "service_name": "ours",
    "embedding_model": "local-lexical-384",
    "price_per_million": 1.0,
    "max_concurrent_requests": 1,
    "max_inputs_per_request": INPUTS,
    "batch_embedding_size": INPUTS,
    "max_active_batches": 3,
    "batch_poll_interval": 2 * 3600,
    "batch_max_wait_time": 6 * 3600,
    "log_level": "error",
}
PACES = (
    AT_ONCE,
    Pace(validating=60.0, working=2 * HOUR, finalizing=60.0, cancelling=120.0),
    Pace(working=40 * HOUR, cancelling=120.0),  # expires with three fifths of its rows
)
OTHERS: tuple[Kind, ...] = (
    "lose_reply", "insufficient_quota", "input_not_found", "output_gone", "duplicate_row", "refused_row", "no_last_newline",
    "empty_error_file", "no_counts",
)  # fmt: skip
LOST = "was lost at the service"
PAID = ("POST /v1/embeddings", "POST /v1/batches")

# What a command may refuse with the exit code 2, by what was typed.
REFUSALS = (
    ("reset embedding_and_indexing", "jobs are not collected yet, and what they did is paid for."),
    ("reset embedding_and_indexing", "lost at the service, and perhaps paid. Nothing was changed."),
    ("download", "There is nothing here yet."),
    ("cancel", "There is nothing here yet."),
    ("sweep", "There is nothing here yet."),
    ("retry-failed", "Nothing is preprocessed yet"),
    ("prune", "Nothing is preprocessed yet"),
    ("prune", "Nothing is embedded yet"),
    ("verify", "Nothing is embedded yet"),
    ("reindex", "Nothing is embedded yet"),
    ("main.py", "this looks like another catalogue. Nothing was changed."),
    ("batch_manager.py", "this looks like another catalogue. Nothing was changed."),
)

MAIN, BATCH = ("main.py",), ("batch_manager.py",)
WORK = (
    MAIN,
    (*MAIN, "--accept-new-input"),
    (*BATCH, "--create"),
    (*BATCH, "--advance"),
    (*BATCH, "--download"),
    (*BATCH, "--wait"),
    (*BATCH, "--finish-realtime"),
)
OTHER_COMMANDS = (
    (*MAIN, "--reset", "embedding_and_indexing"),
    (*MAIN, "--reset", "preprocessing"),
    (*MAIN, "--prune"),
    (*MAIN, "--reindex"),
    (*MAIN, "--retry-failed"),
    (*MAIN, "--status"),
    (*MAIN, "--end", "preprocessing", "--accept-new-input"),
    (*BATCH, "--status"),
    (*BATCH, "--cancel"),
    (*BATCH, "--retry-failed"),
    (*BATCH, "--sweep"),
)
# Up to which call of a kind commands are killed: about as many as most of them make. What is on the wire is aimed at most.
REACH: tuple[tuple[Call, int], ...] = (
    ("request", 4), ("request", 4), ("request", 8), ("commit", 12), ("commit", 26), ("fsync", 20), ("replace", 8), ("unlink", 10),
)  # fmt: skip
_kills = st.one_of([
    st.builds(Fault, st.just(call), st.integers(1, most), st.sampled_from(("killed before", "killed after")))
    for call, most in REACH
])  # fmt: skip
_losses = st.builds(Fault, st.just("request"), st.integers(1, 8), st.sampled_from(("reply lost", "never sent")))
_faults = st.one_of(st.none(), _kills, _kills, _losses)
_row = st.tuples(st.integers(0, 11), st.integers(0, 4))
_rows = st.lists(_row, min_size=1, max_size=5)
_happenings = st.one_of(
    st.just(()),
    st.tuples(st.just("add"), _rows),
    st.tuples(st.just("remove"), st.lists(st.integers(0, 20), min_size=1, max_size=6)),
    st.tuples(st.just("change"), st.integers(0, 20), _row),
    st.tuples(st.just("switch"), st.booleans(), st.booleans()),
    st.tuples(st.just("hours"), st.sampled_from((0.25, 1.0, 3.0, 13.0, 27.0))),
)
_wrongs = st.one_of(
    st.builds(lambda status, share: {"kind": "end", "status": status, "share": share},
              st.sampled_from(("expired", "cancelled", "failed")), st.sampled_from((0.0, 0.5, 1.0))),
    st.builds(lambda kind, row: {"kind": kind, "row": row}, st.sampled_from(USELESS), st.integers(1, INPUTS)),
    st.builds(lambda kind: {"kind": kind}, st.sampled_from(OTHERS)),
    st.just({"kind": "hide", "seconds": 300.0}),
)  # fmt: skip


class Tally:
    """What all examples came to: a test that killed nothing would prove nothing."""

    def __init__(self) -> None:
        self.examples = self.commands = self.twice = self.reported = self.turns = 0
        self.hit: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    def lines(self) -> Iterator[str]:
        yield f"{self.examples} examples, {self.commands} commands; {self.turns} turns to recover"
        yield f"embedded more than once: {self.twice} strings, reported: {self.reported}"
        yield ", ".join(f"{what}: {count}" for what, count in sorted(self.hit.items()))
        yield ", ".join(f"{what}: {count}" for what, count in sorted(self.ends.items()))


class Interleaving(RuleBasedStateMachine):
    """One catalogue, its service, and whoever types."""

    def __init__(self, forks: Forks, folder: Path, tally: Tally) -> None:
        super().__init__()
        self.forks, self.tally = forks, tally
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.catalogue = _catalogue(self.folder / "catalogue")
        self.service = self.folder / "service"
        self.service.mkdir()
        self.now = 1_790_000_000.0
        self.pace = AT_ONCE
        self.wrongs: tuple[Misbehaviour, ...] = ()
        self.rows: dict[int, tuple[int, int]] = {}
        self.ids = 0
        self.faults = 0
        self.by_batch = False
        self.is_broken = False

    # The world

    @initialize(rows=_rows, pace=st.sampled_from(PACES), wrongs=st.lists(_wrongs, max_size=5), by_batch=st.booleans())
    def begin(self, rows: list[tuple[int, int]], pace: Pace, wrongs: list[dict[str, Any]], by_batch: bool) -> None:
        """The first jobs go wrong, each in its own way, if at all."""
        self.pace = pace
        self.wrongs = tuple(Misbehaviour(create=number, **wrong) for number, wrong in enumerate(wrongs, start=1))
        self._add(rows)
        self._switch(by_batch=by_batch, by_hand=False)

    @rule(first=_happenings, command=st.sampled_from((*WORK, *WORK, *OTHER_COMMANDS)), fault=_faults)
    def turn(self, first: tuple[Any, ...], command: tuple[str, ...], fault: Fault | None) -> None:
        """Something may happen, and then something is typed."""
        match first:
            case ("add", rows):
                self._add(rows)
            case ("remove", which):
                self._remove(which)
            case ("change", which, row):
                self.rows[sorted(self.rows)[which % len(self.rows)]] = row
                self._write()
            case ("switch", by_batch, by_hand):
                self._switch(by_batch=by_batch, by_hand=by_hand)
            case ("hours", hours):
                self.now += hours * HOUR
        self._type(command, fault)

    def _add(self, rows: list[tuple[int, int]]) -> None:
        """New names, and names that are there already, under new ids."""
        for row in rows:
            self.ids += 1
            self.rows[self.ids] = row
        self._write()

    def _remove(self, which: list[int]) -> None:
        for number in which:
            if len(self.rows) > 1:
                del self.rows[sorted(self.rows)[number % len(self.rows)]]
        self._write()

    def _switch(self, *, by_batch: bool, by_hand: bool) -> None:
        self.by_batch = by_batch
        # Else the length of the first vector would be believed, and that one may be wrong.
        length = {"embedding_dimensions": 384} if any(wrong.kind == "wrong_dimensions" for wrong in self.wrongs) else {}
        self.catalogue.configure(**KEYS, **length, use_batch_embeddings=by_batch, batch_manual_polling=by_hand)

    # What is typed

    def _type(self, command: tuple[str, ...], fault: Fault | None = None) -> Ended:
        try:
            return self._typed(command, fault)
        except BaseException:
            self.is_broken = True  # so that the end does not speak of something else
            raise

    def _typed(self, command: tuple[str, ...], fault: Fault | None) -> Ended:
        words = (command[0], "--config", str(self.catalogue.config), *command[1:])
        ended = self.forks.run(Asked(words, str(self.service), self.now, self.pace, self.wrongs, fault))
        self.now = ended.now + 1.0
        self.faults += fault is not None
        self.tally.commands += 1
        self.tally.ends[f"code {ended.code}"] += 1
        if fault is not None and (ended.code == KILLED or not fault.how.startswith("killed")):
            is_answered = fault.call == "request" and fault.how == "killed after"
            self.tally.hit[f"{fault.how} {requests_to(self.service)[-1] if is_answered else fault.call}"] += 1
        said = f"{' '.join(command)} with {fault} ended with {ended.code}\n{ended.out}\n{ended.err}"
        assert "Traceback" not in ended.err, said
        if ended.code == KILLED:
            assert fault is not None, said
            assert fault.how.startswith("killed"), said
        elif ended.code == 2:
            typed = " ".join(command)
            assert any(what in typed and sentence in ended.err for what, sentence in REFUSALS), said
        elif ended.code == 1:
            assert ended.err.strip() or " failed" in ended.out, said
        else:
            assert ended.code == 0, said
        return ended

    def _write(self) -> None:
        _write_rows(self.catalogue, self.rows)

    # The end

    def teardown(self) -> None:
        try:
            if self.rows and not self.is_broken:
                self._recover()
                self._judge()
                self.tally.examples += 1
        finally:
            shutil.rmtree(self.folder)

    def _recover(self) -> None:
        """Some undisturbed commands, in the mode of the config; no job goes wrong any more."""
        self.wrongs, self.pace = (), PACES[1]
        self._type((*MAIN, "--end", "preprocessing", "--accept-new-input"))
        for turn in range(MOST_TURNS):
            self.now += 13 * HOUR
            self.tally.turns += 1
            self._type((*BATCH, "--advance" if self.by_batch and turn % 2 else "--download"))
            self._type(MAIN)
            status = self.catalogue.run("--status", "--json").document
            with self.catalogue.ledger() as ledger:
                is_lost = bool(ledger.jobs.all(("lost",)))
            if is_lost:
                self._type((*BATCH, "--retry-failed", "--yes"))
            elif any(failure["stage"] != "preflight" for failure in status["failures"]):
                self._type((*MAIN, "--retry-failed"))
            elif not any(field[left] for field in status["fields"].values() for left in ("pending", "in_jobs", "to_index")):
                break
        else:
            raise AssertionError(f"not finished after {MOST_TURNS} turns: {status}")
        assert self._type((*MAIN, "--prune")).code == 0

    def _judge(self) -> None:
        reported = reported_in(self.catalogue)
        self._compare_index()
        with State(self.service / "service.sqlite", record=True) as truth:
            embedded, usefully, useless = Counter(truth.embedded()), *by_batches(truth, uploaded_to(self.service))
        of_jobs = Counter(digest for digest, reason in reported if LOST in reason)
        doubts = Counter(digest for digest, _ in reported)
        for digest, times in embedded.items():
            assert times <= 1 + useless[digest] + doubts[digest], "a string was paid for twice, and nobody was told"
        for digest, times in usefully.items():
            assert times <= 1 + of_jobs[digest], "a string was paid for twice in batch mode"
        assert doubts.total() - of_jobs.total() <= INPUTS * self.faults, "more is reported than was ever on the wire"
        self.tally.twice += sum(times > 1 for times in embedded.values())
        self.tally.reported += doubts.total()
        self._run_once_more()

    def _compare_index(self) -> None:
        """Beside a fresh folder with the same input, run once in real time."""
        (service := self.folder / "undisturbed").mkdir()
        fresh = _catalogue(self.folder / "fresh")
        fresh.configure(**KEYS)
        _write_rows(fresh, self.rows)
        ended = self.forks.run(Asked(("main.py", "--config", str(fresh.config)), str(service), self.now))
        assert ended.code == 0, ended.err
        assert index_of(self.catalogue) == index_of(fresh)

    def _run_once_more(self) -> None:
        before = self._paid_and_written()
        assert self._type(MAIN).code == 0
        self._switch(by_batch=not self.by_batch, by_hand=False)
        assert self._type(MAIN).code == 0
        assert self._paid_and_written() == before, "a further run paid for something, or wrote to the index"
        root = self.catalogue.checkpoint
        assert [*root.rglob("*.tmp*"), *(root / "spool").iterdir()] == []

    def _paid_and_written(self) -> tuple[int, dict[str, str]]:
        paid = sum(request in PAID for request in requests_to(self.service))
        return paid, files_of(self.catalogue.checkpoint / "store")


def _catalogue(folder: Path) -> Catalogue:
    folder.mkdir()
    return Catalogue(folder)


def _write_rows(catalogue: Catalogue, rows: dict[int, tuple[int, int]]) -> None:
    """The first name is blank: it is never sent."""
    catalogue.write((str(key), f"Name {name}" if name else " ", f"Work {title}") for key, (name, title) in rows.items())


def test_any_interleaving_ends_in_the_index_of_one_undisturbed_run_and_pays_once(tmp_path: Path) -> None:
    tally = Tally()
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else tmp_path))

    def machine() -> Interleaving:
        return Interleaving(forks, folder, tally)

    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        with Forks(folder) as forks:
            run_state_machine_as_test(hypothesis.seed(SEED)(machine), settings=chosen)  # type: ignore[arg-type]  # a factory will do
    finally:
        shutil.rmtree(folder)
        print("\n" + "\n".join(tally.lines()))
    killed = sum(count for what, count in tally.hit.items() if what.startswith("killed"))
    assert killed >= 2 * tally.examples, "without kills it proves nothing"
    assert all(tally.hit[f"killed after {paid}"] for paid in PAID), "no kill where it may cost something: choose another seed"
