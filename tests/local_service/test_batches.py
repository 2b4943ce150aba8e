"""Batches: their life by the clock, their files line by line, and the same job whoever works on it."""

from __future__ import annotations

import base64
import json
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.local_service import BatchLimits, Pace, Request, State, handle
from pipeline.local_service.model import MODEL, embed
from tests.local_service.batching import START, Clock, client_of, create, jsonl, line, read, rows, upload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai.types import Batch

DAY = 86_400
T = int(START)
LATER = ["model", "errors", "output_file_id", "error_file_id"]  # and the times; null in a new batch
LATER += [f"{word}_at" for word in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")]


@contextmanager
def service(path: Path | None = None, **settings: Any) -> Iterator[tuple[openai.OpenAI, State, Clock]]:
    clock = Clock()
    with State(path, record=True, **settings) as state, client_of(state, clock) as client:
        yield client, state, clock


def test_a_batch_is_done_at_the_first_look() -> None:
    with service() as (client, state, _):
        file = upload(client, 5)
        made = create(client, 0, input_file_id=file.id, metadata={"catalogue_id": "c1", "job": "7"})
        assert made.model_dump() == {
            "id": made.id,
            "object": "batch",
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "input_file_id": file.id,
            "status": "validating",
            "created_at": T,
            "expires_at": T + DAY,
            "metadata": {"catalogue_id": "c1", "job": "7"},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "usage": made.usage and made.usage.model_dump(),
        } | dict.fromkeys(LATER)
        done = client.batches.retrieve(made.id)
        assert (done.status, done.model, done.error_file_id, done.errors) == ("completed", MODEL, None, None)
        assert (done.in_progress_at, done.finalizing_at, done.completed_at) == (T, T, T)
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": 5, "completed": 5, "failed": 0}
        assert done.usage is not None
        assert done.usage.total_tokens == done.usage.input_tokens == state.summary()["tokens"] == 5 * 4
        assert done.output_file_id is not None
        output = client.files.retrieve(done.output_file_id)
        assert (output.purpose, output.filename) == ("batch_output", f"{made.id}_output.jsonl")
        assert (output.created_at, output.expires_at) == (T, T + 30 * DAY)
        assert state.summary()["batches"] == [
            {
                "id": made.id,
                "status": "completed",
                "input_file_id": file.id,
                "input_file_name": "batch_requests_0001.jsonl",
                "metadata": {"catalogue_id": "c1", "job": "7"},
                "request_counts": {"total": 5, "completed": 5, "failed": 0},
            }
        ]
        assert len(state.embedded()) == 5


def test_a_line_of_each_kind() -> None:
    texts = ["Bach", ["Bach", "Mozart"], "", "x" * 40_000, 5, "Ärger\u2028\x85朱"]
    lines = [line(f"{place}", text) for place, text in enumerate(texts)]
    lines += [line("6", "Bach", body={"encoding_format": "float", "dimensions": 3}), line("7", "a", body={"dimensions": 0})]
    with service() as (client, state, _):
        content = jsonl(lines[:6]) + b"\n \r\n" + jsonl(lines[6:]).rstrip()  # blank lines, and no last newline
        done = client.batches.retrieve(create(client, content).id)
        ended = read(client, done)
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": 8, "completed": 4, "failed": 4}
        found = {row["custom_id"]: row for row in ended.output + ended.errors}
        assert set(found) == {str(number) for number in range(8)}
        assert sorted(ended.refused) == ["2", "3", "4", "7"]
        for row in ended.output:
            assert set(row) == {"id", "custom_id", "response", "error"}
            assert (row["error"], row["response"]["status_code"]) == (None, 200)
            body = openai.types.CreateEmbeddingResponse.model_validate(
                row["response"]["body"]
                | {"data": [entry | {"embedding": vector(entry)} for entry in row["response"]["body"]["data"]]},
                strict=True,
            )
            asked = lines[int(row["custom_id"])]["body"]
            wanted = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
            got = np.array([entry.embedding for entry in body.data], np.float32)
            assert got.tobytes() == embed(wanted, asked.get("dimensions", 384)).tobytes()
        for row in ended.errors:
            assert (row["error"], row["response"]["status_code"]) == (None, 400)
            assert set(row["response"]["body"]["error"]) == {"message", "type", "param", "code"}
        assert found["3"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
        assert len({row["id"] for row in found.values()}) == 8
        assert sum(state.embedded().values()) == 5, "Bach twice in one dimension and once in another"


def vector(entry: dict[str, Any]) -> list[float]:
    coded = entry["embedding"]
    return coded if isinstance(coded, list) else np.frombuffer(base64.b64decode(coded), "<f4").tolist()


def test_the_order_is_another_and_the_same_each_time() -> None:
    orders = []
    for _ in range(2):
        with service() as (client, __, ___):
            orders.append(read(client, client.batches.retrieve(create(client, 40).id)).done)
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(f"r{number}" for number in range(1, 41))
    assert orders[0] != [f"r{number}" for number in range(1, 41)]
    with service() as (client, __, ___):
        for size in (2, 3):
            assert read(client, client.batches.retrieve(create(client, size).id)).done != [f"r{n}" for n in range(1, size + 1)]


def test_a_life_by_the_clock() -> None:
    pace = Pace(validating=10, working=100, finalizing=5)
    with service(pace=pace) as (client, state, clock):
        made = create(client, 10)
        for seconds, status, completed in [
            (0, "validating", 0),
            (9, "validating", 0),
            (10, "in_progress", 0),
            (19, "in_progress", 0),
            (20, "in_progress", 1),
            (60, "in_progress", 5),
            (109.9, "in_progress", 9),
            (110, "finalizing", 10),
            (114, "finalizing", 10),
            (115, "completed", 10),
            (10 * DAY, "completed", 10),
        ]:
            clock.now = START + seconds
            seen = client.batches.retrieve(made.id)
            assert seen.request_counts is not None
            assert (seen.status, seen.request_counts.completed) == (status, completed), seconds
            assert (seen.output_file_id is None) == (status != "completed")
            assert len(state.embedded()) == completed
        assert (seen.in_progress_at, seen.finalizing_at, seen.completed_at) == (T + 10, T + 110, T + 115)
        assert sorted(read(client, seen).done) == sorted(f"r{number}" for number in range(1, 11))


def test_it_does_not_matter_how_seldom_anybody_looks() -> None:
    with service(pace=Pace(working=100)) as (client, _, clock):
        made = create(client, 4)
        clock.now += 20 * DAY
        seen = client.batches.retrieve(made.id)
        assert (seen.status, seen.completed_at, seen.expired_at) == ("completed", T + 100, None)
        assert seen.output_file_id is not None
        assert client.files.retrieve(seen.output_file_id).expires_at == T + 100 + 30 * DAY
        clock.now += 11 * DAY
        with pytest.raises(openai.NotFoundError):
            client.files.content(seen.output_file_id)


def test_requests_a_second() -> None:
    with service(pace=Pace(requests_per_second=2)) as (client, _, clock):
        made = create(client, 10)
        clock.now += 2.5
        seen = client.batches.retrieve(made.id)
        assert seen.request_counts is not None
        assert (seen.status, seen.request_counts.completed) == ("in_progress", 5)
        clock.now += 2.5
        assert client.batches.retrieve(made.id).completed_at == T + 5


def test_what_is_late_expires_and_what_was_done_is_given() -> None:
    with service(pace=Pace(working=4 * DAY)) as (client, state, clock):
        made = create(client, 8)
        clock.now += DAY - 1
        assert client.batches.retrieve(made.id).status == "in_progress"
        clock.now += 1000
        seen = client.batches.retrieve(made.id)
        assert (seen.status, seen.expired_at, seen.completed_at) == ("expired", T + DAY, None)
        assert seen.request_counts is not None
        assert seen.request_counts.model_dump() == {"total": 8, "completed": 2, "failed": 0}
        ended = read(client, seen)
        assert sorted(ended.done) == ["r1", "r2"]
        assert sorted(ended.refused) == [f"r{number}" for number in range(3, 9)]
        for row in ended.errors:
            assert (row["response"], row["error"]["code"]) == (None, "batch_expired")
        assert len(state.embedded()) == 2


def test_a_cancelled_batch_gives_what_was_done() -> None:
    with service(pace=Pace(working=100, cancelling=600)) as (client, _, clock):
        made = create(client, 10)
        clock.now += 50
        seen = client.batches.cancel(made.id)
        assert (seen.status, seen.cancelling_at) == ("cancelling", T + 50)
        clock.now += 599
        again = client.batches.cancel(made.id)
        assert (again.status, again.cancelling_at, again.output_file_id) == ("cancelling", T + 50, None)
        clock.now += 1
        seen = client.batches.retrieve(made.id)
        assert (seen.status, seen.cancelled_at, seen.completed_at) == ("cancelled", T + 650, None)
        ended = read(client, seen)
        assert sorted(ended.done) == [f"r{number}" for number in range(1, 6)]
        assert {row["error"]["code"] for row in ended.errors} == {"batch_cancelled"}
        assert sorted(ended.refused) == ["r10", "r6", "r7", "r8", "r9"]
        with pytest.raises(openai.ConflictError, match="status 'cancelled'"):
            client.batches.cancel(made.id)


def test_cancelled_before_anything_began() -> None:
    with service(pace=Pace(validating=60)) as (client, state, clock):
        made = create(client, 10)
        client.batches.cancel(made.id)
        seen = client.batches.retrieve(made.id)
        assert (seen.status, seen.output_file_id, seen.error_file_id) == ("cancelled", None, None)
        clock.now += DAY
        assert client.batches.retrieve(made.id) == seen
        assert state.embedded() == {}


def test_when_every_row_is_refused_there_is_no_output() -> None:
    with service() as (client, state, _):
        seen = client.batches.retrieve(create(client, jsonl([line("a", ""), line("b", [])])).id)
        assert (seen.status, seen.output_file_id) == ("completed", None)
        assert sorted(read(client, seen).refused) == ["a", "b"]
        assert len(list(state.folder.iterdir())) == 2


def test_outputs_may_end_earlier() -> None:
    with service() as (client, _, __):
        made = create(
            client, jsonl([line("a", "a"), line("b", "")]), output_expires_after={"anchor": "created_at", "seconds": 3600}
        )
        seen = client.batches.retrieve(made.id)
        for file in (seen.output_file_id, seen.error_file_id):
            assert file is not None
            assert client.files.retrieve(file).expires_at == T + 3600


@pytest.mark.parametrize("others", [0, 1])
def test_an_input_that_is_deleted_meanwhile_is_still_read(others: int) -> None:
    with service(pace=Pace(working=100)) as (client, state, clock):
        file = upload(client, 10)
        made = [create(client, 0, input_file_id=file.id).id for _ in range(1 + others)]
        clock.now += 50
        client.batches.retrieve(made[0])
        client.files.delete(file.id)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        with pytest.raises(openai.BadRequestError, match="Cannot find file"):
            create(client, 0, input_file_id=file.id)
        clock.now += 50
        for batch in made:
            assert len(read(client, client.batches.retrieve(batch)).done) == 10
        assert file.id not in {path.name for path in state.folder.iterdir()}


def test_an_input_that_somebody_took_away_fails_the_job() -> None:
    with service(pace=Pace(validating=1, working=100)) as (client, state, clock):
        early, late = create(client, 10), create(client, 10)
        (state.folder / early.input_file_id).unlink()
        clock.now += 51
        for batch in (early, late):
            seen = client.batches.retrieve(batch.id)
            if batch == late:
                assert seen.status == "in_progress"
                (state.folder / late.input_file_id).unlink()
                clock.now += 10
                seen = client.batches.retrieve(batch.id)
            assert seen.status == "failed"
            assert seen.errors is not None


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"endpoint": "/v1/chat/completions"}, 400, "endpoint"),
        ({"endpoint": None}, 400, "endpoint"),
        ({"completion_window": "48h"}, 400, "24h"),
        ({"completion_window": None}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 400, "Cannot find file"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"input_file_id": 7}, 400, "string"),
        ({"metadata": []}, 400, "object of strings"),
        ({"metadata": {"a": 1}}, 400, "object of strings"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "16 pairs"),
        ({"metadata": {"k" * 65: ""}}, 400, "64"),
        ({"metadata": {"k": "v" * 513}}, 400, "512"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}}, 400, "3600"),
        ({"output_expires_after": {"anchor": "x", "seconds": 3600}}, 400, "anchor"),
        ({"output_expires_after": 3600}, 400, "anchor"),
        ({"x": 1}, 400, "Unrecognized"),
    ],
)
def test_a_creation_that_makes_no_sense_is_refused(changes: dict[str, Any], status: int, says: str) -> None:
    with service() as (client, state, _):
        body = {"input_file_id": upload(client, 1).id, "endpoint": "/v1/embeddings", "completion_window": "24h"} | changes
        response = handle(Request("POST", "/v1/batches", body=json.dumps(body).encode()), state, Clock())
        assert response.status == status
        assert says in json.loads(response.body)["error"]["message"]
        assert list(client.batches.list()) == []


def test_what_is_just_within_the_limits_is_taken() -> None:
    metadata = {f"{number:064}": "v" * 512 for number in range(16)}
    with service() as (client, _, __):
        made = create(client, 1, metadata=metadata, output_expires_after={"anchor": "created_at", "seconds": 2_592_000})
        assert client.batches.retrieve(made.id).metadata == metadata
        with pytest.raises(openai.BadRequestError, match="purpose 'batch'"):
            create(client, 0, input_file_id=client.files.create(file=("a.jsonl", b"a"), purpose="user_data").id)
        for ask in (client.batches.retrieve, client.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask("batch_none")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.integers(1, 5))
def test_pages_are_the_whole_list_newest_first(count: int, limit: int) -> None:
    with service() as (client, _, __):
        file = upload(client, 1)
        ids = [create(client, 0, input_file_id=file.id).id for _ in range(count)]
        assert [batch.id for batch in client.batches.list(limit=limit)] == ids[::-1]
        first = client.batches.list(limit=limit)
        assert (len(first.data), first.has_more) == (min(limit, count), count > limit)
        if ids:
            assert [batch.id for batch in client.batches.list(after=ids[-1], limit=limit)] == ids[-2::-1]
            assert all(batch.status == "completed" for batch in client.batches.list())


@pytest.mark.parametrize(("query", "status"), [("limit=0", 400), ("limit=101", 400), ("limit=x", 400), ("after=batch_none", 404)])
def test_a_page_that_makes_no_sense_is_refused(query: str, status: int) -> None:
    with State() as state:
        assert handle(Request("GET", "/v1/batches", query), state, Clock()).status == status


def test_a_job_of_one_process_is_finished_by_the_next_at_its_own_pace(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with service(path, pace=Pace(working=100)) as (client, _, clock):
        made = create(client, 3000)
        clock.now += 50
        seen = client.batches.retrieve(made.id)
        assert seen.request_counts is not None
        assert seen.request_counts.completed == 1500
    with service(path) as (client, state, clock):
        clock.now += 99
        assert client.batches.retrieve(made.id).status == "in_progress"
        clock.now += 1
        seen = client.batches.retrieve(made.id)
        assert seen.status == "completed"
        assert sorted(read(client, seen).done) == sorted(f"r{number}" for number in range(1, 3001))
        assert set(state.embedded().values()) == {1}
        assert len(state.embedded()) == 3000


def test_a_slice_that_was_not_written_down_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    with service(tmp_path / "state.sqlite", pace=Pace(working=100)) as (client, state, clock):
        made = create(client, 10)
        clock.now += 50
        client.batches.retrieve(made.id)
        clock.now += 50
        with monkeypatch.context() as patched:
            patched.setattr(State, "embedded_in_batch", full)  # the lines are on the disk by then
            with pytest.raises(openai.InternalServerError, match="No space left") as caught:
                client.batches.retrieve(made.id)
        assert str(tmp_path) not in str(caught.value)
        seen = client.batches.retrieve(made.id)
        assert Counter(read(client, seen).done) == Counter(f"r{number}" for number in range(1, 11))
        assert set(state.embedded().values()) == {1}


class Story:
    """Anything that a client may do to its batches, in any order; each answer is compared with the ones before."""

    def __init__(self, client: openai.OpenAI, clock: Clock) -> None:
        self.client, self.clock = client, clock
        self.made: list[tuple[Batch, int]] = []
        self.seen: dict[str, tuple[int, ...]] = {}

    def check(self, batch: Batch) -> Batch:
        counts = batch.request_counts
        assert counts is not None
        assert counts.completed + counts.failed <= counts.total
        now = (counts.total, counts.completed, counts.failed)
        assert all(new >= old for new, old in zip(now, self.seen.get(batch.id, now), strict=True)), "nothing goes backwards"
        self.seen[batch.id] = now
        assert batch.output_file_id is None or batch.status in {"completed", "cancelled", "expired"}
        return batch

    def create(self, which: int, size: int) -> None:
        size = size % 20 + 1
        content = jsonl(line(f"r{n}", "" if n % 7 == which else f"{len(self.made)} {n}") for n in range(size))
        self.made.append((create(self.client, content), size))

    def wait(self, _: int, size: int) -> None:
        self.clock.now += size

    def list(self, _: int, __: int) -> None:
        for batch in self.client.batches.list(limit=3):
            self.check(batch)

    def look(self, which: int, _: int) -> None:
        for batch, _ in self.made[which : which + 1]:
            self.check(self.client.batches.retrieve(batch.id))

    def cancel(self, which: int, _: int) -> None:
        for batch, _ in self.made[which : which + 1]:
            with suppress(openai.ConflictError):
                self.check(self.client.batches.cancel(batch.id))

    def delete(self, which: int, _: int) -> None:
        for batch, _ in self.made[which : which + 1]:
            with suppress(openai.NotFoundError):
                self.client.files.delete(batch.input_file_id)

    def end(self) -> None:
        self.clock.now += DAY
        for made, size in self.made:
            batch = self.check(self.client.batches.retrieve(made.id))
            assert batch.request_counts is not None
            ended = read(self.client, batch)
            if batch.status == "failed":
                assert batch.errors is not None
                assert [error.code for error in batch.errors.data or ()] == ["request_limit_exceeded"]
                assert ended.done + ended.refused == []
            elif batch.request_counts.total:
                assert sorted(ended.done + ended.refused) == sorted(f"r{n}" for n in range(size))
                assert len(ended.done) == batch.request_counts.completed
            else:
                assert batch.status == "cancelled"


steps = st.tuples(st.sampled_from(["create", "look", "list", "cancel", "wait", "delete"]), st.integers(0, 3), st.integers(1, 90))
paces = st.builds(
    Pace,
    validating=st.integers(0, 30),
    working=st.integers(0, 300),
    finalizing=st.integers(0, 9),
    cancelling=st.integers(0, 60),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=25), paces)
def test_whatever_happens_each_row_ends_in_one_place(script: list[tuple[str, int, int]], pace: Pace) -> None:
    with service(pace=pace, batch_limits=BatchLimits(enqueued_requests=40)) as (client, state, clock):
        story = Story(client, clock)
        for what, which, size in script:
            getattr(story, what)(which, size)
        story.end()
        assert all(times == 1 for times in state.embedded().values())
        files = {file.id for file in client.files.list()}
        assert {path.name for path in state.folder.iterdir()} == files, "nothing is left that nobody can reach"


def test_rows_of_a_page_are_read_through_the_stream_too() -> None:
    with service() as (client, _, __):
        seen = client.batches.retrieve(create(client, 3).id)
        assert seen.output_file_id is not None
        with client.files.with_streaming_response.content(seen.output_file_id) as response:
            assert len(b"".join(response.iter_bytes()).splitlines()) == len(rows(client, seen.output_file_id)) == 3
