"""What is structurally wrong stops with exit code 2: one clear message, no traceback, no network, nothing changed."""

from __future__ import annotations

import contextlib
import errno
import gc
import gzip
import io
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import files, spool
from pipeline.provider.client import EmbeddingClient
from pipeline.stores import embedded
from pipeline.tables.snapshot import Work
from tests.tools import Catalogue, Ran, files_of, record_texts, untouched

GOOD = [("1", "Bach", "Fugue"), ("2", "Telemann", "Suite"), ("3", "Händel", "Messiah")]
NEW = [*GOOD, ("4", "Finck", "Lied")]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "SERVICE_API_KEY", "SERVICE_API_KEY_FILE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def embedded_catalogue(folder: Path) -> Catalogue:
    """Three records, embedded and indexed: something that could be harmed."""
    made = Catalogue(folder)
    made.configure()
    made.write(GOOD)
    ran = made.run("--quiet")
    assert ran.code == 0, ran.err
    return made


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """For a test that goes on afterwards, or damages something itself."""
    return embedded_catalogue(tmp_path)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return embedded_catalogue(tmp_path_factory.mktemp("lasting"))


@pytest.fixture
def unharmed(lasting: Catalogue) -> Catalogue:
    """One catalogue for all the tests in which nothing may change, with its input and config as they were."""
    for path in lasting.folder.iterdir():
        if path.is_dir() and path != lasting.checkpoint:
            shutil.rmtree(path)
        elif path != lasting.checkpoint:
            path.unlink()
    lasting.configure()
    lasting.write(GOOD)
    return lasting


@pytest.fixture
def no_network(request: pytest.FixtureRequest, lasting: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a service is neither looked up, nor connected to, nor even made ready to be asked."""
    if "catalogue" in request.fixturenames:
        request.getfixturevalue("catalogue")  # it is embedded before

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(EmbeddingClient, "__init__", refuse)


def assert_stopped(ran: Ran, code: int, words: tuple[str, ...], lines: int | None = 1) -> str:
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err
    if lines is not None:
        assert len(ran.err.splitlines()) == lines, ran.err
    return ran.err


def stops(catalogue: Catalogue, *words: str, arguments: tuple[str, ...] = (), lines: int | None = 1) -> str:
    """A run that needs the lock stops, and all that the checkpoint folder knows is as it was."""
    before = catalogue.state()
    said = assert_stopped(catalogue.run("--quiet", *arguments), 2, words, lines)
    assert catalogue.state() == before
    return said


def stops_at_once(catalogue: Catalogue, *words: str, arguments: tuple[str, ...] = (), lines: int | None = 1) -> str:
    """A command that stops before it even opens the checkpoint folder: every byte of it is as it was."""
    before = files_of(catalogue.checkpoint)
    said = assert_stopped(catalogue.run("--quiet", *arguments), 2, words, lines)
    assert files_of(catalogue.checkpoint) == before
    return said


def goes_on(catalogue: Catalogue, records: int) -> None:
    """The state was valid all along: once the trouble is gone, the very same command does the rest."""
    ran = catalogue.run("--quiet")
    assert ran.code == 0, ran.err
    assert len(catalogue.ids()) == records
    assert len(catalogue.embedded("person")) == records
    assert catalogue.run("--verify", "--quiet").code == 0


# The input

pytestmark = pytest.mark.usefixtures("no_network")


def told(value: object) -> str:
    """What a case is called: its first words, not its bytes."""
    words = value[0] if isinstance(value, tuple) else value
    return words[:40] if isinstance(words, str) else type(value).__name__


def zipped() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("records.csv", "id,person,title\n1,a,b\n")
    return target.getvalue()


RANDOM = random.Random(7).randbytes(50_000)
UTF_16 = "id,person,title\n1,Händel,Messiah\n".encode("utf-16-le")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty (0 bytes)", "input")),
        (b"id,person,title\n", ("holds no rows", "input")),
        (b"id,person,title", ("holds no rows", "input")),
        (b"\xef\xbb\xbfid,person,title\r\n\r\n", ("holds no rows", "input")),
        (b"\n\n\n", ("the first line is empty", "header", "input")),
        (gzip.compress(b"id,person,title\n1,a,b\n", mtime=0), ("this is gzip: unpack it first",)),
        (zipped(), ("a zip archive or an Excel file: save it as CSV first",)),
        (b"%PDF-1.7\n", ("this is a PDF",)),
        (b"SQLite format 3\0" + bytes(100), ("this is an SQLite database",)),
        (RANDOM, ("not utf-8 at byte", "input_encoding")),
        (bytes(1000), ("NUL bytes in the header", "input_encoding")),
        (b"id,person,title\n1,H\xe4ndel,Messiah\n", ("not utf-8 at byte 19 (0xe4)", "input_encoding", "cp1252")),
        (b"id,person,title\n" + b"1,Bach,Fugue\n" * 300_000 + b"2,H\xe4ndel,x\n", ("at byte 3,900,019 (0xe4)",)),
        ("id,person,title\n1,Bach,Fugue\n".encode("utf-16-le"), ("NUL bytes in the header", "input_encoding")),
        (UTF_16, ("not utf-8 at byte 38 (0xe4)", "input_encoding")),
        (b"id,persn,title\n1,a,b\n", ("no column 'person', which fields.person names", "Did you mean 'persn'?")),
        (b"idd,person,title\n1,a,b\n", ("no column 'id', which id_column names", "Did you mean 'idd'?")),
        (b"id;person;title\n1;a;b\n", ("no column 'id'", "'id;person;title'")),
        (b"id,person,title,person\n1,a,b,c\n", ("the column 'person', which fields.person names, stands 2 times",)),
        (b"id,person,title,id\n1,a,b,c\n", ("the column 'id', which id_column names, stands 2 times",)),
        (b'id,person,title\n1,a,b\n2,"Bach,Fugue\n3,c,d\n', ("the quote that opens in the row of line 3", "Close it")),
        (b'id,person,title\n1,a,b\n2,c,"d', ("the quote that opens in the row of line 3", "Close it")),
        (b'id,"person,title\n1,a,b\n', ("the header can't be read",)),
    ],
    ids=told,
)
def test_a_csv_file_that_can_not_be_one(unharmed: Catalogue, content: bytes, words: tuple[str, ...]) -> None:
    (unharmed.folder / "records.csv").write_bytes(content)
    stops(unharmed, "records.csv", *words)


@pytest.mark.parametrize("quote_again", [False, True])
def test_an_unclosed_quote_deep_in_a_large_file_names_the_line_where_it_opens(unharmed: Catalogue, quote_again: bool) -> None:
    """Read leniently, it would swallow every row up to the next quote, or up to the end, without a word."""
    opens, count = 40_000, 120_000
    quoted = '{0},"Bach, Johann Sebastian, 1685-1750",Fugue number {0}\n'
    plain = "{0},Georg Philipp Telemann of Hamburg,Suite number {0}\n"
    with (unharmed.folder / "records.csv").open("w", encoding="utf-8") as file:
        file.write("id,person,title\n")
        for row in range(2, count):
            line = plain if row >= opens and not quote_again else quoted
            file.write(line.format(row).replace('1750",', "1750,") if row == opens - 1 else line.format(row))
    assert (unharmed.folder / "records.csv").stat().st_size > 5_000_000
    stops(unharmed, "records.csv", f"the quote that opens in the row of line {opens - 1}", "input_delimiter")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("records.jsonl", RANDOM, ("is not UTF-8 at its byte",)),
        ("records.jsonl", gzip.compress(b"{}", mtime=0), ("gzip",)),
        ("records.jsonl", "{}\n".encode("utf-16"), ("line 1 is not UTF-8 at its byte 0",)),
        ("records.jsonl", b"\n \n", ("holds no rows",)),
        ("records.jsonl", b"\xef\xbb\xbf", ("holds no rows",)),
        ("records.jsonl", b'{"id": "1", "persn": "a", "title": "b"}\n', ("no column 'person'", "Did you mean 'persn'?")),
        ("records.parquet", RANDOM, ("disagree about being Parquet",)),
        ("records.parquet", b"PAR1" + RANDOM + b"PAR1", ("this Parquet file can't be read",)),
        ("records.xlsx", zipped(), ("a zip archive or an Excel file: save it as CSV first",)),
        ("records.csv", b"PAR1" + RANDOM + b"PAR1", ("disagree about being Parquet",)),
        ("records.txt", b"id,person,title\n", ("the ending says no format that is read here", ".csv")),
        ("records", b"id,person,title\n", ("the ending says no format that is read here", ".csv")),
    ],
    ids=told,
)
def test_a_file_of_another_format_that_can_not_be_read(
    unharmed: Catalogue, name: str, content: bytes, words: tuple[str, ...]
) -> None:
    (unharmed.folder / name).write_bytes(content)
    unharmed.configure(input=name)
    stops(unharmed, name, *words)


def test_a_parquet_file_with_no_rows_or_a_column_twice(unharmed: Catalogue) -> None:
    unharmed.configure(input="records.parquet")
    names, texts = ["id", "person", "title"], pa.array([], pa.string())
    pq.write_table(pa.Table.from_arrays([texts] * 3, names), unharmed.folder / "records.parquet")
    stops(unharmed, "records.parquet", "holds no rows")
    pq.write_table(pa.Table.from_arrays([texts] * 4, [*names, "person"]), unharmed.folder / "records.parquet")
    stops(unharmed, "records.parquet", "the column 'person', which fields.person names, stands 2 times")


def test_utf_16_without_a_mark_can_be_asked_for_but_needs_its_byte_order(unharmed: Catalogue) -> None:
    (unharmed.folder / "records.csv").write_bytes(UTF_16)
    unharmed.configure(input_encoding="utf-16")
    stops(unharmed, "records.csv", "not utf-16 at byte 0", "input_encoding")


def test_a_second_file_is_held_to_the_same_columns_and_named(unharmed: Catalogue) -> None:
    (unharmed.folder / "in").mkdir()
    unharmed.configure(input="in")
    unharmed.write(GOOD, name="in/a.csv")
    unharmed.write([("4", "b")], ("id", "title"), name="in/b.csv")
    stops(unharmed, "in/b.csv", "no column 'person'")


def test_input_that_is_not_there(unharmed: Catalogue) -> None:
    unharmed.configure(input="nowhere.csv")
    stops(unharmed, "'nowhere.csv'", str(unharmed.folder / "nowhere.csv"), "the key 'input'")
    unharmed.configure(input="none/*.csv")
    stops(unharmed, "'none/*.csv' names no file", "the key 'input'")


def test_a_folder_without_a_file_that_can_be_read(unharmed: Catalogue) -> None:
    (unharmed.folder / "in").mkdir()
    unharmed.configure(input="in")
    stops(unharmed, "'in' names no file", ".parquet", "the key 'input'")
    (unharmed.folder / "in" / "notes.docx").write_bytes(b"x")
    (unharmed.folder / "in" / "deeper.csv").mkdir()
    stops(unharmed, "'in' names no file", ".parquet", "the key 'input'")


def test_a_device_is_no_file(unharmed: Catalogue) -> None:
    os.mkfifo(unharmed.folder / "records.jsonl")
    unharmed.configure(input="records.jsonl")
    stops(unharmed, "'records.jsonl' is neither a file nor a folder")


def test_a_file_name_that_is_no_text_is_named_as_well_as_can_be(unharmed: Catalogue) -> None:
    (unharmed.folder / "in").mkdir()
    try:
        unharmed.write(GOOD, name=os.fsdecode(b"in/H\xe4ndel.csv"))
    except OSError as problem:
        pytest.skip(f"this file system takes no such name: {problem}")
    unharmed.configure(input="in")
    stops(unharmed, r"H\udce4ndel.csv", "rename it")


def test_input_that_changes_while_it_is_read(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.write(NEW)
    real = Work.take

    def take_and_change(*arguments: Any) -> None:
        real(*arguments)
        with (catalogue.folder / "records.csv").open("a", encoding="utf-8") as file:
            file.write("5,Isaac,Motet\n")

    monkeypatch.setattr(Work, "take", take_and_change)
    stops(catalogue, "'records.csv' changed while it was read", "run again")
    monkeypatch.undo()
    goes_on(catalogue, 5)


def test_input_that_vanishes_while_it_is_read(unharmed: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    unharmed.write(NEW)
    real = Work.take

    def take_and_remove(*arguments: Any) -> None:
        real(*arguments)
        (unharmed.folder / "records.csv").unlink()

    monkeypatch.setattr(Work, "take", take_and_remove)
    stops(unharmed, "'records.csv'", "the key 'input'")


def test_with_json_the_message_is_the_document(unharmed: Catalogue) -> None:
    (unharmed.folder / "records.csv").write_bytes(b"")
    ran = unharmed.run("--json")
    assert (ran.code, ran.document["exit_code"]) == (2, 2)
    assert "empty (0 bytes)" in ran.document["error"]


# The config


def config_is(catalogue: Catalogue, text: str | bytes) -> None:
    catalogue.config.write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("use_batch_embedding", True, "Did you mean 'use_batch_embeddings'?"),
        ("Input", "x", "Did you mean 'input'?"),
        ("qwertz", 1, "Unknown key 'qwertz'"),
        (17, 1, "Unknown key 17"),
        ("max_rejected_rows", "many", "'many'; it must be a whole number, at least 0"),
        ("max_rejected_rows", -1, "-1; it must be at least 0"),
        ("max_rejected_rows", 1.5, "1.5; it must be a whole number"),
        ("max_rejected_rows", True, "true; it must be a whole number"),
        ("batch_poll_interval", 0, "batch_poll_interval is 0; it must be at least 1 second."),
        ("batch_embedding_size", 50_001, "from 1 to 50,000"),
        ("budget_usd", -0.01, "at least 0"),
        ("budget_usd", float("nan"), "nan; it must be a number"),
        ("budget_usd", float("inf"), "inf; it must be a number"),
        ("budget_usd", 10**400, "it must be a number"),
        ("memory_limit_gb", 0, "from 0.25"),
        ("use_batch_embeddings", "yes", "'yes'; it must be true or false"),
        ("vector_store", "wevaiate", "one of: embedded, weaviate, none"),
        ("encoding_format", ["float"], "one of: float, base64"),
        ("log_level", "loud", "one of: debug, info, warning, error"),
        ("input", 5, "it must be a text"),
        ("input", " ", "it must be a text"),
        ("id_column", None, "null; it must be a text"),
        ("input_encoding", "utf-9", "an encoding that Python knows"),
        ("input_delimiter", ";;", "one character"),
        ("input_delimiter", '"', "one character"),
        ("fields", {}, "it must be a list of lines"),
        ("fields", "person", "it must be a list of lines"),
        ("fields", {"Person": "person"}, "must start with a small letter"),
        ("fields", {"person": 5}, "'person' is 5"),
        ("fields", {"person": "{person"}, "lone brace"),
        ("fields", {"person": "Name: {}"}, "no plain column name"),
        ("fields", {"person": " "}, "names no column"),
        ("checkpoint_dir", "", "it must be a text"),
        ("embedding_service", "opanai", "local, openai, or a URL"),
        ("embedding_model", "text-embedding-3-small", "the local service knows only"),
        ("embedding_dimensions", 385, "the local model has 384"),
    ],
    ids=told,
)
def test_a_wrong_key_or_value_is_named(unharmed: Catalogue, key: object, value: object, words: str) -> None:
    unharmed.configure(**{str(key): value})
    if isinstance(key, int):
        config_is(unharmed, unharmed.config.read_text(encoding="utf-8").replace(f"'{key}'", f"{key}"))
    stops_at_once(unharmed, "config.yml", str(key), words)


def test_all_problems_are_told_at_once(unharmed: Catalogue) -> None:
    unharmed.configure(inputs="x", max_rejected_row=3, budget_usd=-1, log_level="loud")
    words = ("Did you mean 'input'?", "Did you mean 'max_rejected_rows'?", "budget_usd is -1", "log_level is 'loud'")
    stops_at_once(unharmed, "config.yml has 4 problems", *words, lines=5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input: [", "broken YAML: line 1"),
        ("input: a\n  fields: b", "broken YAML: line 2"),
        ("input: a\n\tfields: b", "broken YAML: line 2"),
        ("input: a\ninput: b", "the key 'input' stands twice"),
        ("input: !!python/object/apply:os.system ['true']", "broken YAML: line 1"),
        ("input: &a [*a, *b]", "broken YAML"),
        ("service_name: 2024-99-99", "broken YAML"),
        ("budget_usd: " + "9" * 5000, "broken YAML"),
        ("[" * 20_000, "broken YAML"),
        ("- input: a", "must hold lines such as"),
        ("just words", "must hold lines such as"),
        (b"input: H\xe4ndel.csv", "not UTF-8 at byte 8"),
        (b"input: a\0b", "broken YAML"),
        ("#" * 1_000_001, "larger than 1 MB"),
    ],
    ids=told,
)
def test_a_config_that_is_no_yaml(unharmed: Catalogue, text: str | bytes, words: str) -> None:
    config_is(unharmed, text)
    stops_at_once(unharmed, "config.yml", words)


def test_a_config_that_is_not_there_or_can_not_be_read(unharmed: Catalogue) -> None:
    unharmed.config.unlink()
    stops_at_once(unharmed, str(unharmed.config), "there is no such file", "--init")
    unharmed.config.mkdir()
    stops_at_once(unharmed, str(unharmed.config), "can't be read")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("budget_usd", "KEY=VALUE"),
        ("budget_usd=-1", "budget_usd is -1"),
        ("budgt_usd=1", "Did you mean 'budget_usd'?"),
        ("input=[", "broken YAML"),
        ("fields.Bad=x", "must start with a small letter"),
    ],
)
def test_a_setting_on_the_command_line_is_held_to_the_same_rules(unharmed: Catalogue, setting: str, words: str) -> None:
    stops_at_once(unharmed, words, arguments=("--set", setting))


def test_openai_without_a_key(unharmed: Catalogue) -> None:
    """Only that it stopped is noted in the ledger, for cron."""
    unharmed.configure(embedding_service="openai")
    stops(unharmed, "no API key is set", "OPENAI_API_KEY", "embedding_service: local")


@pytest.mark.parametrize(
    "key", ["YOUR_API_KEY", "sk-your-key-here", "<your key>", "sk-...", "sk-xxxxxxxxxxxx", "changeme", "sk-", "short"]
)
@pytest.mark.parametrize("from_environment", [True, False])
def test_openai_with_a_placeholder(unharmed: Catalogue, monkeypatch: pytest.MonkeyPatch, key: str, from_environment: bool) -> None:
    unharmed.configure(embedding_service="openai", openai_api_key=None if from_environment else key)
    if from_environment:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    stops_at_once(unharmed, "the API key is a placeholder", "OPENAI_API_KEY")


def test_a_key_file_that_can_not_be_read(unharmed: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    unharmed.configure(embedding_service="openai")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(unharmed.folder / "nokey"))
    stops_at_once(unharmed, "OPENAI_API_KEY_FILE", "nokey", "can't be read")


def test_a_field_that_the_config_does_not_have(unharmed: Catalogue) -> None:
    stops_at_once(unharmed, "--fields", "'persn'", "person, title", arguments=("--fields", "persn"))


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", "embeding"), ("'embeding'", "Did you mean 'embedding_and_indexing'?")),
        (("--end", "preprocesing"), ("'preprocesing'", "Did you mean 'preprocessing'?")),
        (("--reset", "preprocesing"), ("'preprocesing'", "Did you mean 'preprocessing'?")),
        (("--start", "embedding_and_indexing", "--end", "preprocessing"), ("--end preprocessing comes before --start",)),
        (("--limit", "0"), ("--limit is 0; it must be at least 1",)),
        (("--limit", "-3"), ("--limit", "-3")),
        (("--limit", "many"), ("--limit", "many")),
        (("--dryrun",), ("--dryrun",)),
        (("--status", "--dry-run"), ("--dry-run",)),
        (("--field", "person"), ("--field goes with --search",)),
        (("--search", " "), ("--search needs a text",)),
    ],
)
def test_a_command_line_that_means_nothing(unharmed: Catalogue, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    stops_at_once(unharmed, *words, arguments=arguments, lines=None)


# The checkpoint folder


def elsewhere(catalogue: Catalogue, place: str, *words: str, code: int = 2) -> None:
    catalogue.configure(checkpoint_dir=place)
    before = files_of(catalogue.folder)
    assert_stopped(catalogue.run("--quiet"), code, words)
    assert files_of(catalogue.folder) == before


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_a_file_where_the_folder_should_be(unharmed: Catalogue, place: str) -> None:
    (unharmed.folder / "file").write_text("mine")
    elsewhere(unharmed, place, str(unharmed.folder / "file"), "set checkpoint_dir to a folder")


def test_a_symbolic_link_where_the_folder_should_be(unharmed: Catalogue) -> None:
    (unharmed.folder / "there").mkdir()
    (unharmed.folder / "link").symlink_to("there")
    elsewhere(unharmed, "link", "is a symbolic link", "checkpoint_dir")
    assert list((unharmed.folder / "there").iterdir()) == []


def test_a_name_that_no_disk_takes(unharmed: Catalogue) -> None:
    elsewhere(unharmed, "x" * 300, "x" * 300, "checkpoint_dir")


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """Something mounted there for a while; the test is skipped, with the reason, where that is not allowed."""
    place.mkdir(exist_ok=True)
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("there is no mount command here")
    done = subprocess.run([mount, *arguments, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        gc.collect()  # the frames of an error that was told may still hold a file there
        subprocess.run([umount, str(place)], check=True)


def test_a_folder_that_can_not_be_written(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before = catalogue.state()
    catalogue.write(NEW)
    if os.geteuid():
        catalogue.checkpoint.chmod(0o500)
        ran = catalogue.run("--quiet")
        catalogue.checkpoint.chmod(0o700)
    else:  # root may write anywhere but on a read-only mount
        with mounted(catalogue.checkpoint, "--bind", "-o", "ro", str(catalogue.checkpoint)):
            ran = catalogue.run("--quiet")
    assert_stopped(ran, 2, (str(catalogue.checkpoint), "set checkpoint_dir to a folder that you may write"))
    assert catalogue.state() == before
    monkeypatch.undo()
    goes_on(catalogue, 4)


def test_a_folder_that_can_not_be_made(unharmed: Catalogue) -> None:
    unharmed.configure(checkpoint_dir="closed/new")
    closed = unharmed.folder / "closed"
    closed.mkdir()
    if os.geteuid():
        closed.chmod(0o500)
        ran = unharmed.run("--quiet")
    else:
        with mounted(closed, "-t", "tmpfs", "-o", "ro", "tmpfs"):
            ran = unharmed.run("--quiet")
    assert_stopped(ran, 2, (str(closed), "set checkpoint_dir to a folder that you may write"))


@pytest.mark.parametrize("name", ["holiday.jpg", "tables/sales.parquet", "scratch/thesis.docx", "store/x", "spool/x"])
def test_a_folder_that_is_somebody_elses(unharmed: Catalogue, name: str) -> None:
    theirs = unharmed.folder / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    elsewhere(unharmed, "theirs", str(unharmed.folder / "theirs"), "is not a checkpoint folder", "new or empty folder")


def test_a_folder_that_a_killed_first_run_left_is_ours(catalogue: Catalogue) -> None:
    left = catalogue.folder / "left"
    for name in ("tables", "spool", "store", "scratch"):
        (left / name).mkdir(parents=True)
    (left / "lock").write_text("{}")
    (left / "ledger.sqlite.tmp").write_bytes(b"half")
    catalogue.configure(checkpoint_dir="left")
    assert catalogue.run("--quiet", "--end", "preprocessing").code == 0


@pytest.mark.parametrize("arguments", [(), ("--status",), ("--dry-run",), ("--search", "Bach")])
def test_a_checkpoint_of_a_newer_version(catalogue: Catalogue, arguments: tuple[str, ...]) -> None:
    with contextlib.closing(sqlite3.connect(catalogue.checkpoint / "ledger.sqlite")) as ledger:
        ledger.execute("PRAGMA user_version = 99")
    catalogue.write(NEW)
    before = untouched(catalogue.checkpoint)
    ran = catalogue.run("--quiet", *arguments)
    assert_stopped(ran, 2, (str(catalogue.checkpoint), "newer version", "schema 99", "Update the program"))
    assert untouched(catalogue.checkpoint) == before


@pytest.mark.parametrize("damage", [b"", b"no database", None])
def test_a_damaged_ledger_is_not_touched(catalogue: Catalogue, damage: bytes | None) -> None:
    ledger = catalogue.checkpoint / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[:5000] if damage is None else damage)
    before = untouched(catalogue.checkpoint)
    assert_stopped(catalogue.run("--quiet"), 2, (str(ledger), "is damaged", "Nothing was changed", "ledger.copy.sqlite"))
    assert untouched(catalogue.checkpoint) == before


def test_a_checkpoint_that_was_copied(catalogue: Catalogue) -> None:
    shutil.copytree(catalogue.checkpoint, catalogue.folder / "copy")
    catalogue.configure(checkpoint_dir="copy")
    before = untouched(catalogue.folder / "copy")
    assert_stopped(catalogue.run("--quiet"), 2, (str(catalogue.checkpoint), "moved or copied", "--take-over"))
    assert untouched(catalogue.folder / "copy") == before


# A full disk


def disk_is_full(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """The at-th file that is to be made durable meets a full disk; how many came before, and were tried at all."""
    tried = 0
    real = files.fsync_handle

    def full(handle: int) -> None:
        nonlocal tried
        tried += 1
        if tried == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    for module in (files, spool, embedded):
        monkeypatch.setattr(module, "fsync_handle", full)
    return lambda: tried


# Three records with two fields are seven files: records, and strings, occurrences and frequencies of each field.
@pytest.mark.parametrize("at", range(1, 8))
def test_a_full_disk_before_the_commit_leaves_the_old_state(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    before = catalogue.state()
    catalogue.write(NEW)
    with monkeypatch.context() as patch:
        tried = disk_is_full(patch, at)
        ran = catalogue.run("--quiet", "--end", "preprocessing")
        assert tried() >= at
    assert_stopped(ran, 1, (str(catalogue.checkpoint), "No space left on device", "run the same command again"))
    leftovers = {name for name in files_of(catalogue.checkpoint) if name.startswith(("tables", "scratch"))} - set(before)
    after = {name: content for name, content in catalogue.state().items() if name not in leftovers}
    assert after == before
    monkeypatch.undo()
    goes_on(catalogue, 4)
    with catalogue.ledger() as ledger:
        named = {f"tables/{file.name}" for file in ledger.files()}
    assert {name for name in files_of(catalogue.checkpoint) if name.startswith("tables")} == named, "the rest is swept"


@pytest.mark.parametrize("at", range(8, 15))
def test_a_full_disk_after_the_commit_loses_no_answer(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Spool, embeddings, index, lists, the ledger's copy: whichever meets it, what was answered is not asked for again."""
    monkeypatch.undo()
    catalogue.write(NEW)
    texts = record_texts(monkeypatch)
    with monkeypatch.context() as patch:
        tried = disk_is_full(patch, at)
        ran = catalogue.run("--quiet")
        assert tried() >= at
    assert_stopped(ran, 1, ("No space left on device", "run the same command again"), lines=None)
    goes_on(catalogue, 4)
    with catalogue.ledger() as ledger:
        doubtful, _ = ledger.doubt_totals()
    assert set(texts) == {"Finck", "Lied"}
    assert len(texts) - 2 <= doubtful, "only what is reported as possibly paid twice was asked for twice"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own under the checkpoint folder, to be filled."""
    place = tmp_path / "small"
    with mounted(place, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
        yield place


@pytest.mark.parametrize("left", [0, 4096, 16_384, 65_536, 131_072, 262_144, 393_216, 524_288, 1_048_576])
def test_a_disk_with_little_left(catalogue: Catalogue, small_disk: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Wherever the space runs out, it is told in one sentence, and with room again the same command does all."""
    monkeypatch.undo()  # the local service must answer here
    catalogue.configure(checkpoint_dir="small/checkpoints")
    small = Catalogue(small_disk)
    assert catalogue.run("--quiet").code == 0
    texts = record_texts(monkeypatch)
    catalogue.write([*NEW, *((str(row), f"person {row}", f"title {row}") for row in range(10, 300))])
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        free = shutil.disk_usage(small_disk).free
        file.write(bytes(max(0, free - left)))
    ran = catalogue.run("--quiet")
    assert ran.code in (0, 1), ran.err
    if left <= 65_536:
        assert ran.code == 1, "the disk was not full enough for this test to mean anything"
    if ran.code:
        assert_stopped(ran, 1, ("What was saved before stays valid",), lines=None)  # an answer cut off is logged too
    else:
        assert ran.err == "" or ran.err.startswith("The report was not written")
    filler.unlink()
    done = catalogue.run("--quiet")
    assert done.code == 0, done.err
    assert len(small.ids()) == 294
    assert len(small.embedded("title")) == 294
    assert catalogue.run("--verify", "--quiet").code == 0
    with small.ledger() as ledger:
        doubtful, _ = ledger.doubt_totals()
    assert len(texts) - len(set(texts)) <= doubtful, "only what is reported as possibly paid twice was asked for twice"


def test_a_disk_too_small_for_a_first_run(catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    place = tmp_path / "tiny"
    catalogue.configure(checkpoint_dir="tiny/checkpoints")
    with mounted(place, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        assert_stopped(catalogue.run("--quiet"), 1, (str(place), "could not be written", "Free some space"))
        subprocess.run([shutil.which("mount") or "mount", "-o", "remount,size=64m", str(place)], check=True)
        ran = catalogue.run("--quiet")
        assert ran.code == 0, ran.err
