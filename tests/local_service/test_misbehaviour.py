"""The service does wrong what it was told to do wrong, when it was told to, and nothing else."""

from __future__ import annotations

import base64
import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import httpx2
import numpy as np
import openai
import pytest

from pipeline.local_service import Misbehaviour, Pace, State
from pipeline.local_service.misbehaviour import ROW_KINDS, Kind, load_misbehaviours
from tests.local_service.batching import Clock, client_of, create, jsonl, line, read, rows, upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DAY = 86_400


@contextmanager
def service(
    *misbehaviours: Misbehaviour, path: Path | None = None, pace: Pace | None = None
) -> Iterator[tuple[openai.OpenAI, State, Clock]]:
    clock = Clock()
    with (
        State(path, record=True, pace=pace or Pace(), misbehaviours=misbehaviours) as state,
        client_of(state, clock, checked=False) as client,
    ):
        yield client, state, clock


def wrong(kind: Kind, **when: Any) -> Misbehaviour:
    return Misbehaviour(kind=kind, **when)


def test_a_lost_reply_leaves_a_batch_that_was_made() -> None:
    with service(wrong("lose_reply", create=2)) as (client, state, _):
        file = upload(client, 3)
        create(client, 0, input_file_id=file.id)
        with pytest.raises(openai.APIConnectionError) as lost:
            create(client, 0, input_file_id=file.id, metadata={"job": "2"})
        assert isinstance(lost.value.__cause__, httpx2.RemoteProtocolError)
        create(client, 0, input_file_id=file.id)
        listed = list(client.batches.list())
        assert [batch.metadata for batch in listed] == [None, {"job": "2"}, None]
        assert len(state.summary()["batches"]) == 3
        assert state.summary()["open"] == 0


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("insufficient_quota", openai.RateLimitError, "insufficient_quota"),
        ("unauthorized", openai.AuthenticationError, "invalid_api_key"),
    ],
)
def test_a_creation_that_is_refused_makes_nothing(kind: Kind, error: type[openai.APIStatusError], code: str) -> None:
    with service(wrong(kind, create=1)) as (client, _, __):
        file = upload(client, 3)
        with pytest.raises(error) as refused:
            create(client, 0, input_file_id=file.id)
        assert refused.value.code == code
        assert "retry-after" not in refused.value.response.headers
        assert list(client.batches.list()) == []
        with pytest.raises(openai.BadRequestError):
            create(client, 0, input_file_id="file-none")
        create(client, 0, input_file_id=file.id)
        assert len(list(client.batches.list())) == 1


def test_a_file_that_cannot_be_found() -> None:
    with service(wrong("input_not_found")) as (client, _, __):
        seen = client.batches.retrieve(create(client, 3).id)
        assert seen.status == "failed"
        assert seen.errors is not None
        assert seen.errors.data is not None
        assert "Cannot find file" in (seen.errors.data[0].message or "")


def test_hidden_from_the_list_for_a_while() -> None:
    with service(wrong("hide", create=2, seconds=60)) as (client, _, clock):
        made = [create(client, 1).id for _ in range(3)]
        assert [batch.id for batch in client.batches.list(limit=1)] == [made[2], made[0]]
        assert client.batches.retrieve(made[1]).id == made[1]
        clock.now += 60
        assert [batch.id for batch in client.batches.list(limit=1)] == made[::-1]


def test_vanished() -> None:
    with service(wrong("vanish", create=1, seconds=60)) as (client, state, clock):
        made = create(client, 1).id
        for ask in (client.batches.retrieve, client.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(made)
        assert list(client.batches.list()) == []
        assert [batch["id"] for batch in state.summary()["batches"]] == [made]
        clock.now += 60
        assert client.batches.retrieve(made).status == "completed"


def test_a_word_that_nobody_knows() -> None:
    with service(wrong("unknown_status", status="paused", seconds=60), wrong("no_counts", seconds=30)) as (client, _, clock):
        made = create(client, 1)
        assert (str(made.status), made.request_counts) == ("paused", None)
        clock.now += 30
        seen = client.batches.retrieve(made.id)
        assert str(seen.status) == "paused"
        assert seen.request_counts is not None
        clock.now += 30
        assert client.batches.retrieve(made.id).status == "completed"


@pytest.mark.parametrize(("share", "status", "done"), [(0.5, "in_progress", 5), (1, "finalizing", 10), (0, "in_progress", 0)])
def test_stuck_even_past_its_expiry_until_it_is_cancelled(share: float, status: str, done: int) -> None:
    with service(wrong("stuck", share=share), pace=Pace(working=100)) as (client, _, clock):
        made = create(client, 10)
        clock.now += DAY + 7200
        seen = client.batches.retrieve(made.id)
        assert seen.expires_at is not None
        assert seen.expires_at < clock.now
        assert (seen.status, seen.output_file_id) == (status, None)
        assert seen.request_counts is not None
        assert seen.request_counts.completed == done
        client.batches.cancel(made.id)
        seen = client.batches.retrieve(made.id)
        assert seen.status == "cancelled"
        assert len(read(client, seen).done) == done


@pytest.mark.parametrize(("status", "left"), [("failed", None), ("expired", "batch_expired"), ("cancelled", "batch_cancelled")])
@pytest.mark.parametrize("working", [0, 100])
def test_it_ends_as_it_was_told_to(status: str, left: str | None, working: float) -> None:
    with service(wrong("end", status=status, share=0.3, create=1), pace=Pace(working=working)) as (client, _, clock):
        made = create(client, 10)
        clock.now += 29
        if working:
            assert client.batches.retrieve(made.id).status == "in_progress"
        clock.now += 1
        seen = client.batches.retrieve(made.id)
        assert seen.status == status
        assert getattr(seen, f"{status}_at") == seen.created_at + 0.3 * working
        assert (seen.errors is not None) == (status == "failed")
        ended = read(client, seen)
        assert sorted(ended.done) == ["r1", "r2", "r3"]
        assert {row["error"]["code"] for row in ended.errors} == ({left} if left else set())
        assert len(ended.errors) == (7 if left else 0)
        if not working:
            assert client.batches.retrieve(create(client, 10).id).status == "completed"


def test_files_that_are_not_what_they_seem() -> None:
    with service(
        wrong("output_gone", create=1),
        wrong("empty_error_file", create=2),
        wrong("empty_error_file_id", create=3),
        wrong("no_last_newline", create=4),
    ) as (client, _, __):
        gone, empty, no_id, newline = (client.batches.retrieve(create(client, 3).id) for _ in range(4))
        assert gone.output_file_id is not None
        for ask in (client.files.content, client.files.retrieve):
            with pytest.raises(openai.NotFoundError):
                ask(gone.output_file_id)
        assert empty.error_file_id is not None
        assert client.files.content(empty.error_file_id).content == b""
        assert client.files.retrieve(empty.error_file_id).bytes == 0
        assert no_id.error_file_id == ""
        assert newline.output_file_id is not None
        content = client.files.content(newline.output_file_id).content
        assert (content[-1:], content.count(b"\n")) == (b"}", 2)
        assert len(rows(client, newline.output_file_id)) == 3


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("kind", sorted(ROW_KINDS))
def test_a_row_that_is_wrong(kind: Kind, encoding: str) -> None:
    content = jsonl(line(f"r{number}", f"Bach {number}", body={"encoding_format": encoding}) for number in range(1, 6))
    with service(wrong(kind, row=3)) as (client, state, _):
        seen = client.batches.retrieve(create(client, content).id)
        assert seen.status == "completed"
        assert seen.request_counts is not None
        assert seen.request_counts.total == 5
        ended = read(client, seen)
        right = [row for row in ended.output if row["custom_id"] in {"r1", "r2", "r4", "r5"}]
        assert len(right) == 4
        assert all(len(vector(row)) == 384 for row in right)
        others = [row for row in ended.output if row not in right]
        wanted: dict[str, Callable[[], bool]] = {
            "refused_row": lambda: others == [] and ended.refused == ["r3"],
            "null_custom_id": lambda: [row["custom_id"] for row in others] == [None],
            "unknown_custom_id": lambda: [row["custom_id"] for row in others] == ["../../etc/passwd"],
            "missing_row": lambda: others + ended.errors == [],
            "duplicate_row": lambda: len(others) == 2 and others[0] == others[1],
            "differing_duplicate": lambda: len(others) == 2 and bool((vector(others[0]) == -vector(others[1])).all()),
            "status_zero": lambda: [(row["response"]["status_code"], row["response"]["body"]) for row in others] == [(0, {})],
            "nan": lambda: math.isnan(vector(others[0])[0]) and bool(np.isfinite(vector(others[0])[1:]).all()),
            "wrong_dimensions": lambda: len(vector(others[0])) == 383,
            "empty_data": lambda: others[0]["response"]["body"]["data"] == [],
        }
        assert wanted[kind](), others
        assert sum(state.embedded().values()) == (4 if kind == "refused_row" else 5), "what was embedded is billed"
        if kind == "nan" and encoding == "float":
            assert b"[NaN," in client.files.content(seen.output_file_id or "").content


def vector(row: dict[str, Any]) -> Any:
    coded = row["response"]["body"]["data"][0]["embedding"]
    if isinstance(coded, str):
        return np.frombuffer(base64.b64decode(coded), "<f4")
    return np.array([math.nan if value is None else value for value in coded], np.float32)


def test_without_a_row_each_row_is_meant() -> None:
    with service(wrong("missing_row")) as (client, _, __):
        seen = client.batches.retrieve(create(client, 3).id)
        assert (seen.status, seen.output_file_id, seen.error_file_id) == ("completed", None, None)


def test_what_a_job_does_wrong_is_kept_with_it(tmp_path: Path) -> None:
    with service(wrong("missing_row", row=2), path=tmp_path / "state.sqlite") as (client, _, __):
        made = create(client, 3)
    with service(path=tmp_path / "state.sqlite") as (client, _, __):
        assert sorted(read(client, client.batches.retrieve(made.id)).done) == ["r1", "r3"]
        assert len(read(client, client.batches.retrieve(create(client, 3).id)).done) == 3


def test_a_table_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    table = [{"kind": "lose_reply", "create": 2}, {"kind": "end", "status": "expired", "share": 0.25}, {"kind": "nan", "row": 7}]
    path.write_text(json.dumps(table), encoding="utf-8")
    assert list(load_misbehaviours(path)) == [
        wrong("lose_reply", create=2),
        wrong("end", status="expired", share=0.25),
        wrong("nan", row=7),
    ]


@pytest.mark.parametrize(
    "table",
    [
        "",
        "{}",
        '[{"kind": "no_such"}]',
        '[{"kind": "nan", "rows": 1}]',
        "[{}]",
        '[{"kind": "end"}]',
        '[{"kind": "end", "status": "completed"}]',
        '[{"kind": "unknown_status"}]',
        '[{"kind": "stuck", "share": 2}]',
        '[{"kind": "stuck", "row": 2}]',
        '[{"kind": "nan", "row": "2"}]',
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.local_service.__main__ import main

    path = tmp_path / "wrong.json"
    path.write_text(table, encoding="utf-8")
    with pytest.raises(ValueError, match=r"."):
        load_misbehaviours(path)
    assert main(["--port", "0", "--misbehave", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert main(["--port", "0", "--misbehave", str(tmp_path / "none.json")]) == 2


def test_every_kind_has_its_test() -> None:
    from pathlib import Path

    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in get_args(Kind) if f'"{kind}"' not in text] == []
