"""Files that are there after a power cut, whole or not at all; and a disk that says no, told as a sentence."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import files
from pipeline.errors import CheckpointError, DiskError
from pipeline.files import (
    disk_errors,
    file_system_of,
    free_bytes,
    need_room,
    no_symlink,
    publish,
    sha256_of,
    spreadsheet_safe,
    temporary,
    write_durably,
)

UNHURRIED = settings(deadline=None)  # the machine may be busy


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    return path


def test_a_file_is_replaced_whole(target: Path) -> None:
    """The new content is there, and nothing else is left in the folder."""
    write_durably(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["state.json"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_kill_before_the_rename_leaves_the_old_file(step: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step is cut off; and the next attempt is not disturbed by what was left."""

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(files, "publish", kill)
        elif step == "fsync":
            patch.setattr(os, "fsync", kill)
        else:
            patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            write_durably(target, b"new and longer")
    assert target.read_bytes() == b"old"
    write_durably(target, b"x")
    assert target.read_bytes() == b"x"


def test_content_is_durable_before_its_name_and_the_name_before_we_go_on(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, rename, fsync of the folder: in this order, else a power cut leaves an empty file under the name."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(path: Path, other: Path) -> Path:
        steps.append("rename")
        return replace(path, other)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_durably(target, b"new")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_full_or_failing_disk_is_told_as_a_sentence(number: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the file, the reason and the way out; the old content stays."""

    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(DiskError, match="Free some space") as caught:
        write_durably(target, b"new")
    assert str(target) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert caught.value.exit_code == 1
    assert target.read_bytes() == b"old"


def test_after_a_failed_fsync_the_file_is_written_anew(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may have dropped the pages and would say "done" to a second fsync of the same file."""
    synced: list[int] = []
    fsync = os.fsync

    def failing_once(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing_once)
    with pytest.raises(DiskError):
        write_durably(target, b"new")
    with temporary(target).open("rb"):  # so that its inode can't be given away again
        write_durably(target, b"new")
    assert target.read_bytes() == b"new"
    assert synced[0] not in synced[1:]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EISDIR])
def test_another_trouble_keeps_its_own_name(number: int, target: Path) -> None:
    """Only the disk's troubles are the disk's."""
    with pytest.raises(OSError, match="words") as caught, disk_errors(target):
        raise OSError(number, "words")
    assert not isinstance(caught.value, DiskError)
    assert caught.value.errno == number


def test_a_draft_behind_a_link_is_not_followed(target: Path, tmp_path: Path) -> None:
    """Somebody laid a link where we write drafts: what it points to is not overwritten."""
    theirs = tmp_path / "theirs.txt"
    theirs.write_bytes(b"theirs")
    temporary(target).symlink_to(theirs)
    write_durably(target, b"new")
    assert theirs.read_bytes() == b"theirs"
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()


@pytest.mark.parametrize("dangling", [False, True])
def test_state_behind_a_link_is_refused(dangling: bool, tmp_path: Path) -> None:
    """Also when it points nowhere yet: then it would choose what we create."""
    theirs = tmp_path / "theirs"
    if not dangling:
        theirs.write_bytes(b"")
    link = tmp_path / "ledger.sqlite"
    link.symlink_to(theirs)
    with pytest.raises(CheckpointError, match="is a symbolic link; state must be a real file or folder"):
        no_symlink(link)
    no_symlink(tmp_path)
    no_symlink(tmp_path / "not there")


def test_publish_needs_a_draft(tmp_path: Path) -> None:
    """Without one nothing is published, and nothing is made."""
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_drafts_are_told_by_their_ending(tmp_path: Path) -> None:
    """A draft lies beside its file, so that the rename stays on one disk."""
    assert temporary(tmp_path / "a.parquet") == tmp_path / "a.parquet.tmp"


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    """SHA-256, as `sha256sum` says it."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_space_and_kind_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    """They are those of its nearest parent: asked before the first run makes the folder."""
    new = tmp_path / "not" / "there"
    assert free_bytes(new) > 0
    assert file_system_of(new) == file_system_of(tmp_path)
    assert not new.exists()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_what_a_spreadsheet_would_calculate_gets_a_quote(start: str) -> None:
    """`=cmd|…` in a title is shown, not run."""
    assert spreadsheet_safe(f"{start}1+1") == f"'{start}1+1"


@UNHURRIED
@given(st.text())
def test_a_cell_is_changed_only_by_a_quote_before_it(text: str) -> None:
    """And what comes out never begins like a formula."""
    safe = spreadsheet_safe(text)
    assert safe in (text, "'" + text)
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_ordinary_texts_stay_as_they_are() -> None:
    """Names and titles are not touched."""
    for text in ("Bach, Johann Sebastian, 1685-1750", "", "1+1=2", "'tis", "a\n=b", "\u00c9tudes"):
        assert spreadsheet_safe(text) == text


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.files.free_bytes", lambda _: 5_000_000)
    need_room(tmp_path, 5_000_000)
    with pytest.raises(DiskError, match=r"some 7\.5 MB more are needed on this disk, and 5\.0 MB are free.*Free some space"):
        need_room(tmp_path, 7_500_000)
