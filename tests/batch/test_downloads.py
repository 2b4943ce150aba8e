"""Downloads of results that are not what the service said, over real sockets: nothing is lost, the job stays to be collected."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import batch
from pipeline.commands.console import Console
from pipeline.commands.session import Options
from pipeline.errors import AlreadyToldError
from pipeline.provider.service import most_result_bytes
from tests.test_bounded import MEMBER, Unhurried, endless
from tests.test_realtime import NAMES, Trial
from tests.wire import Answer, Fault, FaultyService, Stream


class Job:
    """A job of some titles at a service over real sockets, created by the product and to be collected."""

    def __init__(self, folder: Path) -> None:
        self.trial = Trial(folder, NAMES, use_batch_embeddings=True, batch_manual_polling=True)
        self.trial.clock = Unhurried()  # type: ignore[assignment]

    def advance(self, service: FaultyService, **changed: Any) -> int:
        options: Options = replace(self.trial.options(service, **changed), batches=True)
        try:
            return batch.advance(options, Console(quiet=True))
        except AlreadyToldError as told:
            return told.exit_code


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def collected(job: Job, service: FaultyService) -> None:
    """What was in the way has gone: nothing is lost, and nothing was paid a second time."""
    assert job.advance(service) == 0
    assert job.trial.embedded() == len(NAMES)
    assert sum(batch_["request_counts"]["total"] for batch_ in service.state.summary()["batches"]) == len(NAMES)


CONTENT = "GET /v1/files/[^/]+/content"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Stream(200, {}, endless()), "bytes that it can have"),
        (Stream(200, {"content-encoding": "gzip"}, endless(MEMBER)), "bytes that it can have"),
        (Answer(200, {"content-encoding": "deflate"}, b"x"), "only gzip was asked for"),
    ],
)
def test_a_download_that_is_larger_than_said_ends_there(
    job: Job, fault: Fault, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyService(at={CONTENT: [fault]}) as service:
        assert job.advance(service) == 0  # created
        capsys.readouterr()
        assert job.advance(service) == 1
        assert words in capsys.readouterr().err
        assert (
            not list(job.trial.place.root.glob("batch_results_*"))
            or max(path.stat().st_size for path in job.trial.place.root.glob("batch_results_*")) < 10 << 20
        )
        collected(job, service)


def test_a_download_may_come_in_gzip(job: Job) -> None:
    class Folding(FaultyService):
        def answer(self, request: Any) -> Any:
            response = super().answer(request)
            if not request.path.endswith("/content"):
                return response
            from pipeline.local_service import Response

            folded = gzip.compress(response.whole())
            return Response(200, {**response.headers, "content-encoding": "gzip"}, folded)

    with Folding() as service:
        assert job.advance(service) == 0
        collected(job, service)


class Saying(FaultyService):
    """Says another size of its files."""

    said: object = None

    def answer(self, request: Any) -> Any:
        response = super().answer(request)
        if self.said is None or request.method != "GET" or not re.fullmatch("/v1/files/[^/]+", request.path):
            return response
        from pipeline.local_service import Response

        body = json.dumps({**json.loads(response.whole()), "bytes": self.said}).encode()
        return Response(200, response.headers, body)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (most_result_bytes(300, 384) + 1, "can have"),
        (10**18, "can have"),
        (-1, "is not what was asked for"),
        (True, "is not what was asked for"),
        (None, "is not what was asked for"),
        ("7", "is not what was asked for"),
        (1e300, "is not what was asked for"),
    ],
)
def test_a_size_that_can_not_be_true_stops_before_the_first_byte(
    job: Job, said: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Saying() as service:
        assert job.advance(service, embedding_dimensions=384) == 0
        service.said = said if said is not None else {}
        capsys.readouterr()
        assert job.advance(service, embedding_dimensions=384) == 1
        assert words in capsys.readouterr().err
        service.said = None
        assert job.advance(service, embedding_dimensions=384) == 0
        assert job.trial.embedded() == len(NAMES)


def test_a_download_that_the_disk_has_no_room_for_is_not_begun(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import DiskError

    with FaultyService() as service:
        assert job.advance(service) == 0
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.provider.batch_client.free_bytes", lambda _: 1000)
            with pytest.raises(DiskError, match=r"has [\d,]+ bytes, and the disk has 1,000 left.*free some space"):
                job.advance(service)
        collected(job, service)
