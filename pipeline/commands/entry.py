"""What both entry points share: flags of every command, and the one place where errors become sentences."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pipeline.commands.console import Console
    from pipeline.commands.session import Options

HOME = Path(__file__).resolve().parent.parent.parent
INTERRUPTED = 130
_SECRET = re.compile(r"(\w*(?:api_?key|password|secret)\w*\s*=).+", re.IGNORECASE | re.DOTALL)
_LOGIN = re.compile(r"//.*@")
Call = Callable[[argparse.Namespace, "Console", int], int]


class Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said, as a document too."""

    def error(self, message: str) -> NoReturn:
        from pipeline.errors import UsageError

        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0] if message.startswith("unrecognized") else ""
        flags = [flag for action in self._actions for flag in action.option_strings]
        if near := difflib.get_close_matches(unknown, flags, n=1):
            raise UsageError(f"There is no {unknown}. Did you mean {near[0]}? All there is: python {self.prog} --help")
        raise UsageError(f"{message[:1].upper()}{message[1:]}. All there is: python {self.prog} --help")


def flags_of_all(made: argparse.ArgumentParser) -> None:
    """The flags that go with every command."""
    always = made.add_argument_group("with every command")
    always.add_argument(
        "--config", metavar="FILE", type=Path, default=HOME / "config.yml", help="the config (config.yml beside main.py)"
    )
    always.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="a config key for this command only"
    )
    always.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    always.add_argument("--quiet", action="store_true", help="only what was asked for, and errors")
    always.add_argument("--debug", action="store_true", help="log everything, and show tracebacks")
    always.add_argument("--yes", action="store_true", help="do what needs a yes")
    always.add_argument("--version", action="store_true", help="the version")


def run(made: argparse.ArgumentParser, arguments: Sequence[str] | None, call: Call) -> int:
    """Parse, call, and turn what happens into an exit code."""
    if sys.platform == "win32":
        print("Namesake runs on Linux and macOS; on Windows use it inside WSL.", file=sys.stderr)
        return 2
    from pipeline import log, rights
    from pipeline.commands.console import Console
    from pipeline.errors import AlreadyToldError, NamesakeError, UsageError

    given = sys.argv[1:] if arguments is None else arguments
    try:
        typed = made.parse_args(given)
    except UsageError as problem:
        Console(as_json="--json" in given).error(str(problem), problem.exit_code)
        return problem.exit_code
    typed.line = line_of(made.prog, given)
    if typed.version:
        from pipeline import __version__

        Console(as_json=typed.json).document({"version": __version__})
        Console(as_json=typed.json).answer(__version__)
        return 0
    config = None if typed.config == HOME / "config.yml" else typed.config
    console = Console(as_json=typed.json, quiet=typed.quiet, config=config)
    umask = rights.keep_private()  # and `file_group` may open it; exports get the user's own rights back
    signal.signal(signal.SIGTERM, _terminated)
    log.configure("debug" if typed.debug else "warning")
    log.hide_everywhere(os.environ)
    try:
        return call(typed, console, umask)
    except AlreadyToldError as told:
        return told.exit_code
    except NamesakeError as problem:
        if typed.debug:
            print(log.without_secrets(traceback.format_exc()), file=sys.stderr)
        console.error(str(problem), problem.exit_code)
        return problem.exit_code
    except KeyboardInterrupt:
        console.error("Interrupted. What was answered is kept; run the same command again to go on.", INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        if typed.debug:
            print(log.without_secrets(traceback.format_exc()), file=sys.stderr)
        console.error(f"{problem.filename or 'A file'}: {problem.strerror or problem}. What was saved before stays valid.", 1)
        return 1
    finally:
        os.umask(umask)


def line_of(program: str, given: Sequence[str]) -> str:
    """A command line as the log of runs keeps it: without the value of a key, without the name and password in an address, and
    without the text of a search, which is nobody's business later."""
    words = [_SECRET.sub(r"\1[hidden]", _LOGIN.sub("//[hidden]@", word)) for word in given]
    for place, word in enumerate(words):
        if word.startswith("--search="):
            words[place] = "--search=[a text]"
        elif place and words[place - 1] == "--search":
            words[place] = "[a text]"
    return shlex.join((program, *words))


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a run as Ctrl-C does: what is on the wire is waited for and kept."""
    raise KeyboardInterrupt


def options_of(typed: argparse.Namespace, umask: int, **more: object) -> Options:
    """The options that both entry points have."""
    from pipeline.commands.session import Options

    return Options(config=typed.config, settings=typed.settings, yes=typed.yes, umask=umask, line=typed.line, **more)  # type: ignore[arg-type]


def set_log_level(typed: argparse.Namespace, options: Options) -> None:
    """A person at a terminal sees bars and warnings; elsewhere the level of the config holds."""
    from pipeline import log
    from pipeline.config import load_config

    if typed.debug:
        return
    level = load_config(options.config, options.settings).log_level
    log.configure("warning" if level == "info" and (sys.stderr.isatty() or typed.quiet) else level)
