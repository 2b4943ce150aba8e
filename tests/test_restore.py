"""`--restore-ledger` after the ledger was lost in mid-life: nothing lost, nothing embedded twice, the same numbers as before.

Each restore starts from a safe copy that is older than the tables. What a catalogue would be without the loss is a twin
that read the same inputs; what was embedded is asked of the service.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import spans as span_sets
from pipeline.checkpoint import Checkpoint, writing
from pipeline.ledger import TableFile
from pipeline.local_service.model import embed
from pipeline.provider.service import service_of
from pipeline.tables.embeddings import look_through, matrix_of, write_embeddings
from tests.tools import Catalogue, Ran, record_texts, untouched

ROOT = Path(__file__).resolve().parent.parent
FIRST = [(str(number), f"Person {number % 5}", f"Title {number}") for number in range(12)]
SECOND = [(str(number), f"Person {number % 8}", f"Title {number}") for number in range(3, 20)]  # some left, some came
THIRD = [(str(number), f"Person {number % 9}", f"Title {number}") for number in range(24)]  # those come back, others come
FIELDS = ("person", "title")


class KilledError(BaseException):
    """As sudden as SIGKILL, within this process."""


def killed(*_: object, **__: object) -> None:
    raise KilledError


@dataclass
class Story:
    """A catalogue after two readings, the safe copies that were made on its way, and its twin that loses nothing."""

    catalogue: Catalogue
    twin: Catalogue
    saved: Path
    copies: dict[str, bytes] = field(default_factory=dict)

    @property
    def place(self) -> Checkpoint:
        return Checkpoint(self.catalogue.checkpoint)

    def lose(self, copy: str = "after the first", how: str = "deleted") -> None:
        """The ledger is gone or no good; the safe copy is as old as is said."""
        self.place.copy.write_bytes(self.copies[copy])
        for path in self.place.root.glob("ledger.sqlite-*"):
            path.unlink()
        if how == "deleted":
            self.place.ledger.unlink()
        elif how == "another database":
            self.place.ledger.unlink()
            with contextlib.closing(sqlite3.connect(self.place.ledger)) as database:
                database.execute("CREATE TABLE other (value)")
        else:
            known = self.place.ledger.read_bytes()
            self.place.ledger.write_bytes({"empty": b"", "truncated": known[:9000], "garbled": known[:4096] + b"\xff" * 8192}[how])

    def rewind(self) -> None:
        """After two readings once more; the folder is where it was, or it would be another's."""
        shutil.rmtree(self.catalogue.checkpoint)
        shutil.copytree(self.saved, self.catalogue.checkpoint)
        self.catalogue.write(SECOND)

    def restore(self, *more: str) -> Ran:
        return self.catalogue.run("--restore-ledger", *more)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    story = Story(Catalogue(folder / "catalogue"), Catalogue(folder / "twin"), folder / "saved")
    catalogues = (story.catalogue, story.twin)
    for catalogue in catalogues:
        catalogue.folder.mkdir()
        catalogue.configure(max_inputs_per_request=4)
        catalogue.write([])
    assert story.catalogue.run("--quiet").code == 2  # no rows yet: a folder that knows whose it is, and a copy of that
    story.copies["of nothing"] = story.place.copy.read_bytes()
    for catalogue in catalogues:
        catalogue.write(FIRST)
        good(catalogue.run("--quiet"))
    story.copies["after the first"] = story.place.copy.read_bytes()
    for catalogue in catalogues:
        catalogue.write(SECOND)
        good(catalogue.run("--quiet"))
    story.copies["newest"] = story.place.copy.read_bytes()
    shutil.copytree(story.place.root, story.saved)
    catalogues[1].write(THIRD)
    good(catalogues[1].run("--quiet"))
    return story


@pytest.fixture
def story(told: Story) -> Story:
    told.rewind()
    return told


def good(ran: Ran) -> Ran:
    assert ran.code == 0, ran.out + ran.err
    return ran


def numbers(catalogue: Catalogue) -> dict[str, dict[int, str]]:
    return {name: catalogue.strings(name) for name in FIELDS}


def vectors(catalogue: Catalogue) -> dict[tuple[str, int], bytes]:
    """(field, row) → vector, of every embeddings file; no row stands in two."""
    found: dict[tuple[str, int], bytes] = {}
    with catalogue.ledger() as ledger:
        files = ledger.files("embeddings")
    for file in files:
        table = pq.read_table(catalogue.checkpoint / "tables" / file.name).combine_chunks()
        matrix = matrix_of(table["vector"].chunk(0))
        for row, vector in zip(table["row"].to_pylist(), matrix, strict=True):
            assert (file.field, row) not in found, "a row stands in two files"
            found[file.field, row] = vector.tobytes()
    return found


def embedded(catalogue: Catalogue) -> dict[str, list[int]]:
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
        assert generation is not None
        return {name: list(span_sets.rows_of(ledger.spans("embedded", generation.id, name))) for name in FIELDS}


def assert_as_the_twin(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third reading asks for what is new in it only, and the end is that of a catalogue that lost nothing."""
    texts = record_texts(monkeypatch)
    story.catalogue.write(THIRD)
    good(story.catalogue.run("--quiet"))
    before = {row[column] for rows in (FIRST, SECOND) for row in rows for column in (1, 2)}
    assert sorted(texts) == sorted({row[column] for row in THIRD for column in (1, 2)} - before)
    assert numbers(story.catalogue) == numbers(story.twin)
    assert vectors(story.catalogue) == vectors(story.twin)
    assert {name: story.catalogue.present(name) for name in FIELDS} == {name: story.twin.present(name) for name in FIELDS}
    found = good(story.catalogue.run("--verify", "--json")).document
    assert (found["is_well_now"], found["missing"], found["changed"], found["unexpected"]) == (True, 0, 0, 0)
    texts.clear()
    good(story.catalogue.run("--quiet"))
    assert texts == []


# Lost, and brought back


@pytest.mark.parametrize("copy", ["of nothing", "after the first", "newest"])
@pytest.mark.parametrize("how", ["deleted", "empty", "truncated", "garbled", "another database"])
def test_a_lost_ledger_is_restored_as_it_was(copy: str, how: str, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row numbers, vectors, what is paid: from a copy as new as the tables, older, or as old as the folder."""
    before = numbers(story.catalogue), vectors(story.catalogue), embedded(story.catalogue)
    story.lose(copy, how)
    damaged = story.place.ledger.read_bytes() if story.place.ledger.exists() else None
    texts = record_texts(monkeypatch)
    ran = good(story.restore("--json"))
    assert (numbers(story.catalogue), vectors(story.catalogue), embedded(story.catalogue)) == before
    assert texts == []
    kept = [(story.place.root / name).read_bytes() for name in ran.document["moved_aside"] if name.endswith(".sqlite")]
    assert kept == ([] if damaged is None else [damaged])
    if copy != "of nothing":
        assert good(story.catalogue.run("--status", "--json")).document["input"]["must_be_read_again"]
    if how == "deleted" or copy == "after the first":
        assert_as_the_twin(story, monkeypatch)


def test_what_was_restored_and_what_is_next_is_said(story: Story) -> None:
    story.lose("of nothing")
    said = good(story.restore()).out
    for words in ("8 strings of person with their row numbers", "20 embeddings of title", "What can't be known", "--verify"):
        assert words in said
    assert not story.place.not_restored.exists()


def test_twice_restored_is_once(story: Story) -> None:
    story.lose()
    good(story.restore("--json"))
    first = numbers(story.catalogue), vectors(story.catalogue), spent(story.catalogue)
    story.lose()
    good(story.restore("--json"))
    assert (numbers(story.catalogue), vectors(story.catalogue), spent(story.catalogue)) == first


def test_new_files_never_take_the_name_of_a_restored_one(story: Story) -> None:
    """The copy counts files from where it was made; those that are newer have the numbers behind."""
    story.lose("of nothing")
    good(story.restore("--json"))
    names = {path.name: path.read_bytes() for path in story.place.tables.glob("[es]*.parquet")}
    with story.catalogue.ledger() as ledger:
        assert ledger.next_file_number() > max(int(path.stem[-6:]) for path in story.place.tables.iterdir())
    story.catalogue.write(THIRD)
    good(story.catalogue.run("--quiet"))
    assert {name: (story.place.tables / name).read_bytes() for name in names} == names


# What refuses, and what an ordinary command says


def test_a_sound_ledger_is_left_alone(story: Story) -> None:
    before = untouched(story.place.root)
    ran = story.restore()
    assert (ran.code, "nothing to restore" in ran.err) == (2, True)
    assert untouched(story.place.root) == before


def test_another_run_at_work_is_waited_for(story: Story) -> None:
    with writing(story.place, "main.py"):
        for path in (story.place.ledger, *story.place.logs):
            path.rename(path.with_name(f"away-{path.name}"))
        ran = story.restore()
        assert (ran.code, "Another run is at work" in ran.err) == (75, True)
        assert not story.place.ledger.exists()


@pytest.mark.parametrize("how", ["gone", "damaged", "linked"])
def test_without_a_safe_copy_it_says_what_to_bring_back(how: str, story: Story) -> None:
    story.lose("after the first")
    story.place.copy.unlink()
    if how == "damaged":
        story.place.copy.write_bytes(b"garbage" * 1000)
    elif how == "linked":
        story.place.copy.symlink_to(story.saved / "ledger.copy.sqlite")
    before = untouched(story.place.root)
    ran = story.restore()
    assert ran.code == 2
    assert ("symbolic link" if how == "linked" else "Bring ledger.copy.sqlite back from a backup") in ran.err
    assert untouched(story.place.root) == before


def test_a_folder_that_is_not_ours_or_new_is_nothing_to_restore(story: Story) -> None:
    shutil.rmtree(story.place.root)
    assert "nothing to restore" in story.restore().err
    assert not story.place.root.exists()
    story.place.root.mkdir()
    (story.place.root / "thesis.tex").write_bytes(b"years")
    ran = story.restore()
    assert (ran.code, "not a checkpoint folder of ours" in ran.err) == (2, True)
    assert [path.name for path in story.place.root.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", [(), ("--status",), ("--dry-run",), ("--verify",), ("--reset", "preprocessing")])
@pytest.mark.parametrize("with_copy", [True, False])
def test_no_command_begins_a_new_ledger_where_one_was_lost(with_copy: bool, command: tuple[str, ...], story: Story) -> None:
    """An empty one would sweep the tables and pay for everything again; `--status` must not say that nothing is done."""
    story.lose()
    if not with_copy:
        story.place.copy.unlink()
    before = untouched(story.place.root)
    ran = story.catalogue.run("--quiet", *command)
    assert (ran.code, "has lost its ledger" in ran.err, "--restore-ledger" in ran.err) == (2, True, True)
    assert untouched(story.place.root) == before


def test_an_older_ledger_by_hand_in_the_place_of_a_newer_one_is_noticed(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run would sweep the embeddings that it does not know as orphans. Moved away, it is restored."""
    for path in story.place.root.glob("ledger.sqlite*"):
        path.unlink()
    story.place.ledger.write_bytes(story.copies["after the first"])
    before = story.catalogue.state()
    ran = story.catalogue.run("--quiet")
    assert (ran.code, "put in the place of a newer ledger" in ran.err) == (2, True)
    assert story.catalogue.state() == before
    story.lose()
    good(story.restore("--json"))
    assert_as_the_twin(story, monkeypatch)


# In the middle of a run


def test_answers_in_the_spool_are_collected_after_a_restore(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their intents were in the ledger that is lost."""
    story.catalogue.write(THIRD)
    texts = record_texts(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.embedding_and_indexing.collect", killed)
        with pytest.raises(KilledError):
            story.catalogue.run("--quiet")
    assert texts
    assert list(story.place.spool.iterdir())
    story.lose()
    assert good(story.restore("--json")).document["waiting"] == len(texts)
    texts.clear()
    good(story.catalogue.run("--quiet"))
    assert texts == []
    assert vectors(story.catalogue) == vectors(story.twin)
    with story.catalogue.ledger() as ledger:
        assert (ledger.doubt_totals()[0], ledger.intents()) == (0, {})
    assert list(story.place.spool.iterdir()) == []


def test_a_collecting_cut_off_before_its_commit_counts_once(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table is there, and so are the answers that it was made of: neither vectors nor money are doubled."""
    priced(monkeypatch)
    story.catalogue.write(THIRD)
    good(story.catalogue.run("--quiet"))
    cost = spent(story.catalogue)
    assert cost > 0
    story.rewind()
    story.catalogue.write(THIRD)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.collecting._book", killed)
        with pytest.raises(KilledError):
            story.catalogue.run("--quiet")
    assert list(story.place.spool.iterdir())
    story.lose("newest")
    good(story.restore("--json"))
    texts = record_texts(monkeypatch)
    good(story.catalogue.run("--quiet"))
    assert texts == []
    assert vectors(story.catalogue) == vectors(story.twin)
    assert spent(story.catalogue) == pytest.approx(cost)


def test_intents_of_the_copy_that_were_answered_since_are_no_doubts(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy may be made while requests are on the wire: of those that became embeddings nothing is possibly paid twice."""
    story.catalogue.write(THIRD)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.realtime.RealTime._collect", killed)
        with pytest.raises(KilledError):
            story.catalogue.run("--quiet")
    with writing(story.place, "test") as ledger:
        assert ledger.intents()
        ledger.save_copy(story.place.copy)
    story.copies["on the wire"] = story.place.copy.read_bytes()
    good(story.catalogue.run("--quiet"))
    story.lose("on the wire")
    good(story.restore("--json"))
    with story.catalogue.ledger() as ledger:
        assert ledger.intents() == {}


def test_the_copy_is_made_while_a_run_goes_on(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of hours that loses its ledger loses minutes: after the reading, and then every few pieces."""
    monkeypatch.setattr("pipeline.embedding_and_indexing.COPY_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.realtime.SPOOL_BYTES", 1)
    story.catalogue.write(THIRD)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.commands.session._leave", lambda *_: None)
        patch.setattr("pipeline.embedding_and_indexing._index", killed)
        with pytest.raises(KilledError):
            story.catalogue.run("--quiet")
    with contextlib.closing(sqlite3.connect(story.place.copy)) as copy:
        (records,) = copy.execute("SELECT records FROM snapshot").fetchone()
        (rows,) = copy.execute("SELECT sum(past - first) FROM span WHERE state = 'embedded'").fetchone()
    assert records == len(THIRD)
    assert rows == len(vectors(story.twin))


def test_a_reading_is_in_the_copy_before_the_tables_of_the_last_one_go(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the copy names no table that is gone, and --verify can be typed first."""
    story.catalogue.write(THIRD)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.commands.session._leave", lambda *_: None)
        patch.setattr("pipeline.preprocessing.delete_tables", killed)
        with pytest.raises(KilledError):
            story.catalogue.run("--quiet")
    story.copies["of the reading"] = story.place.copy.read_bytes()
    good(story.catalogue.run("--quiet"))
    story.lose("of the reading")
    assert good(story.restore("--json")).document["gone"] == 0
    found = good(story.catalogue.run("--verify", "--json")).document
    assert (found["missing"], found["changed"], found["unexpected"]) == (0, 0, 0)


# Money


def priced(monkeypatch: pytest.MonkeyPatch, price: float = 100.0) -> None:
    import dataclasses

    monkeypatch.setattr("pipeline.commands.session.service_of", lambda config: dataclasses.replace(service_of(config), price=price))


def spent(catalogue: Catalogue) -> float:
    with catalogue.ledger() as ledger:
        return ledger.spent_usd()


@pytest.mark.parametrize("silent", [False, True])
def test_what_real_time_cost_since_the_copy_is_booked(silent: bool, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the cent, as the files say; of files that say nothing a bound, as an estimate. The budget holds either way."""
    priced(monkeypatch)
    story.copies["before it cost"] = story.place.copy.read_bytes()
    story.catalogue.write(THIRD)
    good(story.catalogue.run("--quiet"))
    before = spent(story.catalogue)
    assert before > 0
    if silent:
        for path in story.place.tables.glob("embeddings_*.parquet"):
            table = pq.read_table(path).combine_chunks()
            write_embeddings(path, table["row"].to_numpy(), matrix_of(table["vector"].chunk(0)))
    story.lose("before it cost")
    if silent:  # the copy's own files were rewritten above; they are as before but for what they say
        shutil.copytree(story.saved / "tables", story.place.tables, dirs_exist_ok=True)
    ran = good(story.restore())
    assert spent(story.catalogue) >= before if silent else spent(story.catalogue) == pytest.approx(before)
    with story.catalogue.ledger() as ledger:
        kinds = {spending.kind for spending in ledger.spendings() if spending.usd}
    assert kinds == ({"estimate"} if silent else {"realtime"})
    assert ("as an estimate" in ran.out) == silent


# Files that can't be taken in


def newest(story: Story, kind: str) -> Path:
    return max(story.place.tables.glob(f"{kind}_*_*.parquet"), key=lambda path: path.stem.rsplit("_", 1)[1])


@pytest.mark.parametrize("how", ["cut", "one bit", "of another field", "of a model nobody knows"])
def test_torn_embeddings_are_named_and_kept_and_only_their_rows_asked_for_again(
    how: str, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is changed before the user has said yes to paying for them again."""
    torn = newest(story, "embeddings")
    rows = look_through(torn).rows
    name = torn.name.split("_")[2]
    if how == "cut":
        torn.write_bytes(torn.read_bytes()[:-100])
    elif how == "one bit":
        flipped = bytearray(torn.read_bytes())
        flipped[len(flipped) // 3] ^= 1
        torn.write_bytes(flipped)
    else:
        parts = torn.name.split("_")
        parts[1 if how == "of a model nobody knows" else 2] = "0123abcd" if how == "of a model nobody knows" else "composite"
        torn = torn.rename(torn.with_name("_".join(parts)))
    content = torn.read_bytes()
    story.lose()
    before = untouched(story.place.root)
    ran = story.restore()
    assert (ran.code, torn.name in ran.err, "Nothing was changed" in ran.err) == (2, True, True)
    assert untouched(story.place.root) == before
    assert torn.name in good(story.restore("--yes")).out
    assert (story.place.not_restored / torn.name).read_bytes() == content
    texts = record_texts(monkeypatch)
    good(story.catalogue.run("--quiet"))
    known = story.catalogue.strings(name)
    assert sorted(texts) == sorted(known[row] for row in span_sets.rows_of(rows))
    assert (story.place.not_restored / torn.name).read_bytes() == content


def test_embeddings_of_strings_that_are_gone_are_not_given_to_others(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector under a number that another string gets later would be silently wrong."""
    newest(story, "strings").unlink()
    story.lose()
    assert story.restore().code == 2
    good(story.restore("--yes", "--json"))
    story.catalogue.write(list(reversed(THIRD)))
    good(story.catalogue.run("--quiet"))
    found = vectors(story.catalogue)
    for name in FIELDS:
        known = story.catalogue.strings(name)
        wanted = embed([known[row] for row in sorted(known)])
        assert np.array_equal(np.stack([np.frombuffer(found[name, row], "<f4") for row in sorted(known)]), wanted)


def test_strings_of_a_wrong_field_are_not_taken_in(story: Story) -> None:
    """The UUIDs in the file say so."""
    path = newest(story, "strings")
    other = {"person": "title", "title": "person"}[path.name.split("_")[1]]
    path.rename(path.with_name(path.name.replace(path.name.split("_")[1], other)))
    story.lose()
    ran = story.restore()
    assert (ran.code, "no table of strings of" in ran.err) == (2, True)


def test_a_file_that_overlaps_is_rewritten_with_the_missing_rows_only(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    path = newest(story, "embeddings")
    name = path.name.split("_")[2]
    table = pq.read_table(path).combine_chunks()
    rows, matrix = table["row"].to_numpy(), matrix_of(table["vector"].chunk(0))
    known = vectors(story.catalogue)
    write_embeddings(
        path, np.concatenate([[0], rows]), np.vstack([np.frombuffer(known[name, 0], "<f4"), matrix]), look_through(path).origin
    )
    story.lose()
    assert path.name in good(story.restore("--json")).document["aside"]
    assert vectors(story.catalogue) == known
    assert_as_the_twin(story, monkeypatch)


def test_a_file_whose_rows_are_all_known_is_not_taken_in_twice(story: Story) -> None:
    path = newest(story, "embeddings")
    twice = path.with_name(path.name.replace(path.stem.rsplit("_", 1)[1], "000099"))
    shutil.copy(path, twice)
    (story.place.tables / "notes.txt").write_bytes(b"theirs")
    before = vectors(story.catalogue)
    story.lose()
    assert set(good(story.restore("--json")).document["aside"]) == {twice.name, "notes.txt"}
    assert vectors(story.catalogue) == before
    assert {path.name for path in story.place.not_restored.iterdir()} == {twice.name, "notes.txt"}


def test_embeddings_that_the_copy_names_and_are_gone_need_a_yes(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped on purpose since the copy, or lost with the ledger: nobody can know, and they would be paid again."""
    gone = min(story.place.tables.glob("embeddings_*_title_*.parquet"))
    rows = look_through(gone).rows
    gone.unlink()
    story.lose()
    assert "files are gone" in story.restore().err
    good(story.restore("--yes", "--json"))
    texts = record_texts(monkeypatch)
    good(story.catalogue.run("--quiet"))
    present = set(story.catalogue.present("title"))
    known = story.catalogue.strings("title")
    assert sorted(texts) == sorted({known[row] for row in span_sets.rows_of(rows)} & present)


def test_embeddings_dropped_and_made_again_since_the_copy_are_those_that_count(story: Story) -> None:
    """Their rows are the copy's, their files are not."""
    good(story.catalogue.run("--quiet", "--drop-embeddings", "--yes"))
    good(story.catalogue.run("--quiet"))
    before = vectors(story.catalogue)
    story.lose()
    good(story.restore("--yes", "--json"))
    assert vectors(story.catalogue) == before


# Killed in the middle of a restore


def steps(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Each rename, and each commit, is a step; the `at`-th is not made, and kills."""
    made = 0

    def step(real: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **more: Any) -> Any:
            nonlocal made
            made += 1
            if made == at:
                raise KilledError
            return real(*arguments, **more)

        return stepped

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, step(getattr(Path, name)))
    for name in ("pipeline.files.fsync_folder", "pipeline.restoring.places.fsync_folder", "pipeline.ledger.ledger.Ledger.add_file",
                 "pipeline.restoring.draft.read_again", "pipeline.commands.restore.open_for_writing"):  # fmt: skip
        module, attribute = name.rsplit(".", 1)
        owner: Any = sys.modules.get(module) or getattr(sys.modules[module.rsplit(".", 1)[0]], module.rsplit(".", 1)[1])
        monkeypatch.setattr(owner, attribute, step(getattr(owner, attribute)))
    return lambda: made


def test_killed_at_any_step_a_further_restore_or_run_goes_on(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment: at the end there is what there would be, and nothing is asked for."""
    import pipeline.commands.restore
    import pipeline.restoring.draft  # noqa: F401

    before = numbers(story.catalogue), vectors(story.catalogue)
    twice = newest(story, "embeddings")
    content, at, kills = story.copies["after the first"], 0, 0
    while True:
        at += 1
        story.rewind()
        shutil.copy(twice, twice.with_name("embeddings_0123abcd_title_000099.parquet"))
        story.copies["after the first"] = content
        story.lose(how="truncated" if at % 2 else "deleted")
        with monkeypatch.context() as patch:
            made = steps(patch, at)
            try:
                good(story.restore("--yes", "--json"))
                break
            except KilledError:
                kills += 1
            assert made() == at
        ran = story.restore("--yes", "--json")
        if ran.code:  # the draft had the ledger's name already
            assert "nothing to restore" in ran.err
        assert (numbers(story.catalogue), vectors(story.catalogue)) == before
    assert kills > 10
    assert_as_the_twin(story, monkeypatch)


_KILLED = """
    import os, signal, sys
    import pipeline.restoring.places as places
    real = places.publish

    def killed(final):
        if final.name == "ledger.sqlite":
            os.kill(os.getpid(), signal.SIGKILL)
        real(final)

    places.publish = killed
    from pipeline.commands.main import main
    main(["--config", sys.argv[1], "--restore-ledger"])
"""


def test_a_real_kill_between_the_old_ledger_and_the_new_one(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: the damaged one is aside, the restored one has no name yet, and the WAL of a killed run is about."""
    before = numbers(story.catalogue), vectors(story.catalogue)
    story.lose(how="truncated")
    damaged = story.place.ledger.read_bytes()
    story.place.logs[0].write_bytes(b"a log of another ledger")
    script = [sys.executable, "-c", textwrap.dedent(_KILLED), str(story.catalogue.config)]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not story.place.ledger.exists()
    assert "--restore-ledger" in story.catalogue.run("--quiet").err
    good(story.restore("--json"))
    assert (numbers(story.catalogue), vectors(story.catalogue)) == before
    kept = {path.read_bytes() for path in story.place.root.glob("ledger.damaged-*")}
    assert kept >= {damaged, b"a log of another ledger"}
    assert_as_the_twin(story, monkeypatch)


def test_a_draft_that_a_kill_left_is_not_taken_for_one_that_is_done(story: Story) -> None:
    story.lose()
    draft = story.place.root / "ledger.sqlite.tmp"
    draft.write_bytes(b"half")
    draft.with_name(draft.name + "-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"half" * 200)
    good(story.restore("--json"))
    assert not list(story.place.root.glob("*.tmp*"))


def test_a_table_that_left_the_ledger_is_no_orphan_worth_a_stop(story: Story) -> None:
    """Killed between forgetting dropped embeddings and deleting their files: the next run sweeps them and goes on."""
    with writing(story.place, "test") as ledger:
        generation = ledger.current_generation()
        assert generation is not None
        ledger.drop_files("embeddings", generation.id)
        ledger.drop_spans("embedded", generation.id)
        ledger.add_file(TableFile("tokens", "bytes", "person", "x", 1, 0, 1, 1, "0" * 64, 1.0))
        ledger.drop_file("x")
    good(story.catalogue.run("--quiet"))
