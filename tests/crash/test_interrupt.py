"""Ctrl-C and SIGTERM end a run in good order: what is on the wire is waited for, and the next run goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.crash.served import service
from tests.crash.test_realtime_kills import NAMES, finish, judge, start, write_catalogue


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_every_answer_and_doubts_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with service(tmp_path) as served:
        write_catalogue(tmp_path, served.url)
        with start(tmp_path) as process:
            while not served.state()["open"]:
                time.sleep(0.01)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "waiting for" in out
        assert "run the same command again" in err
        assert "Traceback" not in err
        kept = json.loads(finish(tmp_path, "--status", "--json"))
        assert kept["on_the_wire"]["requests"] == 0
        assert 0 < kept["fields"]["person"]["embedded"] == served.state()["texts"] < len(NAMES)
        finish(tmp_path)
        assert judge(tmp_path, served) == (0, 0), "nothing was embedded twice, and nothing was said to be"


def test_a_second_interrupt_leaves_at_once_and_the_next_run_says_what_may_be_paid_twice(tmp_path: Path) -> None:
    with service(tmp_path, latency=3.0) as served:
        write_catalogue(tmp_path, served.url)
        with start(tmp_path, "--limit", "40") as process:
            while not served.state()["open"]:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            process.communicate(timeout=60)
            assert process.returncode == 130
            assert time.monotonic() - began < 2
        assert "possibly paid twice: 40 strings" in finish(tmp_path, "--limit", "40")
