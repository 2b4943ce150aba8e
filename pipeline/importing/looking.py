"""Looking through a source: what of it this catalogue can use, before anything is paid for or written.

Against the strings of the catalogue as last read: those that have a vector already, that are in a job, or that are never
embedded are left alone. A text that stands twice counts once, the first; when its vectors are far apart, one of them is of
another text, and none is taken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import spans as span_sets
from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.files import disk_errors, need_room
from pipeline.importing.findings import Findings
from pipeline.importing.lines import Read, Vectors, learn_dimensions, pieces_of, read_piece
from pipeline.importing.rows import learn_table_dimensions, read_table
from pipeline.importing.sources import Columns, Source
from pipeline.indexing import string_files
from pipeline.ledger import Generation
from pipeline.processes import spread
from pipeline.provider.service import MOST_INPUT_TOKENS
from pipeline.provider.tokens import count_tokens
from pipeline.tables.strings import texts_of

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

SAME = 0.99  # cosine of two vectors of one text; a service does not give the same to the bit each time
_WORTH_PROCESSES = 24 << 20  # bytes of lines; fewer are read sooner than a process begins


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be imported: `told` is the field of texts whose source tells none."""

    source: Source
    columns: Columns
    told: str | None


@dataclass(slots=True)
class Report:
    """What a source holds, seen from this catalogue. `vectors` are the usable ones with a text, `to_import` strings."""

    dimensions: int
    vectors: int = 0
    matched: int = 0
    known: int = 0
    in_jobs: int = 0
    never_embedded: int = 0
    repeated: int = 0
    differing: int = 0
    unmatched: int = 0
    unanswered: int = 0
    rejected: int = 0
    not_unit: int = 0
    to_import: int = 0
    unmatched_texts: list[str] = field(default_factory=list)
    other_fields: list[str] = field(default_factory=list)
    reasons: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Looked:
    """A source that was looked through. `sampled` are the strings that an earlier, unfinished import has embedded as proof:
    (field, row, where the source's vector lies)."""

    order: Order
    generation: Generation
    findings: Findings
    vectors: Vectors
    report: Report
    sampled: list[tuple[str, int, int]]


def sample_key(generation: Generation) -> str:
    """The name under which the ledger remembers the sample of an import that is not finished."""
    return f"import_sample_{generation.id}"


def look_through(
    context: Context, duck: duckdb.DuckDBPyConnection, order: Order, generation: Generation, keep: Path | None
) -> Looked:
    """Read all of it; vectors are kept in a folder, or not at all. InputError when nothing in it can be used."""
    dimensions = generation.dimensions or _learn(context, order)
    findings, vectors = Findings(duck), Vectors(dimensions, keep)
    report = Report(dimensions)
    lengths: Counter[int] = Counter()
    for read in _read(context, order, generation, vectors, findings):
        lengths.update(read.lengths)
        report.not_unit += read.not_unit
    if order.source.pairs:
        report.unanswered = findings.join()
    report.vectors = findings.count("found")
    if not report.vectors:
        raise _useless(order, generation, dimensions, lengths, findings)
    findings.refuse_blank()
    sampled = _match(context, order, generation, findings, report)
    if keep is None:
        report.differing = findings.count("candidate WHERE differs")
    else:
        words = "the vectors of its text differ (cosine {:.3f}): one of them is of another text"
        findings.reject([(name, row, words.format(cosine)) for name, row, cosine in _far_apart(findings, vectors)])
    report.to_import = findings.count("candidate")
    report.rejected = findings.count("rejected")
    report.reasons = findings.reasons()
    return Looked(order, generation, findings, vectors, report, sampled)


def _has_lines(source: Source) -> bool:
    """Whether it is read line by line, on every core; other tables by their own readers."""
    return bool(source.pairs) or source.kind == "jsonl"


def _learn(context: Context, order: Order) -> int:
    if _has_lines(order.source):
        return learn_dimensions(order.source, order.columns)
    return learn_table_dimensions(context.config, order.source, order.columns)


def _read(context: Context, order: Order, generation: Generation, vectors: Vectors, findings: Findings) -> Iterator[Read]:
    """Every piece of the source, entered into the findings. The disk must have room for what was kept once more: as tables."""
    kept = 0
    with disk_errors(vectors.scratch or context.place.root), context.progress.bar("reading vectors", 0) as bar:
        for read, file, kind, before in _pieces(context, order, generation, vectors):
            findings.add(read, file, kind, before)
            if kind != "requests":
                kept += len(read.found) * vectors.dimensions * 4
                bar.advance(len(read.found))
            if vectors.scratch is not None:
                need_room(vectors.scratch, kept)
            yield read


def _pieces(context: Context, order: Order, generation: Generation, vectors: Vectors) -> Iterator[tuple[Read, int, str, int]]:
    """What each piece gave, the number of its file, what it holds, and how many lines of the file stand before it."""
    source = order.source
    if not _has_lines(source):
        for read in read_table(context.config, source, order.columns, vectors):
            yield read, 0, "rows", 0
        return
    size = sum(path.stat().st_size for path in source.files())
    pieces = list(pieces_of(source, generation.model, order.columns, vectors))
    lines: Counter[int] = Counter()
    with spread(read_piece, is_worth_it=size >= _WORTH_PROCESSES) as read_all:
        for piece, read in zip(pieces, read_all(pieces), strict=True):
            kind = "rows" if not source.pairs else "results" if piece.file % 2 else "requests"
            yield read, piece.file, kind, lines[piece.file]
            lines[piece.file] += read.lines


def _useless(order: Order, generation: Generation, dimensions: int, lengths: Counter[int], findings: Findings) -> InputError:
    """Why not one vector can be used."""
    source, model = order.source.path, f"{generation.service} {generation.model}"
    if lengths and dimensions:
        length, count = lengths.most_common(1)[0]
        return InputError(
            f"{source}: its vectors have {length:,} numbers ({count:,} of them), and those of {model} have {dimensions:,}. They "
            "are of another model, or of other embedding_dimensions. Nothing was imported."
        )
    why = "; ".join(f"{reason} ({count:,} lines)" for reason, count in findings.reasons()[:3]) or "it holds no lines"
    hint = "" if order.source.pairs else " Its columns by name: --columns text=NAME,field=NAME,vector=NAME"
    return InputError(f"{source}: no vector in it can be used: {why}. Nothing was imported.{hint}")


def _match(
    context: Context, order: Order, generation: Generation, findings: Findings, report: Report
) -> list[tuple[str, int, int]]:
    """Find the strings of the texts, and leave out those that need no vector; what an earlier sample holds is given back."""
    ledger = context.ledger
    files = {name: string_files(context.place, ledger, name) for name in context.fields}
    for name in context.fields:
        findings.match(name, files[name], ledger.spans("present", "full", name), order.told)
    report.matched, report.repeated = findings.choose()
    report.unmatched, report.unmatched_texts = findings.unmatched()
    report.other_fields = findings.other_fields(context.fields)
    remembered = json.loads(ledger.meta(sample_key(generation)) or "{}")
    sampled: list[tuple[str, int, int]] = []
    for name in context.fields:
        embedded = ledger.spans("embedded", generation.id, name)
        sample = span_sets.intersect(embedded, [tuple(span) for span in remembered.get(name, [])])
        sampled += findings.these(name, sample) if sample else []
        report.known += findings.leave_out(name, embedded)
        report.in_jobs += findings.leave_out(name, span_sets.union(ledger.jobs.rows_in_jobs(generation.id, name)))
        refused = [failure.row for failure in ledger.failures(generation.id, name) if failure.stage == "preflight"]
        report.never_embedded += findings.leave_out(name, span_sets.of_rows(refused))
        if context.service.is_exact and files[name]:
            _refuse_too_long(findings, name, files[name])
    return sampled


def _refuse_too_long(findings: Findings, name: str, files: list[Path]) -> None:
    """A vector of a text that the model can't take whole is one of its beginning. A token has a byte at least."""
    found = findings.long_texts(name, files, MOST_INPUT_TOKENS)
    counts = zip(found, count_tokens([text for _, text in found]), strict=True)
    words = f"{{:,}} tokens; the model takes {MOST_INPUT_TOKENS:,}"
    findings.reject([(name, row, words.format(tokens)) for (row, _), tokens in counts if tokens > MOST_INPUT_TOKENS])


def _far_apart(findings: Findings, vectors: Vectors) -> Iterator[tuple[str, int, float]]:
    """(field, row, cosine) of the candidates one of whose vectors is far from the first."""
    of, first = ("", -1), np.empty(0, np.float32)
    told = of
    for chunk in findings.differing():
        matrix = unit(vectors.read(at for _, _, at in chunk))
        for (name, row, _), vector in zip(chunk, matrix, strict=True):
            if (name, row) != of:
                of, first = (name, row), vector.copy()
            elif told != of and (cosine := float(first @ vector)) < SAME:
                told = of
                yield name, row, cosine


def unit(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """The vectors at unit length."""
    exact = matrix.astype(np.float64)
    lengths: NDArray[np.float64] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return lengths


def texts_of_sample(
    context: Context, duck: duckdb.DuckDBPyConnection, sample: list[tuple[str, int, int]]
) -> dict[tuple[str, int], str]:
    """(field, row) → text."""
    found: dict[tuple[str, int], str] = {}
    for name in {name for name, _, _ in sample}:
        rows = [row for of, row, _ in sample if of == name]
        texts = texts_of(duck, string_files(context.place, context.ledger, name), rows)
        found.update({(name, row): text for row, text in texts.items()})
    return found
