"""Batch mode and real time end the same, whichever way one goes; and each command of batch mode keeps its word."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pyarrow.parquet as pq
import pytest

from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.batch_manager import main as manager_main
from pipeline.identity import custom_id, uuid_of
from pipeline.local_service import LocalTransport, Request, Response, State, handle
from pipeline.local_service.misbehaviour import Misbehaviour
from pipeline.local_service.settings import AT_ONCE, Pace
from tests.tools import Catalogue, Ran

SAMPLE = Path(__file__).resolve().parents[2] / "sample" / "records.csv"
FIELDS = {"person": "person", "title": "title", "composite": "composite"}
ONLY_EMBEDDING = ("--start", "embedding_and_indexing", "--end", "embedding_and_indexing")
HOUR = 3600.0
SLOW = Pace(validating=60, working=HOUR, finalizing=60, cancelling=60)


class Service:
    """The local service of a test, one for all commands: its record of what was embedded, its clock, its requests."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.ahead = 0.0
        self.requests: list[tuple[str, str]] = []

    def now(self) -> float:
        return time.time() + self.ahead

    def sleep(self, seconds: float) -> None:
        self.ahead += seconds

    def handle(self, request: Request, state: State, clock: Callable[[], float]) -> Response:
        self.requests.append((request.method, request.path))
        return handle(request, state, clock)

    def asked(self, method: str, path: str) -> int:
        """How often something was asked for."""
        return sum(one == (method, f"/v1/{path}") for one in self.requests)

    @property
    def batches(self) -> list[str]:
        return [batch["status"] for batch in self.state.summary()["batches"]]

    def embedded(self) -> dict[str, int]:
        return self.state.embedded()

    @contextlib.contextmanager
    def client(self) -> Iterator[openai.OpenAI]:
        """Somebody else who shares the account."""
        transport = LocalTransport(self.state, self.now)
        with (
            httpx2.Client(transport=transport) as http,
            openai.OpenAI(api_key="theirs", base_url="http://local/v1", http_client=http, max_retries=0) as made,
        ):
            yield made


Mount = Callable[..., Service]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "SERVICE_API_KEY", "SERVICE_API_KEY_FILE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Mount:
    """Put one recording service under every command that follows, and its clock under the commands."""

    def mounted(pace: Pace = AT_ONCE, misbehaviours: tuple[Misbehaviour, ...] = ()) -> Service:
        service = Service(State(record=True, pace=pace, misbehaviours=misbehaviours))
        monkeypatch.setattr("pipeline.local_service.State", lambda *_: service.state)
        monkeypatch.setattr("pipeline.local_service.LocalTransport", lambda state, _: LocalTransport(state, service.now))
        monkeypatch.setattr("pipeline.local_service.transport.handle", service.handle)
        monkeypatch.setattr("pipeline.retry.SystemClock.now", lambda _: service.now())
        monkeypatch.setattr("pipeline.retry.SystemClock.sleep", lambda _, seconds: service.sleep(seconds))
        return service

    return mounted


def manager(catalogue: Catalogue, *arguments: str) -> Ran:
    """`python batch_manager.py --config CONFIG ARGUMENTS…`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = manager_main(["--config", str(catalogue.config), *arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def made(folder: Path, records: int | None = 300, **keys: object) -> Catalogue:
    """The first records of the sample (None: all of them) in a folder of their own."""
    folder.mkdir(exist_ok=True)
    catalogue = Catalogue(folder)
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, strict=True))
    catalogue.write(rows[1:] if records is None else rows[1 : records + 1], header=rows[0])
    catalogue.configure(fields=FIELDS, **keys)
    return catalogue


def named(folder: Path, *names: str, **keys: object) -> Catalogue:
    """A catalogue of some persons."""
    folder.mkdir(exist_ok=True)
    catalogue = Catalogue(folder)
    catalogue.write([(str(number), name, "") for number, name in enumerate(names)])
    catalogue.configure(fields={"person": "person"}, **keys)
    return catalogue


def vectors(catalogue: Catalogue) -> list[tuple[str, bytes]]:
    """The export: uuid and vector, byte by byte, sorted by uuid."""
    target = catalogue.folder / "export.parquet"
    ran = catalogue.run("--export-embeddings", str(target))
    assert ran.code == 0, ran.err
    table = pq.read_table(target).sort_by("uuid")
    width = table["vector"].type.list_size
    content = table["vector"].combine_chunks().flatten().to_numpy().tobytes()
    return [(uuid, content[4 * width * row : 4 * width * (row + 1)]) for row, uuid in enumerate(table["uuid"].to_pylist())]


def index_of(catalogue: Catalogue) -> set[tuple[bytes, str, str, str, int]]:
    """What the embedded index says of each string: all of it but its place in the file of vectors."""
    found: set[tuple[bytes, str, str, str, int]] = set()
    for path in (catalogue.checkpoint / "store").glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            found |= set(database.execute("SELECT uuid, field, text, crc32, frequency FROM string"))
    return found


def strings_of(catalogue: Catalogue) -> set[tuple[str, str]]:
    return {(field, text) for field in FIELDS for text in catalogue.strings(field).values() if text.strip()}


def good(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err + ran.out
    return ran


def jobs(catalogue: Catalogue) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = good(manager(catalogue, "--status", "--json")).document["jobs"]
    return found


def states(catalogue: Catalogue) -> list[str]:
    return [job["state"] for job in jobs(catalogue)]


def assert_each_once(service: Service, catalogue: Catalogue) -> None:
    """By the service's own record: each text as often as there are fields that hold it, and nothing else."""
    wanted: dict[str, int] = {}
    for _, text in strings_of(catalogue):
        digest = hashlib.sha256(text.encode()).hexdigest()
        wanted[digest] = wanted.get(digest, 0) + 1
    assert service.embedded() == wanted


def assert_same(first: Catalogue, second: Catalogue) -> None:
    assert vectors(first) == vectors(second)
    assert index_of(first) == index_of(second)


# The same result


@pytest.fixture(scope="module")
def in_real_time(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    catalogue = made(tmp_path_factory.mktemp("real_time"))
    good(catalogue.run())
    assert {uuid for uuid, *_ in index_of(catalogue)} == {uuid_of(*one).bytes for one in strings_of(catalogue)}
    return catalogue


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_separate_commands_end_as_real_time_does(tmp_path: Path, in_real_time: Catalogue, encoding: str) -> None:
    catalogue = made(tmp_path / "batch", encoding_format=encoding, batch_embedding_size=250)
    good(manager(catalogue, "--create"))
    assert set(states(catalogue)) == {"open"}
    good(manager(catalogue, "--download"))
    assert set(states(catalogue)) == {"collected"}
    assert_same(catalogue, in_real_time)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_automatic_batch_ends_as_real_time_does(mount: Mount, tmp_path: Path, in_real_time: Catalogue, encoding: str) -> None:
    service = mount(SLOW)
    catalogue = made(tmp_path / "batch", encoding_format=encoding, use_batch_embeddings=True, batch_embedding_size=250)
    ran = good(catalogue.run())
    assert_same(catalogue, in_real_time)
    assert_each_once(service, catalogue)
    assert set(service.batches) == {"completed"}
    assert ran.out.count(" submitted: ") == len(service.batches) > 1
    assert ran.out.count("collected: completed") == len(service.batches)


def test_the_whole_sample_through_both_modes(tmp_path: Path) -> None:
    by_batch = made(tmp_path / "batch", None, batch_embedding_size=2_000, openai_tier=3)
    good(manager(by_batch, "--create"))
    good(manager(by_batch, "--download"))
    real_time = made(tmp_path / "real_time", None)
    good(real_time.run())
    assert_same(by_batch, real_time)
    assert len(index_of(by_batch)) == len(strings_of(by_batch)) > 5_000


@pytest.mark.parametrize("by_batch", [True, False])
@pytest.mark.parametrize("then_by_batch", [True, False])
def test_a_second_run_in_either_mode_does_nothing(mount: Mount, tmp_path: Path, by_batch: bool, then_by_batch: bool) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", 60)
    good(catalogue.run("--set", f"use_batch_embeddings={str(by_batch).lower()}"))
    vectors_before, totals = vectors(catalogue), service.state.summary()
    service.requests.clear()
    good(catalogue.run("--set", f"use_batch_embeddings={str(then_by_batch).lower()}"))
    if then_by_batch:
        good(manager(catalogue, "--create"))
        good(manager(catalogue, "--advance"))
        good(manager(catalogue, "--wait"))
        good(manager(catalogue, "--download"))
    assert service.requests == []
    assert vectors(catalogue) == vectors_before
    assert service.state.summary() == totals


# A change of mode


def test_batch_then_real_time_then_download_embeds_nothing_twice(mount: Mount, tmp_path: Path, in_real_time: Catalogue) -> None:
    service = mount(SLOW)
    catalogue = made(tmp_path / "c", batch_embedding_size=100, max_active_batches=3)
    good(manager(catalogue, "--create"))
    assert len(service.batches) == 3
    good(manager(catalogue, "--finish-realtime"))
    assert states(catalogue) == ["open"] * 3
    service.ahead += 2 * HOUR
    good(manager(catalogue, "--download"))
    assert_each_once(service, catalogue)
    assert_same(catalogue, in_real_time)


def test_a_plain_run_in_real_time_beside_open_jobs_says_that_they_are_open(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    catalogue = made(tmp_path / "c", 60)
    good(manager(catalogue, "--create"))
    ran = good(catalogue.run())
    assert "Nothing was left to do" not in ran.out
    assert " --download\n" in ran.out
    assert service.embedded() == {}
    good(catalogue.run("--status"))


def test_real_time_with_a_limit_then_batch_embeds_nothing_twice(mount: Mount, tmp_path: Path, in_real_time: Catalogue) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", batch_embedding_size=200)
    good(catalogue.run("--limit", "100"))
    first = sum(service.embedded().values())
    good(manager(catalogue, "--create"))
    good(catalogue.run("--batch-results"))
    assert 0 < first < sum(job["requests"] for job in jobs(catalogue)) + first == len(strings_of(catalogue))
    assert_each_once(service, catalogue)
    assert_same(catalogue, in_real_time)


def test_a_job_that_was_never_created_goes_through_real_time(mount: Mount, tmp_path: Path) -> None:
    service = mount(misbehaviours=(Misbehaviour(kind="insufficient_quota"),))
    catalogue = made(tmp_path / "c", 60)
    assert manager(catalogue, "--create").code == 1
    assert states(catalogue) == ["uploaded"]
    good(manager(catalogue, "--finish-realtime"))
    assert_each_once(service, catalogue)
    good(manager(catalogue, "--advance"))
    assert service.batches == []
    assert_each_once(service, catalogue)
    with service.client() as client:
        assert client.files.list().data == []


def test_a_second_model_takes_over_only_when_its_last_job_is_in(mount: Mount, tmp_path: Path) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", 60)
    good(catalogue.run())
    with catalogue.ledger() as ledger:
        before = ledger.current_generation()
    service.state.pace = SLOW
    short = ("--set", "embedding_dimensions=64")
    good(manager(catalogue, "--create", *short))
    with catalogue.ledger() as ledger:
        assert ledger.current_generation() == before
    service.ahead += 2 * HOUR
    good(manager(catalogue, "--download"))  # the job knows its generation, whatever the config says now
    good(manager(catalogue, "--download", *short))
    with catalogue.ledger() as ledger:
        after = ledger.current_generation()
    assert after is not None
    assert after.dimensions == 64
    assert len(vectors(catalogue)) == len(strings_of(catalogue))


def test_two_strings_of_equal_crc32_in_one_job_come_back_to_their_own_texts(tmp_path: Path) -> None:
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    catalogue = named(tmp_path / "batch", "plumless", "buckeroo", "Bach")
    good(manager(catalogue, "--create"))
    good(manager(catalogue, "--download"))
    [job] = jobs(catalogue)
    assert (job["requests"], job["embedded"]) == (3, 3)
    alone: dict[str, bytes] = {}
    for name in ("plumless", "buckeroo", "Bach"):
        single = named(tmp_path / name, name)
        good(single.run())
        alone |= dict(vectors(single))
    assert dict(vectors(catalogue)) == alone
    assert len(set(alone.values())) == 3


# The config of the documents

DOCUMENTED: dict[str, object] = {
    "use_batch_embeddings": True,
    "batch_embedding_size": 100,
    "max_requests_per_file": 50_000,
    "batch_manual_polling": True,
    "batch_poll_interval": 300,
    "batch_max_wait_time": 86_400,
    "openai_api_key": "sk-test-0123456789abcdef0123",
}


def test_manual_polling_with_the_documented_config(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    catalogue = made(tmp_path / "c", 60, **DOCUMENTED)
    good(catalogue.run("--end", "preprocessing"))
    assert service.requests == []
    ran = good(catalogue.run(*ONLY_EMBEDDING))
    files = sorted(path.name for path in catalogue.checkpoint.glob("batch_requests_*.jsonl"))
    assert files == [f"batch_requests_{number:04d}.jsonl" for number in range(1, len(files) + 1)]
    remote = [batch["id"] for batch in service.state.summary()["batches"]]
    assert len(remote) == len(files) > 1
    assert all(batch in ran.out for batch in remote)
    for shown in (good(catalogue.run("--batch-status")).out, good(manager(catalogue, "--status")).out):
        assert all(batch in shown for batch in remote)
        assert "validating" in shown
    good(catalogue.run("--batch-results"))
    assert index_of(catalogue) == set()
    service.ahead += 2 * HOUR
    assert "completed" in good(catalogue.run("--batch-status")).out
    good(catalogue.run("--batch-results"))
    assert {uuid for uuid, *_ in index_of(catalogue)} == {uuid_of(*one).bytes for one in strings_of(catalogue)}
    assert_each_once(service, catalogue)
    assert "sk-test-0123456789abcdef0123" not in ran.out + ran.err


def test_automatic_polling_with_the_documented_config(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    catalogue = made(tmp_path / "c", 60, **DOCUMENTED | {"batch_manual_polling": False})
    began = service.now()
    good(catalogue.run())
    assert HOUR <= service.now() - began < HOUR + 120 + 3 * 300  # the interval is in seconds
    assert {uuid for uuid, *_ in index_of(catalogue)} == {uuid_of(*one).bytes for one in strings_of(catalogue)}
    assert_each_once(service, catalogue)


def test_embedding_before_preprocessing_says_what_is_missing(mount: Mount, tmp_path: Path) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", 60, **DOCUMENTED)
    ran = catalogue.run(*ONLY_EMBEDDING)
    assert ran.code == 2
    assert "Nothing is preprocessed yet" in ran.err
    assert service.requests == []


# Requests, jobs, names


def request_lines(catalogue: Catalogue) -> dict[int, list[dict[str, Any]]]:
    """Job → its requests."""
    return {
        int(path.stem.rpartition("_")[2]): [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        for path in sorted(catalogue.checkpoint.glob("batch_requests_*.jsonl"))
    }


@pytest.mark.parametrize(("encoding", "dimensions"), [("float", None), ("base64", 64)])
def test_request_lines_have_the_documented_shape(mount: Mount, tmp_path: Path, encoding: str, dimensions: int | None) -> None:
    mount()
    catalogue = made(tmp_path / "c", 60, encoding_format=encoding, embedding_dimensions=dimensions)
    good(manager(catalogue, "--create"))
    found = set()
    texts = {field: catalogue.strings(field) for field in FIELDS}
    for line in request_lines(catalogue)[1]:
        body = line["body"]
        field, _, row = line["custom_id"].partition("_")[2].rpartition("_")
        assert list(line) == ["custom_id", "method", "url", "body"]
        assert (line["method"], line["url"]) == ("POST", "/v1/embeddings")
        wanted = {"model": "local-lexical-384", "input": texts[field][int(row)], "encoding_format": encoding}
        assert body == (wanted if dimensions is None else wanted | {"dimensions": dimensions})
        assert line["custom_id"] == custom_id(field, int(row), body["input"])
        found.add((field, body["input"]))
    assert found == strings_of(catalogue)


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ({"batch_embedding_size": 40}, 40),
        ({"max_requests_per_file": 30}, 30),
        ({"batch_embedding_size": 70, "max_requests_per_file": 50}, 50),
    ],
)
def test_jobs_hold_as_many_requests_as_both_keys_allow(mount: Mount, tmp_path: Path, keys: dict[str, int], most: int) -> None:
    mount()
    catalogue = made(tmp_path / "c", 60, **keys)
    good(manager(catalogue, "--create"))
    sizes = [len(lines) for lines in request_lines(catalogue).values()]
    assert set(sizes[:-1]) == {most}
    assert 0 < sizes[-1] <= most
    assert sum(sizes) == len(strings_of(catalogue))
    assert [job["requests"] for job in jobs(catalogue)] == sizes


def test_jobs_keep_to_bytes(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount()
    monkeypatch.setattr("pipeline.provider.batch_limits.BYTES_A_JOB", 8000)
    catalogue = made(tmp_path / "c", 60)
    good(manager(catalogue, "--create"))
    sizes = [path.stat().st_size for path in sorted(catalogue.checkpoint.glob("batch_requests_*.jsonl"))]
    assert len(sizes) > 2
    assert all(7000 < size <= 8000 for size in sizes[:-1])
    assert [job["bytes"] for job in jobs(catalogue)] == sizes


def test_jobs_keep_to_tokens_and_the_rest_waits(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    catalogue = made(tmp_path / "c", 60, max_enqueued_tokens=3000, use_batch_embeddings=True)
    ran = good(manager(catalogue, "--create"))
    assert "More waits" in ran.out
    there = jobs(catalogue)
    assert 0 < sum(job["tokens"] for job in there) <= 3000
    good(manager(catalogue, "--wait"))
    assert all(job["tokens"] <= 3000 for job in jobs(catalogue))
    assert_each_once(service, catalogue)


def test_files_and_batches_carry_the_catalogue_at_the_service(mount: Mount, tmp_path: Path) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", 60, batch_embedding_size=100)
    good(manager(catalogue, "--create"))
    with catalogue.ledger() as ledger:
        catalogue_id = ledger.meta("catalogue_id")
    for job, batch in zip(jobs(catalogue), service.state.summary()["batches"], strict=True):
        path = catalogue.checkpoint / f"batch_requests_{job['id']:04d}.jsonl"
        assert batch["input_file_name"] == f"{catalogue_id}_{path.name}"
        assert batch["metadata"] == {
            "catalogue_id": catalogue_id,
            "job": str(job["id"]),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "program": "namesake",
        }
        assert job["batch"] == batch["id"]


# The commands


def of_others(service: Service) -> str:
    """A batch of another department, and a file that no batch uses; the batch's id."""
    body = {"model": "local-lexical-384", "input": "theirs", "encoding_format": "float"}
    line = json.dumps({"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": body}).encode() + b"\n"
    with service.client() as client:
        for _ in range(2):
            file = client.files.create(file=("batch_requests_0001.jsonl", line), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    return batch.id


def test_list_marks_ours(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    theirs = of_others(service)
    catalogue = made(tmp_path / "c", 60)
    good(manager(catalogue, "--create"))
    [job] = jobs(catalogue)
    found = {batch["id"]: batch["ours"] for batch in good(manager(catalogue, "--list", "--json")).document["batches"]}
    assert found == {theirs: False, job["batch"]: True}
    lines = {line.split()[0]: line for line in good(manager(catalogue, "--list")).out.splitlines() if line.startswith("  batch_")}
    assert lines[theirs].endswith("  not ours")
    assert lines[job["batch"]].endswith("  ours, job 1")


def test_cancel_harvests_what_was_done(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    theirs = of_others(service)
    catalogue = made(tmp_path / "c", 60, batch_embedding_size=100)
    good(manager(catalogue, "--create"))
    service.ahead += HOUR / 2
    wrong = manager(catalogue, "--cancel", "77")
    assert (wrong.code, "Job 77 is not open" in wrong.err) == (2, True)
    good(manager(catalogue, "--cancel", "1"))
    after = {job["id"]: job["status"] for job in jobs(catalogue)}
    assert after.pop(1) == "cancelling"
    assert "cancelling" not in after.values()
    good(manager(catalogue, "--cancel"))
    service.ahead += 120
    good(manager(catalogue, "--download"))
    done = jobs(catalogue)
    assert {(job["state"], job["status"]) for job in done} == {("collected", "cancelled")}
    assert all(0 < job["embedded"] < job["requests"] for job in done)
    embedded = sum(job["embedded"] for job in done)
    assert len(index_of(catalogue)) == embedded
    good(manager(catalogue, "--wait"))
    assert_each_once_beside(service, catalogue)
    assert good(manager(catalogue, "--failures")).out == "Nothing has failed.\n"
    with service.client() as client:
        assert client.batches.retrieve(theirs).status == "completed"


def assert_each_once_beside(service: Service, catalogue: Catalogue) -> None:
    """Ours each once, when others had something embedded too."""
    assert len(index_of(catalogue)) == len(strings_of(catalogue))
    ours = {hashlib.sha256(text.encode()).hexdigest() for _, text in strings_of(catalogue)}
    assert sum(times for digest, times in service.embedded().items() if digest in ours) == len(strings_of(catalogue))


def test_sweep_deletes_only_ours_that_nobody_needs(mount: Mount, tmp_path: Path) -> None:
    service = mount(SLOW)
    of_others(service)
    catalogue = made(tmp_path / "c", 60, batch_embedding_size=100)
    good(manager(catalogue, "--create"))
    with catalogue.ledger() as ledger:
        catalogue_id = ledger.meta("catalogue_id")
    with service.client() as client:
        before = {file.id for file in client.files.list().data}
        orphan = client.files.create(file=(f"{catalogue_id}_batch_requests_0099.jsonl", b"{}\n"), purpose="batch")
        other = client.files.create(file=(f"x{catalogue_id}_batch_requests_0001.jsonl", b"{}\n"), purpose="batch")
        assert good(manager(catalogue, "--sweep", "--json")).document == {"deleted": [orphan.id]}
        assert {file.id for file in client.files.list().data} == before | {other.id}
    service.ahead += 2 * HOUR
    good(manager(catalogue, "--download"))
    assert len(index_of(catalogue)) == len(strings_of(catalogue))


def test_collected_jobs_leave_nothing_at_the_service(mount: Mount, tmp_path: Path) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", 60, batch_embedding_size=100)
    good(manager(catalogue, "--create"))
    good(manager(catalogue, "--download"))
    with service.client() as client:
        assert client.files.list().data == []
    assert all(job["cleaned"] for job in jobs(catalogue))


def test_failures_are_listed_and_go_again_when_asked(mount: Mount, tmp_path: Path) -> None:
    service = mount(misbehaviours=(Misbehaviour(kind="refused_row", create=1, row=2),))
    catalogue = named(tmp_path / "c", "Bach", "Mozart", "Haydn")
    good(manager(catalogue, "--create"))
    assert manager(catalogue, "--download").code == 1
    [failure] = good(manager(catalogue, "--failures", "--json")).document["failures"]
    assert (failure["field"], failure["row"], failure["stage"]) == ("person", 1, "service")
    assert "400" in failure["reason"]
    assert "person 1: service" in good(manager(catalogue, "--failures")).out
    assert "Mozart" in (catalogue.checkpoint / "failures.csv").read_text(encoding="utf-8")
    assert manager(catalogue, "--advance").code == 1  # still failed, and not sent again by itself
    assert len(service.batches) == 1
    good(manager(catalogue, "--retry-failed"))
    good(manager(catalogue, "--download"))
    assert set(catalogue.embedded("person")) == {"Bach", "Mozart", "Haydn"}
    assert [job["requests"] for job in jobs(catalogue)] == [3, 1]
    assert not (catalogue.checkpoint / "failures.csv").exists()


def test_main_retries_what_failed_in_the_mode_of_the_config(mount: Mount, tmp_path: Path) -> None:
    service = mount(misbehaviours=(Misbehaviour(kind="refused_row", create=1, row=2),))
    catalogue = named(tmp_path / "c", "Bach", "Mozart", "Haydn", use_batch_embeddings=True)
    assert catalogue.run().code == 1
    good(catalogue.run("--retry-failed"))
    assert set(catalogue.embedded("person")) == {"Bach", "Mozart", "Haydn"}
    assert len(service.batches) == 2
    assert service.asked("POST", "embeddings") == 0  # at twice the price


def test_a_string_that_no_job_may_hold_is_said_and_not_waited_for(mount: Mount, tmp_path: Path) -> None:
    service = mount()
    catalogue = named(tmp_path / "c", "Bach", "Mozart " * 20, max_enqueued_tokens=50, use_batch_embeddings=True)
    ran = catalogue.run()
    assert ran.code == 1
    assert "max_enqueued_tokens" in ran.err
    assert catalogue.embedded("person") == ["Bach"]
    good(manager(catalogue, "--finish-realtime"))
    assert set(service.embedded().values()) == {1}


def test_automatic_mode_waits_for_the_hours_creations_to_pass(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = mount()
    monkeypatch.setattr("pipeline.provider.batch_limits.CREATIONS_AN_HOUR", 2)
    catalogue = named(
        tmp_path / "c", "Bach", "Mozart", "Haydn", "Gluck", "Spohr", use_batch_embeddings=True, batch_embedding_size=1
    )
    began = service.now()
    good(catalogue.run())
    assert len(catalogue.embedded("person")) == len(service.batches) == 5
    assert 2 * HOUR <= service.now() - began < 2 * HOUR + 600


def test_a_job_that_waits_to_be_sent_counts_against_the_budget(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = mount(misbehaviours=(Misbehaviour(kind="insufficient_quota", create=1),))
    monkeypatch.setattr("pipeline.provider.service.Service.job_price", 1_000_000.0)
    catalogue = named(tmp_path / "c", "Bach", budget_usd=4)
    assert manager(catalogue, "--create").code == 1
    assert states(catalogue) == ["uploaded"]
    ran = manager(catalogue, "--advance", "--set", "budget_usd=3")
    assert ran.code == 1
    assert "budget_usd is 3" in ran.err
    assert service.batches == []
    good(manager(catalogue, "--wait"))
    assert len(service.batches) == 1


# One document, and exit codes

COMMANDS = (
    ("--create",), ("--status",), ("--list",), ("--failures",), ("--download",), ("--advance",), ("--wait",), ("--cancel",),
    ("--cancel", "1"), ("--retry-failed",), ("--finish-realtime",), ("--sweep",),
)  # fmt: skip


@pytest.mark.parametrize("before", ["nothing", "open", "collected"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_json_is_one_document_of_every_command(mount: Mount, tmp_path: Path, command: tuple[str, ...], before: str) -> None:
    service = mount(SLOW if before == "open" else AT_ONCE)
    catalogue = named(tmp_path / "c", "Bach", "Mozart")
    if before != "nothing":
        good(manager(catalogue, "--create"))
    if before == "collected":
        good(manager(catalogue, "--download"))
    ran = manager(catalogue, *command, "--json")
    assert isinstance(ran.document, dict)
    assert ran.code in (0, 2)
    if ran.code:
        assert set(ran.document) == {"error", "exit_code"}
        assert ran.document["exit_code"] == 2
    assert len(service.batches) <= 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("--batch-status",), ("--batch-results",), ONLY_EMBEDDING, ("--end", "preprocessing"), ("--retry-failed",), ("--status",)],
    ids=" ".join,
)
@pytest.mark.parametrize("manual", [True, False])
def test_json_is_one_document_of_main_in_batch_mode(mount: Mount, tmp_path: Path, arguments: tuple[str, ...], manual: bool) -> None:
    mount()
    catalogue = named(tmp_path / "c", "Bach", "Mozart", use_batch_embeddings=True, batch_manual_polling=manual)
    for _ in range(2):
        ran = catalogue.run(*arguments, "--json")
        assert isinstance(ran.document, dict)
        assert ran.code in (0, 2)


@pytest.mark.parametrize("arguments", [(), ("--create", "--status"), ("--nothing",), ("--cancel", "x")], ids=" ".join)
def test_a_wrong_command_line_is_2_and_a_document(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    catalogue = named(tmp_path / "c", "Bach")
    ran = manager(catalogue, *arguments, "--json")
    assert (ran.code, ran.document["exit_code"]) == (2, 2)
    assert manager(catalogue, *arguments).out == ""


def test_an_error_is_one_document_too(mount: Mount, tmp_path: Path) -> None:
    mount(misbehaviours=(Misbehaviour(kind="insufficient_quota"),))
    catalogue = named(tmp_path / "c", "Bach")
    for ran in (
        manager(catalogue, "--create", "--json"),
        manager(catalogue, "--advance", "--json"),
        catalogue.run("--set", "use_batch_embeddings=true", "--json"),
    ):
        assert ran.code == 1
        assert "quota" in ran.document["stopped_by"]
        assert "quota" in ran.err
    catalogue.configure(batch_poll_interval=0)
    ran = manager(catalogue, "--status", "--json")
    assert (ran.code, ran.document["exit_code"]) == (2, 2)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_held_lock_is_75_and_no_alarm_for_cron(mount: Mount, tmp_path: Path, command: tuple[str, ...]) -> None:
    mount(SLOW)
    catalogue = named(tmp_path / "c", "Bach")
    good(manager(catalogue, "--create"))
    with writing(Checkpoint(catalogue.checkpoint), "another run"):
        plain, ran = manager(catalogue, *command), manager(catalogue, *command, "--json")
    code = 0 if command[0] in ("--advance", "--download", "--status", "--list", "--failures") else 75
    assert (plain.code, ran.code) == (code, code)
    assert isinstance(ran.document, dict)
    if command[0] in ("--advance", "--download"):
        assert "Another run is at work" in plain.out
        assert plain.err == ""
        assert ran.document == {"locked": True}


def test_a_held_lock_and_main_in_batch_mode(mount: Mount, tmp_path: Path) -> None:
    mount(SLOW)
    catalogue = named(tmp_path / "c", "Bach", use_batch_embeddings=True, batch_manual_polling=True)
    good(catalogue.run())
    with writing(Checkpoint(catalogue.checkpoint), "another run"):
        assert catalogue.run().code == 75
        assert catalogue.run("--json").document["exit_code"] == 75
        assert catalogue.run("--batch-status").code == 0
        assert catalogue.run("--batch-results").code == 0


# Forgetting


@pytest.mark.parametrize("command", [("--reset", "embedding_and_indexing"), ("--drop-embeddings", "--yes")], ids=" ".join)
def test_forgetting_waits_for_open_jobs(mount: Mount, tmp_path: Path, command: tuple[str, ...]) -> None:
    service = mount(SLOW)
    catalogue = named(tmp_path / "c", "Bach", "Mozart")
    good(manager(catalogue, "--create"))
    before = catalogue.state()
    ran = catalogue.run(*command)
    assert ran.code == 2
    assert "python batch_manager.py" in ran.err
    assert " --download" in ran.err
    assert " --cancel" in ran.err
    assert {name: rows for name, rows in catalogue.state().items() if name != "ledger.copy.sqlite"} == {
        name: rows for name, rows in before.items() if name != "ledger.copy.sqlite"
    }
    good(manager(catalogue, "--cancel"))
    service.ahead += 120
    assert catalogue.run(*command).code == 2  # cancelled, and not harvested
    good(manager(catalogue, "--download"))
    good(catalogue.run(*command))


def test_a_reset_forgets_ended_jobs_and_their_files_and_pays_nothing_again(mount: Mount, tmp_path: Path) -> None:
    service = mount()
    catalogue = made(tmp_path / "c", 60, batch_embedding_size=100, use_batch_embeddings=True)
    good(catalogue.run())
    before, number = vectors(catalogue), len(jobs(catalogue))
    assert list(catalogue.checkpoint.glob("batch_results_*.jsonl"))
    good(catalogue.run("--reset", "embedding_and_indexing"))
    assert jobs(catalogue) == []
    assert list(catalogue.checkpoint.glob("batch_*.jsonl")) == []
    assert index_of(catalogue) == set()
    good(catalogue.run())
    assert vectors(catalogue) == before
    assert_each_once(service, catalogue)
    good(catalogue.run("--drop-embeddings", "--yes"))
    good(catalogue.run())
    assert vectors(catalogue) == before
    assert [job["id"] for job in jobs(catalogue)] == list(range(number + 1, 2 * number + 1))  # a number is never used again


def test_a_reset_takes_back_what_was_never_created(mount: Mount, tmp_path: Path) -> None:
    service = mount(misbehaviours=(Misbehaviour(kind="insufficient_quota", create=1),))
    catalogue = named(tmp_path / "c", "Bach", "Mozart")
    assert manager(catalogue, "--create").code == 1
    good(catalogue.run("--reset", "embedding_and_indexing"))
    good(manager(catalogue, "--wait"))
    assert sorted(catalogue.embedded("person")) == ["Bach", "Mozart"]
    assert set(service.embedded().values()) == {1}


def test_a_lost_job_is_not_forgotten_by_a_reset(mount: Mount, tmp_path: Path) -> None:
    service = mount(misbehaviours=(Misbehaviour(kind="vanish"),))
    catalogue = named(tmp_path / "c", "Bach")
    good(manager(catalogue, "--create"))
    service.ahead += HOUR  # before, it may only be late
    assert manager(catalogue, "--download").code == 1
    ran = catalogue.run("--reset", "embedding_and_indexing")
    assert ran.code == 2
    assert "python batch_manager.py" in ran.err
    assert " --retry-failed --yes" in ran.err


def test_the_status_of_the_pipeline_counts_what_is_in_jobs_apart_from_what_is_pending(mount: Mount, tmp_path: Path) -> None:
    """Otherwise it would ask for a run that has nothing to send."""
    mount(SLOW)
    catalogue = made(tmp_path / "c", 60)
    good(manager(catalogue, "--create"))
    requests = sum(job["requests"] for job in jobs(catalogue))
    ran = good(catalogue.run("--status"))
    assert f"In batch jobs: {requests} strings; to look at them: python batch_manager.py --status" in ran.out
    assert "To go on with" not in ran.out
    assert "Nothing is pending" not in ran.out
    document = good(catalogue.run("--status", "--json")).document
    assert document["pending"] == 0
    assert sum(field["in_jobs"] for field in document["fields"].values()) == requests


def test_the_saving_is_shown_at_the_end() -> None:
    """Estimate beside bill, and what real time would have cost more; a free service has nothing to say."""
    from pipeline.commands.jobs import saving
    from pipeline.ledger import Job
    from pipeline.provider.service import Service

    dear = Service("openai", "", None, "m", None, 8, "cl100k_base", 0.02, 0.01, "base64", 1.0)
    done = Job(1, "g", "collected", 10, 1, 2_000_000_000, 0.01, "", 1.0, paid_tokens=1_900_000_000)
    assert saving([done], dear) == " Collected: estimated $20.00, paid $19.00, $19.00 less than in real time."
    assert saving([], dear) == ""
