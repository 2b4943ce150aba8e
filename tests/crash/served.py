"""The local service as a process of its own, which survives whatever is done to the product; its word is the truth."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Service:
    url: str

    def state(self) -> dict[str, Any]:
        """What the service itself says: requests open now, answered so far, texts embedded more than once."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/local/state", timeout=10) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found


@contextlib.contextmanager
def service(folder: Path, latency: float = 0.2, *more: str) -> Iterator[Service]:
    """One, until the end of the block; `more` are flags of its own."""
    command = [sys.executable, "-m", "pipeline.local_service", "--port", "0", "--record", "--state", str(folder / "service.sqlite")]
    with subprocess.Popen(
        [*command, "--latency", str(latency), *more], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        try:
            assert process.stdout is not None
            yield Service(process.stdout.readline().split()[-1])
        finally:
            process.terminate()
            assert process.wait(20) == 0
