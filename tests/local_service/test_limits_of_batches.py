"""What a batch may hold and how many there may be; and the memory that the largest takes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from pipeline.local_service import BatchLimits, Pace, State
from pipeline.local_service.model import MODEL
from tests.local_service.batching import Clock, client_of, create, jsonl, line, read, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def service(pace: Pace | None = None, **limits: int) -> Iterator[tuple[openai.OpenAI, State, Clock]]:
    clock = Clock()
    with State(pace=pace or Pace(), batch_limits=BatchLimits(**limits), record=True) as state, client_of(state, clock) as client:
        yield client, state, clock


def errors_of(client: openai.OpenAI, batch: Any) -> list[tuple[str | None, str | None, int | None]]:
    seen = client.batches.retrieve(batch.id)
    assert (seen.status, seen.output_file_id, seen.error_file_id) == ("failed", None, None)
    assert seen.failed_at == seen.created_at
    assert seen.request_counts is not None
    assert seen.request_counts.total == 0
    assert seen.errors is not None
    assert seen.errors.object == "list"
    assert seen.errors.data
    assert all(error.message for error in seen.errors.data)
    return [(error.code, error.param, error.line) for error in seen.errors.data]


GOOD = line("a", "a")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", [("empty_file", None, None)]),
        (b"\n \n", [("empty_file", None, None)]),
        (jsonl([GOOD]) + b"{\n[]\n", [("invalid_json_line", None, 2), ("invalid_json_line", None, 3)]),
        (b"\xef\xbb\xbf" + jsonl([GOOD]), [("invalid_json_line", None, 1)]),
        (b'{"custom_id": NaN}', [("invalid_json_line", None, 1)]),
        (rb'{"custom_id": "\ud800"}', [("invalid_json_line", None, 1)]),
        (b"\xff", [("invalid_json_line", None, 1)]),
        (b"[" * 100_000, [("invalid_json_line", None, 1)]),
        (b'{"a":"' + b"a" * (8 << 20) + b'"}', [("invalid_json_line", None, 1), ("invalid_json_line", None, 2)]),
        (jsonl([GOOD, GOOD]), [("duplicate_custom_id", "custom_id", 2)]),
        (jsonl([line(None, "a")]), [("missing_required_parameter", "custom_id", 1)]),
        (jsonl([line("", "a")]), [("invalid_type", "custom_id", 1)]),
        (jsonl([line(7, "a")]), [("invalid_type", "custom_id", 1)]),
        (jsonl([line("a", "a", method="GET")]), [("invalid_method", "method", 1)]),
        (jsonl([line("a", "a", method=None)]), [("missing_required_parameter", "method", 1)]),
        (jsonl([line("a", "a", url="/v1/responses")]), [("invalid_url", "url", 1)]),
        (jsonl([line("a", "a") | {"body": []}]), [("invalid_type", "body", 1)]),
        (jsonl([line("a", "a") | {"body": {}}]), [("missing_required_parameter", "body.model", 1)]),
        (jsonl([line("a", "a", body={"model": "gpt"})] * 1), [("model_not_found", "body.model", 1)]),
        (jsonl([GOOD, line("b", "a", body={"model": "gpt"})]), [("mismatched_model", "body.model", 2)]),
    ],
)
def test_what_is_wrong_with_a_file_is_told_line_by_line(content: bytes, wanted: list[Any]) -> None:
    with service() as (client, state, _):
        made = create(client, content)
        assert made.status == "validating", "it comes late"
        assert errors_of(client, made) == wanted
        assert state.embedded() == {}


def test_not_all_errors_are_told() -> None:
    with service() as (client, _, __):
        assert len(errors_of(client, create(client, b"x\n" * 60_000))) == 100


def test_requests_and_inputs_in_a_file() -> None:
    with service(requests=3, inputs=5) as (client, _, __):
        assert client.batches.retrieve(create(client, 3).id).status == "completed"
        assert errors_of(client, create(client, 4)) == [("too_many_requests", None, None)]
        assert client.batches.retrieve(create(client, jsonl([line("a", ["a"] * 4), line("b", "a")])).id).status == "completed"
        assert errors_of(client, create(client, jsonl([line("a", ["a"] * 5), line("b", "a")]))) == [("too_many_inputs", None, None)]


def test_the_real_figures_are_the_default() -> None:
    limits = BatchLimits()
    assert (limits.requests, limits.inputs, limits.file_bytes) == (50_000, 50_000, 200 << 20)
    assert (limits.enqueued_requests, limits.created_per_hour, limits.active) == (1_000_000, 2_000, None)
    with service() as (client, _, __):
        assert errors_of(client, create(client, 50_001)) == [("too_many_requests", None, None)]


def test_enqueued_tokens_come_late_and_go_with_their_jobs() -> None:
    hundred = jsonl([line(f"{number}", "abcd" * 10) for number in range(10)])  # 10 x 10 tokens
    with service(Pace(working=100), enqueued_tokens=250) as (client, _, clock):
        made = [create(client, hundred) for _ in range(4)]
        assert {batch.status for batch in made} == {"validating"}
        # Whichever is looked at first, those that came first take what there is.
        seen = [client.batches.retrieve(batch.id) for batch in reversed(made)][::-1]
        assert [batch.status for batch in seen] == ["in_progress", "in_progress", "failed", "failed"]
        assert errors_of(client, made[2]) == [("token_limit_exceeded", None, None)]
        assert seen[2].errors is not None
        assert seen[2].errors.data is not None
        assert seen[2].errors.data[0].message == (
            f"Enqueued token limit reached for {MODEL} in organization local. Limit: 250 enqueued tokens. "
            "Please try again once some in_progress batches have been completed."
        )
        clock.now += 99
        assert client.batches.retrieve(create(client, hundred).id).status == "failed"
        client.batches.cancel(made[0].id)
        assert client.batches.retrieve(create(client, hundred).id).status == "in_progress"
        clock.now += 1
        assert client.batches.retrieve(create(client, hundred).id).status == "in_progress", "the second is done by now"
        assert client.batches.retrieve(create(client, jsonl([line("a", "abcd" * 251)])).id).status == "failed"


def test_a_batch_that_asks_for_more_than_there_is_never_goes() -> None:
    with service(enqueued_tokens=9) as (client, _, __):
        assert errors_of(client, create(client, jsonl([line("a", "abcd" * 10)]))) == [("token_limit_exceeded", None, None)]


def test_enqueued_requests() -> None:
    with service(Pace(working=100), enqueued_requests=5) as (client, _, clock):
        first = create(client, 3)
        assert errors_of(client, create(client, 3)) == [("request_limit_exceeded", None, None)]
        assert client.batches.retrieve(create(client, 2).id).status == "in_progress"
        clock.now += 100
        assert client.batches.retrieve(create(client, 5).id).status == "in_progress"
        assert client.batches.retrieve(first.id).status == "completed"


def test_active_batches() -> None:
    with service(Pace(validating=10, working=100), active=2) as (client, _, clock):
        file = upload(client, 2).id
        create(client, 0, input_file_id=file)
        clock.now += 10
        second = create(client, 0, input_file_id=file)
        for _ in range(2):
            with pytest.raises(openai.RateLimitError, match="2 of 2") as refused:
                create(client, 0, input_file_id=file)
            assert refused.value.code == "rate_limit_exceeded"
            clock.now += 49
        assert len(list(client.batches.list())) == 2
        clock.now += 2
        create(client, 0, input_file_id=file)
        client.batches.cancel(second.id)
        create(client, 0, input_file_id=file)


def test_creations_an_hour() -> None:
    with service(created_per_hour=2) as (client, _, clock):
        file = upload(client, 1).id
        create(client, 0, input_file_id=file)
        clock.now += 1000
        create(client, 0, input_file_id=file)
        with pytest.raises(openai.RateLimitError) as refused:
            create(client, 0, input_file_id=file)
        assert refused.value.response.headers["retry-after"] == "2600"
        assert refused.value.code == "rate_limit_exceeded"
        clock.now += 2600
        create(client, 0, input_file_id=file)
        with pytest.raises(openai.RateLimitError):
            create(client, 0, input_file_id=file)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (BatchLimits, {"requests": 0}),
        (BatchLimits, {"active": -1}),
        (Pace, {"working": -1}),
        (Pace, {"working": float("nan")}),
        (Pace, {"finalizing": float("inf")}),
        (Pace, {"requests_per_second": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Any, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        settings(**values)


def test_a_look_does_so_much_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.local_service.work.ROWS_A_LOOK", 2500)
    with service() as (client, _, clock):
        made = [create(client, 3000), create(client, 1000)]
        clock.now += 7
        listed = {batch.id: batch for batch in client.batches.list()}
        assert [listed[batch.id].status for batch in made] == ["in_progress", "in_progress"]
        assert listed[made[0].id].request_counts.completed == 2500  # type: ignore[union-attr]
        clock.now += 1
        seen = client.batches.retrieve(made[0].id)
        assert (seen.status, seen.in_progress_at) == ("completed", seen.created_at)
        assert seen.completed_at == seen.created_at + 7, "not before it was last seen with work left"
        assert len(set(read(client, seen).done)) == 3000
        assert client.batches.retrieve(made[1].id).status == "completed"


LARGEST = """
import json, resource, sys
import httpx2, openai
from pathlib import Path
from pipeline.local_service import LocalTransport, State
from pipeline.local_service.model import MODEL

folder = Path(sys.argv[1])
per_row = int(sys.argv[2])
with (folder / "in.jsonl").open("w") as file:
    for number in range(50_000 // per_row):
        texts = [f"Contributor: Bach {number} {n}\\nTitle: Die Kunst der Fuge, {number * 7919} in d" for n in range(per_row)]
        body = {"model": MODEL, "input": texts if per_row > 1 else texts[0], "encoding_format": "float"}
        line = {"custom_id": f"a1b2c3d4_composite_{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
        file.write(json.dumps(line) + "\\n")
with State(folder / "state.sqlite", record=True) as state:
    http = httpx2.Client(transport=LocalTransport(state), timeout=600)
    with openai.OpenAI(api_key="x", base_url="http://local/v1", max_retries=0, http_client=http) as client:
        with (folder / "in.jsonl").open("rb") as file:
            made = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(input_file_id=made.id, endpoint="/v1/embeddings", completion_window="24h")
        import time
        start = time.perf_counter()
        batch = client.batches.retrieve(batch.id)
        seconds = time.perf_counter() - start
        size = 0
        with client.files.with_streaming_response.content(batch.output_file_id) as response:
            for piece in response.iter_bytes():
                size += len(piece)
status = Path("/proc/self/status")
if status.exists():  # what `getrusage` says begins with the memory of whoever started us
    peak = int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) >> 10
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
print(json.dumps({"status": batch.status, "completed": batch.request_counts.completed, "seconds": round(seconds, 1),
                  "output_mb": size >> 20, "input_mb": made.bytes >> 20, "peak_mb": peak}))
"""


@pytest.mark.parametrize("inputs_a_row", [1, 2000])
def test_the_largest_job_is_worked_on_in_bounded_memory(tmp_path: Path, inputs_a_row: int) -> None:
    program = [sys.executable, "-W", "error", "-c", LARGEST, str(tmp_path), str(inputs_a_row)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    print(run.stdout)
    found = json.loads(run.stdout)
    assert (found["status"], found["completed"]) == ("completed", 50_000 // inputs_a_row)
    assert found["peak_mb"] < 300
