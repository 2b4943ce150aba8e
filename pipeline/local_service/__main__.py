"""`python -m pipeline.local_service`: the service on a port, until SIGTERM or SIGINT.

Only reads the command line; exit 0 when it was asked to end, 1 when it can't listen, 2 when the command line
or a file that it names is wrong.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import sys
from pathlib import Path

_LIMITS = {
    "enqueued_requests": "requests of batches that are not done (default: 1,000,000)",
    "enqueued_tokens": "tokens of batches that are not done (default: 4,000,000,000)",
    "active": "batches that are not done (default: no limit)",
    "created_per_hour": "batches created an hour (default: 2,000)",
}


def main(arguments: list[str] | None = None) -> int:
    """Serve, and return the exit code."""
    options = _parser().parse_args(arguments)
    if not _is_loopback(options.host) and options.api_key_file is None:
        return _fail(
            2,
            f"--host {options.host} is reachable from other machines: give --api-key-file too, or 127.0.0.1.",
        )
    key = None
    if options.api_key_file is not None:
        try:
            key = options.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            return _fail(2, f"--api-key-file {options.api_key_file}: {type(error).__name__}: it can't be read.")
        if not key:
            return _fail(2, f"--api-key-file {options.api_key_file}: it is empty.")

    from pipeline.local_service.misbehaviour import load_misbehaviours
    from pipeline.local_service.server import LocalServer, serve
    from pipeline.local_service.settings import BatchLimits, Pace
    from pipeline.local_service.state import State, StateError

    try:
        misbehaviours = () if options.misbehave is None else load_misbehaviours(options.misbehave)
    except (OSError, ValueError) as error:
        return _fail(2, f"--misbehave {options.misbehave}: {error}")
    limits = {name: getattr(options, name) for name in _LIMITS if getattr(options, name) is not None}
    try:
        state = State(
            options.state,
            record=options.record,
            api_key=key,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
            pace=Pace(working=options.batch_seconds),
            batch_limits=BatchLimits(**limits),
            misbehaviours=misbehaviours,
        )
    except StateError as error:
        return _fail(2, f"--state {error}")
    with state:
        try:
            server = LocalServer(state, host=options.host, port=options.port, latency=options.latency)
        except OSError as error:
            return _fail(1, f"Can't listen on {options.host} port {options.port}: {error.strerror or error}.")
        serve(server)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.local_service",
        description="A small OpenAI-compatible service with a lexical model: free and offline.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8111, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep totals in this SQLite file (default: in memory)")
    parser.add_argument("--record", action="store_true", help="record each request and text embedded; GET /local/state")
    parser.add_argument("--latency", type=_seconds, default=0.0, metavar="SECONDS", help="wait before each answer")
    parser.add_argument("--requests-per-minute", type=_positive, metavar="N", help="answer 429 beyond (default: no limit)")
    parser.add_argument("--tokens-per-minute", type=_positive, metavar="N", help="answer 429 beyond (default: no limit)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="demand the key that this file holds")
    parser.add_argument(
        "--batch-seconds", type=_batch_seconds, default=0.0, metavar="SECONDS", help="what a batch takes (default: 0)"
    )
    for name, words in _LIMITS.items():
        parser.add_argument("--batches-" + name.replace("_", "-"), dest=name, type=_positive, metavar="N", help=words)
    parser.add_argument("--misbehave", type=Path, metavar="FILE", help="what to do wrong and when, as JSON; see `misbehaviour`")
    return parser


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: where it leads is not known here


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; it must be from 0 to 65535")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 3600):
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 3600 seconds")
    return value


def _batch_seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and 0 <= value <= 30 * 86_400):
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 2592000 seconds")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _fail(code: int, message: str) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
