"""A process that has imported everything, and forks a run of the product whenever one is asked for.

A kill point then costs half a second instead of two. The fork stops itself before the first line of the product runs, so
that strace can be attached to it; what it is killed by is the kernel's word, not ours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.crash.places import Call, calls_of

ROOT = Path(__file__).resolve().parents[2]
# What makes a thing durable or sends it away, and what waits for an answer.
CALLS = "fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,recvfrom,recvmsg,unlink,unlinkat"
HAS_STRACE = (
    shutil.which("strace") is not None and subprocess.run(["strace", "-o", os.devnull, "true"], check=False).returncode == 0
)
_INSTANT = 0.006  # seconds that stand for one call, where there is no strace
KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Aim:
    """SIGKILL at so manyth call of a kind by one thread (so strace counts); with `path`, of those on that file only. Another
    effect may be asked for, in strace's words."""

    call: str
    number: int
    path: Path | None = None
    effect: str = "signal=KILL"


@dataclass(frozen=True)
class Ended:
    """A run that has ended; `calls` are those that were counted, the last of them the one that it was killed at."""

    code: int
    out: str
    err: str
    calls: list[Call]


class Zygote:
    """Forks runs, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.crash.zygote"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def run(self, program: str, arguments: list[str], aim: Aim | None = None) -> Ended:
        """Run `main.py` or `batch_manager.py`; with an aim, until it is killed there. Without strace, instants are counted
        instead of calls."""
        out, err, log = (self._folder / name for name in ("out.txt", "err.txt", "strace.txt"))
        log.unlink(missing_ok=True)
        self._say({"program": program, "arguments": arguments, "out": str(out), "err": str(err)})
        pid = int(self._hear()["pid"])
        tracer = None if aim is None or not HAS_STRACE else _attach(pid, aim, log)
        os.kill(pid, signal.SIGCONT)
        if aim is not None and tracer is None:
            time.sleep(aim.number * _INSTANT)
            os.kill(pid, signal.SIGKILL)  # the zygote has not waited for it yet: the pid is still its own
        code = int(self._hear()["code"])
        if tracer is not None:
            tracer.communicate(timeout=20)
        calls = calls_of(log.read_text(errors="replace")) if log.exists() else []
        return Ended(code, out.read_text(), err.read_text(), calls)

    def _say(self, asked: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, int]:
        assert self._process.stdout is not None
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found


def _attach(pid: int, aim: Aim, log: Path) -> subprocess.Popen[str]:
    """strace on a stopped process; it is attached when it says so."""
    inject = f"inject={aim.call}:{aim.effect}:when={aim.number}"
    command = ["strace", "-f", "-e", f"trace={CALLS}", "-e", inject, "-s", "80", "-y", "-o", str(log), "-p", str(pid)]
    if aim.path is not None:
        command += ["-P", str(aim.path)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    while "attached" not in (said := tracer.stderr.readline()):
        assert said, "strace did not attach"
    return tracer


def _serve() -> None:
    """Fork for each line, until there are no more."""
    import pipeline.batch.life
    import pipeline.commands.batch
    import pipeline.commands.imports
    import pipeline.commands.index
    import pipeline.commands.run
    import pipeline.embedding_and_indexing
    import pipeline.importing.adopting
    import pipeline.importing.proof
    import pipeline.preprocessing
    import pipeline.provider.batch_client
    import pipeline.stores.embedded
    import pipeline.stores.weaviate.store  # noqa: F401
    from pipeline.commands import batch_manager
    from pipeline.commands import main as entry

    programs = {"main.py": entry.main, "batch_manager.py": batch_manager.main}
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            os.kill(os.getpid(), signal.SIGSTOP)
            code = 1
            try:
                code = programs[asked["program"]](asked["arguments"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.waitpid(pid, os.WUNTRACED)  # it has stopped
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": ended if ended >= 0 else 128 - ended}), flush=True)


if __name__ == "__main__":
    _serve()
