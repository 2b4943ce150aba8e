"""`--forget-text`: what is forgotten is nowhere in the folder any more, and everything else is as it was.

The folder is searched byte by byte, and the values of its Parquet files; the vectors of what is forgotten are searched for
too. The command is also killed, by SIGKILL, before each of its durable calls, and typed again.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import Checkpoint
from pipeline.commands.text_list import read_list
from pipeline.errors import UsageError
from pipeline.forgetting import Wish
from pipeline.ledger.erasing import forms_of
from pipeline.local_service.model import embed
from tests.forks import KILLED, Asked, Call, Ended, Fault, Forks
from tests.tools import Catalogue

NAME = 'Geheim, "Xaver",\n1901-1977, é'
TITLE = "Das verschwiegene Buch"
WHOLE = f"{NAME} / {TITLE}"
KEPT = [(str(number), f"Person {number}", f"Title {number % 4}") for number in range(6)]
SECRET = [("s1", NAME, TITLE), ("s2", NAME, "Title 1")]
ZSTD = b"\x28\xb5\x2f\xfd"  # how a frame begins
WISHES = [{"text": NAME}, {"text": TITLE, "field": "title"}, {"text": WHOLE}, {"text": f"{NAME} / Title 1"}]


@dataclass
class World:
    """A catalogue whose secrets came by batch and in real time, and have left the input."""

    folder: Path
    forks: Forks
    now: float = 1_790_000_000.0
    catalogue: Catalogue = field(init=False)

    def __post_init__(self) -> None:
        self.catalogue = Catalogue(self.folder / "catalogue")
        (self.folder / "service").mkdir(parents=True)
        self.catalogue.folder.mkdir()

    @property
    def place(self) -> Checkpoint:
        return Checkpoint(self.catalogue.checkpoint)

    def type(self, *command: str, fault: Fault | None = None, program: str = "main.py") -> Ended:
        words = (program, "--config", str(self.catalogue.config), *command)
        ended = self.forks.run(Asked(words, str(self.folder / "service"), self.now, fault=fault))
        assert "Traceback" not in ended.err, ended.err
        self.now = ended.now + 60
        return ended

    def ask(self, *command: str) -> str:
        ended = self.type(*command)
        assert ended.code == 0, ended.err
        return ended.out

    def forget(self, *more: str, fault: Fault | None = None) -> Ended:
        return self.type("--forget-text", str(self.folder / "list.jsonl"), *more, fault=fault)

    def save(self) -> None:
        for name in ("catalogue", "service"):
            shutil.copytree(self.folder / name, self.folder / "saved" / name)

    def rewind(self) -> None:
        for name in ("catalogue", "service"):
            shutil.rmtree(self.folder / name)
            shutil.copytree(self.folder / "saved" / name, self.folder / name)

    def strings(self) -> dict[str, dict[int, str]]:
        return {name: self.catalogue.strings(name) for name in ("person", "title", "composite")}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("forgetting")
    with Forks(folder) as forks:
        world = World(folder, forks)
        world.catalogue.configure(
            fields={"person": "person", "title": "title", "composite": "{person} / {title}"}, use_batch_embeddings=True
        )
        world.catalogue.write([*KEPT[:3], SECRET[0]])
        world.ask("--quiet")
        world.catalogue.write([*KEPT[:5], *SECRET])
        world.ask("--quiet", "--set", "use_batch_embeddings=false")
        _quote(world)
        (folder / "list.jsonl").write_text("".join(json.dumps(wish) + "\n" for wish in WISHES), encoding="utf-8")
        world.save()
        yield world


def _quote(world: World) -> None:
    """A service quotes what it refuses, and its words are kept."""
    with contextlib.closing(sqlite3.connect(world.place.ledger)) as database:
        (generation,) = database.execute("SELECT id FROM generation").fetchone()
        row = next(row for row, text in world.catalogue.strings("person").items() if text == NAME)
        words = f"it did not like {NAME!r} and {' '.join(NAME.split())}"
        database.execute("INSERT INTO failure VALUES (?, 'title', 0, 'preflight', 'x', ?, 1.0)", (generation, words))
        database.execute("INSERT INTO failure VALUES (?, 'person', ?, 'service', 'x', 'no', 1.0)", (f"weaviate:{generation}", row))
        database.execute(
            "INSERT INTO doubt SELECT NULL, ?, 'person', ?, 1, 1, 0, ?, 1.0",
            (generation, json.dumps([[row, row + 1]]), words),
        )
        database.commit()


@pytest.fixture
def world(told: World) -> World:
    """As it was before, with the secrets out of the input."""
    told.rewind()
    told.catalogue.write(KEPT)
    told.ask("--quiet", "--end", "preprocessing")
    return told


def secrets() -> list[bytes]:
    """Each text in every form in which it may be written, and its vector."""
    found: set[bytes] = set()
    for text in (NAME, TITLE):  # the others hold these
        found |= {form.encode() for one in forms_of(text) for form in (one, one.replace('"', '""'))}
    for wish in WISHES:
        vector = embed([wish["text"]])[0].tobytes()
        found |= {vector, base64.b64encode(vector)}
    return sorted(found)


def leaks(folder: Path) -> list[str]:
    """Where a secret is found, raw or as a value of a Parquet file."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            found += [f"{path}: {secret[:40]!r}" for secret in secrets() if secret in content]
            if path.suffix == ".parquet":
                pages = _pages(content)
                found += [f"{path}: {secret[:40]!r}" for secret in secrets() if secret in pages]
                values = [str(value) for column in pq.read_table(path).columns for value in column.to_pylist()]
                found += [f"{path}: {value[:40]!r}" for value in values if NAME in value or TITLE in value]
    return found


def _pages(content: bytes) -> bytes:
    """Whatever is compressed in a file, unpacked: values that no row names any more would be there too."""
    unpacked, at = [], content.find(ZSTD)
    while at >= 0:
        stream = pa.CompressedInputStream(pa.BufferReader(content[at:]), "zstd")
        with contextlib.suppress(OSError):  # behind a page comes another's header, which is no page
            while piece := stream.read(256):
                unpacked.append(piece)
        at = content.find(ZSTD, at + 1)
    return b"".join(unpacked)


def index_of(world: World) -> dict[str, tuple[str, bytes]]:
    """uuid → (text, vector) of the embedded index."""
    (path,) = world.place.store.glob("*.sqlite")
    vectors = path.with_suffix(".f32").read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT uuid, text, slot FROM string").fetchall()
    width = 384 * 4
    return {key.hex(): (text, vectors[slot * width : (slot + 1) * width]) for key, text, slot in found}


def assert_all_else_is_well(world: World, before: dict[str, dict[int, str]]) -> None:
    """Row numbers are those of before, each text has its own vector, and every command works on."""
    gone = {wish["text"] for wish in WISHES}
    after = world.strings()
    for name, strings in before.items():
        assert after[name].keys() == strings.keys()
        for row, text in strings.items():
            assert after[name][row] == (f"\0forgotten {name} {row}" if text in gone else text)
    assert "The index is well" in world.ask("--verify")
    assert world.type("--quiet").code == 0
    assert leaks(world.catalogue.checkpoint) == []
    index = index_of(world)
    there = {text for strings in world.strings().values() for text in strings.values() if not text.startswith("\0")}
    assert {text for text, _ in index.values()} == there
    assert all(vector == embed([text])[0].tobytes() for text, vector in index.values())


def test_without_it_the_search_would_find_them(world: World) -> None:
    places = {Path(leak.split(": ")[0]).name.split("_")[0] for leak in leaks(world.catalogue.checkpoint)}
    assert {"batch", "embeddings", "strings", "failures.csv", "possibly", "ledger.sqlite", "ledger.copy.sqlite"} <= places
    assert any(name.endswith((".f32", ".sqlite-wal", ".sqlite")) for name in places - {"ledger.sqlite", "ledger.copy.sqlite"})


def test_what_is_forgotten_is_nowhere_and_all_else_is_as_it_was(world: World) -> None:
    before = world.strings()
    refused = world.forget()
    assert refused.code == 2
    assert "This would forget 4 strings for good (composite 2, person 1, title 1)" in refused.err
    assert world.strings() == before
    told = world.forget("--yes", "--json")
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["strings"] == {"composite": 2, "person": 1, "title": 1}
    assert (document["embeddings"], document["unknown"], document["others"]) == (4, 0, [])
    assert document["audit_files"] >= 2
    assert leaks(world.catalogue.checkpoint) == []
    assert_all_else_is_well(world, before)
    again = world.forget("--yes")
    assert again.code == 0
    assert "4 of the texts are no string of the catalogue, or forgotten already" in again.out
    world.place.ledger.unlink()
    for path in world.place.logs:
        path.unlink(missing_ok=True)
    assert world.type("--restore-ledger").code == 0
    assert_all_else_is_well(world, before)


def test_after_it_a_ledger_is_restored_from_a_copy_of_before_too(world: World) -> None:
    """The copy names files that are gone; those that took their place are taken in, and nothing is called lost."""
    before = world.strings()
    copy = world.place.copy.read_bytes()
    assert world.forget("--yes").code == 0
    world.place.copy.write_bytes(copy)
    for path in (world.place.ledger, *world.place.logs):
        path.unlink(missing_ok=True)
    restored = world.type("--restore-ledger")
    assert restored.code == 0, restored.err
    assert "Gone:" not in restored.out
    assert world.type("--quiet").code == 0
    assert world.forget("--yes").code == 0, "what the copy itself quoted goes too"
    assert_all_else_is_well(world, before)


def test_other_strings_that_hold_a_text_are_named(world: World) -> None:
    (world.folder / "list.txt").write_text(f"{TITLE}\r\nnobody knows this\n", encoding="utf-8")
    ran = world.type("--forget-text", str(world.folder / "list.txt"), "--yes")
    assert ran.code == 0
    assert "Forgotten: 1 string (title 1)" in ran.out
    assert "1 of the texts are no string" in ran.out
    assert f"composite  {NAME.splitlines()[0]}" in ran.out


def test_a_text_that_comes_back_is_a_new_string(world: World) -> None:
    assert world.forget("--yes").code == 0
    before = world.strings()
    world.catalogue.write([*KEPT, SECRET[0]])
    assert world.type("--quiet").code == 0
    after = world.strings()
    assert after["person"] == {**before["person"], max(before["person"]) + 1: NAME}
    refused = world.forget("--yes")
    assert refused.code == 2
    assert "1 strings of person are in the input as last read" in refused.err
    assert world.strings() == after


def test_a_string_of_a_job_that_is_not_over_is_refused_with_what_to_do(world: World) -> None:
    with contextlib.closing(sqlite3.connect(world.place.ledger)) as database:
        database.execute("UPDATE job SET state = 'open' WHERE id = 1")
        database.commit()
    refused = world.forget("--yes")
    assert refused.code == 2
    assert "job 1 is open and holds some of them: python batch_manager.py" in refused.err.replace(
        f" --config {world.catalogue.config}", ""
    )
    with contextlib.closing(sqlite3.connect(world.place.ledger)) as database:
        database.execute("UPDATE job SET state = 'collected', cleaned = 0 WHERE id = 1")
        database.commit()
    refused = world.forget("--yes")
    assert "--delete-remote --yes" in refused.err
    world.ask("--delete-remote", "--yes")
    assert world.forget("--yes").code == 0


CALLS: Sequence[tuple[Call, int]] = [
    *(("commit", at) for at in range(3, 36, 4)),
    *(("fsync", at) for at in range(2, 50, 8)),
    *(("unlink", at) for at in range(1, 14, 4)),
    *(("replace", at) for at in range(1, 12, 4)),
]


def test_killed_before_any_durable_call_and_typed_again_it_is_finished(world: World) -> None:
    """Each kill is SIGKILL, in a process of its own. What was typed after it ends as if there had been no kill."""
    before = world.strings()
    shutil.rmtree(world.folder / "saved")
    world.save()
    killed = told = 0
    for number, (call, at) in enumerate(CALLS):
        world.rewind()
        ended = world.forget("--yes", fault=Fault(call, at, "killed before"))
        if ended.code != KILLED:
            continue
        killed += 1
        told += "was cut off: type python main.py" in world.type("--status").out
        if number % 3 == 0:
            assert world.type("--quiet").code == 0, "a run in between changes nothing"
        ended = world.forget("--yes")
        assert ended.code == 0, (call, at, ended.err)
        assert leaks(world.catalogue.checkpoint) == [], (call, at)
        if number % 4 == 0:
            assert_all_else_is_well(world, before)
    assert killed >= 12, "without kills it proves nothing"
    assert told >= 8, "what is begun and not finished is told"


# The list

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
FIELDS = ["person", "title"]


@given(st.lists(st.tuples(TEXTS, st.sampled_from([None, *FIELDS])), min_size=1))
def test_a_list_in_any_form_gives_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str | None]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    wanted = list(dict.fromkeys(Wish(text, name) for text, name in pairs))
    lines = [json.dumps({"text": text, **({"field": name} if name else {})}, ensure_ascii=False) for text, name in pairs]
    (folder / "list.jsonl").write_bytes("\n".join(lines).encode())
    assert read_list(folder / "list.jsonl", FIELDS) == wanted
    rows = io.StringIO(newline="")
    csv.writer(rows, quoting=csv.QUOTE_ALL).writerows([("text", "field"), *((text, name or "") for text, name in pairs)])
    (folder / "list.csv").write_bytes(rows.getvalue().encode())
    assert read_list(folder / "list.csv", FIELDS) == wanted
    plain = [text for text, _ in pairs if "\n" not in text and not text.endswith("\r")]
    if plain and not plain[0].startswith("\ufeff"):
        (folder / "list.txt").write_bytes("\r\n".join(plain).encode())
        assert read_list(folder / "list.txt", FIELDS) == [Wish(text) for text in dict.fromkeys(plain)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n\n", "holds no text"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2 is no JSON"),
        ("a.jsonl", b'["a"]', "line 1: {"),
        ("a.jsonl", b'{"text": 7}', "is needed"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a lone surrogate"),
        ("a.jsonl", b'{"text": "a", "field": "persn"}', "there is no field 'persn'"),
        ("a.csv", b"name\nBach\n", "must name the column text"),
        ("a.csv", b'text\n"Bach', "near line"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_refused_with_the_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"list|line|UTF|text|field|surrogate") as raised:
        read_list(tmp_path / name, FIELDS)
    assert words in str(raised.value)
