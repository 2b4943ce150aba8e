"""The spool: answers that were paid for come back whole, whatever tears or flips in the file around them."""

from __future__ import annotations

import errno
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DiskError
from pipeline.spool import Envelope, Frame, SpoolWriter, frames, new_spool, spool_files

UNHURRIED = settings(deadline=None)  # the machine may be busy
LINES = st.lists(st.binary().map(lambda line: line.replace(b"\n", b" ")), max_size=5)
THREE = ([b'{"a":1}'], [b"second", b"\xe2\x80\xa8 \xc2\x85", b""], [b"third", b"x" * 300])


def envelope(intent: int = 1) -> Envelope:
    return Envelope(intent, "0a1b2c3d", "person", 42, 0, 1_790_000_000.25)


def written(path: Path, *bodies: list[bytes]) -> tuple[bytes, list[int]]:
    """A spool of these frames, numbered from 1: its bytes, and where each frame ends."""
    writer = SpoolWriter(path)
    ends = []
    for number, lines in enumerate(bodies, 1):
        writer.append(envelope(number), lines)
        ends.append(writer.size)
    writer.close()
    return path.read_bytes(), ends


def intents(path: Path) -> list[int]:
    return [frame.envelope.intent for frame in frames(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000001.spool"


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 2**63), st.text(), LINES), max_size=5))
def test_what_was_appended_comes_back(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[int, str, list[bytes]]]
) -> None:
    """Any bytes in a line but its end: separators of other alphabets, control characters, NUL, our own magic."""
    path = tmp_path_factory.mktemp("spool") / "00000001.spool"
    writer = SpoolWriter(path)
    wanted = []
    for intent, generation, lines in answers:
        wanted.append(Frame(Envelope(intent, generation, "title", 7, 3, 0.5), lines))
        writer.append(wanted[-1].envelope, lines)
    writer.close()
    assert list(frames(path)) == wanted
    assert writer.size == path.stat().st_size


@pytest.mark.parametrize("line", ["\u2028", "\u2029", "\u0085", "\r", "\x0b", "\x0c", "\x1c", "\x1e", "NSF1"])
def test_only_a_newline_ends_a_line(line: str, path: Path) -> None:
    """U+2028 and U+0085 are line ends to `str.splitlines`, and stand in real catalogues."""
    body = f'{{"text":"a{line}b"}}'.encode()
    written(path, [body, body])
    assert [frame.lines for frame in frames(path)] == [[body, body]]


def test_a_file_torn_at_any_byte_gives_the_whole_frames_before(path: Path) -> None:
    """A power cut may leave any length of the last write; what came before it is never lost or changed."""
    content, ends = written(path, *THREE)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        found = list(frames(path))
        assert [frame.lines for frame in found] == list(THREE[: sum(end <= length for end in ends)]), length


def test_a_tail_of_zeros_is_torn(path: Path) -> None:
    """A file system that grew the file and lost the content leaves zeros."""
    content, _ = written(path, *THREE)
    for zeros in (1, 4, 11, 12, 13, 5000):
        path.write_bytes(content + bytes(zeros))
        assert intents(path) == [1, 2, 3]


def test_an_empty_file_holds_nothing(path: Path) -> None:
    """A run that was killed between making the file and its first answer."""
    written(path)
    assert path.stat().st_size == 0
    assert intents(path) == []


@pytest.mark.parametrize("bit", [0, 7])
def test_a_damaged_byte_in_the_middle_costs_its_own_frame_only(bit: int, path: Path) -> None:
    """Whichever byte it is: of the magic, the length, the checksum or the body. What lies behind was paid for as well."""
    content, ends = written(path, *THREE)
    for place in range(ends[0], ends[1]):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        assert intents(path) == [1, 3], place


def test_a_damaged_frame_full_of_magic_costs_itself_only(path: Path) -> None:
    """What looks like the begin of a frame within a damaged one is not taken for one."""
    content, ends = written(path, [b"first"], [b"NSF1" * 50, b"NSF1\0\0\0\0\0\0\0\0"], [b"third"])
    damaged = bytearray(content)
    damaged[ends[0] + 5] ^= 0x40
    path.write_bytes(damaged)
    assert intents(path) == [1, 3]


def test_damage_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file and the place; a whole file is silent."""
    heard: list[str] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", lambda record: heard.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("namesake.spool"), "handlers", [listener])
    content, ends = written(path, *THREE)
    assert intents(path) == [1, 2, 3]
    assert not heard
    damaged = bytearray(content + b"NSF1")
    damaged[ends[0] + 40] ^= 1
    path.write_bytes(damaged)
    assert intents(path) == [1, 3]
    assert heard == [f"spool.damaged file=00000001.spool at={ends[0]}", f"spool.torn file=00000001.spool at={ends[2]}"]


def test_threads_append_whole_frames(path: Path) -> None:
    """Eight workers at once: every frame comes back once, none is cut by another."""
    writer = SpoolWriter(path)
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda number: writer.append(envelope(number), [b"%d" % number * 50]), range(200)))
    writer.close()
    found = {frame.envelope.intent: frame.lines for frame in frames(path)}
    assert found == {number: [b"%d" % number * 50] for number in range(200)}


def test_an_answer_is_durable_when_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of the frame is in the file before its fsync, also when the system writes in small pieces."""
    sizes: list[int] = []
    write, fsync = os.write, os.fsync

    def noted_fsync(handle: int) -> None:
        sizes.append(os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "write", lambda handle, view: write(handle, bytes(view)[:7]))
    monkeypatch.setattr(os, "fsync", noted_fsync)
    writer = SpoolWriter(path)
    writer.append(envelope(), [b"x" * 100])
    writer.close()
    assert sizes[-1] == writer.size == path.stat().st_size
    assert intents(path) == [1]


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_after_a_failed_write_nothing_is_appended_behind_it(
    step: str, number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full or fails in the middle of a frame: that answer is lost, the ones before stay, later ones are refused."""
    writer = SpoolWriter(path)
    writer.append(envelope(1), [b"kept"])
    write = os.write

    def failing(handle: int, view: memoryview) -> int:
        if len(view) < 40:
            raise OSError(number, os.strerror(number))
        return write(handle, view[:-39])

    def not_synced(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing if step == "write" else not_synced)
        with pytest.raises(DiskError, match=os.strerror(number)):
            writer.append(envelope(2), [b"lost"])
    before = path.read_bytes()
    with pytest.raises(DiskError, match="an earlier write to this file failed"):
        writer.append(envelope(3), [b"refused"])
    writer.close()
    assert path.read_bytes() == before
    assert intents(path)[0] == 1
    assert 3 not in intents(path)


def test_a_spool_is_never_continued(path: Path) -> None:
    """A file that is there already may end torn: nothing is appended to it."""
    written(path, [b"x"])
    with pytest.raises(FileExistsError):
        SpoolWriter(path)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Somebody laid a link under the next name: what it points to is not made."""
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="exists"):
        SpoolWriter(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_spool_is_for_its_owner(path: Path) -> None:
    """Also under a generous umask: titles may be confidential."""
    umask = os.umask(0)
    try:
        written(path, [b"x"])
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_spools_are_numbered_after_the_ones_that_wait(tmp_path: Path) -> None:
    """The oldest is collected first; a name is not given twice while its file waits."""
    for number in (1, 2, 3):
        writer = new_spool(tmp_path)
        assert writer.path.name == f"{number:08d}.spool"
        writer.close()
    (tmp_path / "00000001.spool").unlink()
    new_spool(tmp_path).close()
    assert [path.name for path in spool_files(tmp_path)] == ["00000002.spool", "00000003.spool", "00000004.spool"]
