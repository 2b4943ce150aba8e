"""The ledger: one small database that never lies, is never half changed, and is never touched when it can't be trusted."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import spans as span_sets
from pipeline.errors import CheckpointError
from pipeline.ledger import (
    Doubt,
    Failure,
    Generation,
    Intent,
    Ledger,
    Snapshot,
    Spending,
    TableFile,
    open_for_booking,
    open_for_reading,
    open_for_writing,
    opening,
    schema,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.spans import Span

UNHURRIED = settings(deadline=None)  # the machine may be busy
SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12)


class Killed(BaseException):
    """Stands for SIGKILL in the middle of a block."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "ledger.copy.sqlite"


@pytest.fixture
def ledger(path: Path, copy: Path) -> Iterator[Ledger]:
    opened = open_for_writing(path, copy)
    yield opened
    opened.close()


def table_file(name: str, kind: str = "strings", scope: str = "", field: str = "person") -> TableFile:
    return TableFile(kind, scope, field, name, 3, 0, 3, 100, "0" * 64, 1.0)


def prints(folder: Path) -> dict[str, str]:
    """Every file in a folder by its content."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def fill(path: Path, copy: Path) -> None:
    """A ledger with enough in it for several pages."""
    ledger = open_for_writing(path, copy)
    with ledger.transaction():
        for number in range(2000):
            ledger.add_file(table_file(f"strings_person_{number:06d}.parquet"))
    ledger.close()


# Opening


def test_a_new_ledger_has_every_migration(path: Path, ledger: Ledger) -> None:
    """It is made whole under its name: WAL, this version, every table, and nothing left beside it."""
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    database.close()
    wanted = (
        "meta file field snapshot span generation failure intent doubt spending run job job_span attempt booking past_job receipt "
        "stop told"
    )
    assert tables - {"sqlite_sequence"} == set(wanted.split())
    assert not path.with_name("ledger.sqlite.tmp").exists()


def test_an_empty_database_of_version_0_gets_every_migration(path: Path, copy: Path) -> None:
    """Migrations run from whatever version a ledger has."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")  # makes the file
    database.close()
    assert path.stat().st_size
    open_for_writing(path, copy).close()
    open_for_reading(path, copy).close()


def test_every_commit_is_synced(ledger: Ledger) -> None:
    """synchronous=FULL: what a transaction says is durable survives a power cut."""
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_an_older_ledger_is_brought_up_to_date_and_keeps_its_rows(path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader asks for it, the writer does it; each migration is applied once."""
    ledger = open_for_writing(path, copy)
    ledger.set_meta("catalogue_id", "abc")
    ledger.close()
    longer = (*schema.MIGRATIONS, "CREATE TABLE newest (a INTEGER); INSERT INTO newest VALUES (1)")
    monkeypatch.setattr(schema, "MIGRATIONS", longer)
    monkeypatch.setattr(opening, "MIGRATIONS", longer)
    with pytest.raises(CheckpointError, match=r"older version; run python main\.py once"):
        open_for_reading(path, copy)
    for _ in range(2):
        ledger = open_for_writing(path, copy)
        assert ledger.meta("catalogue_id") == "abc"
        assert ledger._db.execute("SELECT count(*) FROM newest").fetchone() == (1,)
        ledger.close()
    open_for_reading(path, copy).close()


def test_a_migration_that_is_cut_off_has_not_happened(path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables and its number are one transaction."""
    open_for_writing(path, copy).close()
    broken = (*schema.MIGRATIONS, "CREATE TABLE newest (a INTEGER); INSERT INTO nowhere VALUES (1)")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        patch.setattr(opening, "MIGRATIONS", broken)
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            open_for_writing(path, copy)
    ledger = open_for_reading(path, copy)
    assert not ledger._db.execute("SELECT * FROM sqlite_schema WHERE name = 'newest'").fetchall()
    ledger.close()


def test_a_draft_of_a_killed_run_is_not_a_ledger(path: Path, copy: Path) -> None:
    """The first run was killed while it made the ledger: the next makes it anew."""
    path.with_name("ledger.sqlite.tmp").write_bytes(b"half a ledg")
    open_for_writing(path, copy).close()
    open_for_reading(path, copy).close()


@pytest.mark.parametrize("with_wal", [False, True])
@pytest.mark.parametrize("opened", [open_for_writing, open_for_reading])
def test_a_newer_ledger_is_refused_untouched(with_wal: bool, opened: object, path: Path, copy: Path, tmp_path: Path) -> None:
    """Not one byte of it changes, also when a killed run of the newer version left its WAL beside it."""
    made = tmp_path / "made"
    made.mkdir()
    fill(made / path.name, made / copy.name)
    database = sqlite3.connect(made / path.name, isolation_level=None)
    database.execute("PRAGMA user_version = 99")
    if not with_wal:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    names = [path.name, f"{path.name}-wal"] if with_wal else [path.name]
    for name in names:
        shutil.copy(made / name, path.with_name(name))  # as a kill leaves them, the connection still open
    database.close()
    before = {name: path.with_name(name).read_bytes() for name in names}
    assert callable(opened)
    with pytest.raises(CheckpointError, match="newer version of this program") as caught:
        opened(path, copy)
    assert "schema 99" in str(caught.value)
    assert "Update the program" in str(caught.value)
    assert {name: path.with_name(name).read_bytes() for name in names} == before


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    pages = len(content) // 4096
    assert pages > 20
    path.write_bytes(
        {
            "empty": b"",
            "garbage": random.Random(7).randbytes(len(content)),
            "words": b"this is not a ledger\n" * 500,
            "truncated to a few bytes": content[:50],
            "truncated in a page": content[: pages * 2048 + 100],
            "truncated between pages": content[: (pages // 2) * 4096],
            "one page less": content[:-4096],
            "a page of noise": content[: 10 * 4096] + random.Random(7).randbytes(4096) + content[11 * 4096 :],
        }[how]
    )


DAMAGES = ["empty", "garbage", "words", "truncated to a few bytes", "truncated in a page", "truncated between pages",
           "one page less", "a page of noise"]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("opened", [open_for_writing, open_for_reading])
@pytest.mark.parametrize("with_copy", [False, True])
def test_a_damaged_ledger_is_refused_untouched(how: str, opened: object, with_copy: bool, path: Path, copy: Path) -> None:
    """The sentence says what was found and names the safe copy, or that there is none; no byte changes."""
    fill(path, copy)
    if with_copy:
        ledger = open_for_writing(path, copy)
        ledger.save_copy(copy)
        ledger.close()
    damage(path, how)
    before = prints(path.parent)
    assert callable(opened)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} is damaged .*Nothing was changed") as caught:
        opened(path, copy)
    assert (f"The last safe copy is {copy}" if with_copy else "There is no copy of it") in str(caught.value)
    after = prints(path.parent)
    assert {name: after.get(name) for name in before} == before


def test_a_copy_in_the_place_of_a_damaged_ledger_is_valid(path: Path, copy: Path) -> None:
    """The way out that the sentence names works."""
    fill(path, copy)
    ledger = open_for_writing(path, copy)
    ledger.save_copy(copy)
    ledger.close()
    damage(path, "truncated in a page")
    shutil.copy(copy, path)
    ledger = open_for_writing(path, copy)
    assert len(ledger.files()) == 2000
    ledger.close()


# Transactions


def test_a_transaction_is_rolled_back_whole(ledger: Ledger) -> None:
    """Blocks within the block join it: after an exception none of it has happened."""
    ledger.set_meta("a", "before")

    def cut_off() -> None:
        with ledger.transaction():
            ledger.set_meta("a", "after")
            ledger.add_spans("present", "full", "person", [(0, 9)])
            ledger.add_file(table_file("a.parquet"))
            raise Killed

    with pytest.raises(Killed):
        cut_off()
    assert ledger.meta("a") == "before"
    assert ledger.spans("present", "full", "person") == []
    assert ledger.files() == []


def test_a_failed_statement_rolls_back_what_came_before_it(ledger: Ledger) -> None:
    """Two files of one name: the second is a program error, and the first is not there either."""

    def twice() -> None:
        with ledger.transaction():
            ledger.add_file(table_file("a.parquet"))
            ledger.add_file(table_file("a.parquet"))

    with pytest.raises(sqlite3.IntegrityError):
        twice()
    assert ledger.files() == []
    ledger.add_file(table_file("a.parquet"))
    assert [file.name for file in ledger.files()] == ["a.parquet"]


def test_a_killed_process_leaves_the_last_commit(path: Path, copy: Path) -> None:
    """kill -9 in an open transaction: the next opening sees everything that was committed and nothing else."""
    script = f"""
        import os, pathlib, signal
        from pipeline.ledger import open_for_writing
        ledger = open_for_writing(pathlib.Path({str(path)!r}), pathlib.Path({str(copy)!r}))
        ledger.set_meta("a", "committed")
        with ledger.transaction():
            ledger.set_meta("a", "open")
            ledger.set_meta("b", "open")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == -9
    reader = open_for_reading(path, copy)
    assert (reader.meta("a"), reader.meta("b")) == ("committed", None)
    reader.close()
    writer = open_for_writing(path, copy)
    assert (writer.meta("a"), writer.meta("b")) == ("committed", None)
    writer.close()


def test_a_reader_neither_waits_nor_sees_half_of_a_transaction(
    path: Path, copy: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the last commit, however long the writer takes; waiting would be an error here, since no time is allowed for it."""
    monkeypatch.setattr(opening, "_BUSY_SECONDS", 0.0)
    ledger.set_meta("a", "before")
    with ledger.transaction():
        ledger.set_meta("a", "after")
        ledger.set_meta("b", "after")
        reader = open_for_reading(path, copy)
        assert (reader.meta("a"), reader.meta("b")) == ("before", None)
    assert (reader.meta("a"), reader.meta("b")) == ("before", None), "all that it reads is of one moment"
    reader.close()
    reader = open_for_reading(path, copy)
    assert (reader.meta("a"), reader.meta("b")) == ("after", "after")
    reader.close()


def test_a_reader_changes_nothing(path: Path, copy: Path, ledger: Ledger) -> None:
    """It could not if it wanted to."""
    ledger.set_meta("a", "1")
    reader = open_for_reading(path, copy)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.set_meta("a", "2")
    reader.close()
    assert ledger.meta("a") == "1"


def test_a_booking_without_the_lock_stands_beside_the_writer(path: Path, ledger: Ledger) -> None:
    """What a search paid is added between two transactions of a run."""
    ledger.spend(Spending("g", "person", "realtime", 10, 100, 0.5))
    with open_for_booking(path) as booking:
        booking.spend(Spending("g", "", "search", 1, 3, 0.25))
    assert ledger.spent_usd() == 0.75


# Spans


@UNHURRIED
@given(st.lists(SPANS, max_size=6), st.randoms(use_true_random=False))
def test_spans_do_not_depend_on_the_order_in_which_they_came(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[Span]], chance: random.Random
) -> None:
    """Any order and any cutting of the same rows leaves the same rows in the database: those of `spans.union`."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = open_for_writing(folder / "ledger.sqlite", folder / "copy")
    ledger._db.execute("PRAGMA synchronous = OFF")
    ledger.add_spans("embedded", "g", "other", [(5, 10)])
    chance.shuffle(pieces)
    for spans in pieces:
        ledger.add_spans("embedded", "g", "person", spans)
    assert ledger.spans("embedded", "g", "person") == span_sets.union(*pieces)
    assert ledger.spans("embedded", "g", "other") == [(5, 10)]
    ledger.close()


def test_the_spans_of_a_state_can_be_set_and_dropped(ledger: Ledger) -> None:
    """Replaced whole for one field; dropped for all fields of a scope; others stay."""
    for scope in ("full", "trial"):
        for field in ("person", "title"):
            ledger.add_spans("present", scope, field, [(0, 5), (7, 9)])
    ledger.set_spans("present", "full", "person", [(1, 2)])
    ledger.drop_spans("present", "trial")
    assert ledger.spans("present", "full", "person") == [(1, 2)]
    assert ledger.spans("present", "full", "title") == [(0, 5), (7, 9)]
    assert ledger.spans("present", "trial", "title") == []


def test_index_again_forgets_rows_in_every_store(ledger: Ledger) -> None:
    """And only of this field, and only where they were indexed."""
    for scope in ("embedded:aa", "none:bb"):
        ledger.add_spans("indexed", scope, "person", [(0, 10)])
    ledger.add_spans("indexed", "embedded:aa", "title", [(0, 10)])
    ledger.add_spans("embedded", "aa", "person", [(0, 10)])
    ledger.index_again("person", [(3, 4), (9, 30)])
    assert ledger.spans("indexed", "embedded:aa", "person") == [(0, 3), (4, 9)]
    assert ledger.spans("indexed", "none:bb", "person") == [(0, 3), (4, 9)]
    assert ledger.spans("indexed", "embedded:aa", "title") == [(0, 10)]
    assert ledger.spans("embedded", "aa", "person") == [(0, 10)]


# Files


def test_a_file_number_is_used_once(ledger: Ledger) -> None:
    """Also after the latest files were dropped: a name that is still on disk, or in a reader's list, is never given again."""
    assert ledger.next_file_number() == 1
    assert ledger.next_file_number() == 1  # nothing was committed: a draft of this name may be overwritten
    for name in ("a", "b", "c"):
        ledger.add_file(table_file(name, scope="x"))
    assert ledger.next_file_number() == 4
    assert ledger.drop_files("strings", "x") == ["a", "b", "c"]
    assert ledger.next_file_number() == 4


def test_readings_that_replace_each_other_never_share_a_name(ledger: Ledger) -> None:
    """As preprocessing numbers its files: a new reading is written while the old one is valid, and then replaces it."""
    names: set[str] = set()
    for _ in range(6):
        number = ledger.next_file_number()
        files = [table_file(f"{kind}_{number + at:06d}", kind, "full", "") for at, kind in enumerate(("records", "occurrences"))]
        assert not names & {file.name for file in files}
        names |= {file.name for file in files}
        with ledger.transaction():
            for kind in ("records", "occurrences"):
                ledger.drop_files(kind, "full")
            for file in files:
                ledger.add_file(file)
    assert len(ledger.files()) == 2


def test_a_number_taken_in_a_transaction_that_failed_is_free_again(ledger: Ledger) -> None:
    """What was never committed never was."""

    def cut_off() -> None:
        with ledger.transaction():
            ledger.add_file(table_file("a"))
            raise Killed

    with pytest.raises(Killed):
        cut_off()
    assert ledger.next_file_number() == 1


def test_files_come_in_the_order_they_were_made(ledger: Ledger) -> None:
    """By kind, scope and field, each of them optional; dropping gives their names back once."""
    files = [table_file("b", "embeddings", "g", "person"), table_file("a", "embeddings", "g", "title"), table_file("c")]
    for file in files:
        ledger.add_file(file)
    assert ledger.files() == files
    assert ledger.files("embeddings") == files[:2]
    assert ledger.files("embeddings", "g", "title") == files[1:2]
    assert ledger.files(field="person") == [files[0], files[2]]
    assert ledger.drop_files("embeddings", "g", "person") == ["b"]
    assert ledger.drop_files("embeddings", "g") == ["a"]
    assert ledger.drop_files("embeddings", "g") == []
    assert ledger.files() == files[2:]


# Facts


def test_fields_snapshots_and_generations_come_back(ledger: Ledger) -> None:
    """What is saved is what is read; saving again replaces."""
    ledger.save_field("title", "title", 5)
    ledger.save_field("person", "{a}", 0)
    ledger.save_field("person", "{a} {b}", 9)
    assert ledger.fields() == {"person": ("{a} {b}", 9), "title": ("title", 5)}
    snapshot = Snapshot("full", "f", "r", "id", 10, 2, None, 1.5)
    ledger.save_snapshot(Snapshot("full", "old", "r", "id", 1, 0, 7, 1.0))
    ledger.save_snapshot(snapshot)
    assert ledger.snapshot("full") == snapshot
    ledger.drop_snapshot("full")
    assert ledger.snapshot("full") is None


def test_one_generation_is_current(ledger: Ledger) -> None:
    """The first is; another becomes it only when it is made so, and learning its length changes nothing else."""
    assert ledger.current_generation() is None
    first, second = Generation("openai", "m", None, 0), Generation("openai", "m", 256, 256)
    assert first.id != second.id
    ledger.save_generation(first, 1.0)
    ledger.save_generation(second, 2.0)
    assert ledger.current_generation() == first
    learned = Generation("openai", "m", None, 1536)
    assert learned.id == first.id
    ledger.save_generation(learned, 3.0)
    assert ledger.current_generation() == learned
    assert ledger.generation(second.id) == second
    ledger.make_current(second.id)
    assert ledger.current_generation() == second


def test_failures_are_one_a_string(ledger: Ledger) -> None:
    """The latest reason counts; they are listed in order, counted by reason, and dropped by field."""
    empty, null = Failure("g", "person", 9, "preflight", "empty", "b", 1.0), Failure("g", "title", 3, "service", "null", "a", 1.0)
    nan, other = Failure("g", "title", 3, "service", "nan", "c", 2.0), Failure("h", "title", 1, "service", "nan", "d", 2.0)
    ledger.add_failures([null, empty])
    ledger.add_failures([nan, other])
    assert list(ledger.failures("g")) == [empty, nan]
    assert [failure.row for failure in ledger.failures("g", "title")] == [3]
    assert ledger.failure_counts("g") == {("preflight", "empty"): 1, ("service", "nan"): 1}
    assert ledger.drop_failed("g", ["title", "composite"]) == 1, "what preflight refused would only be refused again"
    assert ledger.drop_failures("g") == 1
    assert [failure.scope for failure in ledger.failures("h")] == ["h"]


def test_runs_are_kept_with_their_end(ledger: Ledger) -> None:
    """A run that was killed has none."""
    first = ledger.runs.start("main.py", "1.0", "host", "anna", 7, 1.0)
    second = ledger.runs.start("main.py", "1.0", "host", "anna", 8, 2.0)
    ledger.runs.end(second, 3.0, 75)
    rows = [(run.id, run.user, run.pid, run.ended_at, run.exit_code) for run in ledger.runs.all()]
    assert rows == [(first, "anna", 7, None, None), (second, "anna", 8, 3.0, 75)]


# Money


def intent(strings: int = 2, usd: float = 0.5) -> Intent:
    return Intent("g", "person", [(0, strings)], strings, strings * 10, usd)


def test_an_intent_is_open_until_it_is_closed(ledger: Ledger) -> None:
    """Its number is never given again: a late answer can't close another request's."""
    first = ledger.add_intent(intent(2), 1.0)
    second = ledger.add_intent(intent(3), 1.0)
    assert ledger.intents() == {first: intent(2), second: intent(3)}
    ledger.close_intents([first, second, 99])
    assert ledger.intents() == {}
    assert ledger.add_intent(intent(4), 2.0) > second


def test_doubts_add_up(ledger: Ledger) -> None:
    """The same request lost twice counts twice: it may have been paid that often."""
    assert ledger.doubt_totals() == (0, 0.0)
    for _ in range(2):
        ledger.add_doubt(intent(3, 0.25), "killed", 5.0)
    assert ledger.doubt_totals() == (6, 0.5)
    assert list(ledger.doubts()) == [Doubt("g", "person", [(0, 3)], 3, 30, 0.25, "killed", 5.0)] * 2


def test_spending_is_summed_by_generation_field_and_kind(ledger: Ledger) -> None:
    """Each collecting adds to what was booked before."""
    ledger.spend(Spending("g", "person", "realtime", 10, 100, 0.5))
    ledger.spend(Spending("g", "person", "realtime", 5, 50, 0.25))
    ledger.spend(Spending("g", "person", "search", 1, 4, 0.125))
    ledger.spend(Spending("h", "person", "realtime", 1, 1, 1.0))
    assert ledger.spendings() == [
        Spending("g", "person", "realtime", 15, 150, 0.75),
        Spending("g", "person", "search", 1, 4, 0.125),
        Spending("h", "person", "realtime", 1, 1, 1.0),
    ]


def test_the_budget_counts_what_is_collected_on_the_wire_and_in_doubt(ledger: Ledger) -> None:
    """A request moves from one to the other and never counts as nothing."""
    assert ledger.spent_usd() == 0.0
    number = ledger.add_intent(intent(usd=0.5), 1.0)
    assert ledger.spent_usd() == 0.5
    with ledger.transaction():
        ledger.close_intents([number])
        ledger.add_doubt(intent(usd=0.5), "killed", 2.0)
    assert ledger.spent_usd() == 0.5
    ledger.spend(Spending("g", "person", "realtime", 2, 20, 0.25))
    assert ledger.spent_usd() == 0.75


# The safe copy


def test_the_safe_copy_is_a_whole_ledger(ledger: Ledger, copy: Path, tmp_path: Path) -> None:
    """One file, without WAL, that opens in the ledger's place with all that was committed; it replaces an older copy."""
    copy.write_bytes(b"an older one")
    ledger.set_meta("a", "1")
    ledger.add_spans("embedded", "g", "person", [(0, 9)])
    ledger.save_copy(copy)
    ledger.set_meta("a", "2")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / "ledger.sqlite"
    shutil.copy(copy, moved)
    opened = open_for_writing(moved, copy)
    assert opened.meta("a") == "1"
    assert opened.spans("embedded", "g", "person") == [(0, 9)]
    opened.close()
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == [copy.name]


def test_a_kill_while_copying_leaves_the_old_copy(ledger: Ledger, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is left of the draft does not disturb the next one."""
    ledger.set_meta("a", "1")
    ledger.save_copy(copy)
    ledger.set_meta("a", "2")

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.ledger.publish", kill)
        with pytest.raises(Killed):
            ledger.save_copy(copy)
    before = sqlite3.connect(copy)
    assert before.execute("SELECT value FROM meta").fetchall() == [("1",)]
    before.close()
    copy.with_name("ledger.copy.sqlite.tmp-journal").write_bytes(b"what a kill left")
    ledger.save_copy(copy)
    after = sqlite3.connect(copy)
    assert after.execute("SELECT value FROM meta").fetchall() == [("2",)]
    after.close()
