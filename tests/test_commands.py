"""The command line: what each command says, which exit code it gives, and what it leaves alone."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import httpx2
import numpy as np
import pytest
import yaml
from tiktoken import Encoding
from tiktoken.load import load_tiktoken_bpe

from pipeline import __version__
from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands import session
from pipeline.commands.main import main, parser
from pipeline.config import load_config
from pipeline.ledger import Intent
from pipeline.provider import tokens
from pipeline.provider.prices import LISTED
from tests.test_search import held
from tests.tools import Catalogue, Ran, record_texts
from tests.wire import FaultyService

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    ("1", "Bach, Johann Sebastian", "Die Kunst der Fuge"),
    ("2", "Bach, J. S.", "Die Kunst der Fuge"),
    ("3", "Mozart, Wolfgang Amadeus", "Requiem"),
    ("4", "Requiem", "<|endoftext|> and 𝄞 \u2028"),
    ("5", "", "   "),
]
STRINGS = 4 + 3
TOO_LONG = "Die Kunst der Fuge, " * 2000  # 40 kB: more than the local service takes in one text

WHOLE = {"to_index": 0, "refused_by_index": 0}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "SERVICE_API_KEY", "SERVICE_API_KEY_FILE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fresh(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS)
    return made


@pytest.fixture
def done(fresh: Catalogue) -> Catalogue:
    ran = fresh.run()
    assert ran.code == 0, ran.err
    return fresh


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches for the network fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("this command must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def generation_id(catalogue: Catalogue) -> str:
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
    assert generation is not None
    return generation.id


def by_url(catalogue: Catalogue, url: str, **keys: object) -> None:
    catalogue.configure(embedding_service=url, service_name="ours", embedding_model="local-lexical-384", **keys)


# --status


def test_status_of_a_new_folder_says_how_to_begin_and_makes_nothing(fresh: Catalogue, offline: None) -> None:
    ran = fresh.run("--status")
    assert ran.code == 0
    assert ran.out.startswith(f"Nothing is done yet in {fresh.checkpoint}. To begin: python main.py")
    assert fresh.run("--status", "--json").document == {
        "state": "new", "checkpoint_dir": str(fresh.checkpoint), "next": "python main.py",
    }  # fmt: skip
    assert not fresh.checkpoint.exists()


def test_status_after_a_run_counts_strings_by_field(done: Catalogue, offline: None) -> None:
    before = done.state()
    document = done.run("--status", "--json").document
    assert document["fields"] == {
        "person": {**WHOLE, "present": 5, "absent": 0, "embedded": 4, "indexed": 4, "in_jobs": 0, "failed": 1, "pending": 0},
        "title": {**WHOLE, "present": 4, "absent": 0, "embedded": 3, "indexed": 3, "in_jobs": 0, "failed": 1, "pending": 0},
    }
    assert document["pending"] == 0
    assert document["running"] is None
    assert document["generation"] == {
        "id": generation_id(done), "service": "local", "model": "local-lexical-384", "dimensions": 384,
    }  # fmt: skip
    assert (document["input"]["records"], document["input"]["rejected_rows"]) == (5, 0)
    text = done.run("--status").out
    assert re.search(r"^  person +5 +4 +4 +0 +1 +0$", text, re.MULTILINE)
    assert re.search(r"^  title +4 +3 +3 +0 +1 +0$", text, re.MULTILINE)
    assert "Nothing is pending." in text
    assert done.state() == before


def test_status_names_each_kind_of_failure_and_where_it_is_listed(done: Catalogue) -> None:
    document = done.run("--status", "--json").document
    assert document["failures"] == [
        {"stage": "preflight", "code": "blank", "strings": 1}, {"stage": "preflight", "code": "empty", "strings": 1},
    ]  # fmt: skip
    text = done.run("--status").out
    assert f"Not embedded: 1 string, preflight blank; listed in {done.checkpoint / 'failures.csv'}" in text
    assert "--retry-failed" not in text, "an empty text fails again however often it is tried"


def test_status_says_how_to_ask_again_for_what_failed_at_the_service(fresh: Catalogue) -> None:
    fresh.write([*ROWS, ("6", "Haydn", TOO_LONG)])
    fresh.run()
    text = fresh.run("--status").out
    assert re.search(r"Not embedded: 1 string, service \S+; listed in", text)
    assert "To ask for the failed ones again: python main.py --retry-failed" in text


def test_status_before_anything_is_embedded_says_what_is_pending(fresh: Catalogue) -> None:
    assert fresh.run("--end", "preprocessing").code == 0
    assert f"To go on with {5 + 4} strings: python main.py" in fresh.run("--status").out
    assert fresh.run("--status", "--json").document["pending"] == 9


def test_status_tells_of_requests_that_a_killed_run_left_open(done: Catalogue) -> None:
    with writing(Checkpoint(done.checkpoint), "killed") as ledger:
        ledger.add_intent(Intent(generation_id(done), "title", [(0, 2)], 2, 10, 0.25), 1.0)
    document = done.run("--status", "--json").document
    assert document["on_the_wire"] == {"requests": 1, "strings": 2}
    assert "A run ended with 1 requests not yet booked (2 strings)" in done.run("--status").out
    assert done.run().code == 0
    document = done.run("--status", "--json").document
    assert document["on_the_wire"] == {"requests": 0, "strings": 0}
    assert document["possibly_paid_twice"] == {"strings": 2, "usd": 0.25}
    assert "Possibly paid twice: 2 strings, $0.2500; listed in" in done.run("--status").out


def test_status_while_another_process_holds_the_lock_answers_and_names_it(done: Catalogue) -> None:
    (done.checkpoint / "lock").write_text(json.dumps({"pid": 4711, "host": "elsewhere", "command": "main.py"}))
    with held(done):
        assert done.run("--status", "--json").document["running"] == {"pid": 4711, "host": "elsewhere", "command": "main.py"}
        text = done.run("--status").out
        assert "At work now: process 4711 on elsewhere: main.py; 0 requests sent and not yet booked." in text
        blocked = done.run()
    assert blocked.code == 75
    assert "process 4711 on elsewhere" in blocked.err
    assert done.run("--status", "--json").document["running"] is None, "a lock file alone is no lock"


def test_status_needs_no_write_to_the_folder(done: Catalogue) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.checkpoint.rglob("*") if path.is_file() and "-" not in path.name}
    done.run("--status")
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --dry-run


@pytest.fixture
def openai(fresh: Catalogue, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-no-real-key-0123456789")
    fresh.configure(embedding_service="openai")
    return fresh


def official_encoding(monkeypatch: pytest.MonkeyPatch) -> Encoding:
    """tiktoken's own cl100k_base, with its own word pattern; only the download of the vocabulary is left out."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    vocabulary = str(Path(tokens.__file__).parent / "vocabulary" / "cl100k_base.tiktoken")

    def local(_: str, expected_hash: str | None = None) -> dict[bytes, int]:
        return load_tiktoken_bpe(vocabulary, expected_hash)

    theirs = importlib.import_module("tiktoken_ext.openai_public")
    monkeypatch.setattr(theirs, "load_tiktoken_bpe", local)
    return Encoding(**theirs.cl100k_base())


def test_a_dry_run_counts_tokens_and_prices_exactly_and_offline(
    openai: Catalogue, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    encoding = official_encoding(monkeypatch)
    document = openai.run("--dry-run", "--json").document
    texts = {"person": {row[1] for row in ROWS if row[1].strip()}, "title": {row[2] for row in ROWS if row[2].strip()}}
    for line in document["fields"]:
        wanted = texts[line["field"]]
        assert line["pending"] == len(wanted)
        assert line["refused"] == 1
        assert line["tokens"] == sum(len(encoding.encode(text, disallowed_special=())) for text in wanted)
        assert line["real_time_usd"] == pytest.approx(line["tokens"] * 0.02 / 1e6)
        assert line["batch_usd"] == pytest.approx(line["real_time_usd"] / 2)
    assert document["pending"] == sum(line["pending"] for line in document["fields"]) == STRINGS
    assert document["real_time_usd"] == pytest.approx(sum(line["real_time_usd"] for line in document["fields"]))
    assert document["batch_usd"] == pytest.approx(document["real_time_usd"] / 2)
    assert (document["tokens_are"], document["service"], document["model"]) == ("exact", "openai", "text-embedding-3-small")
    assert document["disk_bytes"] > STRINGS * 1536 * 4


def test_a_dry_run_shows_the_same_figures_to_a_person_with_the_date_of_the_prices(openai: Catalogue, offline: None) -> None:
    document = openai.run("--dry-run", "--json").document
    text = openai.run("--dry-run").out
    total = sum(line["tokens"] for line in document["fields"])
    assert re.search(rf"^  all +{STRINGS} +{total} +\$\S+ +\$\S+ +2$", text, re.MULTILINE)
    assert f"Prices as listed in {LISTED}" in text
    assert f"10 occurrences are {5 + 4} strings; 1 embeddings saved." in text
    assert "1 texts stand in more than one field" in text


def test_a_second_dry_run_says_the_same_as_the_first(openai: Catalogue, offline: None) -> None:
    documents = [openai.run("--dry-run", "--json").document for _ in range(2)]
    for document in documents:
        document.pop("disk_free_bytes")
    assert documents[0] == documents[1]


def test_a_dry_run_says_when_the_budget_would_not_do(openai: Catalogue, offline: None) -> None:
    assert "This is more than budget_usd allows" not in openai.run("--dry-run").out
    assert "This is more than budget_usd allows" in openai.run("--dry-run", "--set", "budget_usd=0.0000001").out


def test_a_dry_run_needs_no_key(fresh: Catalogue, offline: None) -> None:
    assert fresh.run("--dry-run", "--set", "embedding_service=openai").code == 0


def test_a_local_dry_run_is_free_and_says_what_openai_would_cost(fresh: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, encoding = record_texts(monkeypatch), official_encoding(monkeypatch)
    document = fresh.run("--dry-run", "--json").document
    assert (document["real_time_usd"], document["batch_usd"], document["pending"]) == (0, 0, STRINGS)
    count = sum(len(encoding.encode(text, disallowed_special=())) for field in (1, 2) for text in {row[field] for row in ROWS if
                row[field].strip()})  # fmt: skip
    assert sum(line["tokens"] for line in document["fields"]) == count
    text = fresh.run("--dry-run").out
    assert re.search(rf"^  all +{STRINGS} +{count} +\$0 +\$0 +2$", text, re.MULTILINE)
    cents = f"${count * 0.02 / 1e6:.2g}"
    assert f"text-embedding-3-small would cost {cents} in real time" in text
    assert asked == []
    with fresh.ledger() as ledger:
        assert ledger.files("embeddings") == []
        assert ledger.spendings() == []


class _OpenAI(httpx2.BaseTransport):
    """Answers as OpenAI would: 1,536 dimensions for each input."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        inputs = json.loads(request.read())["input"]
        self.texts += inputs
        vectors = np.random.default_rng(1).standard_normal((len(inputs), 1536)).astype(np.float32)
        entries = [{"object": "embedding", "index": place, "embedding": vector.tolist()} for place, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        return httpx2.Response(200, json={"object": "list", "data": entries, "model": "m", "usage": usage}, request=request)


def test_the_run_after_a_dry_run_uses_its_counts(openai: Catalogue, monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    service, counted, real = _OpenAI(), list[str](), tokens.count_tokens

    def counting(texts: list[str]) -> list[int]:
        counted.extend(texts)
        return real(texts)

    monkeypatch.setattr(session, "transport_of", lambda *_, **__: lambda: service)
    monkeypatch.setattr("pipeline.pending.count_tokens", counting)
    assert openai.run("--dry-run").code == 0
    assert service.texts == []
    assert len(counted) == STRINGS + 2, "each once, the two that are never sent included"
    ran = openai.run("--json")
    assert ran.code == 0, ran.err
    assert (len(counted), len(service.texts)) == (STRINGS + 2, STRINGS)
    assert ran.document["stages"]["preprocessing"]["unchanged"] is True
    assert openai.run("--dry-run", "--json").document["pending"] == 0


# --check


def verdicts(ran: Ran) -> dict[str, str]:
    order = ["ok", "warning", "failed"]
    found: dict[str, str] = {}
    for finding in ran.document["findings"]:
        found[finding["name"]] = max(found.get(finding["name"], "ok"), finding["verdict"], key=order.index)
    return found


def test_check_of_the_local_service_is_well_and_makes_nothing(fresh: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = record_texts(monkeypatch)
    ran = fresh.run("--check", "--json")
    assert ran.code == 0
    assert {verdict for name, verdict in verdicts(ran).items() if name != "disk"} == {"ok"}
    assert {"config", "folder", "lock", "ledger", "input", "service", "embeddings"} <= set(verdicts(ran))
    assert fresh.run("--check").out.endswith("All is well: python main.py\n")
    assert not fresh.checkpoint.exists()
    assert set(asked) <= {""}, "nothing of the catalogue was sent"


def test_check_after_a_run_and_during_one(done: Catalogue) -> None:
    assert verdicts(done.run("--check", "--json"))["ledger"] == "ok"
    with held(done):
        ran = done.run("--check", "--json")
    assert ran.code == 0
    assert "is at work (main.py): wait for it" in next(
        finding["words"] for finding in ran.document["findings"] if finding["name"] == "lock"
    )


def test_every_command_to_type_carries_the_config_of_this_one(fresh: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--config", str(fresh.config), "--status"])
    main(["--config", str(fresh.config), "--search", "Bach"])
    shown = capsys.readouterr()
    assert f"To begin: python main.py --config {fresh.config}" in shown.out
    assert f"First: python main.py --config {fresh.config}" in shown.err


def test_check_of_a_port_where_nobody_listens_fails(fresh: Catalogue) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        by_url(fresh, f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        ran = fresh.run("--check", "--json")
    assert (ran.code, verdicts(ran)["service"]) == (1, "failed")
    assert "no connection" in ran.out


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The local service on a port, which demands a key; its URL."""
    (tmp_path / "key").write_text("right-key-0123456789\n")
    command = [sys.executable, "-m", "pipeline.local_service", "--port", "0", "--api-key-file", str(tmp_path / "key")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.mark.parametrize(("key", "verdict"), [("right-key-0123456789", "ok"), ("wrong-key-0123456789", "failed"), ("", "failed")])
def test_check_tells_a_right_key_from_a_wrong_one_and_shows_neither(
    fresh: Catalogue, guarded: str, monkeypatch: pytest.MonkeyPatch, key: str, verdict: str
) -> None:
    by_url(fresh, guarded)
    monkeypatch.setenv("SERVICE_API_KEY", key)
    ran = fresh.run("--check", "--json")
    assert verdicts(ran)["service"] == verdict
    assert ran.code == (0 if verdict == "ok" else 1)
    assert verdict == "ok" or "401" in ran.out
    assert not key or key not in ran.out + ran.err
    assert verdict == "failed" or verdicts(ran)["clock"] == "ok"


def test_a_key_for_openai_in_the_file_is_not_sent_to_a_url_and_that_is_told(fresh: Catalogue, guarded: str) -> None:
    by_url(fresh, guarded)
    ran = fresh.run("--check", "--json", "--set", "openai_api_key=sk-0123456789abcdef")
    assert (verdicts(ran)["config"], verdicts(ran)["service"]) == ("warning", "failed")
    assert "is not sent to" in ran.out


def test_check_without_a_key_for_openai_fails_and_sends_nothing(fresh: Catalogue, offline: None) -> None:
    ran = fresh.run("--check", "--json", "--set", "embedding_service=openai")
    assert (ran.code, verdicts(ran)["key"]) == (1, "failed")
    assert "export OPENAI_API_KEY" in ran.out


def test_check_of_a_folder_that_may_not_be_written_fails(fresh: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so the system's answer is played.
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and not mode & os.W_OK)
    ran = fresh.run("--check", "--json")
    assert (ran.code, verdicts(ran)["folder"]) == (1, "failed")


def test_check_goes_on_after_something_failed(fresh: Catalogue) -> None:
    fresh.checkpoint.symlink_to(fresh.folder)
    ran = fresh.run("--check", "--json", "--set", "input=nowhere.csv")
    found = verdicts(ran)
    assert (found["folder"], found["input"], found["service"]) == ("failed", "failed", "ok")
    assert fresh.run("--check", "--set", "input=nowhere.csv").out.splitlines()[-1].startswith("2 of ")


def test_check_names_a_damaged_ledger(done: Catalogue) -> None:
    (done.checkpoint / "ledger.sqlite").write_bytes(b"garbage" * 1000)
    assert verdicts(done.run("--check", "--json"))["ledger"] == "failed"


# --init


def test_init_writes_a_config_that_loads_and_a_run_takes(fresh: Catalogue) -> None:
    target = fresh.folder / "my books.yml"
    assert fresh.run("--init", str(target)).code == 0
    config = load_config(target)
    assert (config.input, config.id_column) == ("catalogue.csv", "id")
    assert [field.name for field in config.fields] == ["person", "title", "composite"]
    assert config.checkpoint_path == fresh.folder / "my books_checkpoints"
    fresh.write([("1", "Bach", "Fugue", "composer")], ("id", "author", "title", "roles"), "catalogue.csv")
    own = Catalogue(fresh.folder)
    ran = own.run("--config", str(target))
    assert ran.code == 0, ran.err


def test_init_names_every_key_with_a_comment(fresh: Catalogue) -> None:
    fresh.run("--init", str(fresh.folder / "my.yml"))
    text = (fresh.folder / "my.yml").read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)) == set(yaml.safe_load((ROOT / "config.yml").read_text(encoding="utf-8")))
    assert all(" # " in line for line in text.splitlines() if re.match(r"[a-z_]+:", line))


def test_init_never_writes_over_a_file_and_wants_a_yml(fresh: Catalogue) -> None:
    before = fresh.config.read_bytes()
    ran = fresh.run("--init", str(fresh.config))
    assert (ran.code, ran.err) == (2, f"{fresh.config} is there already and was not touched; edit it, or choose another name.\n")
    assert fresh.config.read_bytes() == before
    assert fresh.run("--init", str(fresh.folder / "my.txt")).code == 2
    assert fresh.run("--init", str(fresh.folder / "nowhere" / "my.yml")).code == 2
    assert not (fresh.folder / "my.txt").exists()


def test_init_needs_no_config_and_leaves_the_users_rights(fresh: Catalogue) -> None:
    fresh.config.write_text("broken: [")
    before = os.umask(0o022)
    try:
        assert fresh.run("--init", str(fresh.folder / "my.yml")).code == 0
    finally:
        os.umask(before)
    assert (fresh.folder / "my.yml").stat().st_mode & 0o777 == 0o644


# --reset, --drop-embeddings


def test_reset_of_embedding_forgets_failures_and_index_and_keeps_what_was_paid_for(
    done: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, asked = done.table("embeddings"), record_texts(monkeypatch)
    ran = done.run("--reset", "embedding_and_indexing")
    assert ran.code == 0
    document = done.run("--status", "--json").document
    assert document["failures"] == []
    assert [field["indexed"] for field in document["fields"].values()] == [0, 0]
    assert [field["embedded"] for field in document["fields"].values()] == [4, 3]
    assert not (done.checkpoint / "failures.csv").exists()
    assert done.table("embeddings") == embeddings
    assert done.run("--search", "Requiem").code == 2
    stage = done.run("--json").document["stages"]["embedding_and_indexing"]
    assert (stage["embedded"], stage["indexed"], stage["refused"]) == (0, STRINGS, 2)
    assert asked == []


def test_reset_of_preprocessing_reads_again_and_never_renumbers(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    before, asked = {field: done.strings(field) for field in ("person", "title")}, record_texts(monkeypatch)
    assert done.run("--reset", "preprocessing").code == 0
    status = done.run("--status")
    assert "The input will be read again: python main.py" in status.out
    done.write([("9", "Haydn, Joseph", "Die Schöpfung"), *ROWS])
    document = done.run("--json").document
    assert document["stages"]["preprocessing"]["unchanged"] is False
    assert {field: count["new"] for field, count in document["stages"]["preprocessing"]["fields"].items()} == {
        "person": 1, "title": 1,
    }  # fmt: skip
    for field, strings in before.items():
        assert done.strings(field).items() >= strings.items()
    assert sorted(asked) == ["Die Schöpfung", "Haydn, Joseph"]


def test_reset_of_both_stages_at_once_and_of_none_that_exists(done: Catalogue) -> None:
    assert done.run("--reset", "preprocessing", "embedding_and_indexing", "--json").document == {
        "reset": ["preprocessing", "embedding_and_indexing"],
    }  # fmt: skip
    before = done.state()
    ran = done.run("--reset", "embeding")
    assert (ran.code, ran.err.split(". ")[-1]) == (2, "Did you mean 'embedding_and_indexing'?\n")
    assert done.state() == before


def test_drop_embeddings_names_number_and_price_and_needs_a_yes(tmp_path: Path) -> None:
    with FaultyService() as service:
        catalogue = Catalogue(tmp_path)
        by_url(catalogue, service.base_url, price_per_million=10_000)
        catalogue.write(ROWS)
        assert catalogue.run().code == 0
        requests = service.requests
        spent = catalogue.run("--status", "--json").document["spent_usd"]
        assert spent > 0
        before = catalogue.state()
        asked = catalogue.run("--drop-embeddings")
        assert asked.code == 2
        assert (
            f"{STRINGS} strings of ours local-lexical-384, for which ${spent:.4f} was paid; they are in use. Nothing" in asked.err
        )
        assert catalogue.state() == before
        dropped = catalogue.run("--drop-embeddings", "--yes", "--json")
        assert dropped.document == {"generation": ANY, "dropped": STRINGS, "paid_usd": pytest.approx(spent)}
        status = catalogue.run("--status", "--json").document
        assert (status["spent_usd"], status["pending"]) == (pytest.approx(spent), STRINGS + 2)
        assert list((catalogue.checkpoint / "tables").glob("embeddings_*")) == []
        assert service.requests == requests
        assert catalogue.run().code == 0
        assert catalogue.run("--status", "--json").document["spent_usd"] == pytest.approx(2 * spent)


# --json, --quiet, --version, --help


COMMANDS: list[tuple[str, ...]] = [
    (), ("--status",), ("--dry-run",), ("--check",), ("--search", "Requiem"), ("--verify",), ("--reindex",), ("--retry-failed",),
    ("--export-embeddings", "OUT/e.parquet"), ("--export-embeddings", "OUT/e.csv", "--format", "csv-wide"),
    ("--export-occurrences", "OUT/o.csv"), ("--init", "OUT/n.yml"), ("--reset", "preprocessing"),
    ("--reset", "embedding_and_indexing"), ("--drop-embeddings", "--yes"), ("--take-over",), ("--version",), ("--limit", "2"),
    ("--end", "preprocessing"),
]  # fmt: skip
MISTAKES: list[tuple[str, ...]] = [
    ("--nope",), ("--limit", "many"), ("--limit", "0"), ("--status", "--check"), ("--search",), ("--search", " "), ("extra",),
    ("--set", "nope=1"), ("--config", "/nowhere.yml"), ("--start", "training"), ("--drop-embeddings",),
    ("--search", "x", "--field", "author"), ("--export-embeddings", "OUT"), ("--init", "OUT/x.txt"),
]  # fmt: skip


def placed(catalogue: Catalogue, command: tuple[str, ...]) -> list[str]:
    return [word.replace("OUT", str(catalogue.folder)) for word in command]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_with_json_standard_output_is_one_document_whatever_the_command(done: Catalogue, command: tuple[str, ...]) -> None:
    ran = done.run(*placed(done, command), "--json")
    assert ran.code == 0, ran.err
    assert isinstance(ran.document, dict)
    assert ran.out.endswith("}\n")


@pytest.mark.parametrize("command", MISTAKES, ids=" ".join)
def test_with_json_an_error_is_one_document_too(done: Catalogue, command: tuple[str, ...]) -> None:
    before = done.state()
    ran = done.run(*placed(done, command), "--json")
    assert ran.code == 2
    assert set(ran.document) == {"error", "exit_code"}
    assert ran.document["exit_code"] == 2
    assert ran.document["error"] in ran.err
    assert done.state() == before


def test_with_json_a_run_that_is_locked_out_is_one_document(done: Catalogue) -> None:
    with held(done):
        ran = done.run("--json")
    assert (ran.code, ran.document["exit_code"]) == (75, 75)


def test_with_json_there_is_one_document_even_when_closing_fails_after_it(done: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.ledger.ledger.publish", full)
    ran = done.run("--verify", "--json")
    assert ran.code == 1
    assert isinstance(ran.document, dict)
    assert "No space left" in ran.err


def test_quiet_says_only_what_was_asked_for_and_errors(fresh: Catalogue) -> None:
    ran = fresh.run("--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert "person" in fresh.run("--status", "--quiet").out
    found = fresh.run("--search", "Requiem", "--quiet", "--top", "1")
    assert found.out.startswith("  1.000")
    assert fresh.run("--quiet", "--start", "nope").err != ""


def test_version_is_that_of_the_package(fresh: Catalogue) -> None:
    assert fresh.run("--version").out == f"{__version__}\n"
    assert fresh.run("--version", "--json").document == {"version": __version__}


def test_help_mentions_every_flag_with_words_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser()
    with pytest.raises(SystemExit) as ended:
        made.parse_args(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for action in made._actions:
        assert all(flag in text for flag in action.option_strings)
        assert action.help
    for code in ("0 done", "1 something failed", "2 the command line", "75 another run", "130 interrupted"):
        assert code in text


# Odd combinations


ODD: list[tuple[tuple[str, ...], str]] = [
    (("--field", "person"), "--field goes with --search"),
    (("--status", "--field", "person"), "--field goes with --search"),
    (("--top", "3"), "--top goes with --search"),
    (("--search", "x", "--top", "0"), "--top is 0; it must be at least 1"),
    (("--format", "csv-wide"), "--format goes with --export-embeddings"),
    (("--export-occurrences", "x.csv", "--format", "csv-wide"), "--format goes with --export-embeddings"),
    (("--status", "--start", "preprocessing"), "--start and --end go with a run"),
    (("--dry-run", "--end", "preprocessing"), "--start and --end go with a run"),
    (("--start", "embedding_and_indexing", "--end", "preprocessing"), "comes before"),
    (("--start", "embeddings"), "Did you mean 'embedding_and_indexing'?"),
    (("--search", "x", "--limit", "3"), "--limit and --fields go with"),
    (("--verify", "--fields", "person"), "--limit and --fields go with"),
    (("--reset", "preprocessing", "--limit", "3"), "--limit and --fields go with"),
    (("--status", "--accept-new-input"), "--accept-new-input goes with a run"),
    (("--limit", "-1"), "--limit is -1; it must be at least 1"),
    (("--limit", "x"), "invalid int value: 'x'"),
    (("--fields", "person,author"), "--fields: there is no field 'author'; the config has person, title"),
    (("--fields", ""), "--fields: there is no field ''"),
    (("--status", "--verify"), "not allowed with argument"),
    (("--stat",), "--stat"),
    (("--reset",), "expected at least one argument"),
    (("--format", "csv", "--export-embeddings", "x"), "invalid choice: 'csv'"),
    (("--set", "log_level"), "write it as KEY=VALUE"),
    (("--set", "log_levl=debug"), "Did you mean 'log_level'?"),
]


@pytest.mark.parametrize(("command", "words"), ODD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_an_odd_command_line_is_refused_in_a_sentence_before_anything_is_done(
    fresh: Catalogue, command: tuple[str, ...], words: str
) -> None:
    ran = fresh.run(*command)
    assert ran.code == 2
    assert words in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert not fresh.checkpoint.exists()


@pytest.mark.parametrize("flags", [("--limit", "2"), ("--fields", "title"), ("--fields", " title , person ")], ids=" ".join)
@pytest.mark.parametrize("command", [(), ("--dry-run",), ("--retry-failed",)], ids=" ".join)
def test_limit_and_fields_go_with_a_run_and_what_is_like_one(
    done: Catalogue, command: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    assert done.run(*command, *flags).code == 0


# A terminal


def on_a_terminal(catalogue: Catalogue, *arguments: str) -> tuple[str, str]:
    """Standard output, and what a terminal at standard error was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new one has no width, and no room for a bar
    command = [sys.executable, "main.py", "--config", str(catalogue.config), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown
    return out, shown.decode()


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # Linux says EIO, not an empty read, once the other end is closed
        return b""


def test_bars_are_drawn_on_a_terminal(fresh: Catalogue) -> None:
    out, shown = on_a_terminal(fresh)
    assert "  embedding:" in shown
    assert "  indexing:" in shown
    assert "%|" in shown
    assert "%|" not in out
    assert "INFO" not in shown, "a person sees bars, not logs"


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_quiet_and_json_draw_no_bars_on_a_terminal_either(fresh: Catalogue, flag: str) -> None:
    out, shown = on_a_terminal(fresh, flag)
    assert shown == ""
    assert (out == "") == (flag == "--quiet")


def test_without_a_terminal_no_bar_is_drawn(fresh: Catalogue) -> None:
    command = [sys.executable, "main.py", "--config", str(fresh.config)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "%|" not in ran.stdout + ran.stderr
    assert "\r" not in ran.stdout + ran.stderr
    assert "INFO input.read records=5" in ran.stderr
