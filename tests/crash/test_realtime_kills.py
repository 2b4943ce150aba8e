"""SIGKILL at random moments of real-time runs; the service, a process of its own, is the truth.

After every catalogue's kills the product is simply run again, and judged: nothing lost, every string that the service
embedded more than once is among those reported as possibly paid twice, and one more run asks for nothing.
`NAMESAKE_KILLS=500 python -m pytest tests/crash -s` makes a long run; `NAMESAKE_SEED` another one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.identity import uuid_of
from pipeline.local_service.model import embed
from tests.crash.served import ENVIRONMENT, ROOT, Service, service

KILLS = int(os.environ.get("NAMESAKE_KILLS", "20"))
SEED = int(os.environ.get("NAMESAKE_SEED", "20261121"))
KILLS_A_CATALOGUE = 10
WORKERS, INPUTS = 4, 10
NAMES = [f"Surname {number % 700}, Forename {number}" for number in range(1600)]


def write_catalogue(folder: Path, url: str) -> None:
    with (folder / "names.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows(enumerate(NAMES))
    (folder / "my.yml").write_text(
        f"input: names.csv\nfields: {{person: person}}\nembedding_service: {url}\nservice_name: loopback\n"
        f"embedding_model: local-lexical-384\nmax_concurrent_requests: {WORKERS}\nmax_inputs_per_request: {INPUTS}\n",
        encoding="utf-8",
    )


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "main.py"), "--config", str(folder / "my.yml"), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(folder: Path, *flags: str) -> str:
    with start(folder, *flags) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out


def kill_once(folder: Path, served: Service, moments: random.Random) -> tuple[bool, bool]:
    """Start a run and kill it at a random moment; was it killed at work, and with a request open?"""
    while served.state()["open"]:  # what the last kill left on its way; it would be taken for this run's
        time.sleep(0.02)
    with start(folder) as process:
        if moments.random() < 0.8:  # most of them once requests are going; the others anywhere from its first instant
            while not served.state()["open"] and process.poll() is None:
                time.sleep(0.005)
        time.sleep(moments.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        open_ = served.state()["open"]  # at once: an answer that is still on its way counts as open
        process.communicate(timeout=20)
        return process.returncode == -signal.SIGKILL, bool(open_)


def test_killed_at_random_moments_nothing_is_lost_and_nothing_paid_twice_unseen(tmp_path: Path) -> None:
    moments = random.Random(SEED)
    killed = with_open = twice = reported = 0
    for number in range(-(-KILLS // KILLS_A_CATALOGUE)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with service(folder) as served:
            write_catalogue(folder, served.url)
            for _ in range(min(KILLS_A_CATALOGUE, KILLS - number * KILLS_A_CATALOGUE)):
                was_killed, was_open = kill_once(folder, served, moments)
                killed += was_killed
                with_open += was_killed and was_open
            finish(folder)
            more = judge(folder, served)
            twice, reported = twice + more[0], reported + more[1]
    print(f"\nkills: {killed} of {KILLS} while at work, {with_open} with a request open by the service's own count")
    print(
        f"embedded more than once: {twice} strings; reported as possibly paid twice: {reported}, all of those among them; lost: 0"
    )
    assert killed >= KILLS * 0.9
    assert with_open >= KILLS * 0.6
    assert twice, "no kill ever cost anything: this test would prove nothing"


def judge(folder: Path, served: Service) -> tuple[int, int]:
    """Nothing lost, nothing hidden, nothing left to do; how many strings were embedded twice, and how many reported."""
    truth = served.state()
    assert truth["open"] == 0
    twice = {entry["sha256"] for entry in truth["embedded_more_than_once"]}
    listed: list[str] = []
    if (path := folder / "checkpoints" / "possibly_paid_twice.csv").exists():
        with path.open(encoding="utf-8", newline="") as file:
            listed = [row["text"] for row in csv.DictReader(file)]
    assert twice <= {hashlib.sha256(text.encode()).hexdigest() for text in listed}
    assert len(listed) <= KILLS_A_CATALOGUE * WORKERS * INPUTS
    status = json.loads(finish(folder, "--status", "--json"))
    assert status["possibly_paid_twice"]["strings"] == len(listed)
    assert status["on_the_wire"] == {"requests": 0, "strings": 0}
    assert status["fields"]["person"]["embedded"] == status["fields"]["person"]["indexed"] == len(NAMES)
    finish(folder, "--export-embeddings", str(folder / "all.parquet"))
    _compare(folder / "all.parquet")
    assert json.loads(finish(folder, "--verify", "--json"))["is_well_now"]
    finish(folder)
    assert served.state()["answered"] == truth["answered"], "a further run must ask for nothing"
    leftovers = [path.name for path in (folder / "checkpoints").rglob("*.tmp")] + list((folder / "checkpoints" / "spool").iterdir())
    assert leftovers == []
    return len(twice), len(listed)


def _compare(path: Path) -> None:
    """Every string is there once, under its UUID, with the very vector of its own text."""
    import pyarrow.parquet as pq

    from pipeline.tables.embeddings import matrix_of

    table = pq.read_table(path).combine_chunks()
    texts = table["text"].to_pylist()
    assert sorted(texts) == sorted(NAMES)
    assert [str(uuid_of("person", text)) for text in texts] == table["uuid"].to_pylist()
    assert np.array_equal(matrix_of(table["vector"].chunk(0)), embed(texts))
