"""Answers without an end, over real sockets: each is given up at its bound, in memory and in time, and told truly."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.batch.lines import lines_of
from pipeline.config import Config
from pipeline.errors import ServiceError
from pipeline.provider.batch_client import BatchClient, ReplyLostError
from pipeline.provider.client import Answered, EmbeddingClient, Stopped, Troubled
from pipeline.provider.service import most_answer_bytes, service_of
from pipeline.retry import Clock, RetryPolicy, SystemClock
from tests.test_realtime import NAMES, Trial
from tests.wire import Answer, Fault, FaultyService, Stream

JSON = {"content-type": "application/json"}
GZIP = {**JSON, "content-encoding": "gzip"}
Pieces = Callable[[Callable[[float], None]], Iterable[bytes]]
MEMBER = gzip.compress(b" " * (8 << 20))  # 8 MB of nothing in 8 kB; gzip may stand behind gzip, without an end


class Unhurried:
    """The machine's clock, and no waits."""

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        pass


def endless(piece: bytes = b" " * 65536) -> Pieces:
    def pieces(wait: Callable[[float], None]) -> Iterator[bytes]:
        while True:
            yield piece

    return pieces


def dripping(wait: Callable[[float], None]) -> Iterator[bytes]:
    while True:
        yield b" "
        wait(0.02)


def client_of(service: FaultyService, timeout: float = 20.0, clock: Clock | None = None) -> EmbeddingClient:
    facts = replace(service_of(Config()), name="loopback", base_url=service.base_url, timeout=timeout)
    return EmbeddingClient(facts, clock or SystemClock())


@contextlib.contextmanager
def batches_of(service: FaultyService) -> Iterator[BatchClient]:
    client = client_of(service)
    try:
        yield BatchClient(client, Unhurried(), RetryPolicy(attempts=3))
    finally:
        client.close()


def ask(service: FaultyService, timeout: float = 20.0) -> Any:
    client = client_of(service, timeout)
    try:
        return client.ask(["Bach", "Mozart"])
    finally:
        client.close()


# One answer


def test_only_gzip_is_asked_for_and_it_is_undone() -> None:
    def fold(wait: Callable[[float], None]) -> Iterator[bytes]:
        content = gzip.compress(json.dumps(body).encode())
        yield from (content[place : place + 100] for place in range(0, len(content), 100))

    with FaultyService() as service:
        plain = ask(service)
        assert isinstance(plain, Answered)
        assert {headers["accept-encoding"] for headers in service.headers} == {"gzip"}
    body = {"data": [{"index": place, "embedding": [1.0] * 384} for place in range(2)], "model": "m", "usage": {"total_tokens": 3}}
    with FaultyService([Stream(200, GZIP, fold)]) as service:
        folded = ask(service)
    assert isinstance(folded, Answered)
    assert folded.tokens == 3
    assert [len(bodies) for bodies in folded.bodies] == [1, 1]


@pytest.mark.parametrize("members", [1, 3])
def test_gzip_that_unfolds_to_many_pieces_is_whole(members: int) -> None:
    """Pieces end anywhere: in the middle of a header, a member, a byte of the output's window."""
    spaces = b" " * 200_000
    content = b"".join(gzip.compress(spaces, mtime=0) for _ in range(members - 1)) + gzip.compress(
        b'{"object": "list", "data": []}'
    )

    def fold(wait: Callable[[float], None]) -> Iterator[bytes]:
        yield from (content[place : place + 1] for place in range(len(content)))

    with FaultyService(at={"GET /v1/batches": [Stream(200, GZIP, fold)]}) as service, batches_of(service) as client:
        assert list(client.batches()) == []


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [(JSON, endless()), (GZIP, endless(MEMBER)), (GZIP, endless(gzip.compress(b"", mtime=0)))],
    ids=["plain", "bomb", "empty members"],
)
def test_an_answer_without_an_end_is_given_up_and_counts_as_paid(headers: dict[str, str], pieces: Pieces) -> None:
    with FaultyService([Stream(200, headers, pieces)]) as service:
        outcome = ask(service)
        assert service.sent < 20 << 20
    assert isinstance(outcome, Stopped)
    assert outcome.maybe_paid
    assert f"the answer to 2 strings is larger than the {most_answer_bytes(2, 384):,} bytes" in outcome.reason


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "gzip, gzip"])
def test_another_encoding_was_not_asked_for(encoding: str) -> None:
    content = zlib.compress(b"{}")
    with FaultyService([Answer(200, {**JSON, "content-encoding": encoding}, content)]) as service:
        outcome = ask(service)
    assert isinstance(outcome, Stopped)
    assert outcome.maybe_paid
    assert f"came in the encoding {encoding!r}, and only gzip was asked for" in outcome.reason


@pytest.mark.parametrize("content", [gzip.compress(b'{"data": []}', mtime=0)[:-9], b"\x1f\x8b\x08\x00 no gzip at all", b"plain"])
def test_gzip_that_is_broken_or_ends_early_is_an_answer_that_was_lost(content: bytes) -> None:
    with FaultyService([Answer(200, GZIP, content)]) as service:
        outcome = ask(service)
    assert isinstance(outcome, Troubled)
    assert outcome.maybe_paid
    assert "gzip" in outcome.reason


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [(JSON, endless(b"<html>")), (GZIP, endless(MEMBER)), ({"content-encoding": "br"}, endless()), (JSON, dripping)],
    ids=["plain", "bomb", "br", "slow"],
)
@pytest.mark.parametrize(("status", "outcome"), [(401, Stopped), (429, Troubled), (500, Troubled), (307, Stopped)])
def test_the_body_of_an_error_is_read_no_further_than_needed(
    headers: dict[str, str], pieces: Pieces, status: int, outcome: type[Stopped | Troubled]
) -> None:
    """The status alone says what it means."""
    with FaultyService([Stream(status, headers, pieces)]) as service:
        found = ask(service, timeout=2.0 if pieces is dripping else 20.0)
        assert service.sent < 20 << 20
    assert isinstance(found, outcome)
    assert found.reason.startswith(str(status))
    assert len(found.reason) < 500
    assert found.maybe_paid == (status == 500)


def test_a_byte_now_and_then_does_not_hold_a_run_for_ever() -> None:
    """The timeout of the HTTP library is for one read, and never passes here."""
    began = time.monotonic()
    with FaultyService([Stream(200, JSON, dripping)]) as service:
        outcome = ask(service, timeout=2.0)
    assert time.monotonic() - began < 30
    assert isinstance(outcome, Troubled)
    assert outcome.maybe_paid
    assert re.search(r"after \d+ seconds \d+ bytes of it had come, and no end", outcome.reason)


# In real time


def test_in_real_time_it_is_asked_once_and_told_as_possibly_paid(tmp_path: Path) -> None:
    """Six tries of each request would pay six times for the same useless answer."""
    trial = Trial(tmp_path, NAMES, price_per_million=1000.0)
    with FaultyService(lambda number: Stream(200, GZIP, endless(MEMBER)) if number == 1 else None) as service:
        with pytest.raises(ServiceError, match=r"the answer to 300 strings is larger than the [\d,]+ bytes that it can have"):
            trial.run(service, embedding_dimensions=384)
        assert service.requests == 1
        assert set(trial.paid_twice()) == set(NAMES)
        assert trial.open_intents() == 0
        assert trial.spent() > 0
        assert trial.run(service, embedding_dimensions=384) == 0
        assert trial.embedded() == len(NAMES)


def test_what_an_answer_calls_its_model_does_not_multiply(tmp_path: Path) -> None:
    """The name stands in each string's result: 8 MB of it for 300 strings would be gigabytes."""
    trial = Trial(tmp_path, NAMES)

    def rename(body: Any) -> Any:
        return {**body, "model": "m" * (8 << 20)}

    from tests.wire import Change

    sizes: list[int] = []
    with FaultyService([Change(rename)]) as service:
        client = client_of(service)
        client._service = replace(client._service, dimensions=0)
        outcome = client.ask(NAMES)
        client.close()
        assert isinstance(outcome, Answered)
        sizes += [len(body) for bodies in outcome.bodies for body in bodies]
    assert max(sizes) < 4000
    assert trial.place.exists() is False


# Files and batches


def failing(service: FaultyService, call: Callable[[BatchClient], object]) -> str:
    with batches_of(service) as client, pytest.raises(ServiceError) as caught:
        call(client)
    return str(caught.value)


@pytest.mark.parametrize(("headers", "pieces"), [(JSON, endless()), (GZIP, endless(MEMBER))], ids=["plain", "bomb"])
@pytest.mark.parametrize(
    ("asked", "call"),
    [
        ("GET /v1/batches", lambda client: list(client.batches())),
        ("GET /v1/files", lambda client: list(client.files())),
        ("GET /v1/batches/b", lambda client: client.retrieve("b")),
        ("GET /v1/files/f", lambda client: client.has("f")),
        ("DELETE /v1/files/f", lambda client: client.delete("f")),
        ("POST /v1/batches/b/cancel", lambda client: client.cancel("b")),
    ],
)  # fmt: skip
def test_a_list_or_status_without_an_end_is_asked_for_once(
    headers: dict[str, str], pieces: Pieces, asked: str, call: Callable[[BatchClient], object]
) -> None:
    with FaultyService(at={asked: [Stream(200, headers, pieces)] * 3}) as service:
        assert "a list or a status is larger than the 33,554,432 bytes" in failing(service, call)
        assert service.requests == 1


@pytest.mark.parametrize(
    "fault",
    [
        Stream(200, JSON, endless()),
        Answer(200, {**JSON, "content-encoding": "br"}, b"x"),
        Answer(200, {"content-type": "text/html"}, b"<html>Please log in</html>"),
        Answer(200, JSON, b"<html>Please log in</html>"),
        Answer(200, JSON, b"[" * 100_000),
        Answer(200, JSON, b"\xff\xfe\xff"),
        Answer(200, JSON, b"{}"),
        Answer(200, JSON, b"null"),
        Answer(200, JSON, b"[]"),
        Answer(200, JSON, b'{"error": {"message": "no"}}'),
        Answer(200, JSON, b'{"id": null, "status": "validating"}'),
        Answer(200, JSON, b'{"id": "b", "status": "completed", "created_at": "soon", "request_counts": {"total": []}}'),
    ],
)
def test_a_create_whose_answer_can_not_be_read_may_have_made_a_batch(fault: Fault) -> None:
    with (
        FaultyService(at={"POST /v1/batches": [fault]}) as service,
        batches_of(service) as client,
        pytest.raises(ReplyLostError),
    ):
        client.create("file-1", {})


@pytest.mark.parametrize(
    "body",
    [b"<html>Please log in</html>", b"[" * 100_000, b"\xff\xfe\xff", b"{}", b"null", b"7", b'{"data": 7}', b'{"data": [7]}',
     b'{"data": [{}]}'],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_list_that_is_none_is_asked_for_again(body: bytes, kind: str) -> None:
    with FaultyService(at={"GET /v1/[a-z]+": [Answer(200, {"content-type": kind}, body)] * 3}) as service:
        assert "is not what was asked for" in failing(service, lambda client: list(client.batches()))
        assert service.requests == 3


def test_a_list_that_never_moves_on_is_given_up() -> None:
    """Some compatible services do not know `after`, and show the first page for ever."""
    entry = {"id": "file-1", "filename": "a", "bytes": 1, "object": "file", "purpose": "batch", "created_at": 1}
    page = json.dumps({"object": "list", "data": [entry], "has_more": True}).encode()
    with FaultyService(lambda _: Answer(200, JSON, page)) as service:
        assert "its list does not end" in failing(service, lambda client: list(client.files()))
        assert service.requests == 2


# Memory


_PEAK = """
import resource, sys
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""


def peak_of(program: str, *arguments: str) -> int:
    """How many bytes a program came to need, at its peak, above what it needed before its last lines."""
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK + textwrap.dedent(program), *arguments],
        check=True, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    return int(ran.stdout)


def test_a_bomb_never_unfolds_in_memory() -> None:
    program = """
        from dataclasses import replace
        from pipeline.config import Config
        from pipeline.provider.batch_client import BatchClient
        from pipeline.provider.client import EmbeddingClient
        from pipeline.provider.service import service_of
        from pipeline.retry import NO_WAITS, SystemClock
        client = EmbeddingClient(replace(service_of(Config()), base_url=sys.argv[1]), SystemClock())
        client.look()
        before = peak()
        client.ask(["Bach"])
        try:
            BatchClient(client, SystemClock(), NO_WAITS).retrieve("b")
        except Exception as problem:
            assert "is larger than" in str(problem), problem
        client.ask(["Bach"])
        print(peak() - before)
    """
    bomb = Stream(200, GZIP, endless(MEMBER))
    with FaultyService([None, bomb, bomb, Stream(500, GZIP, endless(MEMBER))]) as service:
        assert peak_of(program, service.base_url) < 110 << 20  # a list may have 32 MB, and is put together once
        assert service.requests == 4


def test_a_line_that_is_too_long_for_any_result_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"[" + b"[]," * 40_000 + b"\n" + b"\n" + b'{"b": 2}' + b" " * 100 + b"\n" + b"x" * 3000)
    assert list(lines_of(path, 0, path.stat().st_size, 1000)) == [b'{"a": 1}\n', None, b'{"b": 2}' + b" " * 100 + b"\n", None]
    path.write_bytes(b"x" * 999 + b"\n" + b"x" * 1000 + b"\n" + b"{}")
    assert list(lines_of(path, 0, path.stat().st_size, 1000)) == [b"x" * 999 + b"\n", None, b"{}"]


@pytest.mark.parametrize("text", ["[[],", '{"custom_id": "a", "response": {"status_code": 200, "body": [[],'])
def test_reading_a_line_of_many_megabytes_takes_little_memory(tmp_path: Path, text: str) -> None:
    """To parse only 64 MB of its beginning would make a gigabyte of little lists."""
    path = tmp_path / "results.jsonl"
    with path.open("wb") as file:
        file.write(text.encode())
        for _ in range(40):
            file.write(b"[]," * 400_000)
        file.write(b"\n")
    program = """
        import os
        from pathlib import Path
        from pipeline.batch import lines, results
        lines.parse_line(b"[NaN]")
        before = peak()
        path = Path(sys.argv[1])
        harvest = results.read_results([path], dict, 4, path.with_name("scratch"), cores=1)
        assert harvest.unknown == 1
        print(peak() - before)
    """
    assert peak_of(program, str(path)) < 32 << 20
