"""Telling others: a program of the user's is run with a document, a URL is asked for. Bounded in time, and nothing is raised.

Both answer with what went wrong, in words, or nothing. Neither gets a key: those for services are taken out of the
environment, and whatever is secret out of the document. What is told, and when, is not known here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.log import KEY_NAMES, without_secrets

PROGRAM_SECONDS = 60.0
PING_SECONDS = 20.0


def run_program(
    arguments: Sequence[str],
    document: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    secret_variables: Collection[str] = (),
    seconds: float = PROGRAM_SECONDS,
) -> str:
    """Run it in `folder`, without a shell, the document as JSON on its standard input. What it prints goes to standard error."""
    content = without_secrets(json.dumps(document, ensure_ascii=False, indent=2)).encode("utf-8", "replace")
    secret = {f"{name}{end}" for name in KEY_NAMES for end in ("", "_FILE")}.union(secret_variables)
    given = {name: value for name, value in environment.items() if name not in secret}
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own program
            arguments, stdin=subprocess.PIPE, stdout=2, cwd=folder, env=given, start_new_session=True
        )
    except (OSError, ValueError) as problem:  # its arguments may hold a token: only its name is shown
        return f"{arguments[0]} could not be run: {problem.strerror if isinstance(problem, OSError) else 'a NUL in its arguments'}"
    try:
        process.communicate(content, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"{arguments[0]} had not ended after {seconds:g} seconds; it was ended, with all that it began"
    finally:
        _end(process)
    if process.returncode:
        return f"{arguments[0]} ended with {_how(process.returncode)}"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its whole group, also on Ctrl-C. One that has ended by itself may leave others at work, as it likes."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel is left to it
            process.wait(5.0)
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _how(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"


def ping(url: str, seconds: float = PING_SECONDS) -> str:
    """One GET. The path is not shown: it often names an account."""
    said = [f"no answer within {seconds:g} seconds"]
    # A server that says a byte now and then keeps each single timeout; a thread that nobody waits for keeps none of us.
    asking = threading.Thread(target=lambda: said.__setitem__(0, _ask(url, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return said[0]


def _ask(url: str, seconds: float) -> str:
    import httpx2

    try:
        with (
            httpx2.Client(timeout=seconds, follow_redirects=False) as client,
            client.stream("GET", url, headers={"user-agent": "namesake", "accept-encoding": "identity"}) as answer,
        ):
            return "" if answer.is_success else f"the answer was {answer.status_code}"
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as problem:
        return f"{type(problem).__name__}: {problem}".replace(url, "the URL")
