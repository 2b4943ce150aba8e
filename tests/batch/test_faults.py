"""Batch mode against a service that misbehaves: results, statuses and limits. The service's own list is the truth."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from pipeline.local_service.misbehaviour import Kind, Misbehaviour
from pipeline.local_service.settings import BatchLimits, Pace
from tests.batch.world import DAY, Maker, World, error, once, rewrite_lines, rewrite_shape

TITLES = ["Fugue", "Mass", "Suite", "Toccata"]
MANY = [f"Sonata number {number}" for number in range(20)]


def assert_idle(world: World) -> None:
    """A further command asks for nothing that costs."""
    before = sum(method == "POST" for method, _ in world.wire.requests)
    world.clock.sleep(3600)
    world.run("--advance")
    assert sum(method == "POST" for method, _ in world.wire.requests) == before


def numbered(line: bytes) -> int:
    """The row of a result line of ours; -1 of another."""
    found = re.search(rb"_title_(\d+)\"", line)
    return int(found[1]) if found else -1


# Results


@pytest.mark.parametrize(
    "kind", ["missing_row", "unknown_custom_id", "null_custom_id", "status_zero", "nan", "wrong_dimensions", "empty_data"]
)
@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_a_row_without_a_usable_vector_goes_again_and_the_others_do_not(make: Maker, kind: Kind, encoding: str) -> None:
    world = make(Misbehaviour(kind=kind, create=1, row=2), encoding_format=encoding)
    assert world.advance(3).code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 2
    assert [batch["request_counts"]["total"] for batch in world.batches()] == [4, 1]
    assert world.twice() == (0 if kind == "status_zero" and not world.twice() else 1)  # paid rows were never sent again
    assert list(world.attempts().values()) == [1]
    assert_idle(world)


@pytest.mark.parametrize("kind", ["missing_row", "status_zero", "nan", "wrong_dimensions"])
def test_a_row_that_never_comes_right_fails_after_its_attempts_with_a_reason(make: Maker, kind: Kind) -> None:
    world = make(Misbehaviour(kind=kind), titles=["Fugue"], batch_max_attempts=2)
    ran = world.advance(4)
    assert ran.code == 1
    assert len(world.batches()) == 2
    (failure,) = world.failures()
    assert (failure.stage, failure.code) == ("service", "attempts")
    assert "2 attempts" in failure.reason
    assert world.times("Fugue") == 2
    assert_idle(world)


@pytest.mark.parametrize("row", [1, 2, 3, 4])
def test_whichever_vector_comes_first_may_be_the_wrong_one(make: Maker, row: int) -> None:
    """The length of a model that only its first answer tells is not that of one wrong line."""
    world = make(
        Misbehaviour(kind="wrong_dimensions", create=1, row=row),
        embedding_service="http://127.0.0.1:9/v1",
        service_name="ours",
        embedding_model="local-lexical-384",
    )
    world.run("--create")
    world.advance(3)
    assert world.embedded() == ["Fugue", "Mass", "Suite", "Toccata"]
    assert world.failures() == []


def test_custom_id_of_an_attacker_is_never_a_path(make: Maker) -> None:
    world = make(Misbehaviour(kind="unknown_custom_id"), batch_max_attempts=1)
    assert world.advance(2).code == 1
    assert [failure.reason for failure in world.failures()] == ["neither in the output nor in the error file (1 attempts)"] * 4
    assert not [path for path in world.catalogue.folder.rglob("*") if "passwd" in path.name]


def test_a_line_twice_with_the_same_vector_is_kept_and_no_failure(make: Maker) -> None:
    world = make(Misbehaviour(kind="duplicate_row", row=2))
    ran = world.advance(2)
    assert ran.code == 0
    assert world.embedded() == TITLES
    assert world.failures() == []
    assert world.attempts() == {}
    assert_idle(world)


def test_a_line_twice_with_two_vectors_fails_and_the_others_stay(make: Maker) -> None:
    world = make(Misbehaviour(kind="differing_duplicate", row=2))
    assert world.advance(2).code == 1
    assert len(world.embedded()) == 3
    assert [failure.code for failure in world.failures()] == ["two_answers"]
    assert_idle(world)


@pytest.mark.parametrize(
    "kind",
    [
        "duplicate_row", "differing_duplicate", "unknown_custom_id", "null_custom_id", "nan", "wrong_dimensions", "empty_data",
        "refused_row",
    ],
)  # fmt: skip
def test_what_is_booked_is_what_the_service_counted_however_odd_a_line_is(make: Maker, kind: Kind) -> None:
    world = make(Misbehaviour(kind=kind, create=1, row=2), price=1_000_000.0, budget_usd=1000)
    world.advance(3)
    status = world.main("--status", "--json").document
    assert status["tokens"] == world.state.summary()["tokens"] > 0
    assert status["spent_usd"] == pytest.approx(status["tokens"])


def test_a_bad_line_beside_a_good_one_costs_nothing(make: Maker) -> None:
    """The vector is here; that a second line of it is broken is no attempt and no failure."""
    world = make(batch_max_attempts=1)
    world.run("--create")

    def with_bad_twin(lines: list[bytes]) -> bytes:
        bad = json.loads(lines[0])
        bad["response"]["body"]["data"] = []
        return b"".join([*lines, json.dumps(bad).encode() + b"\n"])

    rewrite_lines(world, with_bad_twin)
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES
    assert world.failures() == []
    assert world.attempts() == {}


def test_a_refused_row_fails_at_once_with_its_reason(make: Maker) -> None:
    world = make(Misbehaviour(kind="refused_row", row=3))
    ran = world.advance(2)
    assert ran.code == 1
    assert len(world.embedded()) == 3
    (failure,) = world.failures()
    assert failure.code == "invalid_value"
    assert "400: This row is refused" in failure.reason
    assert len(world.batches()) == 1
    assert "This row is refused" in world.run("--failures").out
    assert_idle(world)


def test_every_row_refused_and_no_output_file(make: Maker) -> None:
    world = make(Misbehaviour(kind="refused_row"))
    assert world.advance(2).code == 1
    assert world.jobs()[0].output_file is None
    assert len(world.failures()) == 4
    assert_idle(world)


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_row_that_may_work_later_goes_again_up_to_its_attempts(make: Maker, status: int) -> None:
    world = make(batch_max_attempts=2)

    def troubled(lines: list[bytes]) -> bytes:
        found = []
        for line in lines:
            result = json.loads(line)
            if numbered(line) == 1:
                result["response"] = {"status_code": status, "body": {"error": {"code": "busy", "message": "Not now"}}}
            found.append(json.dumps(result).encode() + b"\n")
        return b"".join(found)

    rewrite_lines(world, troubled)
    assert world.advance(4).code == 1
    assert [batch["request_counts"]["total"] for batch in world.batches()] == [4, 1]
    assert [failure.reason for failure in world.failures()] == ["busy: Not now (2 attempts)"]
    assert len(world.embedded()) == 3


@pytest.mark.parametrize(
    "bad",
    [
        b"not json\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"null\n",
        b"[" * 5000 + b"\n",
        b'{"custom_id": 7, "response": 5}\n',
        b'{"custom_id": "\\ud800"}\n',
        b"\n\n  \n",
        b'{"custom_id": "00000000_title_0", "response": {"status_code": 200, "body": {}}}\n',  # right row, other text
        b'{"custom_id": "00000000_other_field_0", "response": null, "error": {"code": "x"}}\n',
    ],
)
def test_one_bad_line_never_costs_the_file(make: Maker, bad: bytes) -> None:
    world = make()
    rewrite_lines(world, lambda lines: b"".join([bad, lines[0], bad, *lines[1:], bad.rstrip()]))
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 1


def test_no_last_newline_and_line_ends_that_are_none(make: Maker) -> None:
    titles = ["Mass\u2028in b", "Fugue\u0085", "Suite\u2029", "Toccata\x1c"]
    world = make(Misbehaviour(kind="no_last_newline"), titles=titles)
    rewrite_lines(world, lambda lines: b"".join(_echoing(line) for line in lines).rstrip(b"\n"))
    assert world.advance(2).code == 0
    assert len(world.embedded()) == 4
    assert_idle(world)


def _echoing(line: bytes) -> bytes:
    """A result that holds U+2028 and U+0085 itself, unescaped."""
    result = json.loads(line)
    result["response"]["body"]["note"] = "a\u2028b\u0085c"
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("kind", ["empty_error_file", "empty_error_file_id"])
def test_an_error_file_with_nothing_in_it_is_no_error(make: Maker, kind: Kind) -> None:
    world = make(Misbehaviour(kind=kind))
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
    assert world.failures() == []


# Statuses


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_what_was_done_by_an_early_end_comes_home_and_the_rest_goes_again(make: Maker, status: str) -> None:
    world = make(Misbehaviour(kind="end", create=1, status=status, share=0.5), batch_max_attempts=1)
    assert world.advance(3).code == 0
    assert world.embedded() == TITLES
    assert world.twice() == 0  # what was paid is not sent again
    assert [batch["status"] for batch in world.batches()] == [status, "completed"]
    assert world.attempts() == {}
    assert_idle(world)


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_an_early_end_without_any_file_costs_no_attempt(make: Maker, status: str) -> None:
    world = make(Misbehaviour(kind="end", create=1, status=status, share=0.0), batch_max_attempts=1)

    def without_files(shape: dict[str, Any]) -> None:
        if shape["status"] == status:
            shape["error_file_id"] = None

    rewrite_shape(world.wire, without_files)
    assert world.advance(3).code == 0
    assert world.embedded() == TITLES
    assert world.attempts() == {}


def test_cancelled_by_us_what_was_done_comes_home(make: Maker) -> None:
    world = make(pace=Pace(working=100, cancelling=60))
    world.run("--create")
    world.clock.sleep(50)
    assert world.run("--cancel").code == 0
    assert "cancelling" in world.run("--status").out
    world.clock.sleep(3600)
    assert world.run("--download").code == 0
    assert len(world.embedded()) == 2
    world.advance(2)
    assert world.embedded() == TITLES
    assert world.twice() == 0


def test_cancelling_what_has_ended_is_no_error(make: Maker) -> None:
    world = make(pace=Pace(working=100), batch_embedding_size=2)
    world.run("--create")
    world.clock.sleep(200)
    assert world.run("--cancel").code == 0
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES


def test_failed_with_errors_by_line_is_shown_and_no_row_is_lost(make: Maker) -> None:
    world = make(Misbehaviour(kind="input_not_found", create=1))

    def by_line(shape: dict[str, Any]) -> None:
        if shape["status"] == "failed":
            shape["errors"]["data"] = [{"code": "invalid_json_line", "message": "Not JSON.", "param": None, "line": 3}]

    rewrite_shape(world.wire, by_line)
    world.run("--create")
    ran = world.run("--download")
    assert world.jobs()[0].state == "returned", ran.err
    assert "invalid_json_line: Not JSON. (line 3)" in world.run("--status").out
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
    assert list(world.attempts().values()) == [1], "the line that was named, and no other"


def test_failed_again_and_again_ends_with_the_reason(make: Maker) -> None:
    world = make(Misbehaviour(kind="input_not_found"), batch_max_attempts=2)
    assert world.advance(4).code == 1
    assert len(world.batches()) == 2
    assert len(world.failures()) == 4
    assert all("Cannot find file" in failure.reason for failure in world.failures())
    assert_idle(world)


@pytest.mark.parametrize("limits", [BatchLimits(enqueued_tokens=30), BatchLimits(enqueued_requests=5)])
def test_too_many_tokens_is_a_wait_and_half_the_size(make: Maker, limits: BatchLimits) -> None:
    """The account's limit is lower than we were told: no row is to blame, and all ends well."""
    world = make(titles=MANY, limits=limits, batch_max_attempts=1, pace=Pace(working=600))
    world.advance(2)
    world.advance(15)
    assert world.embedded() == sorted(MANY)
    assert world.attempts() == {}
    assert world.failures() == []
    assert world.twice() == 0
    jobs = world.jobs()
    assert jobs[0].state == "returned"
    assert all(after.tokens <= before.tokens / 2 for before, after in itertools.pairwise(jobs) if before.state == "returned")


def test_too_many_tokens_for_a_single_string_does_not_end_in_silence(make: Maker) -> None:
    """Others of the account hold all of its limit for a while; when they let go, work goes on by itself."""
    world = make(titles=["Fugue", "A much longer title than that"], pace=Pace(working=60))
    refusing = [True]

    def refuse(shape: dict[str, Any]) -> None:
        if refusing[0]:
            shape |= {"status": "failed", "output_file_id": None, "error_file_id": None}
            shape["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}]}

    rewrite_shape(world.wire, refuse)
    world.advance(10)
    assert world.embedded() == []
    refusing[0] = False
    world.advance(5)
    assert world.embedded() == ["A much longer title than that", "Fugue"]
    assert world.failures() == []


def test_unknown_status_is_taken_for_in_progress_and_shown(make: Maker) -> None:
    world = make(Misbehaviour(kind="unknown_status", create=1, status="pondering", seconds=7200))
    world.run("--create")
    assert world.advance(2).code == 0
    assert [job.state for job in world.jobs()] == ["open"]
    shown = world.run("--status").out
    assert "pondering" in shown
    assert "not known to this version" in shown
    world.clock.sleep(7200)
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 1


def test_an_unknown_word_for_ever_is_stuck_too(make: Maker) -> None:
    """Perhaps a new word for an end: it must not hold the one place there is for ever."""
    world = make(Misbehaviour(kind="unknown_status", create=1, status="pondering"), batch_embedding_size=2, max_active_batches=1)
    world.run("--create")
    world.clock.sleep(DAY + 3 * 3600)
    world.advance(3)
    assert [job.state for job in world.jobs()] == ["open", "collected"]
    shown = world.run("--status").out
    assert "pondering" in shown
    assert "stuck" in shown


def test_no_counts_and_stuck_job_is_set_aside_while_others_go_on(make: Maker) -> None:
    world = make(
        Misbehaviour(kind="stuck", create=1),
        Misbehaviour(kind="no_counts"),
        batch_embedding_size=2,
        max_active_batches=1,
    )
    world.run("--create")
    world.clock.sleep(DAY + 3600)
    world.run("--advance")
    assert len(world.batches()) == 1  # not stuck yet, and it takes the one place there is
    world.clock.sleep(2 * 3600)
    world.run("--advance")
    world.run("--advance")
    assert len(world.batches()) == 2
    assert [job.state for job in world.jobs()] == ["open", "collected"]
    assert "--cancel 1" in world.run("--status").out
    assert world.run("--cancel", "1").code == 0
    assert world.advance(3).code == 0
    assert world.embedded() == TITLES
    assert world.twice() == 0  # the half that the stuck job had done came home


def test_lost_job_is_never_made_again_by_itself(make: Maker) -> None:
    world = make(Misbehaviour(kind="vanish", create=1), price=1.0)
    world.run("--create")
    world.clock.sleep(3600)
    ran = world.advance(3)
    assert ran.code == 1
    assert "lost" in ran.err
    assert [job.state for job in world.jobs()] == ["lost"]
    with world.catalogue.ledger() as ledger:
        assert ledger.spent_usd() > 0  # it may have been paid, and the budget remembers
    assert world.run("--retry-failed").code == 1
    assert len(world.batches()) == 1
    assert "--retry-failed --yes" in world.run("--retry-failed").out
    world.run("--retry-failed", "--yes")
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 2
    assert world.doubts() == 4
    assert (world.catalogue.checkpoint / "possibly_paid_twice.csv").exists()


def test_a_batch_that_is_not_seen_right_after_its_create_is_not_lost(make: Maker) -> None:
    """Like a list that is late: 404 by its id for some seconds."""
    world = make(Misbehaviour(kind="vanish", create=1, seconds=30), create_grace_seconds=60)
    world.run("--create")
    world.clock.sleep(10)
    assert world.run("--advance").code == 0
    assert [job.state for job in world.jobs()] == ["open"]
    world.clock.sleep(60)
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 1


def test_output_that_is_gone_is_told_and_resent_only_on_a_yes(make: Maker) -> None:
    world = make(Misbehaviour(kind="output_gone", create=1), batch_embedding_size=2)
    world.run("--create")
    assert world.advance(2).code == 1
    assert [job.state for job in world.jobs()] == ["lost", "collected"]  # the other one came home
    assert "gone at the service" in world.run("--status").out
    assert world.wire.count("POST", "/v1/batches") == 2
    world.run("--retry-failed", "--yes")
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
    assert world.doubts() == 2
    assert world.twice() == 2


def test_an_error_file_that_is_gone_does_not_cost_the_output(make: Maker) -> None:
    world = make(Misbehaviour(kind="end", create=1, status="expired"))

    def point_nowhere(shape: dict[str, Any]) -> None:
        if shape["status"] == "expired":
            shape["error_file_id"] = "file-nowhere"

    rewrite_shape(world.wire, point_nowhere)
    world.advance(3)
    assert world.embedded() == TITLES
    assert world.twice() == 0


def test_one_job_whose_download_fails_does_not_hold_up_the_others(make: Maker) -> None:
    world = make(batch_embedding_size=2)
    world.run("--create")
    world.run("--status")
    world.run("--list")

    def broken(request: httpx2.Request) -> httpx2.Response | None:
        first = world.jobs()[0].output_file
        is_it = first is not None and request.url.path.startswith(f"/v1/files/{first}")
        return error(500, "server_error", "No")(request) if is_it and request.method == "GET" else None

    world.wire.faults.append(broken)
    ran = world.run("--advance")
    assert ran.code == 1
    assert [job.state for job in world.jobs()] == ["ended", "collected"]
    world.wire.faults.clear()
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES
    assert len(world.batches()) == 2


@pytest.mark.parametrize("kind", ["insufficient_quota", "unauthorized"])
def test_no_money_or_no_key_stops_submitting_and_not_collecting(make: Maker, kind: Kind) -> None:
    world = make(Misbehaviour(kind=kind, create=2), batch_embedding_size=2)
    ran = world.run("--create")
    assert ran.code == 1
    assert "insufficient_quota" in ran.err or "401" in ran.err
    assert len(world.batches()) == 1
    assert [job.state for job in world.jobs()] == ["open", "uploaded"]
    assert world.run("--download").code == 0
    assert [job.state for job in world.jobs()] == ["collected", "uploaded"]
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
    assert world.twice() == 0
    assert world.wire.count("POST", "/v1/files") == 2


def test_no_money_still_collects_in_the_same_command(make: Maker) -> None:
    world = make(
        Misbehaviour(kind="insufficient_quota", create=2), batch_embedding_size=2, max_active_batches=1, pace=Pace(working=60)
    )
    world.run("--create")
    world.clock.sleep(3600)
    ran = world.run("--advance")
    assert ran.code == 1
    assert world.jobs()[0].state == "collected"
    assert "collected 1 jobs (2 strings)" in ran.out


def test_the_key_is_never_shown(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-proj-abcdefghijklmnop1234567890"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    world = make(key=key)
    world.wire.faults.append(once("POST", "/v1/batches", error(401, "invalid_api_key", f"Incorrect API key: {key}.")))
    ran = world.run("--create", "--debug")
    assert ran.code == 1
    assert key not in ran.out + ran.err
    for path in world.catalogue.checkpoint.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("path", ["/v1/batches/", "/v1/files/"])
@pytest.mark.parametrize("seconds", [1, 7, 130])
def test_retry_after_is_waited_for(make: Maker, path: str, seconds: int) -> None:
    world = make()
    world.run("--create")
    slow = error(429, "rate_limit_exceeded", "Slow down", **{"retry-after": str(seconds)})
    world.wire.faults.append(once("GET", path, slow, times=2))
    before = world.clock.slept
    assert world.run("--advance").code == 0
    assert world.clock.slept - before >= 2 * seconds
    assert world.embedded() == TITLES


def test_retry_after_beyond_an_hour_stops_resumably(make: Maker) -> None:
    world = make()
    world.run("--create")
    slow = error(429, "rate_limit_exceeded", "Slow down", **{"retry-after": "7200"})
    world.wire.faults.append(once("GET", "/v1/batches/", slow))
    assert world.run("--advance").code == 1
    assert world.clock.slept == 0
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES


def test_html_and_server_errors_while_reading_are_tried_again(make: Maker) -> None:
    world = make()
    world.run("--create")

    def page(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(502, html="<html>Bad gateway</html>", request=request)

    world.wire.faults.append(once("GET", "/v1/batches/", page, times=2))
    world.wire.faults.append(once("GET", "/v1/files/", error(503, "server_error", "Overloaded"), times=2))
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES


def _cut(after: int, *, cleanly: bool) -> Callable[[httpx2.Request, httpx2.Response], httpx2.Response]:
    """The first download ends early."""
    left = [1]

    def change(request: httpx2.Request, answer: httpx2.Response) -> httpx2.Response:
        if not request.url.path.endswith("/content") or not left:
            return answer
        left.clear()
        content = answer.read()[:after]
        if cleanly:
            return httpx2.Response(200, content=content, request=request)

        class Broken(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                yield content
                raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")

        return httpx2.Response(200, stream=Broken(), request=request)

    return change


@pytest.mark.parametrize("cleanly", [True, False])
@pytest.mark.parametrize("after", [0, 700])
def test_a_download_that_was_cut_short_is_fetched_again(make: Maker, after: int, cleanly: bool) -> None:
    world = make()
    world.run("--create")
    world.wire.changes.append(_cut(after, cleanly=cleanly))
    assert world.run("--advance").code == 0
    assert world.embedded() == TITLES
    assert world.attempts() == {}
    assert sum(path.endswith("/content") for _, path in world.wire.requests) == 2


# Limits


@pytest.mark.parametrize(
    ("keys", "most_batches", "most_requests"),
    [
        ({"max_active_batches": 2, "batch_embedding_size": 3}, 2, 6),
        ({"max_enqueued_requests": 5, "batch_embedding_size": 2}, 20, 5),
        ({"max_enqueued_requests": 1}, 20, 1),
        ({"max_enqueued_tokens": 60}, 20, 4),
        ({"max_active_batches": 1, "max_enqueued_requests": 7, "max_enqueued_tokens": 100}, 1, 6),
    ],
)
def test_never_more_at_the_service_than_the_limits_say(
    make: Maker, keys: dict[str, Any], most_batches: int, most_requests: int
) -> None:
    world = make(titles=MANY, pace=Pace(working=100), **keys)
    seen: list[tuple[int, int]] = []

    def count() -> None:
        there = [batch for batch in world.batches() if batch["status"] in ("validating", "in_progress", "finalizing")]
        requests = sum(_requests(world, batch["input_file_id"]) for batch in there)
        seen.append((len(there), requests))

    world.wire.after_each = count
    for _ in range(80):
        assert world.run("--advance").code == 0
        world.clock.sleep(60)
        if len(world.embedded()) == len(MANY):
            break
    assert max(batches for batches, _ in seen) <= most_batches
    assert 0 < max(requests for _, requests in seen) <= most_requests
    assert world.embedded() == sorted(MANY)
    assert world.twice() == 0
    assert_idle(world)


def _requests(world: World, file: str) -> int:
    path = world.state.folder / file
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_budget_stops_before_anything_is_created(make: Maker) -> None:
    world = make(price=1_000_000.0, budget_usd=10)
    ran = world.run("--create")
    assert ran.code == 1
    assert "budget_usd is 10" in ran.err
    assert world.batches() == []
    assert world.jobs() == []
    assert world.wire.count("POST", "/v1/files") == 0
    assert world.run("--advance", "--set", "budget_usd=1000").code == 0
    world.run("--advance", "--set", "budget_usd=1000")
    assert world.embedded() == TITLES


def test_budget_does_not_hold_up_what_is_finished(make: Maker) -> None:
    world = make(price=1_000_000.0, budget_usd=1000, batch_embedding_size=2, max_active_batches=1)
    world.run("--create")
    ran = world.run("--advance", "--set", "budget_usd=10")
    assert ran.code == 1
    assert "budget_usd is 10" in ran.err
    assert [job.state for job in world.jobs()] == ["collected"]


def test_budget_remembers_what_is_prepared_and_not_sent_yet(make: Maker) -> None:
    world = make(Misbehaviour(kind="insufficient_quota"), price=1_000_000.0, budget_usd=30)
    assert world.run("--create").code == 1
    assert [job.state for job in world.jobs()] == ["uploaded"]
    world.catalogue.write([(str(number), "", title) for number, title in enumerate([*TITLES, "Partita", "Nocturne"])])
    ran = world.run("--advance")
    assert ran.code == 1
    assert "budget_usd is 30" in ran.err


def test_no_room_on_the_disk_stops_with_the_reason(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(batch_embedding_size=2, max_active_batches=1)
    world.run("--create")
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.batch.submit.free_bytes", lambda _: 1000)
        ran = world.run("--advance")
    assert ran.code == 1
    assert "the disk has no room" in ran.err
    assert [job.state for job in world.jobs()] == ["collected"]
    assert len(world.batches()) == 1
    assert world.advance(2).code == 0
    assert world.embedded() == TITLES
