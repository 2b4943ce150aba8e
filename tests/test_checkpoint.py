"""The checkpoint folder: whose it is, who may write, and what in it counts. Asked through the command line where users meet it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from pipeline.checkpoint import Checkpoint, reading, write_list, writing
from pipeline.commands.main import main
from pipeline.errors import CheckpointError, LockedError
from pipeline.ledger import TableFile, open_for_reading
from pipeline.locking import lock_holder

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "input: records.csv\nfields:\n  person: person\ncheckpoint_dir: state\n"
HOLD = """
    import pathlib, sys
    from pipeline.checkpoint import Checkpoint, writing
    with writing(Checkpoint(pathlib.Path(sys.argv[1])), "main.py --reindex"):
        print("held", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command line sets a handler for SIGTERM; the tests that follow get theirs back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project: a config, three records, and no checkpoint folder yet."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "my.yml").write_text(CONFIG, encoding="utf-8")
    (project / "records.csv").write_text("id,person\n1,Bach\n2,Mozart\n3,Bach\n", encoding="utf-8")
    return project


@pytest.fixture
def place(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "state")


def run(folder: Path, *arguments: str) -> int:
    return main(["--config", str(folder / "my.yml"), *arguments])


def prepare(folder: Path) -> int:
    """The shortest command that changes something."""
    return run(folder, "--end", "preprocessing")


def touch(folder: Path) -> None:
    """The input is written again: a run reads it again."""
    path = folder / "records.csv"
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000_000))


def content(root: Path) -> dict[str, str]:
    """Every file below a folder and its content, but for the WAL's index, which readers share."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def whole(place: Checkpoint) -> None:
    """Every table that the ledger names is there with its content, and no other."""
    ledger = open_for_reading(place.ledger, place.copy)
    files = ledger.files()
    ledger.close()
    assert {path.name for path in place.tables.iterdir()} == {file.name for file in files}
    for file in files:
        assert hashlib.sha256((place.tables / file.name).read_bytes()).hexdigest() == file.sha256, file.name


class Holder:
    """A second process that holds the lock."""

    def __init__(self, root: Path) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLD), str(root)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._pipe(self.process.stdout).readline() == "held\n"

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.communicate()


@pytest.fixture
def holder(folder: Path, place: Checkpoint) -> Iterator[Holder]:
    assert prepare(folder) == 0
    made = Holder(place.root)
    yield made
    made.end(signal.SIGKILL)


# What is in the folder, and for whom


def test_state_is_for_its_owner_even_under_umask_0(folder: Path, place: Checkpoint) -> None:
    """Folders 0700, files 0600, whichever of them: a catalogue may be confidential. The user's umask is given back."""
    umask = os.umask(0)
    try:
        assert run(folder) == 0
        with (folder / "records.csv").open("a", encoding="utf-8") as file:
            file.write(",no id\n4,  \n")  # so that the lists for people are there too
        assert run(folder) == 0
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert place.rejected_rows.exists()
    assert place.failures.exists()
    paths = [place.root, *place.root.rglob("*")]
    assert len(paths) > 12
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_run_with_nothing_to_do_changes_no_table(folder: Path, place: Checkpoint) -> None:
    """The same result however often you run it."""
    assert run(folder) == 0
    before = {name: found for name, found in content(place.root).items() if name.startswith(("tables", "store"))}
    assert before
    assert run(folder) == 0
    assert {name: found for name, found in content(place.root).items() if name.startswith(("tables", "store"))} == before
    whole(place)


def test_the_input_may_be_read_again_any_number_of_times(folder: Path, place: Checkpoint) -> None:
    """Each reading replaces the tables of the one before: none overwrites or deletes a table that the ledger names."""
    for _ in range(6):
        assert run(folder) == 0
        whole(place)
        touch(folder)


def test_a_folder_that_is_there_and_empty_is_taken(folder: Path, place: Checkpoint) -> None:
    """Made by hand, or a mount."""
    place.root.mkdir()
    assert prepare(folder) == 0


def test_drafts_and_orphans_never_count_and_are_swept(folder: Path, place: Checkpoint) -> None:
    """Tables that no commit named, drafts of whatever kind, and scratch: what a kill leaves is not data, and does not stay."""
    assert prepare(folder) == 0
    known = {path.name for path in place.tables.iterdir()}
    for name in ("strings_person_000099.parquet", "strings_person_000098.parquet.tmp", "x"):
        (place.tables / name).write_bytes(b"half")
    drafts = ("ledger.sqlite.tmp", "ledger.copy.sqlite.tmp", "batch_requests_0009.jsonl.tmp", "failures.csv.tmp")
    for name in (*drafts, "store/12345678.f32.tmp", "scratch/rows.parquet"):
        (place.root / name).write_bytes(b"half")
    assert run(folder, "--status") == 0
    assert run(folder) == 0
    kept = {path.name for path in place.tables.iterdir()}
    assert kept >= known
    assert not kept & {"strings_person_000099.parquet", "strings_person_000098.parquet.tmp", "x"}
    assert not list(place.root.rglob("*.tmp"))
    assert not list(place.scratch.iterdir())
    whole(place)


def test_a_folder_among_the_tables_stops_nobody(folder: Path, place: Checkpoint) -> None:
    """A notebook server makes one where it opens a file; it is not ours to remove."""
    assert prepare(folder) == 0
    (place.tables / ".ipynb_checkpoints").mkdir()
    assert prepare(folder) == 0
    assert (place.tables / ".ipynb_checkpoints").is_dir()


def test_a_list_for_people_is_replaced_or_removed_but_not_behind_a_link(folder: Path, place: Checkpoint) -> None:
    """`failures.csv` of nothing is no file; a link in its place would choose what we overwrite."""
    place.root.mkdir()
    write_list(place.failures, b"a")
    write_list(place.failures, b"b")
    assert place.failures.read_bytes() == b"b"
    write_list(place.failures, None)
    write_list(place.failures, None)
    assert not place.failures.exists()
    place.failures.symlink_to(folder / "theirs.csv")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        write_list(place.failures, b"c")
    assert not (folder / "theirs.csv").exists()


# What is refused


@pytest.mark.parametrize("command", [(), ("--reindex",), ("--reset", "preprocessing"), ("--take-over",), ("--dry-run",)])
def test_a_foreign_folder_is_refused_untouched(
    command: tuple[str, ...], folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """`checkpoint_dir: ~/Documents` must not fill, or sweep, somebody's documents."""
    place.root.mkdir()
    (place.root / "tables").mkdir()
    (place.root / "tables" / "mine.parquet").write_bytes(b"mine")
    (place.root / "thesis.tex").write_bytes(b"years")
    before = content(place.root)
    code = run(folder, *command)
    if command != ("--dry-run",):
        assert code == 2
        said = capsys.readouterr().err
        assert re.search(r"not a checkpoint folder of ours: it holds '(tables|thesis\.tex)'.*Nothing was changed", said)
    assert content(place.root) == before
    assert {path.name for path in place.root.iterdir()} == {"tables", "thesis.tex"}


@pytest.mark.parametrize("folders", ["tables", "spool", "store"])
def test_a_folder_that_lost_its_ledger_is_refused_untouched(
    folders: str, folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it the tables would count as orphans, and paid embeddings would be swept."""
    assert run(folder) == 0
    spooled = place.spool / "00000001.spool"
    spooled.write_bytes(b"an answer")
    for path in place.root.glob("ledger*"):
        path.unlink()
    for name in {"tables", "spool", "store"} - {folders}:
        shutil.rmtree(place.root / name)
    before = content(place.root)
    capsys.readouterr()
    assert run(folder) == 2
    assert "ledger" in capsys.readouterr().err
    assert content(place.root) == before


def test_a_lost_ledger_with_a_copy_names_the_copy(folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """And putting it in place is the way out."""
    assert run(folder) == 0
    for path in place.root.glob("ledger.sqlite*"):
        path.unlink()
    before = content(place.root)
    capsys.readouterr()
    assert run(folder) == 2
    assert str(place.copy) in capsys.readouterr().err
    assert content(place.root) == before
    shutil.copy(place.copy, place.ledger)
    assert run(folder) == 0
    whole(place)


@pytest.mark.parametrize("command", [(), ("--status",)])
def test_a_file_in_the_place_of_the_folder_is_refused(
    command: tuple[str, ...], folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a command that only reads."""
    place.root.write_bytes(b"a file")
    assert run(folder, *command) == 2
    assert "is a file, not a folder; set checkpoint_dir to a folder" in capsys.readouterr().err
    assert place.root.read_bytes() == b"a file"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_linked_folder_is_refused(dangling: bool, folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else could choose what we overwrite; nothing is made behind the link."""
    elsewhere = folder / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
    place.root.symlink_to(elsewhere)
    assert run(folder) == 2
    assert f"{place.root} is a symbolic link" in capsys.readouterr().err
    assert not elsewhere.exists() if dangling else not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.sqlite-wal", "lock", "tables", "spool", "store"])
@pytest.mark.parametrize("dangling", [False, True])
def test_linked_state_is_refused(
    name: str, dangling: bool, folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever part of the state it is: what the link points to is neither read as ours nor changed."""
    assert run(folder) == 0
    path, elsewhere = place.root / name, folder / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_bytes(b"theirs")
    path.symlink_to(folder / "nowhere" if dangling else elsewhere)
    before = content(elsewhere) if elsewhere.is_dir() else {"": elsewhere.read_bytes().hex()}
    capsys.readouterr()
    assert run(folder) == 2
    assert f"{path} is a symbolic link" in capsys.readouterr().err
    assert (content(elsewhere) if elsewhere.is_dir() else {"": elsewhere.read_bytes().hex()}) == before
    assert not (folder / "nowhere").exists()


def test_a_reader_refuses_a_linked_ledger(folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """It would show somebody else's state as ours."""
    assert run(folder) == 0
    place.ledger.rename(folder / "elsewhere")
    place.ledger.symlink_to(folder / "elsewhere")
    assert run(folder, "--status") == 2
    assert "is a symbolic link" in capsys.readouterr().err


def test_a_parent_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    """A home on another disk is usual; only the state itself must be real."""
    (tmp_path / "link").symlink_to(folder)
    assert prepare(tmp_path / "link") == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_to_write_is_refused(folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """With the key to change."""
    place.root.mkdir(mode=0o500)
    assert run(folder) == 2
    assert "set checkpoint_dir to a folder that you may write" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["empty", "garbage", "truncated", "newer"])
def test_a_ledger_that_can_not_be_trusted_stops_every_command_untouched(
    how: str, folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, a sentence, the safe copy named where there is damage, and not one file changed."""
    assert run(folder) == 0
    found = bytearray(place.ledger.read_bytes())
    if how == "newer":
        found[60:64] = (99).to_bytes(4, "big")  # user_version, as SQLite's file format has it
    damaged = {"empty": b"", "garbage": b"\xff" * 9000, "truncated": bytes(found[:9000]), "newer": bytes(found)}[how]
    place.ledger.write_bytes(damaged)
    before = content(place.root)
    for command in ((), ("--status",), ("--reset", "preprocessing"), ("--search", "Bach")):
        capsys.readouterr()
        assert run(folder, *command) == 2, command
        said = capsys.readouterr().err
        assert "Nothing was changed" in said
        assert ("newer version" if how == "newer" else str(place.copy)) in said
        after = content(place.root)
        after["lock"] = before["lock"]
        assert after == before, command


# The lock


def test_a_second_writer_stops_at_once_and_names_the_first(
    folder: Path, place: Checkpoint, holder: Holder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 75, the process and what it does; nothing was changed by the one that came late."""
    before = content(place.root)
    capsys.readouterr()
    assert run(folder) == 75
    said = capsys.readouterr().err
    assert f"(process {holder.process.pid} on " in said
    assert "main.py --reindex" in said
    assert content(place.root) == before


def test_readers_never_wait_for_the_lock(
    folder: Path, place: Checkpoint, holder: Holder, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is told at once, with who is at work."""
    capsys.readouterr()
    assert run(folder, "--status", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["running"]["pid"] == holder.process.pid
    assert found["running"]["command"] == "main.py --reindex"
    assert found["input"]["records"] == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_gives_the_lock_back(number: int, folder: Path, place: Checkpoint, holder: Holder) -> None:
    """The kernel does: there is nothing to clean up by hand."""
    holder.end(number)
    assert lock_holder(place.lock) is None
    assert json.loads(place.lock.read_bytes())["pid"] == holder.process.pid
    assert prepare(folder) == 0


def test_the_lock_is_held_again_after_each_end(folder: Path, place: Checkpoint, holder: Holder) -> None:
    """Two writers one after the other; and never two at once in one process either."""
    holder.end(signal.SIGKILL)
    with writing(place, "first"):
        found = lock_holder(place.lock)
        assert found is not None
        assert (found.pid, found.command) == (os.getpid(), "first")
        with pytest.raises(LockedError, match=f"process {os.getpid()} on .*: first"), writing(place, "second"):
            pass
    assert lock_holder(place.lock) is None
    with writing(place, "third"):
        pass


@pytest.mark.parametrize("words", [b"", b"4194304", b'{"pid": 1, "host": "elsewhere", "command": "main.py"}', b"\xff\0", b"[1]"])
def test_a_stale_lock_file_has_no_effect(words: bytes, folder: Path, place: Checkpoint) -> None:
    """The lock is the kernel's; the words in the file are for people, and may be anything."""
    assert prepare(folder) == 0
    place.lock.write_bytes(words)
    assert lock_holder(place.lock) is None
    assert prepare(folder) == 0


@pytest.mark.parametrize("words", [b"", b"[1]", b"{", b'{"pid": "x", "host": 1, "command": 2}'])
def test_a_holder_that_wrote_nothing_readable_is_still_a_holder(words: bytes, folder: Path, place: Checkpoint) -> None:
    """A second writer that comes in the moment before the first has written down who it is."""
    with writing(place, "first"):
        place.lock.write_bytes(words)
        assert lock_holder(place.lock) is not None
        with pytest.raises(LockedError, match="Another run is at work"), writing(place, "second"):
            pass


# Moved and copied


@pytest.mark.parametrize("copied", [False, True])
def test_a_folder_that_was_moved_or_copied_is_refused_until_it_is_taken_over(
    copied: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Used in two places everything would be paid twice. Taking over keeps the catalogue and what it paid for."""
    assert run(folder) == 0
    other = tmp_path / "other"
    if copied:
        shutil.copytree(folder, other)
    else:
        folder.rename(other)
    place = Checkpoint(other / "state")
    before = content(place.root)
    for command in ((), ("--reindex",), ("--reset", "preprocessing"), ("--drop-embeddings", "--yes")):
        capsys.readouterr()
        assert run(other, *command) == 2
        said = capsys.readouterr().err
        assert f"belongs to {folder / 'state'}" in said
        assert "Nothing was changed" in said
        assert "--take-over" in said
    after = content(place.root)
    after["lock"] = before["lock"]
    assert after == before
    assert run(other, "--status") == 0
    assert run(other, "--take-over") == 0
    capsys.readouterr()
    assert run(other, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["stages"]["embedding_and_indexing"]["embedded"] == 0
    whole(place)
    if copied:
        assert run(folder) == 0  # the first does not know of the copy: that is why the sentence says not to use it


def test_another_host_is_another_place(folder: Path, place: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same path on another machine: a folder that was copied, or a share that two machines see."""
    assert prepare(folder) == 0
    monkeypatch.setattr("platform.node", lambda: "another-host")
    assert prepare(folder) == 2
    assert run(folder, "--take-over") == 0
    assert prepare(folder) == 0


def test_a_catalogue_keeps_its_identity(folder: Path, place: Checkpoint) -> None:
    """Through runs, resets and take-overs: remote batches and files are known by it."""

    def identity() -> str | None:
        with reading(place) as ledger:
            assert ledger is not None
            return ledger.meta("catalogue_id")

    assert run(folder) == 0
    first = identity()
    assert first is not None
    assert re.fullmatch("[0-9a-f]{32}", first)
    for command in ((), ("--reset", "preprocessing", "embedding_and_indexing"), ("--drop-embeddings", "--yes"), ("--take-over",)):
        assert run(folder, *command) == 0
        assert identity() == first


def test_a_reader_of_a_new_folder_makes_nothing(folder: Path, place: Checkpoint) -> None:
    """`--status` before the first run."""
    assert run(folder, "--status") == 0
    assert not place.root.exists()
    with reading(place) as ledger:
        assert ledger is None


def test_a_first_run_that_was_killed_is_begun_again(folder: Path, place: Checkpoint) -> None:
    """Folder, lock and drafts are there, and no ledger yet: this is ours, not foreign."""
    place.root.mkdir()
    for name in ("tables", "spool", "store", "scratch"):
        (place.root / name).mkdir()
    place.lock.write_bytes(b"")
    (place.root / "ledger.sqlite.tmp").write_bytes(b"half")
    (place.root / "ledger.sqlite.tmp-journal").write_bytes(b"half")
    assert run(folder) == 0
    whole(place)


KILLED_IN_A_TRANSACTION = """
    import os, pathlib, signal, sqlite3, sys
    from pipeline.ledger.opening import _create
    path = pathlib.Path(sys.argv[1])
    _create(path)
    ledger = sqlite3.connect(path, isolation_level=None)
    ledger.execute("PRAGMA cache_size = 1")  # what does not fit is written to the file before the commit
    ledger.execute("BEGIN IMMEDIATE")
    ledger.executemany("INSERT INTO meta VALUES (?, ?)", [(f"name {number}", "x" * 2000) for number in range(200)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_ledger_whose_making_was_cut_off_by_a_kill_is_rolled_back(
    folder: Path, place: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    place.root.mkdir(mode=0o700)
    command = [sys.executable, "-c", textwrap.dedent(KILLED_IN_A_TRANSACTION), str(place.ledger)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert place.ledger.with_name("ledger.sqlite-journal").exists()
    assert run(folder, "--status") == 2
    assert "the next run brings it in order" in capsys.readouterr().err
    assert run(folder) == 0
    whole(place)


def test_a_table_named_by_the_ledger_is_never_swept(place: Checkpoint) -> None:
    """Opening removes orphans only, by the ledger's list and not by age or name."""
    with writing(place, "first") as ledger:
        (place.tables / "odd name.bin").write_bytes(b"x")
        ledger.add_file(TableFile("tokens", "bytes", "person", "odd name.bin", 1, 0, 1, 1, "0" * 64, 1.0))
        (place.tables / "orphan.parquet").write_bytes(b"x")
    with writing(place, "second"):
        assert [path.name for path in place.tables.iterdir()] == ["odd name.bin"]
