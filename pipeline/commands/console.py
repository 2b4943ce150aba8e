"""What a person sees: plain words on standard output, bars on a terminal, one JSON document when asked for.

With `--json` standard output holds that document and nothing else. Without a terminal a bar becomes a sparse log line.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.amounts import dollars, size
from pipeline.log import event, logger, without_secrets
from pipeline.progress import Bar

__all__ = ["Console", "dollars", "shown", "size", "strings"]
_COMMAND = re.compile(r"\bpython (main|batch_manager)\.py(?! --(config|init))")
_LINE_EVERY = 30.0  # seconds between two log lines of one step
_log = logger(__name__)


class Console:
    """Where words go."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, config: Path | None = None) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._config = config
        self._has_answered = False

    def ready(self, words: str) -> str:
        """Words as they are shown: without secrets, and each command to type with the config that this one was given."""
        if self._config is not None:
            words = _COMMAND.sub(self._with_config, words)
        return without_secrets(words)

    def _with_config(self, found: re.Match[str]) -> str:
        return f"{found[0]} --config {shlex.quote(str(self._config))}"

    def say(self, words: str = "") -> None:
        """A line for a person."""
        if not self.as_json and not self.quiet:
            print(self.ready(words), flush=True)

    def answer(self, words: str = "") -> None:
        """What was asked for: shown even with --quiet."""
        if not self.as_json:
            print(self.ready(words), flush=True)

    def document(self, content: dict[str, Any]) -> None:
        """The answer for a program."""
        if self.as_json and not self._has_answered:  # one document, also when closing down fails after it
            self._has_answered = True
            print(without_secrets(json.dumps(content, ensure_ascii=False, indent=2)), flush=True)

    def complain(self, words: str) -> None:
        """Something that went wrong, said by a command that has its own document."""
        print(self.ready(words), file=sys.stderr, flush=True)

    def error(self, words: str, exit_code: int) -> None:
        """Why a command failed; to standard error, and as the document too."""
        print(self.ready(words), file=sys.stderr, flush=True)
        self.document({"error": self.ready(words), "exit_code": exit_code})

    @contextmanager
    def bar(self, words: str, total: int) -> Iterator[Bar]:
        """A bar on a terminal, log lines elsewhere."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield _Lines(words, total)
            return
        from tqdm import tqdm

        with tqdm(desc=f"  {words}", total=total, unit=" strings", unit_scale=True, leave=False, file=sys.stderr) as drawn:
            yield _Drawn(drawn)


class _Drawn:
    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn

    def advance(self, count: int) -> None:
        self._drawn.update(count)


class _Lines:
    """Says how far a step is, at most once in a while, and nothing at all about quick steps."""

    def __init__(self, words: str, total: int) -> None:
        self._words = words
        self._total = total
        self._done = 0
        self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said >= _LINE_EVERY:
            self._said = time.monotonic()
            event(_log, "progress", step=self._words, done=self._done, total=self._total)


def shown(text: str, most: int = 76) -> str:
    """A text on one line, cut where it gets long."""
    line = " / ".join(part for part in text.splitlines() if part) or "(empty)"
    return line if len(line) <= most else line[: most - 1] + "…"


def moment(at: float) -> str:
    """A time as one reads it, by the clock on the wall here."""
    return dt.datetime.fromtimestamp(at, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def strings(count: int) -> str:
    """How many strings, in words."""
    return f"{count:,} string" if count == 1 else f"{count:,} strings"
