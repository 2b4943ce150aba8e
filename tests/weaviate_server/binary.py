"""The Weaviate server's binary: the one that `WEAVIATE_SERVER` names, or one that Go builds once into the user's cache.

`start_building` begins in the background, so that the tests that need no server run meanwhile; `binary` waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSION = "1.38.11"
_ROOT = Path(__file__).resolve().parent.parent.parent
_PROGRAM = f"github.com/weaviate/weaviate/cmd/weaviate-server@v{VERSION}"
_BUILD_SECONDS = 15 * 60
_END_SECONDS = 60  # that a builder has to end in, when its time is over


class NoServerError(Exception):
    """There is no binary and none can be built; the reason in one line."""


def binary() -> Path:
    """The environment's, the cache's, or one built now."""
    named = os.environ.get("WEAVIATE_SERVER")
    if named:
        if Path(named).is_file() and os.access(named, os.X_OK):
            return Path(named).resolve()
        raise NoServerError(f"no Weaviate server: WEAVIATE_SERVER={named} is not an executable file")
    if not cached().exists():
        reason = _reason_of(_started())
        if reason:
            raise NoServerError(f"no Weaviate server: {reason}")
    return cached()


def start_building() -> None:
    """Begin in the background, unless there is a binary or a build is on its way."""
    if not os.environ.get("WEAVIATE_SERVER") and not cached().exists():
        _started()


def cached() -> Path:
    """Where the built binary is kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "namesake" / f"weaviate-server-v{VERSION}"


@functools.cache
def _started() -> subprocess.Popen[str]:
    """The one builder of this process, in a process group with the compilers that it starts."""
    command = [sys.executable, "-m", "tests.weaviate_server", "--build"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    builder = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        process_group=0,
    )
    atexit.register(_end, builder)
    return builder


@functools.cache
def _reason_of(builder: subprocess.Popen[str]) -> str:
    """Wait for it; why it failed, or nothing."""
    try:
        said, _ = builder.communicate(timeout=_BUILD_SECONDS + _END_SECONDS)
    except subprocess.TimeoutExpired:
        return "its build did not end in time"
    return "" if builder.returncode == 0 else (said.strip() or "its build was ended").splitlines()[-1]


def _end(builder: subprocess.Popen[str]) -> None:
    if builder.poll() is None:
        os.killpg(builder.pid, signal.SIGTERM)
        builder.wait(_END_SECONDS)
    if builder.stdout is not None:
        builder.stdout.close()


def build() -> Path:
    """Build it into the cache: one builder at a time, and what lies there under its name is whole."""
    target, deadline = cached(), time.monotonic() + _BUILD_SECONDS
    go = shutil.which("go")
    if go is None:
        raise NoServerError("install Go, which builds it once in a few minutes, or let WEAVIATE_SERVER name one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "weaviate-server.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=target.parent) as folder:
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                raise NoServerError("another build of it did not end in time")
            time.sleep(0.1)
        if not target.exists():
            environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": folder}
            _run([go, "install", "-ldflags=-s -w", _PROGRAM], folder, environment, deadline - time.monotonic())
            (Path(folder) / "weaviate-server").rename(target)
    return target


def _locked(lock: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _run(command: list[str], folder: str, environment: dict[str, str], seconds: float) -> None:
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=max(seconds, 1), check=False
        )
    except subprocess.TimeoutExpired:
        raise NoServerError("go install did not end in time") from None
    if ended.returncode != 0:
        raise NoServerError(f"go install failed: {(ended.stderr.strip() or 'it said nothing').splitlines()[-1]}")
