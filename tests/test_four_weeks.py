"""Four weeks of use as a library would have them: totals, audit and index agree to the row and the cent.

A catalogue that is read whole on the first day, fed by additions on every working day, and read whole again at the end; a
small one beside it that is read whole each week; one account. `--advance` comes by cron on an injected clock; each command
goes through the program's own entry points to a real service on loopback, which takes hours, has limits and goes wrong. In
the third week a colleague takes over on another machine while the first machine's cron goes on.

At the end of each week the service's own record is the judge. What it billed must be what `--status`, `batch_manager.py
--status` and the audit say, batch by batch; what it embedded must be what is exported, each string once, and once more for
what it made useless; the index must hold just that, with the vectors that the model gives and as often as each occurs.

`NAMESAKE_SEED=7 python -m pytest tests/test_four_weeks.py -s` shows the weeks; another seed is another month.
"""

from __future__ import annotations

import csv
import datetime as dt
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.local_service import State
from pipeline.local_service.misbehaviour import Kind, Misbehaviour
from pipeline.local_service.settings import BatchLimits, Pace
from tests.agreement import check, what_is_said
from tests.evidence import reported_in
from tests.tools import Catalogue, files_of
from tests.weeks import DAY, HOUR, Account, Desk, Person, Row, Shelf, open_account
from tests.wire import Reset

SEED = int(os.environ.get("NAMESAKE_SEED", "4"))
MONDAY = dt.datetime(2026, 10, 5, tzinfo=dt.UTC).timestamp()
PRICE, NEW_PRICE = 1000.0, 1250.0  # USD for a million tokens: of a few thousand short strings a cent is seen
BUDGET, MORE = 7.5, 40.0
ANNA, BERT = Person("anna", "reading-room"), Person("bert", "catalogue-office")
SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "records.csv"
USUAL = Pace(validating=300.0, working=2.5 * HOUR, finalizing=300.0)
# Cron comes by each half hour; played are the times at which it finds something, and some at which it finds nothing.
TICKS, AT_WEEKENDS = (6.0, 9.5, 15.0), (9.5, 20.0)


def sample_rows(rng: random.Random) -> Iterator[Row]:
    """Real records, in an order of this month."""
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = [(row["id"], row["person"], row["title"]) for row in csv.DictReader(file)]
    rng.shuffle(rows)
    return iter(rows)


@dataclass
class Month:
    """The two catalogues, what should be in them, and the crontabs that are at work."""

    account: Account
    desk: Desk
    neighbour: Desk
    rng: random.Random
    pool: Iterator[Row]
    shelf: Shelf = field(default_factory=Shelf)
    theirs: Shelf = field(default_factory=Shelf)
    forgotten: Desk | None = None  # the machine whose cron nobody switched off
    is_late: bool = False  # and whether it comes by after the others
    exits: Counter[int] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)  # what cron mailed
    gone: list[Row] = field(default_factory=list)  # the records that were forgotten
    refusals: list[str] = field(default_factory=list)

    def at(self, day: int, hour: float) -> None:
        """Time passes until then, and cron comes by."""
        end, clock = MONDAY + day * DAY + hour * HOUR, self.account.clock
        for number in range(29):
            for tick in TICKS if number % 7 < 5 else AT_WEEKENDS:
                due = MONDAY + number * DAY + tick * HOUR
                if clock.now() < due <= end:
                    clock.sleep(due - clock.now())
                    self.cron(is_neighbours_too=tick in (6.0, 20.0))
        clock.sleep(max(0.0, end - clock.now()))

    def cron(self, *, is_neighbours_too: bool) -> None:
        desks = [self.desk] if self.forgotten is None else [self.forgotten, self.desk]
        for desk in reversed(desks) if self.is_late else desks:
            ran = desk.cron()
            if desk is self.forgotten:
                self.refusals.append(ran.err)
                self.account.clock.sleep(300.0)
            else:
                self.exits[ran.code] += 1
                self.complaints += [ran.err] if ran.code else []
        if is_neighbours_too:
            assert self.neighbour.cron().code in (0, 1)

    def morning(self, day: int, rows: list[Row]) -> None:
        """The additions of a day lie there before cron comes by for the first time."""
        self.at(day, 5.0)
        self.desk.put(rows, "additions.csv")
        self.shelf.read(rows)

    def new(self, count: int) -> list[Row]:
        return [next(self.pool) for _ in range(count)]

    def additions(self, new: int) -> list[Row]:
        """New records; some that are replaced, whose strings then occur less often or no more; one that is sent again."""
        rows, known = self.new(new), self.rng.sample(sorted(self.shelf.records), 4)
        for name in known[:3]:
            _, person, title = self.shelf.records[name]
            other = self.shelf.records[self.rng.choice(sorted(self.shelf.records))]
            rows.append((name, other[1] if self.rng.random() < 0.5 else person, other[2] if self.rng.random() < 0.7 else title))
        return [*rows, self.shelf.records[known[3]]]

    def week_ends(self, week: int) -> None:
        """On Sunday night nothing is left to do, and everything is compared."""
        self.at(7 * week - 1, 23.0)
        monday = MONDAY + (7 * week - 7) * DAY
        for desk, shelf in ((self.desk, self.shelf), (self.neighbour, self.theirs)):
            sums = check(desk, shelf, pays_at_once=desk is self.desk)
            days = " to ".join(f"{dt.datetime.fromtimestamp(monday + day * DAY, dt.UTC):%d %b}" for day in (0, 6))
            commands = sum(typed.at >= monday for typed in desk.log)
            ended = ", ".join(f"{count} {status}" for status, count in sorted(sums.ended.items()))
            print(
                f"{days}  {desk.name:<8} {commands:>3} commands {sums.strings:>6,} strings {sums.in_index:>6,} in the index "
                f"{sums.tokens:>7,} tokens  ${sums.usd:.6f}  jobs: {ended}"
            )


# The month


@pytest.fixture
def month(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Month]:
    rng = random.Random(SEED)
    with State(quick_path / "service.sqlite", record=True, pace=USUAL, batch_limits=BatchLimits(enqueued_requests=330)) as state:
        account = open_account(quick_path, state, monkeypatch, start=MONDAY + 5 * HOUR, price=PRICE)
        with account.service:
            for name in ("library", "archive"):
                (quick_path / name).mkdir()
            library, archive = (Desk(account, Catalogue(quick_path / name), ANNA) for name in ("library", "archive"))
            yield Month(account, library, archive, rng, sample_rows(rng))


def wrong(kind: Kind, **more: Any) -> Misbehaviour:
    return Misbehaviour(kind=kind, **more)


def test_totals_audit_and_index_agree_after_each_of_four_weeks(month: Month, quick_path: Path) -> None:
    print()
    first_week(month)
    month.week_ends(1)
    second_week(month)
    month.week_ends(2)
    third_week(month, quick_path)
    month.week_ends(3)
    fourth_week(month)
    month.week_ends(4)
    nothing_is_left_to_do(month)
    everything_happened(month)


def first_week(month: Month) -> None:
    """Both catalogues are read whole; then there are additions, a string that is refused, and records that are forgotten."""
    desk, account = month.desk, month.account
    whole = month.new(360)
    desk.put(whole, "whole.csv")
    month.shelf.read(whole, whole=True)
    desk.configure(
        input="whole.csv", budget_usd=BUDGET, batch_embedding_size=80, max_active_batches=4, notify_command=desk.has_notifier()
    )
    theirs = [*whole[:20], *month.new(40)]  # of some texts both have the string, and each pays for its own
    month.neighbour.put(theirs, "records.csv")
    month.theirs.read(theirs, whole=True)
    month.neighbour.configure(input="records.csv", batch_embedding_size=50)
    account.next_jobs(
        wrong("nan", row=7), wrong("lose_reply"), wrong("end", status="expired", share=0.4), wrong("duplicate_row", row=9)
    )
    assert desk.batch("--create").code == 0
    month.at(0, 7.0)
    assert what_is_said(desk)[1]["on its way"] > 0
    month.at(1, 4.0)
    desk.configure(input="additions.csv", input_mode="additions")
    month.morning(1, month.additions(9))
    month.morning(2, month.additions(7))
    account.next_jobs(wrong("refused_row", row=2))
    month.morning(3, month.additions(8))
    assert desk.batch("--failures", "--json").document["failures"], "nobody has looked yet"
    month.at(3, 9.75)  # and the additions of today are embedded
    assert desk.batch("--retry-failed").code == 0
    month.morning(4, month.additions(10))
    month.at(4, 14.0)
    gone = month.rng.sample(sorted(month.shelf.records), 40)
    (desk.catalogue.folder / "gone.txt").write_text("\n".join(gone), encoding="utf-8")
    desk.done("--forget-records", str(desk.catalogue.folder / "gone.txt"))
    month.gone = [month.shelf.records[name] for name in gone]
    month.shelf.forget(gone)
    desk.done("--prune")
    month.shelf.prune()


def second_week(month: Month) -> None:
    """Some of the forgotten come back; a donation meets the budget; a real-time run loses an answer; the account runs dry."""
    desk, account = month.desk, month.account
    month.morning(7, [*month.additions(6), *month.gone[:15]])
    month.morning(8, month.additions(420))
    month.at(8, 22.0)
    told = desk.told()[-1]
    assert told["event"] == "needs_person"
    assert told["words"][0].startswith(f"budget_usd is {BUDGET:g}: ")
    desk.configure(budget_usd=MORE)
    theirs = [*list(month.theirs.records.values())[10:], *month.new(25)]
    month.neighbour.put(theirs, "records.csv")
    month.theirs.read(theirs, whole=True)
    month.at(9, 9.0)  # the donation is at the service, which has no room for the neighbour meanwhile
    assert month.neighbour.batch("--sweep").code == 0
    month.desk.put(urgent := month.additions(12), "additions.csv")
    month.shelf.read(urgent)
    account.service.fails_next("POST /v1/embeddings", Reset("request"))
    assert desk.main("--set", "use_batch_embeddings=false", "--set", "max_inputs_per_request=5", "--quiet").code == 0
    assert reported_in(desk.catalogue), "an answer was lost"
    account.next_jobs(*[wrong("insufficient_quota")] * 3)
    month.morning(10, month.additions(9))
    month.morning(11, [])


def third_week(month: Month, folder: Path) -> None:
    """A colleague takes over while jobs are open, and the first machine's cron goes on. Then a job is cancelled."""
    anna, account = month.desk, month.account
    month.morning(14, month.additions(14))
    month.at(14, 7.0)
    bert = month.desk = anna.copied_to(folder / "office", BERT)
    month.forgotten = anna
    assert "--take-over" in bert.batch("--advance", "--quiet", refused=True).err
    bert.done("--take-over")
    what_is_said(bert)
    month.at(14, 9.75)
    told = bert.told()[-1]
    assert (told["event"], told["host"], told["status"]["jobs"]["lost"]) == ("needs_person", BERT.host, 1)
    for path in anna.catalogue.checkpoint.glob("batch_results_*"):  # the first machine has collected it
        if not (bert.catalogue.checkpoint / path.name).exists():
            shutil.copy(path, bert.catalogue.checkpoint)
    assert bert.batch("--download").code == 0
    month.is_late = True
    month.morning(15, rows := month.additions(11))
    anna.put(rows, "additions.csv")  # the export goes to both
    month.at(15, 7.0)
    assert "of this very catalogue" in month.refusals[-1]
    assert "Nothing was submitted" in month.refusals[-1]
    month.at(15, 23.0)
    month.forgotten = None
    month.morning(16, month.additions(10))
    month.at(16, 7.0)
    assert bert.batch("--cancel").code == 0
    bert.search("Bach, the one of whom nobody has heard")
    account.next_jobs(wrong("input_not_found"))
    month.morning(17, month.additions(9))
    account.next_jobs(wrong("empty_data", row=3), wrong("no_last_newline"))
    month.morning(18, month.additions(10))


def fourth_week(month: Month) -> None:
    """The price rises; the service is slow, and too slow for a day; the catalogue is read whole again, pruned and verified."""
    desk, account = month.desk, month.account
    month.morning(21, month.additions(30))
    month.at(21, 7.0)
    account.raise_price(NEW_PRICE)  # what was asked for before costs what it cost then
    desk.configure()
    month.neighbour.configure()
    month.at(21, 20.0)
    theirs = [*list(month.theirs.records.values())[:50], *month.new(60)]
    month.neighbour.put(theirs, "records.csv")
    month.theirs.read(theirs, whole=True)
    month.morning(22, month.additions(12))
    account.state.pace = Pace(validating=300.0, working=40 * HOUR)  # expires with three fifths of its rows
    month.at(22, 7.0)
    account.state.pace = USUAL
    month.at(22, 20.0)
    month.morning(23, month.additions(8))
    month.at(25, 5.0)
    kept = month.rng.sample(sorted(month.shelf.records), len(month.shelf.records) - 60)
    whole = [month.shelf.records[name] for name in kept] + month.new(45)
    desk.put(whole, "whole.csv")
    month.shelf.read(whole, whole=True)
    desk.configure(input="whole.csv", input_mode="snapshot")
    month.at(26, 9.0)
    desk.done("--prune")
    month.shelf.prune()
    desk.done("--verify")
    desk.done("--delete-remote", "--yes")


def nothing_is_left_to_do(month: Month) -> None:
    """Whoever runs it again pays nothing and writes nothing."""
    desk, service = month.desk, month.account.service
    paid, index, told = service.asked_to_pay(), files_of(desk.catalogue.checkpoint / "store"), len(desk.told())
    for ran in (desk.cron(), desk.main("--quiet"), month.neighbour.cron()):
        assert ran.code == 0
    assert (service.asked_to_pay(), files_of(desk.catalogue.checkpoint / "store"), len(desk.told())) == (paid, index, told)
    assert desk.main("--status", "--exit-code").code == 0


def everything_happened(month: Month) -> None:
    """A month in which nothing went wrong would prove little."""
    desk, account = month.desk, month.account
    batches = account.batches(desk.id)
    assert {batch.status for batch in batches} == {"completed", "expired", "cancelled", "failed"}
    assert sum(batch.useless.total() for batch in batches) == 2
    assert {typed.user for typed in desk.log} == {ANNA.user, BERT.user}
    assert {one["event"] for one in desk.told()} == {"finished", "needs_person"}
    assert {batch.status for batch in account.batches(month.neighbour.id)} == {"completed", "expired", "failed"}
    assert month.exits[0] > 3 * month.exits[1] > 0
    for words in (f"budget_usd is {BUDGET:g}", "insufficient_quota", "Jobs are lost"):
        assert any(words in said for said in month.complaints), words
    needs = [one["words"] for one in desk.told() if one["event"] == "needs_person"]
    assert len(needs) == 4, f"the string that was refused, the budget, the quota and the job that is lost, each once: {needs}"
