"""Moving in with request and result files of another pipeline: matched by text, proved by a sample, never paid again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import publish_table
from pipeline.ledger import Job
from pipeline.local_service.model import MODEL
from tests.importing.world import Vectors, ask, indexed, names, refused, request, result, stored, write_pairs
from tests.tools import Catalogue, Ran
from tests.wire import Answer, FaultyService

COUNT, SAMPLE = 3000, 100
PERSONS = names(COUNT)
TITLES = [f"Title {number}" for number in range(300)] + PERSONS[:50]  # fifty are persons and titles
ROWS = [(str(number), name, TITLES[number % len(TITLES)]) for number, name in enumerate(PERSONS)]
STRINGS = COUNT + len(TITLES)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    with FaultyService() as service:
        return ask(service.base_url, list(dict.fromkeys(PERSONS + TITLES)))


@pytest.fixture
def service() -> Iterator[FaultyService]:
    with FaultyService() as served:
        yield served


@pytest.fixture
def catalogue(tmp_path: Path, service: FaultyService) -> Catalogue:
    """A catalogue that was read, and has nothing embedded."""
    made = Catalogue(tmp_path)
    made.configure(embedding_service=service.base_url, service_name="ours", embedding_model=MODEL, price_per_million=2)
    made.write(ROWS)
    assert made.run("--end", "preprocessing").code == 0
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "older"


def move_in(catalogue: Catalogue, source: Path, *more: str) -> Ran:
    return catalogue.run("--import-embeddings", str(source), "--model", MODEL, *more)


def reasons(catalogue: Catalogue) -> list[tuple[str, str]]:
    """(custom_id or text, reason) of `import_rejected.csv`."""
    with (catalogue.checkpoint / "import_rejected.csv").open(encoding="utf-8", newline="") as file:
        return [(row["custom_id_or_text"], row["reason"]) for row in csv.DictReader(file)]


def small(catalogue: Catalogue, texts: list[str]) -> None:
    """A catalogue of some persons."""
    catalogue.write([(str(number), text, "") for number, text in enumerate(texts)])
    assert catalogue.run("--end", "preprocessing", "--accept-new-input").code == 0


def test_a_folder_is_imported_and_indexed_and_a_following_run_pays_nothing(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    assert write_pairs(source, vectors) == 7
    ran = move_in(catalogue, source, "--json")
    assert ran.code == 0, ran.err
    found = ran.document
    assert (found["pairs"], found["vectors"], found["matched"], found["imported"]) == (7, len(vectors), STRINGS, STRINGS - SAMPLE)
    assert (found["unmatched"], found["rejected"], found["unanswered"], found["repeated"]) == (0, 0, 0, 0)
    assert found["proof"]["mean"] > 0.9999
    assert found["indexed"] == indexed(catalogue) == STRINGS
    assert service.embedded.total() == SAMPLE, "the sample, and nothing else, was asked of the service"
    with catalogue.ledger() as ledger:
        books = {spending.kind: 0.0 for spending in ledger.spendings()}
        for spending in ledger.spendings():
            books[spending.kind] += spending.strings
        paid = ledger.spent_usd()
    assert books == {"realtime": SAMPLE, "import": STRINGS - SAMPLE}
    assert paid == pytest.approx(found["sample"]["usd"], rel=1), "the sample is in the books at what the service says"
    asked = service.requests
    again = catalogue.run()
    assert again.code == 0, again.err
    assert "Nothing was left to do" in again.out
    assert service.requests == asked
    assert stored(catalogue) == {
        **{("person", text): vectors[text].tobytes() for text in PERSONS},
        **{("title", text): vectors[text].tobytes() for text in TITLES},
    }
    assert catalogue.run("--verify").code == 0
    assert "Nothing was left to import" in move_in(catalogue, source).out
    assert service.requests == asked


def test_what_the_older_pipeline_lacks_is_embedded_by_the_next_run_alone(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    lacking = set(PERSONS[200:260])
    write_pairs(source, {text: vector for text, vector in vectors.items() if text not in lacking})
    assert move_in(catalogue, source).code == 0
    assert not lacking & set(service.embedded)
    assert catalogue.run().code == 0
    assert service.embedded.total() == SAMPLE + len(lacking)
    assert lacking <= set(service.embedded)


def test_vectors_of_another_model_are_refused_by_the_proof_and_nothing_is_imported(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    with FaultyService() as other:
        write_pairs(source, ask(other.base_url, list(vectors), lambda text: text[::-1].swapcase()))
    for attempt in range(2):
        ran = move_in(catalogue, source)
        assert ran.code == 2
        assert f"these are not the vectors of ours {MODEL}" in ran.err
        assert "Nothing was imported" in ran.err
        assert service.embedded.total() == SAMPLE, f"attempt {attempt}: the sample is paid once, and kept"
        assert len(stored(catalogue)) == SAMPLE
    right = source.with_name("right")
    write_pairs(right, vectors)
    assert move_in(catalogue, right).code == 0
    assert service.embedded.total() == SAMPLE, "the same sample proves the right source"
    assert len(stored(catalogue)) == STRINGS


class KilledError(BaseException):
    """As sudden as SIGKILL, within this process."""


def test_killed_between_a_file_and_the_commit_any_command_goes_on_and_the_same_one_ends_the_same(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(final: Path) -> tuple[int, str]:
        publish_table(final)
        raise KilledError

    write_pairs(source, vectors)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.importing.adopting.publish_table", killed)
        with pytest.raises(KilledError):
            move_in(catalogue, source)
    assert len(stored(catalogue)) == SAMPLE, "the vectors of the sample are there, and nothing of the source"
    other = catalogue.run("--end", "preprocessing")
    assert other.code == 0, f"what the kill left was taken for the files of a newer ledger: {other.err}"
    assert move_in(catalogue, source).code == 0
    assert service.embedded.total() == SAMPLE
    assert len(stored(catalogue)) == STRINGS


def test_a_few_vectors_of_other_texts_in_the_sample_refuse_all(catalogue: Catalogue, source: Path, vectors: Vectors) -> None:
    small(catalogue, PERSONS[:40])
    shifted = {**vectors, **dict(zip(PERSONS[:3], (vectors[text] for text in PERSONS[3:6]), strict=True))}
    write_pairs(source, {text: shifted[text] for text in PERSONS[:40]})
    ran = move_in(catalogue, source)
    assert ran.code == 2
    assert "Of 40 strings that were embedded anew, 3 have another vector there" in ran.err


def test_bad_lines_are_listed_each_with_its_reason(catalogue: Catalogue, source: Path, vectors: Vectors) -> None:
    texts = PERSONS[:12]
    small(catalogue, [*texts, "  "])
    v = [vectors[text] for text in texts]
    source.mkdir()
    other = request("l", texts[11], model="another-model")
    asked = b"".join(request(name, text) for name, text in zip("abcdefghijk", texts, strict=False))
    asked += request("m", "  ") + request("twice", texts[10]) + request("twice", texts[11]) + other + request("n", [[1, 2]])  # type: ignore[list-item]
    (source / "batch_requests_1.jsonl").write_bytes(asked + b'{"custom_id": "torn')
    nan, zero = v[3].copy(), np.zeros_like(v[4])
    nan[7] = np.nan
    lines = [
        result("a", v[0]), result("b", v[1], as_floats=True), refused("c"), result("d", nan), result("e", zero),
        result("f", v[5][:-1]),
        result("g", v[6]), result("g", v[6]),  # the same twice
        result("h", v[7]), result("h", v[7] * np.float32(1.0001)),  # as good as the same
        result("i", v[8]), result("i", v[9]),  # one of these is wrong
        result("../../etc/passwd", v[0]), result("m", v[0]), result("twice", v[10]), result("l", v[11]),
        b'{"custom_id": "j", "response": {"status_code": 200, "body": {"data": [{"embedding": null}]}}}\n',
        result("k", v[10] * np.float32(3)), b"\n", result("j", v[9])[:-200],
    ]  # fmt: skip
    (source / "batch_results_1.jsonl").write_bytes(b"".join(lines))
    (source / "batch_errors_1.jsonl").write_bytes(refused("c"))
    (source / "batch_requests_2.jsonl").write_bytes(request("a", texts[1]))
    dry = move_in(catalogue, source, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert dry.document["rejected"] == 16 - 2, "whether vectors that differ are far apart is seen by the import alone"
    assert dry.document["differing"] == 2
    ran = move_in(catalogue, source, "--json")
    assert ran.code == 0, ran.err
    found = ran.document
    assert found["without_partner"] == ["batch_requests_2.jsonl"]
    assert (found["matched"], found["repeated"], found["not_unit"]) == (6, 3, 1)
    assert (found["to_import"], found["rejected"]) == (5, 16)
    listed = reasons(catalogue)
    assert len(listed) == 16
    assert [reason for name, reason in listed if name == "twice"] == [
        "its custom_id stands twice in the file, with different texts"
    ] * 2
    by_name = dict(listed)
    assert by_name["c"] == "400: said no"
    assert by_name["d"] == "NaN or infinity in the vector"
    assert by_name["e"] == "a vector of zeros only"
    assert by_name["f"] == "the vector has 383 numbers instead of 384"
    assert by_name["j"].startswith("bad vector")
    assert by_name["../../etc/passwd"] == by_name["l"] == "no usable request of its pair has this custom_id"
    assert by_name["n"] == "its input is no text (numbers of tokens are not read)"
    assert by_name[texts[8]].startswith("the vectors of its text differ")
    assert {text for _, text in stored(catalogue)} == {texts[number] for number in (0, 1, 6, 7, 10)}


def test_a_request_of_several_texts_is_read_whole(catalogue: Catalogue, source: Path, vectors: Vectors) -> None:
    small(catalogue, PERSONS[:30])
    source.mkdir()
    (source / "batch_requests_x.jsonl").write_bytes(request("many", PERSONS[:30]))
    (source / "batch_results_x.jsonl").write_bytes(result("many", *(vectors[text] for text in PERSONS[:30])))
    ran = move_in(catalogue, source, "--json", "--set", "import_sample=1")
    assert ran.code == 0, ran.err
    assert ran.document["imported"] == 29
    assert stored(catalogue) == {("person", text): vectors[text].tobytes() for text in PERSONS[:30]}


def test_a_dry_run_writes_nothing_and_asks_nothing(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    write_pairs(source, {**vectors, "nobody knows": vectors[PERSONS[0]]})
    before = catalogue.state()
    ran = move_in(catalogue, source, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert (ran.document["to_import"], ran.document["unmatched"]) == (STRINGS, 1)
    assert ran.document["sample"]["asked"] == SAMPLE
    assert ran.document["sample"]["usd"] > 0
    words = move_in(catalogue, source, "--dry-run").out
    assert f"Proof of the model: {SAMPLE} strings embedded anew by ours {MODEL}, at most" in words
    assert "such as: nobody knows" in words
    assert catalogue.state() == before
    assert service.requests == 0


def test_a_field_that_is_told_is_the_only_one_that_is_matched(catalogue: Catalogue, source: Path, vectors: Vectors) -> None:
    write_pairs(source, vectors)
    ran = move_in(catalogue, source, "--field", "title", "--dry-run", "--json")
    assert ran.document["matched"] == len(TITLES)
    assert ran.document["unmatched"] == COUNT - 50


def test_strings_that_are_embedded_or_in_a_job_are_left_alone(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    write_pairs(source, vectors)
    assert catalogue.run("--limit", "20").code == 0
    known = len(stored(catalogue))
    from pipeline.checkpoint import Checkpoint, writing
    from pipeline.config import load_config
    from pipeline.provider.service import generation_of, service_of

    with writing(Checkpoint(catalogue.checkpoint), "test") as ledger:
        generation = generation_of(service_of(load_config(catalogue.config, ())), ledger)
        job = Job(1, generation.id, "open", 50, 1, 1, 1.0, "", 0.0, batch="batch_1")
        ledger.jobs.add(job, {"person": [(100, 150)]})
    ran = move_in(catalogue, source, "--json")
    assert ran.code == 0, ran.err
    assert (ran.document["known"], ran.document["in_jobs"]) == (known, 50)
    assert ran.document["imported"] == STRINGS - known - 50 - SAMPLE
    strings = catalogue.strings("person")
    assert not {strings[row] for row in range(100, 150)} & {text for field, text in stored(catalogue) if field == "person"}


def test_what_had_failed_at_the_service_has_its_vector_now(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    from pipeline.checkpoint import Checkpoint, writing
    from pipeline.ledger import Failure

    small(catalogue, PERSONS[:30])
    assert catalogue.run("--limit", "1").code == 0
    with writing(Checkpoint(catalogue.checkpoint), "test") as ledger:
        generation = ledger.current_generation()
        assert generation is not None
        ledger.add_failures([Failure(generation.id, "person", row, "service", "no", "no", 0.0) for row in range(10, 20)])
    write_pairs(source, {text: vectors[text] for text in PERSONS[:30]})
    assert move_in(catalogue, source, "--set", "import_sample=2").code == 0
    status = catalogue.run("--status", "--json").document["fields"]["person"]
    assert (status["embedded"], status["failed"], status["pending"]) == (30, 0, 0)


def test_the_budget_and_a_service_that_is_down_stop_it_before_anything_is_imported(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    write_pairs(source, vectors)
    ran = move_in(catalogue, source, "--set", "budget_usd=0.0001")
    assert ran.code == 1
    assert "the proof of the model would cost" in ran.err
    assert service.requests == 0
    body = json.dumps({"error": {"message": "bad key", "type": "x", "param": None, "code": "invalid_api_key"}}).encode()
    with FaultyService(lambda _: Answer(401, {"content-type": "application/json"}, body)) as down:
        ran = move_in(catalogue, source, "--set", f"embedding_service={down.base_url}")
    assert ran.code == 1
    assert "bad key" in ran.err
    assert not catalogue.table("embeddings")
    assert move_in(catalogue, source).code == 0
    assert service.embedded.total() == SAMPLE


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (lambda _: None, (), "there is no file or folder"),
        (lambda source: source.mkdir(), (), "there is no pair of batch_requests_NAME.jsonl and batch_results_NAME.jsonl"),
        (lambda source: source.mkdir(), ("--model", "text-embedding-3-small"), "--model is 'text-embedding-3-small'"),
        (lambda source: source.mkdir(), ("--columns", "texts=a"), "none of text=NAME, field=NAME, vector=NAME"),
        (lambda source: source.mkdir(), ("--field", "persons"), "there is no field 'persons'"),
        (lambda source: source.mkdir(), ("--limit", "3"), "--limit and --fields go with a run"),
        (lambda source: source.mkdir(), ("--verify",), "--import-embeddings goes with no other command but --dry-run"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(catalogue: Catalogue, source: Path, make, more: tuple[str, ...], words: str) -> None:  # type: ignore[no-untyped-def]
    make(source)
    before = catalogue.state()
    ran = move_in(catalogue, source, *more)
    assert ran.code == 2
    assert words in ran.err, ran.err
    assert catalogue.state() == before


def test_vectors_of_another_length_are_refused_before_anything_is_paid(
    catalogue: Catalogue, source: Path, service: FaultyService, vectors: Vectors
) -> None:
    assert catalogue.run("--limit", "1").code == 0
    asked = service.requests
    write_pairs(source, {text: vectors[text][:256] for text in PERSONS})
    ran = move_in(catalogue, source)
    assert ran.code == 2
    assert f"its vectors have 256 numbers ({COUNT:,} of them), and those of ours {MODEL} have 384" in ran.err
    assert service.requests == asked


def test_a_catalogue_that_was_not_read_says_so(tmp_path: Path, source: Path, vectors: Vectors) -> None:
    made = Catalogue(tmp_path)
    made.configure()
    made.write(ROWS[:3])
    write_pairs(source, {text: vectors[text] for text in PERSONS[:3]})
    for more in ((), ("--dry-run",)):
        ran = move_in(made, source, *more)
        assert ran.code == 2
        assert "python main.py --end preprocessing" in ran.err
