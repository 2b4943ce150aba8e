"""Files: OpenAI's shapes, contents on the disk under our own ids, and an end when the clock says so."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.local_service import BatchLimits, Request, State, handle
from pipeline.local_service.multipart import FormError, read_form
from pipeline.local_service.schema import _STEPS
from tests.local_service.batching import START, Clock, client_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MONTH = 30 * 86_400


@contextmanager
def service(path: Path | None = None, **settings: Any) -> Iterator[tuple[openai.OpenAI, State, Clock]]:
    clock = Clock()
    with State(path, **settings) as state, client_of(state, clock) as client:
        yield client, state, clock


def test_a_file_is_shown_as_it_was_uploaded_until_it_is_deleted() -> None:
    with service() as (client, state, _):
        made = client.files.create(file=("batch_requests_0001.jsonl", b"\r\n--a\x00\xff\r\n"), purpose="batch")
        assert made.model_dump() == {
            "id": made.id,
            "bytes": 9,
            "created_at": int(START),
            "filename": "batch_requests_0001.jsonl",
            "object": "file",
            "purpose": "batch",
            "status": "processed",
            "expires_at": int(START) + MONTH,
            "status_details": None,
        }
        assert made.id.startswith("file-")
        assert client.files.retrieve(made.id) == made
        assert list(client.files.list()) == [made]
        assert client.files.content(made.id).content == b"\r\n--a\x00\xff\r\n"
        assert client.files.delete(made.id).deleted
        for ask in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match="No such File object"):
                ask(made.id)
        assert list(client.files.list()) == []
        assert list(state.folder.iterdir()) == []


@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision", "user_data"])
def test_other_purposes_are_kept_for_ever(purpose: Any) -> None:
    with service() as (client, _, clock):
        made = client.files.create(file=("a.txt", b"a"), purpose=purpose)
        assert made.expires_at is None
        clock.now += 10 * MONTH
        assert client.files.retrieve(made.id).purpose == purpose


def test_a_file_ends_when_it_was_told_to() -> None:
    with service() as (client, state, clock):
        hour = client.files.create(file=("a.jsonl", b"a"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
        month = client.files.create(file=("b.jsonl", b"b"), purpose="batch")
        assert hour.expires_at == int(START) + 3600
        clock.now += 3599
        assert client.files.content(hour.id).content == b"a"
        clock.now += 1
        for ask in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(hour.id)
        assert [file.id for file in client.files.list()] == [month.id]
        assert [path.name for path in state.folder.iterdir()] == [month.id], "its content is gone as well"
        clock.now += MONTH
        assert list(client.files.list()) == []


def test_an_empty_file_is_a_file() -> None:
    with service() as (client, _, __):
        made = client.files.create(file=("a.jsonl", b""), purpose="batch")
        assert (made.bytes, client.files.content(made.id).content) == (0, b"")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.jsonl", "/etc/x.jsonl", "a\x00b.jsonl", 'q"%22\r\n.jsonl', "ü" * 300 + ".jsonl", "C:\\x.jsonl"]
)
def test_a_name_is_shown_and_opens_nothing(tmp_path: Path, name: str) -> None:
    with service(tmp_path / "state.sqlite") as (client, state, _):
        made = client.files.create(file=(name, b"a"), purpose="batch")
        if "\x00" not in name and '"' not in name:  # what a form can't carry as it is
            assert made.filename == name
        assert [path.name for path in state.folder.iterdir()] == [made.id]
        ours = {"state.sqlite", "state.sqlite.files", "state.sqlite-wal", "state.sqlite-shm"}
        assert {path.name for path in tmp_path.iterdir()} <= ours
        assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((state.folder / made.id).stat().st_mode) == 0o600


def test_an_open_handle_and_a_path_are_uploaded_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 1_000_000)
    with service() as (client, _, __):
        with path.open("rb") as handle_:
            first = client.files.create(file=handle_, purpose="batch")
        second = client.files.create(file=path, purpose="batch")
        assert (first.filename, first.bytes) == (second.filename, second.bytes) == ("a.jsonl", 1_000_000)


@pytest.mark.parametrize(
    ("fields", "file", "status", "says"),
    [
        ({}, ("a.jsonl", b""), 400, "'purpose' is a required property"),
        ({"purpose": "batch"}, None, 400, "'file' is a required property"),
        ({"purpose": "evil"}, ("a.jsonl", b""), 400, "'evil' is not one of"),
        ({"purpose": "batch_output"}, ("a.jsonl", b""), 400, "is not one of"),
        ({"purpose": "batch"}, ("a.txt", b""), 400, "Must be .jsonl"),
        ({"purpose": "batch"}, ("a.jsonl", b"x" * 101), 400, "101 bytes; for a batch at most 100"),
        ({"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, ("a.jsonl", b""), 400, "anchor"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, ("a.jsonl", b""), 400, "anchor"),
        *(
            (
                {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
                ("a.jsonl", b""),
                400,
                "3600 to 2592000",
            )
            for seconds in ("3599", "2592001", "-1", "x", "", "3600.5", "9" * 5000)
            if len(seconds) < 1000
        ),
        ({"purpose": "x" * 2000}, ("a.jsonl", b""), 400, "1024 bytes"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_nothing(fields: dict[str, str], file: Any, status: int, says: str) -> None:
    with service(batch_limits=BatchLimits(file_bytes=100)) as (client, state, _):
        form = {name: (None, value) for name, value in fields.items()} | ({} if file is None else {"file": file})
        request = httpx2.Request("POST", "http://local/v1/files", files=form)
        response = client._client.send(request)
        assert (response.status_code, says in response.json()["error"]["message"]) == (status, True), response.text
        assert list(client.files.list()) == []
        assert list(state.folder.iterdir()) == []


def test_other_bodies_are_no_forms() -> None:
    with State() as state:
        for content_type, body in [
            ("application/json", b"{}"),
            ("multipart/form-data", b""),
            ("multipart/form-data; boundary=x", b""),
            ("multipart/form-data; boundary=x", b"--x\r\n"),
            ("multipart/form-data; boundary=x", b"--xy--"),
            ("multipart/form-data; boundary=x", b"--x\r\n" + b"a" * 10_000 + b"\r\n\r\n\r\n--x--"),
            ("multipart/form-data; boundary=x", b"--x\r\na: b\r\n\r\n\r\n" * 40 + b"--x--"),
        ]:
            response = handle(Request("POST", "/v1/files", headers={"Content-Type": content_type}, body=body), state, Clock())
            assert response.status == 400
            assert "form" in json.loads(response.body)["error"]["message"]


@given(
    st.binary(max_size=300).filter(lambda content: b"\r\n--bound" not in content),
    st.text("ab\r\n-", max_size=20).filter(lambda text: "\r\n--bound" not in text),
    st.lists(st.integers(1, 60), min_size=1),
)
def test_a_form_is_the_same_in_whatever_pieces_it_comes(content: bytes, value: str, sizes: list[int]) -> None:
    request = httpx2.Request(
        "POST",
        "http://x",
        files={"purpose": (None, value), "file": ("n.jsonl", content)},
        headers={"content-type": "multipart/form-data; boundary=bound"},
    )
    whole, got, at = request.read(), io.BytesIO(), 0
    pieces: list[bytes] = []
    while at < len(whole):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(whole[at : at + size])
        at += size
    form = read_form(request.headers["content-type"], pieces, got.write)
    assert (form.fields, form.filename, got.getvalue()) == ({"purpose": value}, "n.jsonl", content)


@given(st.lists(st.sampled_from([b"--b", b"\r\n", b"--", b'Content-Disposition: form-data; name="file"', b"x", b"\xff"])))
def test_no_form_makes_it_crash(parts: list[bytes]) -> None:
    with contextlib.suppress(FormError):
        read_form("multipart/form-data; boundary=b", parts, lambda _: None)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["batch", "user_data"]), st.integers(0, 2)), max_size=9),
    st.integers(1, 4),
    st.sampled_from(["asc", "desc", None]),
    st.sampled_from(["batch", None]),
)
def test_pages_are_the_whole_list_cut_up(made: list[tuple[Any, int]], limit: int, order: Any, purpose: str | None) -> None:
    with service() as (client, _, clock):
        ids = []
        for kind, seconds in made:
            clock.now += seconds
            ids.append((client.files.create(file=("a.jsonl", b"a"), purpose=kind).id, kind))
        options: dict[str, Any] = {"order": order} if order else {}
        options |= {"purpose": purpose} if purpose else {}
        wanted = [file for file, kind in ids if purpose in (None, kind)]
        wanted = wanted if order == "asc" else wanted[::-1]
        assert [file.id for file in client.files.list(limit=limit, **options)] == wanted
        first = client.files.list(limit=limit, **options)
        assert first.has_more == (len(wanted) > limit)
        assert len(first.data) == min(limit, len(wanted))


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "limit=-1", "limit=1e3", "order=up", "limit=" + "9" * 50])
def test_a_page_that_makes_no_sense_is_refused(query: str) -> None:
    with State() as state:
        response = handle(Request("GET", "/v1/files", query), state, Clock())
        assert (response.status, json.loads(response.body)["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize("query", ["after=file-no", "after=\ud800", "after=%00"])
def test_a_page_after_nothing_is_a_404(query: str) -> None:
    with State() as state:
        assert handle(Request("GET", "/v1/files", query), state, Clock()).status == 404


def test_a_query_of_a_thousand_parameters_is_refused() -> None:
    with State() as state:
        assert handle(Request("GET", "/v1/files", "&".join(["a=b"] * 1000)), state, Clock()).status == 400


def test_a_content_that_is_being_read_outlives_its_deletion() -> None:
    with service() as (client, _, __):
        made = client.files.create(file=("a.jsonl", b"x" * 300_000), purpose="batch")
        with client.files.with_streaming_response.content(made.id) as response:
            pieces = response.iter_bytes()
            got = next(pieces)
            client.files.delete(made.id)
            got += b"".join(pieces)
        assert (got, response.headers["content-length"]) == (b"x" * 300_000, "300000")


def test_files_are_of_the_state_and_not_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with service(path) as (client, _, __):
        made = client.files.create(file=("a.jsonl", b"a"), purpose="batch")
    with service(path) as (client, _, __):
        assert client.files.content(made.id).content == b"a"
        again = client.files.create(file=("a.jsonl", b"b"), purpose="batch")
        assert again.id != made.id
    with service() as (client, _, __):
        other = client.files.create(file=("a.jsonl", b"c"), purpose="batch")
        assert other.id not in {made.id, again.id}, "an id that is remembered from a lost state finds nothing"


def test_a_state_in_memory_leaves_no_folder_behind() -> None:
    with service() as (client, state, __):
        client.files.create(file=("a.jsonl", b"a"), purpose="batch")
        folder = state.folder
        assert folder.is_dir()
    assert not folder.exists()
    forgotten = State()
    folder = forgotten.folder
    del forgotten
    assert not folder.exists()


def test_an_upload_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with service(tmp_path / "state.sqlite") as (client, state, __):
        beside = sqlite3.connect(tmp_path / "state.sqlite")
        beside.execute("CREATE TRIGGER full BEFORE INSERT ON files BEGIN SELECT raise(ABORT, 'full'); END")
        with pytest.raises(openai.InternalServerError, match="full"):
            client.files.create(file=("a.jsonl", b"a"), purpose="batch")
        assert list(state.folder.iterdir()) == []
        beside.execute("DROP TRIGGER full")
        beside.close()
        made = client.files.create(file=("a.jsonl", b"a"), purpose="batch")
        (state.folder / made.id).unlink()
        with pytest.raises(openai.InternalServerError) as caught:
            client.files.content(made.id)
        assert str(tmp_path) not in str(caught.value)


def test_a_state_of_before_there_were_files_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as connection:
        for statement in _STEPS[0]:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("UPDATE totals SET requests = 3, answered = 3, texts = 5, tokens = 7")
        connection.execute("INSERT INTO embedded VALUES (3, ?)", (b"\x01" * 64,))
    connection.close()
    with service(path, record=True) as (client, state, __):
        made = client.files.create(file=("a.jsonl", b"a"), purpose="batch")
        assert client.files.content(made.id).content == b"a"
        assert (state.summary()["texts"], state.summary()["answered"]) == (5, 5)
        assert state.embedded() == {"01" * 32: 2}
