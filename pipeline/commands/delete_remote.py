"""`--delete-remote`: all files of ours at the service go, those of jobs that are not over excepted; a receipt for each is kept."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace

from pipeline.commands.console import Console
from pipeline.commands.session import Options, changing, load
from pipeline.errors import AlreadyToldError, UsageError
from pipeline.provider.service import need_key

_SHOWN = 20


def delete_remote(options: Options, console: Console) -> int:
    """List, say, and with --yes delete."""
    config, service = load(options)
    need_key(service, config)
    with changing(replace(options, batches=True), console, "main.py --delete-remote") as context:
        if context.ledger.jobs.next_number() == 1:  # real time leaves no file there
            console.document({"answers": {}, "refused": {}, "stays": []})
            console.answer("This catalogue never had a job: there is no file of it at the service.")
            return 0
        from pipeline.batch.remote_files import delete_all, take_stock
        from pipeline.provider.batch_client import GONE, BatchClient
        from pipeline.provider.client import EmbeddingClient

        with closing(EmbeddingClient(service, context.clock, context.transport() if context.transport else None)) as opened:
            client = BatchClient(opened, context.clock, context.policy)
            found = take_stock(context, client)
            if found.files and not options.yes:
                jobs = len({file.job for file in found.files})
                named = ", ".join(file.id for file in found.files[:_SHOWN]) + (", …" if len(found.files) > _SHOWN else "")
                raise UsageError(
                    f"This would delete {len(found.files)} files of {jobs} jobs at {service.name}: {named}. What they hold is "
                    "collected. Nothing was deleted; to do it: --delete-remote --yes"
                )
            with context.progress.bar("deleting", len(found.files)) as bar:
                done = delete_all(context, client, found.files, bar)
        console.document(asdict(done) | {"stays": found.stays})
        gone = sum(answer.startswith(GONE) for answer in done.answers.values())
        console.answer(
            f"{len(done.answers) - gone} of our files at {service.name} deleted, {gone} were gone already; "
            f"{len(context.ledger.runs.receipts())} receipts in all: python main.py --audit PATH"
        )
        for words in found.stays:
            console.answer(f"Stays: {words}")
        for file, reason in done.refused.items():
            console.complain(f"Not deleted: {file}: {reason}")
        if done.refused:
            raise AlreadyToldError
    return 0
