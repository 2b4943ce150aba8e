"""A request file is what the service reads and what a resend is recognised by: each byte of its lines is fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.batch.prepare import Room, next_job
from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.console import Console
from pipeline.commands.session import Options, context_of, load
from pipeline.identity import custom_id
from pipeline.pending import preflight
from pipeline.provider.service import generation_of
from pipeline.tables.duck import connect
from tests.clock import FakeClock
from tests.tools import Catalogue

TEXTS = [
    '"Quoted" \\ and\ttabbed',
    "two\nlines",
    "Дмитрий Шостакович",
    "a\u2028b\u0007c\x7f",
    "𝄞 clef",
    "</script>",
    "plain",
    "last",
]


def prepared(tmp_path: Path, room: Room, **keys: object) -> list[list[bytes]]:
    """The lines of job after job until nothing is pending."""
    catalogue = Catalogue(tmp_path)
    catalogue.configure(fields={"person": "person"}, use_batch_embeddings=True, **keys)
    catalogue.write((str(number), text, "") for number, text in enumerate(TEXTS))
    assert catalogue.run("--end", "preprocessing").code == 0
    options = Options(catalogue.config, clock=FakeClock(), batches=True)
    config, service = load(options)
    place = Checkpoint(config.checkpoint_path)
    files = []
    with writing(place, "test") as ledger:
        context = context_of(options, config, service, place, ledger, Console(quiet=True))
        generation = generation_of(service, ledger)
        ledger.save_generation(generation, 0.0)
        duck = connect(place.scratch, 1.0)
        preflight(context, duck, generation, "person")
        while job := next_job(context, duck, generation, room):
            files.append((place.root / job.request_name).read_bytes().splitlines(keepends=True))
            assert (len(files[-1]), sum(map(len, files[-1]))) == (job.requests, job.bytes)
        duck.close()
    return files


@pytest.mark.parametrize(
    ("keys", "more"),
    [
        ({"embedding_service": "openai", "embedding_dimensions": 256}, {"encoding_format": "base64", "dimensions": 256}),
        ({"embedding_service": "openai", "encoding_format": "float"}, {"encoding_format": "float"}),
        ({}, {"encoding_format": "base64"}),
    ],
)
def test_a_line_is_its_request_as_json(tmp_path: Path, keys: dict[str, object], more: dict[str, object]) -> None:
    (lines,) = prepared(tmp_path, Room(100, 10**6, 10**6), **keys)
    model = msgspec.json.decode(lines[0])["body"]["model"]
    for row, (line, text) in enumerate(zip(lines, TEXTS, strict=True)):
        body: dict[str, Any] = {"model": model, "input": text, **more}
        request = {"custom_id": custom_id("person", row, text), "method": "POST", "url": "/v1/embeddings", "body": body}
        assert line == msgspec.json.encode(request) + b"\n"


@pytest.mark.parametrize("room", [Room(3, 10**6, 10**6), Room(100, 480, 10**6), Room(100, 10**6, 60), Room(100, 10**6, 10**6, 40)])
def test_jobs_are_cut_by_whatever_is_reached_first_and_lose_nothing(tmp_path: Path, room: Room) -> None:
    files = prepared(tmp_path, room)
    assert len(files) > 1
    assert [msgspec.json.decode(line)["body"]["input"] for lines in files for line in lines] == TEXTS
    for lines in files:
        assert len(lines) <= room.requests
        assert sum(map(len, lines)) <= room.bytes


def test_no_room_is_no_job(tmp_path: Path) -> None:
    for number, room in enumerate((Room(0, 10**6, 10**6), Room(-5, 10**6, 10**6), Room(100, 10**6, 0))):
        (tmp_path / str(number)).mkdir()
        assert prepared(tmp_path / str(number), room) == []
