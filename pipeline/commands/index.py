"""`--verify`, `--reindex` and `--prune`: the index compared with what belongs in it, mended, built anew, or thinned out.

None of them costs anything: everything comes from stored embeddings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline import spans as span_sets
from pipeline.commands.console import Console, strings
from pipeline.commands.session import Options, changing
from pipeline.context import Context
from pipeline.errors import AlreadyToldError, UserError
from pipeline.provider.service import generation_of
from pipeline.spans import Spans

if TYPE_CHECKING:
    from pipeline.indexing import Index, IndexReport
    from pipeline.verifying import Comparison


def verify(options: Options, console: Console) -> int:
    """Tables against the ledger, the index against the tables; what the index lacks is written again."""
    with changing(options, console, "main.py --verify") as context:
        from pipeline.verifying import mend

        damaged = _damaged_tables(context)
        if damaged:
            console.document({"tables_damaged": damaged})
            console.answer(f"{len(damaged)} table files are not as they were written, or gone; the first: {damaged[0]}")
            console.answer(f"The index was not touched. Bring the files back into {context.place.tables} from a backup.")
            raise AlreadyToldError
        with _opened(context) as index:
            # What an interrupted run had not written yet is no fault of the index.
            written = _write_pending(index, console).written
            report, after = mend(index, context.config.verify_vectors, lambda: _write_pending(index, console))
            if after.is_well and index.ledger.is_current(index.generation.id) and after.there:
                index.store.publish()
        _tell(console, written, report, after)
        if not after.is_well or not after.is_searchable:
            raise AlreadyToldError
    return 0


def _tell(console: Console, written: int, report: Comparison, after: Comparison) -> None:
    """What was found at first, and how it is now."""
    missing, changed = (_count(found) for found in (report.missing, report.changed))
    console.document({
        "expected": after.expected, "vectors_compared": after.compared, "missing": missing, "changed": changed,
        "unexpected": report.unexpected, "refused": after.refused, "written": written, "is_well_now": after.is_well,
        "searched": after.searched, "found": after.found, "not_searchable_yet": after.unsearchable,
    })  # fmt: skip
    if written:
        console.answer(f"{strings(written)} that an earlier run had not indexed yet were written.")
    if report.is_well:
        console.answer(f"The index is well: {strings(report.expected)}, {report.compared:,} vectors compared, all equal.")
    else:
        state = "It was mended" if after.is_well else "It could not be mended whole"
        console.answer(
            f"The index was not well: {missing:,} missing, {changed:,} other than stored, {report.unexpected:,} that did not "
            f"belong. {state}: {strings(after.expected)}, compared again."
        )
    if after.refused:
        console.answer(f"{strings(after.refused)} the index refuses; to try them again: python main.py --retry-failed")
    if after.unsearchable:
        console.answer(
            f"{strings(after.unsearchable)} are stored, and the server has yet to make them searchable: look again later."
        )
    elif after.searched:
        console.answer(f"A search by its own vector finds {after.found:,} of {strings(after.searched)}.")
    if not after.is_searchable:
        console.answer("That is too few: the server's index is not sound. To build it anew, at no cost: python main.py --reindex")


def _count(found: dict[str, Spans]) -> int:
    return sum(span_sets.count(spans) for spans in found.values())


def reindex(options: Options, console: Console) -> int:
    """Empty the index and write every stored embedding again."""
    with changing(options, console, "main.py --reindex") as context:
        from pipeline.indexing import start_over

        with _opened(context) as index:
            start_over(index)
            done = _write_pending(index, console)
            if index.ledger.is_current(index.generation.id) and done.written:
                index.store.publish()
        console.document({"indexed": done.written, "refused": done.refused})
        console.answer(
            f"The index was built anew from stored embeddings: {strings(done.written)}, each confirmed. It cost nothing."
        )
        _tell_refused(context, console, done)
        return 0


def prune(options: Options, console: Console) -> int:
    """What left the catalogue leaves the index; its embeddings stay, so that it may come back at no cost."""
    with changing(options, console, "main.py --prune") as context:
        from pipeline import belonging

        if context.ledger.snapshot("full") is None:
            if context.ledger.snapshot("trial") is None:
                raise UserError("Nothing is preprocessed yet. First: python main.py")
            raise UserError("Only a trial was read (--limit), so what left the catalogue is not known. First: python main.py")
        with _opened(context) as index:
            gone = _count(belonging.prune(context.ledger, index.generation))
            done = _write_pending(index, console)
            left = index.confirmed()
        console.document({"pruned": gone, "removed": done.removed, "indexed": done.written, "in_index": left})
        console.answer(
            f"{strings(done.removed)} that left the catalogue are out of the index, which holds {strings(left)} now. Their "
            "embeddings stay: what comes back is indexed again at no cost."
            if done.removed
            else "Nothing in the index has left the catalogue."
        )
        _tell_refused(context, console, done)
        return 0


def _tell_refused(context: Context, console: Console, done: IndexReport) -> None:
    if done.refused:
        console.answer(f"{strings(done.refused)} were refused; each is listed with its reason in {context.place.failures}")
        raise AlreadyToldError


@contextlib.contextmanager
def _opened(context: Context) -> Iterator[Index]:
    from pipeline.indexing import open_index

    store, ledger = context.config.vector_store, context.ledger
    generation = ledger.generation(generation_of(context.service, ledger).id)
    if store == "none":
        raise UserError("vector_store is none: there is no index. Set vector_store: embedded")
    if generation is None or not generation.dimensions:
        raise UserError(f"Nothing is embedded yet for {context.service.name} {context.service.model}. First: python main.py")
    index = open_index(context.place, ledger, context.config, generation, context.clock, context.policy)
    try:
        yield index
    finally:
        index.close()


def _write_pending(index: Index, console: Console) -> IndexReport:
    """Make the index hold what belongs in it."""
    from pipeline.indexing import index_pending

    with console.bar("indexing", index.todo()) as bar:
        return index_pending(index, bar)


def _damaged_tables(context: Context) -> list[str]:
    """The files whose content is not what the ledger's sha256 says."""
    from pipeline.files import sha256_of

    files = [(context.place.tables / file.name, file.sha256) for file in context.ledger.files()]
    return [path.name for path, expected in files if not path.is_file() or sha256_of(path) != expected]
