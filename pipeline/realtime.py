"""Real time: chunks of pending strings to the service, answers to the spool.

Per request: its intent is in the ledger before it is sent, and its answer is durable in the spool before its worker
takes the next. So after a kill the intents without an answer are exactly the requests that may have been paid for
nothing: they are counted as possibly paid twice, and sent again. Workers touch the network and the spool; only the
calling thread touches the ledger. What a result means is `collecting.py`.
"""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline import spans as span_sets
from pipeline.errors import BudgetError, DiskError, NamesakeError, ServiceError, ServiceStoppedError
from pipeline.identity import custom_id
from pipeline.interrupts import Interrupts
from pipeline.ledger import Failure, Intent, Ledger
from pipeline.log import event, logger
from pipeline.progress import Bar
from pipeline.provider.client import Answered, EmbeddingClient, Refused, Stopped, Troubled, told
from pipeline.provider.limits import Pace
from pipeline.provider.service import MOST_INPUTS, MOST_REQUEST_TOKENS, Service
from pipeline.retry import Clock, RetryPolicy
from pipeline.spool import Envelope, SpoolWriter, new_spool

MOST_REQUEST_BYTES = 4 << 20
SPOOL_BYTES = 64 << 20  # a spool file this large is collected while the others go on
_REFUSED_IN_A_ROW = 20  # with no success ever, so many refusals mean the request, not the strings
_SET_ASIDE_IN_A_ROW = 3  # requests given up without a success between them: the service is down
_LONG_WAIT = 30.0  # seconds; shorter waits are not worth a line in somebody's mail
_GO_ON = "What is done is kept and nothing was marked as failed: run the same command again to go on."
_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Strings of one field that go in one request; `tokens` are exact or a bound, `texts[i]` belongs to `rows[i]`."""

    field: str
    rows: tuple[int, ...]
    texts: tuple[str, ...]
    tokens: tuple[int, ...]

    def halves(self) -> tuple[Chunk, Chunk]:
        middle = len(self.rows) // 2
        return (
            Chunk(self.field, self.rows[:middle], self.texts[:middle], self.tokens[:middle]),
            Chunk(self.field, self.rows[middle:], self.texts[middle:], self.tokens[middle:]),
        )


@dataclass(slots=True)
class RunReport:
    """How a run of requests ended."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    set_aside: int = 0
    trouble: str = ""
    stop: NamesakeError | None = None


@dataclass(frozen=True, slots=True)
class _Done:
    """What a worker gives back: the last outcome, and how many answers were lost before it."""

    outcome: Answered | Refused | Stopped | Troubled
    lost_answers: int


def pack(field_name: str, strings: Iterator[tuple[int, str, int]], most_inputs: int = MOST_INPUTS) -> Iterator[Chunk]:
    """(row, text, tokens) into chunks within the limits of one request; a larger string goes alone."""
    rows: list[int] = []
    texts: list[str] = []
    tokens: list[int] = []
    total = size = 0
    for row, text, count in strings:
        length = len(text.encode())
        if rows and (len(rows) == most_inputs or total + count > MOST_REQUEST_TOKENS or size + length > MOST_REQUEST_BYTES):
            yield Chunk(field_name, tuple(rows), tuple(texts), tuple(tokens))
            rows, texts, tokens, total, size = [], [], [], 0, 0
        rows.append(row)
        texts.append(text)
        tokens.append(count)
        total += count
        size += length
    if rows:
        yield Chunk(field_name, tuple(rows), tuple(texts), tuple(tokens))


class _Spool:
    """The spool file in use; exchanged for a fresh one between two appends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._writer: SpoolWriter | None = None

    def append(self, envelope: Envelope, lines: list[bytes]) -> None:
        with self._lock:
            if self._writer is None:
                self._writer = new_spool(self._folder)
            self._writer.append(envelope, lines)

    def full(self) -> bool:
        return self._writer is not None and self._writer.size >= SPOOL_BYTES

    def finish(self) -> Path | None:
        """Close the file in use and give it away."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is None:
            return None
        writer.close()
        return writer.path


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run of requests may use and must obey."""

    service: Service
    generation: str
    client: EmbeddingClient
    clock: Clock
    policy: RetryPolicy
    workers: int
    budget_usd: float
    say: Callable[[str], None]
    has_embedded_before: bool


class RealTime:
    """One run of requests. `collect` brings a finished spool file into the tables."""

    def __init__(self, terms: Terms, ledger: Ledger, spool_folder: Path, collect: Callable[[Path], object], bar: Bar) -> None:
        self._terms = terms
        self._ledger = ledger
        self._collect_file = collect
        self._bar = bar
        self._report = RunReport()
        self._pace = Pace(terms.clock)
        self._spool = _Spool(spool_folder)
        self._spent = ledger.spent_usd()
        self._open: dict[concurrent.futures.Future[_Done], tuple[int, Chunk]] = {}
        self._again: deque[Chunk] = deque()  # halves of refused chunks; they go before anything new
        self._refusals: list[tuple[Chunk, Refused]] = []
        self._set_aside_in_a_row = 0

    def run(self, chunks: Iterator[Chunk]) -> RunReport:
        """Send every chunk; whatever stops it, what was answered is collected before this returns or raises."""
        interrupts = Interrupts()
        with interrupts.held_back():
            self._run(chunks, interrupts)
        return self._report

    def _run(self, chunks: Iterator[Chunk], interrupts: Interrupts) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(self._terms.workers, thread_name_prefix="embed")
        try:
            while self._fill(pool, chunks):
                with interrupts.let_through():
                    finished, _ = concurrent.futures.wait(self._open, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    self._settle(future)
                if self._spool.full():
                    self._collect()
        except KeyboardInterrupt:
            words = f"Interrupted: waiting for {len(self._open)} requests on the wire, so that their answers are kept."
            self._terms.say(f"{words} Ctrl-C again leaves at once; they are then possibly paid twice.")
            raise
        finally:
            # After Ctrl-C or a fault too: nothing new is sent, and what is on the wire is waited for and kept.
            self._pace.stopped.set()
            with interrupts.let_through():
                concurrent.futures.wait(self._open)
            pool.shutdown(wait=False)
            for future in list(self._open):
                self._settle(future)
            if self._refusals:
                self._refused_everything()
            self._collect()

    def _fill(self, pool: concurrent.futures.ThreadPoolExecutor, chunks: Iterator[Chunk]) -> bool:
        """Keep the workers busy; False when nothing is open and nothing more will be sent."""
        while len(self._open) < self._terms.workers and self._report.stop is None:
            chunk = self._again.popleft() if self._again else next(chunks, None)
            if chunk is None:
                break
            intent = self._intent(chunk)
            if self._terms.service.price and self._spent + intent.usd > self._terms.budget_usd:
                budget = f"{self._terms.budget_usd:g}"
                self._stop(
                    BudgetError(f"budget_usd is {budget}, and ${self._spent:.4f} of it is gone: the next request would pass it.")
                )
                break
            self._spent += intent.usd
            number = self._ledger.add_intent(intent, self._terms.clock.now())
            self._open[pool.submit(self._send, number, chunk)] = (number, chunk)
            self._report.sent += 1
        return bool(self._open)

    def _stop(self, reason: NamesakeError) -> None:
        """Send nothing more; the first reason is the one that is told."""
        self._report.stop = self._report.stop or reason
        self._pace.stopped.set()

    def _intent(self, chunk: Chunk) -> Intent:
        tokens = sum(chunk.tokens)
        usd = self._terms.service.usd(tokens)
        return Intent(self._terms.generation, chunk.field, span_sets.of_rows(chunk.rows), len(chunk.rows), tokens, usd)

    # In a worker

    def _send(self, number: int, chunk: Chunk) -> _Done:
        """Ask until there is an outcome, and make an answer durable."""
        waits = self._terms.policy.waits()
        lost = 0
        while self._pace.admit(sum(chunk.tokens)):
            outcome = self._terms.client.ask(chunk.texts)
            if isinstance(outcome, Answered):
                self._pace.note(outcome.headers)
                self._spool.append(*self._framed(number, chunk, outcome, lost))
                return _Done(outcome, lost)
            if isinstance(outcome, Refused):
                return _Done(outcome, lost)
            lost += outcome.maybe_paid
            if isinstance(outcome, Stopped):
                return _Done(outcome, lost)
            self._pace.note(outcome.headers)
            wait = next(waits, None)
            if outcome.wait is not None and outcome.wait > self._terms.policy.longest_obeyed:
                until = _clock_time(self._terms.clock.now() + outcome.wait)
                return _Done(Stopped(f"{outcome.reason}. It asks to wait until {until}: run again then"), lost)
            if wait is None:
                return _Done(outcome, lost)
            level = logging.INFO if max(wait, outcome.wait or 0.0) >= _LONG_WAIT else logging.DEBUG
            event(
                _log,
                "request.retried",
                level=level,
                reason=outcome.reason,
                wait=max(wait, outcome.wait or 0.0),
                maybe_paid=outcome.maybe_paid,
            )
            if outcome.wait is not None:
                self._pace.hold(outcome.wait)  # for all workers: the service speaks of the account, not of this request
            else:
                self._sleep(wait)
        return _Done(Troubled("the run was stopped before it was sent", maybe_paid=False), lost)

    def _sleep(self, seconds: float) -> None:
        left = seconds
        while left > 0 and not self._pace.stopped.is_set():
            self._terms.clock.sleep(min(left, 0.5))
            left -= 0.5

    def _framed(self, number: int, chunk: Chunk, answer: Answered, lost: int) -> tuple[Envelope, list[bytes]]:
        """An answer in the form of batch results, one line a string."""
        request = msgspec.json.encode(told(answer.headers.get("x-request-id", ""))[:80])
        said = b'{"id":"realtime_%d","custom_id":"%b","response":{"status_code":200,"request_id":%b,"body":%b},"error":null}'
        lines = []
        for row, text, bodies in zip(chunk.rows, chunk.texts, answer.bodies, strict=True):
            name = custom_id(chunk.field, row, text).encode()
            lines += [said % (number, name, request, body) for body in bodies]
        if answer.unknown:
            event(_log, "result.unknown", count=answer.unknown)
        tokens = sum(chunk.tokens) if answer.tokens is None else answer.tokens
        return Envelope(number, self._terms.generation, chunk.field, tokens, lost, self._terms.clock.now()), lines

    # Back in the calling thread

    def _settle(self, future: concurrent.futures.Future[_Done]) -> None:
        """Book how a request ended. An answer is booked when its spool file is collected."""
        number, chunk = self._open.pop(future)
        try:
            done = future.result()
        except DiskError as problem:
            self._stop(problem)  # the intent stays open: the next run counts it as possibly paid twice, which is the truth
            return
        intent = self._intent(chunk)
        self._spent += intent.usd * done.lost_answers
        if isinstance(done.outcome, Answered):
            self._report.answered += len(chunk.rows)
            self._set_aside_in_a_row = 0
            self._bar.advance(len(chunk.rows))
        else:
            self._spent -= intent.usd
            self._unanswered(chunk, done.outcome)
            with self._ledger.transaction():
                for _ in range(done.lost_answers):
                    self._ledger.add_doubt(intent, done.outcome.reason, self._terms.clock.now())
                self._ledger.close_intents([number])
        self._keep_refusals()

    def _unanswered(self, chunk: Chunk, outcome: Refused | Stopped | Troubled) -> None:
        match outcome:
            case Refused() if len(chunk.rows) > 1:
                self._again.extendleft(reversed(chunk.halves()))  # depth first: the bad string is soon alone
            case Refused():
                self._refusals.append((chunk, outcome))
                self._bar.advance(1)
            case Stopped(reason=reason):
                self._stop(ServiceStoppedError(f"{self._terms.service.name}: {reason}."))
            case Troubled(reason=reason) if self._report.stop is None:
                self._report.set_aside += len(chunk.rows)
                self._report.trouble = reason
                self._set_aside_in_a_row += 1
                if self._set_aside_in_a_row >= _SET_ASIDE_IN_A_ROW:
                    self._stop(ServiceError(f"{self._terms.service.name} can't be used now: {reason}. {_GO_ON}"))

    def _keep_refusals(self) -> None:
        """A refused string has failed for good, unless nothing was ever accepted: then it is the request that is wrong."""
        if self._report.answered or self._terms.has_embedded_before:
            now, generation = self._terms.clock.now(), self._terms.generation
            self._ledger.add_failures(
                Failure(generation, chunk.field, chunk.rows[0], "service", refused.code, refused.reason, now)
                for chunk, refused in self._refusals
            )
            self._report.refused += len(self._refusals)
            self._refusals.clear()
        elif len(self._refusals) >= _REFUSED_IN_A_ROW:
            self._refused_everything()

    def _refused_everything(self) -> None:
        name, reason = self._terms.service.name, self._refusals[-1][1].reason
        words = "Nothing was marked as failed; check embedding_model, and whether it can take such texts."
        self._stop(ServiceStoppedError(f"{name} refuses every string: {reason}. {words}"))

    def _collect(self) -> None:
        path = self._spool.finish()
        if path is not None:
            self._collect_file(path)


def _clock_time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def settle_intents(ledger: Ledger, clock: Clock) -> tuple[int, float]:
    """After a kill: intents whose answer is in no spool. Their strings go again; they may have been paid already."""
    strings, usd = 0, 0.0
    with ledger.transaction():
        for number, intent in ledger.intents().items():
            ledger.add_doubt(intent, "the run ended while the request was open", clock.now())
            ledger.close_intents([number])
            strings += intent.strings
            usd += intent.usd
    return strings, usd
