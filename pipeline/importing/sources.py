"""What a source is: a folder with pairs of request and result files, a table file, or a collection. No line is read here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, UsageError

KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_NAMED = re.compile(r"batch_(?P<kind>requests|results)_(?P<rest>.+)\.jsonl")
_SHOWN = 5
_COLLECTION = "weaviate:"


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table are called; without `field` its texts may stand in any field."""

    text: str = "text"
    field: str | None = "field"
    vector: str = "vector"

    def wanted(self) -> tuple[str, ...]:
        return (self.text, self.vector) if self.field is None else (self.text, self.vector, self.field)


@dataclass(frozen=True, slots=True)
class Pair:
    """What was asked, and what was answered; joined by custom_id."""

    requests: Path
    results: Path


@dataclass(frozen=True, slots=True)
class Source:
    """Pairs, or a table of a kind (`weaviate`: the collection named behind the colon); `alone` names files of requests or
    results without their partner."""

    path: Path
    pairs: tuple[Pair, ...] = ()
    kind: str = ""
    alone: tuple[str, ...] = ()

    @property
    def collection(self) -> str:
        return str(self.path).removeprefix(_COLLECTION)

    def files(self) -> list[Path]:
        """Every file that is read, as they are numbered: of pair k the requests are 2k and the results 2k + 1."""
        return [file for pair in self.pairs for file in (pair.requests, pair.results)] or [self.path]


def find_source(path: Path) -> Source:
    """The source under a path; InputError when there is none."""
    if str(path).startswith(_COLLECTION):
        return Source(path, kind="weaviate")
    path = path.expanduser()
    if path.is_dir():
        return _pairs_of(path)
    if not path.is_file():
        raise InputError(f"--import-embeddings: there is no file or folder {str(path)!r} (looked for at {path.absolute()}).")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: the ending says no format that is read here. Give a folder with batch_requests_*.jsonl and "
            f"batch_results_*.jsonl, a table ({' '.join(KINDS)}), or weaviate:COLLECTION."
        )
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty (0 bytes).")
    return Source(path, kind=kind)


def _pairs_of(folder: Path) -> Source:
    found: dict[str, dict[str, Path]] = {"requests": {}, "results": {}}
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        match = _NAMED.fullmatch(path.name)
        if match and path.is_file():
            found[match["kind"]][match["rest"]] = path
        else:
            others.append(path.name)
    requests, results = found["requests"], found["results"]
    pairs = tuple(Pair(requests[rest], results[rest]) for rest in requests if rest in results)
    alone = [path.name for kind in (requests, results) for rest, path in kind.items() if not (rest in requests and rest in results)]
    if not pairs:
        holds = ", ".join((alone or others)[:_SHOWN]) or "nothing"
        raise InputError(
            f"{folder}: there is no pair of batch_requests_NAME.jsonl and batch_results_NAME.jsonl with the same NAME in it; it "
            f"holds {holds}{' …' if len(alone or others) > _SHOWN else ''}. The requests hold the texts, so both are needed. To "
            "import a table, give the file itself."
        )
    return Source(folder, pairs=pairs, alone=tuple(alone))


def parse_columns(words: str | None, told_field: str | None) -> Columns:
    """`text=original_string,field=kind,vector=embedding`; what is not named keeps its name. With --field none is read."""
    named: dict[str, str] = {}
    for part in words.split(",") if words else ():
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if ours not in ("text", "field", "vector") or not equals or not theirs:
            raise UsageError(f"--columns: {part.strip()!r} is none of text=NAME, field=NAME, vector=NAME, separated by commas.")
        named[ours] = theirs
    if told_field is not None and "field" in named:
        raise UsageError("--columns names a column of fields and --field one field for all; give one of them.")
    field = None if told_field is not None else named.get("field", "field")
    return Columns(named.get("text", "text"), field, named.get("vector", "vector"))


def missing_column(path: Path | str, column: str, known: Sequence[str]) -> InputError:
    """The sentence for a column that is not there."""
    near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = f"{', '.join(map(repr, known[:20]))}{' …' if len(known) > 20 else ''}"
    return InputError(
        f"{path}: there is no column {column!r}.{hint} It has: {names}. "
        "Say what they are called: --columns text=NAME,field=NAME,vector=NAME; or, for a table of one field: --field NAME"
    )
