"""What the sweep says that it hit is read from strace's log: here are lines of such logs."""

from __future__ import annotations

import pytest

from tests.crash.places import PLACES, calls_of, paid_call_open, place_of

POST = '7 sendto(9<socket:[1]>, "POST /v1/{} HTTP/1.1\\r\\nHost: 127."..., 512, 0, NULL, 0) = 512'
BODY = '7 sendto(9<socket:[1]>, "{\\"input_file_id\\":\\"f\\"}"..., 346, 0, NULL, 0) = 346'
REPLY = '7 recvfrom(9<socket:[1]>, "HTTP/1.1 200 OK\\r\\n"..., 65536, 0, NULL, NULL) = 1007'
LOST = "7 recvfrom(9<socket:[1]>,  <unfinished ...>\n8 +++ killed by SIGKILL +++\n7 <... recvfrom resumed>) = ?"
COMMIT = "7 fdatasync(6</x/checkpoints/ledger.sqlite-wal>) = {}"
FILE = "7 fsync(6</x/checkpoints/{}>) = {}"
RENAME = '7 rename("/x/checkpoints/{0}.tmp", "/x/checkpoints/{0}") = 0'


@pytest.mark.parametrize(
    ("lines", "place", "is_open"),
    [
        ([COMMIT.format("?")], "C1", False),
        ([RENAME.format("batch_requests_0001.jsonl"), COMMIT.format("?")], "C2", False),
        ([FILE.format("batch_requests_0001.jsonl.tmp", "?")], "C3", False),
        ([RENAME.format("batch_requests_0001.jsonl"), "7 fsync(6</x/checkpoints>) = ?"], "C4", False),
        ([POST.format("files"), BODY.replace("= 346", "= ?")], "C5", False),
        ([POST.format("files"), LOST], "C6", False),
        ([POST.format("files"), REPLY, COMMIT.format(0), COMMIT.format("?")], "C7", False),
        ([POST.format("batches").replace("= 512", "= ?")], "C8", False),
        ([POST.format("batches"), BODY.replace("= 346", "= ?")], "C8", True),
        ([POST.format("batches"), BODY, LOST], "C9", True),
        ([POST.format("batches"), BODY, REPLY, COMMIT.format("?")], "C10", True),
        ([POST.format("batches"), BODY, REPLY, COMMIT.format(0), COMMIT.format("?")], "C11", False),
        ([POST.format("embeddings"), LOST], "R9", True),
        ([POST.format("embeddings"), REPLY, FILE.format("spool/00000001.spool", "?")], "C17", True),
        ([POST.format("embeddings"), REPLY, FILE.format("spool/00000001.spool", 0), COMMIT.format("?")], "C17", False),
        ([RENAME.format("batch_results_0001.jsonl"), "7 fsync(6</x/checkpoints>) = ?"], "C15", False),
        ([FILE.format("ledger.copy.sqlite.tmp", "?")], "C19", False),
    ],
)
def test_the_last_call_is_named_by_what_came_before_it(lines: list[str], place: str, is_open: bool) -> None:
    calls = calls_of("\n".join(lines))
    assert place_of(calls) == place
    assert place in PLACES
    assert paid_call_open(calls) is is_open
