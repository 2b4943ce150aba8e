"""What weeks of use are played with: an account at a service, desks at which commands are typed, and what should come of it.

`Account` is the service, on a port, with its clock, its prices and its own record, which is the judge of all money.
`Desk` is a catalogue in a folder on somebody's machine: it types commands and keeps what was typed. `Shelf` knows by plain
Python which strings the catalogue has and how often. What is done on which day, and what must agree, is not known here.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from pipeline.commands import batch_manager
from pipeline.commands import main as main_py
from pipeline.commands.entry import options_of
from pipeline.commands.session import Options
from pipeline.ledger import Job
from pipeline.local_service import Request, Response, State
from pipeline.local_service.misbehaviour import Misbehaviour, Misbehaviours
from pipeline.provider.service import Service, service_of
from tests.clock import FakeClock
from tests.evidence import USELESS
from tests.tools import Catalogue, Ran
from tests.wire import FaultyService

Row = tuple[str, str, str]
String = tuple[str, str]  # field and text
FIELDS = ("person", "title")
HOUR, DAY = 3600.0, 86_400.0
# They take no lock, and nothing of them is in the log of runs.
LOOKS = {"--check", "--status", "--audit", "--list", "--failures", "--export-embeddings", "--search"}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# The service


class Keeping(FaultyService):
    """Keeps each file that is uploaded, also when it is deleted there: which row of a batch was which text."""

    def __init__(self, uploaded: Path, state: State, clock: FakeClock) -> None:
        super().__init__(state=state, clock=clock.now)
        self.uploaded = uploaded
        uploaded.mkdir()

    def answer(self, request: Request) -> Response:
        response = super().answer(request)
        if (request.method, request.path) == ("POST", "/v1/files"):
            for path in self.state.folder.glob("file-*"):
                if not (self.uploaded / path.name).exists():
                    os.link(path, self.uploaded / path.name)
        return response

    def fails_next(self, pattern: str, fault: Any) -> None:
        """The next request of this kind goes wrong at the wire."""
        self._at[pattern] = [fault]

    def asked_to_pay(self) -> int:
        """How many requests there were that cost something, or were on the way to it."""
        return sum(method == "POST" for method, _ in self.asked)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch by the service's own record: what it embedded of which texts, how much of that was of no use, what it bills."""

    id: str
    status: str
    requests: int
    tokens: int
    usd: float
    times: Counter[str]
    useless: Counter[str]


@dataclass(frozen=True, slots=True)
class Person:
    """Who sits at a machine."""

    user: str
    host: str


@dataclass
class Account:
    """The service as all catalogues of the house use it. By batch a token costs half of `price`, USD for a million."""

    service: Keeping
    clock: FakeClock
    prices: list[tuple[float, float]] = field(default_factory=list)
    who: Person = Person("nobody", "nowhere")
    usd_at_once: float = 0.0
    _tokens_at_once: int = 0

    @property
    def state(self) -> State:
        return self.service.state

    def raise_price(self, price: float) -> None:
        self.prices.append((self.clock.now(), price))

    @property
    def first_price(self) -> float:
        return self.prices[0][1]

    def price(self, at: float) -> float:
        return [price for since, price in self.prices if since <= at][-1]

    def next_jobs(self, *wrongs: Misbehaviour | None) -> None:
        """The next batches that anybody asks for go wrong, each in its own way, if at all."""
        with self.state.transaction("BEGIN") as connection:
            found = connection.execute("SELECT value FROM counts WHERE kind = 'create'").fetchone()
        numbered = enumerate(wrongs, start=1 + (found[0] if found else 0))
        told = (msgspec.structs.replace(wrong, create=number) for number, wrong in numbered if wrong is not None)
        self.state.misbehaviours = Misbehaviours((*self.state.misbehaviours.every, *told))

    def read_meter(self) -> None:
        """What was embedded in real time since the last look costs what it costs now."""
        tokens = self.tokens_at_once()
        self.usd_at_once += (tokens - self._tokens_at_once) * self.price(self.clock.now()) / 1_000_000
        self._tokens_at_once = tokens

    def tokens_at_once(self) -> int:
        """All that it ever embedded, without what it embedded for batches."""
        with self.state.transaction("BEGIN") as connection:
            return int(connection.execute("SELECT tokens - (SELECT sum(tokens_used) FROM batches) FROM totals").fetchone()[0] or 0)

    def times_at_once(self) -> Counter[str]:
        """How often each text was embedded in real time."""
        with self.state.transaction("BEGIN") as connection:
            return _counted(row[0] for row in connection.execute("SELECT sha256s FROM embedded"))

    def batches(self, catalogue: str) -> list[Batch]:
        """The batches that were made for a catalogue, in their order."""
        query = (
            "SELECT id, status, metadata, input_file_id, misbehaviours, total, tokens_used, created_at FROM batches ORDER BY number"
        )
        with self.state.transaction("BEGIN") as connection:
            rows = connection.execute(query).fetchall()
            pieces = connection.execute("SELECT batch, sha256s FROM embedded_in_batches").fetchall()
        found = []
        for name, status, metadata, file, wrongs, total, tokens, at in rows:
            if json.loads(metadata)["catalogue_id"] == catalogue:
                times = _counted(digests for batch, digests in pieces if batch == name)
                usd = tokens * self.price(at) / 2 / 1_000_000
                found.append(Batch(name, status, total, tokens, usd, times, self._useless(file, wrongs, times)))
        return found

    def _useless(self, file: str, misbehaviours: str, times: Counter[str]) -> Counter[str]:
        told = {wrong["row"] for wrong in json.loads(misbehaviours)["every"] if wrong["kind"] in USELESS}
        lines = enumerate((self.service.uploaded / file).read_bytes().splitlines(), start=1)
        texts = (sha256(json.loads(line)["body"]["input"]) for row, line in lines if row in told)
        return Counter(text for text in texts if times[text])


def _counted(pieces: Iterable[bytes]) -> Counter[str]:
    return Counter(piece[start : start + 32].hex() for piece in pieces for start in range(0, len(piece), 32))


def open_account(folder: Path, state: State, monkeypatch: pytest.MonkeyPatch, *, start: float, price: float) -> Account:
    """The account, whose clock every command goes by, and whose `who` says on which machine and by whom it is typed."""
    clock = FakeClock(start)
    account = Account(Keeping(folder / "uploaded", state, clock), clock)
    account.raise_price(price)

    def with_clock(*arguments: Any, **more: Any) -> Options:
        return dataclasses.replace(options_of(*arguments, **more), clock=clock)

    def half_by_batch(config: Any) -> Service:
        found = service_of(config)
        return dataclasses.replace(found, batch_price=found.price / 2)

    monkeypatch.setattr("pipeline.commands.main.options_of", with_clock)
    monkeypatch.setattr("pipeline.commands.batch_manager.options_of", with_clock)
    monkeypatch.setattr("pipeline.commands.session.service_of", half_by_batch)
    monkeypatch.setattr("pipeline.commands.session.user_name", lambda _: account.who.user)
    monkeypatch.setattr(platform, "node", lambda: account.who.host)
    return account


# What should be


@dataclass
class Shelf:
    """The catalogue as whoever exports it knows it. A string that was pruned is out of the index until it is here again."""

    records: dict[str, Row] = field(default_factory=dict)
    ever: set[String] = field(default_factory=set)
    pruned: set[String] = field(default_factory=set)
    blank: set[String] = field(default_factory=set)  # never sent, and listed

    def read(self, rows: Sequence[Row], *, whole: bool = False) -> None:
        if whole:
            self.records.clear()
        self.records |= {row[0]: row for row in rows}
        self.ever |= {*self.counts()}
        self.pruned -= {*self.counts()}
        self.blank |= {pair for row in rows for pair in zip(FIELDS, row[1:], strict=True) if not pair[1].strip()}

    def forget(self, ids: Iterable[str]) -> None:
        for name in ids:
            del self.records[name]

    def prune(self) -> None:
        self.pruned = self.ever - {*self.counts()}

    def counts(self) -> Counter[String]:
        """How often each string occurs; blank ones are never sent, and are left out here."""
        return Counter(pair for row in self.records.values() for pair in zip(FIELDS, row[1:], strict=True) if pair[1].strip())


# Whoever types


@dataclass(frozen=True, slots=True)
class Typed:
    """A command as the log of runs should have it."""

    command: str
    user: str
    host: str
    at: float
    code: int


@dataclass
class Desk:
    """A catalogue in a folder on the machine of `who`; `log` is what was typed there and takes the lock."""

    account: Account
    catalogue: Catalogue
    who: Person
    keys: dict[str, object] = field(default_factory=dict)
    log: list[Typed] = field(default_factory=list)
    searched: list[str] = field(default_factory=list)

    def configure(self, **keys: object) -> None:
        self.keys |= keys
        self.catalogue.configure(**{
            "embedding_service": self.account.service.base_url, "service_name": "house", "embedding_model": "local-lexical-384",
            "price_per_million": self.account.price(self.account.clock.now()), "use_batch_embeddings": True,
            "batch_manual_polling": True, "log_level": "error", **self.keys,
        })  # fmt: skip

    def put(self, rows: Iterable[Row], name: str) -> None:
        self.catalogue.write(rows, name=name)

    def type(self, program: Any, *arguments: str, refused: bool = False) -> Ran:
        """One command. `refused`: it is told before anything begins that it may not, and leaves no line in the log."""
        account, out, err = self.account, io.StringIO(), io.StringIO()
        account.who, began = self.who, account.clock.now()
        given = ["--config", str(self.catalogue.config), *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program.main(given)
        assert "Traceback" not in err.getvalue(), err.getvalue()
        account.read_meter()
        if refused:
            assert code == 2, out.getvalue() + err.getvalue()
        elif not LOOKS & {*arguments}:
            self.log.append(Typed(shlex.join((program.parser().prog, *given)), self.who.user, self.who.host, began, code))
        return Ran(code, out.getvalue(), err.getvalue())

    def main(self, *arguments: str, refused: bool = False) -> Ran:
        return self.type(main_py, *arguments, refused=refused)

    def batch(self, *arguments: str, refused: bool = False) -> Ran:
        return self.type(batch_manager, *arguments, refused=refused)

    def cron(self) -> Ran:
        """The line of the crontab, which goes on whatever the exit code is."""
        return self.batch("--advance", "--quiet")

    def done(self, *arguments: str) -> str:
        """A command of `main.py` that must do well."""
        ran = self.main(*arguments)
        assert ran.code == 0, ran.out + ran.err
        return ran.out

    def search(self, text: str) -> None:
        """Paid for, and so in the log, but for the text."""
        began = self.account.clock.now()
        self.done("--search", text, "--quiet")
        self.searched.append(text)
        line = shlex.join(("main.py", "--config", str(self.catalogue.config), "--search", "[a text]", "--quiet"))
        self.log.append(Typed(line, self.who.user, self.who.host, began, 0))

    def copied_to(self, folder: Path, who: Person) -> Desk:
        """The whole folder on another machine."""
        shutil.copytree(self.catalogue.folder, folder)
        return dataclasses.replace(self, catalogue=Catalogue(folder), who=who, keys={**self.keys}, log=[*self.log])

    @property
    def name(self) -> str:
        return self.catalogue.folder.name

    @property
    def id(self) -> str:
        with self.catalogue.ledger() as ledger:
            return ledger.meta("catalogue_id") or ""

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.main("--status", "--json").document
        return found

    def jobs(self) -> list[Job]:
        with self.catalogue.ledger() as ledger:
            return ledger.jobs.all()

    def audit(self) -> list[dict[str, str]]:
        target = self.catalogue.folder / "audit.csv"
        self.done("--audit", str(target))
        with target.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))

    def exported(self) -> list[dict[str, Any]]:
        target = self.catalogue.folder / "embeddings.parquet"
        self.done("--export-embeddings", str(target))
        found: list[dict[str, Any]] = pq.read_table(target).to_pylist()
        return found

    def told(self) -> list[dict[str, Any]]:
        """What `notify_command` was given so far."""
        paths = sorted(self.catalogue.folder.glob("told-*"), key=lambda path: int(path.name.removeprefix("told-")))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def has_notifier(self) -> Sequence[str]:
        """A program beside the config that keeps what it is told."""
        script = self.catalogue.folder / "notify.sh"
        script.write_text('#!/bin/sh\ncat > "told-$(ls | grep -c ^told-)"\n', encoding="utf-8")
        script.chmod(0o755)
        return ["./notify.sh"]
