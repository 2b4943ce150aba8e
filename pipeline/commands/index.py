"""`--verify` and `--reindex`: the index compared with the embeddings, mended, or built anew. Neither costs anything."""

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

if TYPE_CHECKING:
    from pipeline.indexing import Index


def verify(options: Options, console: Console) -> int:
    """Tables against the ledger, the index against the tables; what the index lacks is written again."""
    with changing(options, console, "main.py --verify") as context:
        from pipeline.indexing import compare, forget_missing

        damaged = _damaged_tables(context)
        if damaged:
            console.document({"tables_damaged": damaged})
            console.answer(f"{len(damaged)} table files are not as they were written, or gone; the first: {damaged[0]}")
            console.answer(f"The index was not touched. Bring the files back into {context.place.tables} from a backup.")
            raise AlreadyToldError
        with _opened(context) as index:
            # What an interrupted run had not written yet is no fault of the index.
            written = _write_pending(index, console)
            report = compare(index)
            forget_missing(index, report)
            after = compare(index) if _write_pending(index, console) or not report.is_well else report
        document = {
            "expected": after.expected,
            "vectors_compared": after.vectors_compared,
            "missing": len(report.missing),
            "changed": len(report.changed),
            "unexpected": len(report.unexpected),
            "written": written,
            "is_well_now": after.is_well,
        }
        console.document(document)
        if written:
            console.answer(f"{strings(written)} that an earlier run had not indexed yet were written.")
        if report.is_well:
            console.answer(
                f"The index is well: {strings(report.expected)}, {report.vectors_compared:,} vectors compared, all equal."
            )
        else:
            console.answer(
                f"The index was not well: {len(report.missing):,} strings were missing, {len(report.changed):,} had another "
                f"vector, {len(report.unexpected):,} did not belong. It was mended: {strings(after.expected)}, all compared again."
            )
        if not after.is_well:
            raise AlreadyToldError
    return 0


def reindex(options: Options, console: Console) -> int:
    """Empty the index and write every stored embedding again."""
    with changing(options, console, "main.py --reindex") as context:
        from pipeline.indexing import start_over

        with _opened(context) as index:
            start_over(index)
            written = _write_pending(index, console)
        console.document({"indexed": written})
        console.answer(f"The index was built anew from stored embeddings: {strings(written)}, each confirmed. It cost nothing.")
        return 0


@contextlib.contextmanager
def _opened(context: Context) -> Iterator[Index]:
    from pipeline.indexing import open_index

    store, ledger = context.config.vector_store, context.ledger
    generation = ledger.generation(generation_of(context.service, ledger).id)
    if store == "none":
        raise UserError("vector_store is none: there is no index. Set vector_store: embedded")
    if generation is None or not generation.dimensions:
        raise UserError(f"Nothing is embedded yet for {context.service.name} {context.service.model}. First: python main.py")
    index = open_index(context.place, ledger, store, generation, context.config.memory_limit_gb)
    try:
        yield index
    finally:
        index.close()


def _write_pending(index: Index, console: Console) -> int:
    """Write what is embedded and not indexed; how many strings that was."""
    from pipeline.indexing import index_pending

    todo = sum(span_sets.count(index.pending(field)) for field in index.fields())
    with console.bar("indexing", todo) as bar:
        return index_pending(index, bar)


def _damaged_tables(context: Context) -> list[str]:
    """The files whose content is not what the ledger's sha256 says."""
    from pipeline.files import sha256_of

    files = [(context.place.tables / file.name, file.sha256) for file in context.ledger.files()]
    return [path.name for path, expected in files if not path.is_file() or sha256_of(path) != expected]
