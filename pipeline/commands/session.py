"""Opening a command: config, lock, ledger and service put together; and closing it: lists, safe copy, the run's end.

The one place where the local service, which the pipeline does not import, is put under the SDK.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline import __version__
from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.console import Console
from pipeline.config import Config, load_config
from pipeline.config.checks import is_loopback
from pipeline.context import Context
from pipeline.errors import ConfigError, NamesakeError, UsageError
from pipeline.files import NETWORK_FILE_SYSTEMS, file_system_of, fsync_folder
from pipeline.ledger import Ledger
from pipeline.provider.service import LOCAL_URL, Service, service_of
from pipeline.retry import POLICY, Clock, RetryPolicy, SystemClock
from pipeline.rights import make_folder, share
from pipeline.stores import STORES
from pipeline.tables.duck import table_errors

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True, slots=True)
class Options:
    """What was typed, beside the command itself. `umask` is the user's own; clock and policy are there for tests."""

    config: Path
    settings: Sequence[str] = ()
    limit: int | None = None
    fields: Sequence[str] = ()
    accept_new_input: bool = False
    yes: bool = False
    umask: int = 0o022
    batches: bool = False
    clock: Clock = field(default_factory=SystemClock)
    policy: RetryPolicy = POLICY


def load(options: Options) -> tuple[Config, Service]:
    """The config and what it says of the service."""
    config = load_config(options.config, options.settings)
    names = [entry.name for entry in config.fields]
    for name in options.fields:
        if name not in names:
            raise UsageError(f"--fields: there is no field {name!r}; the config has {', '.join(names)}.")
    if config.vector_store not in (*STORES, "none"):  # asked here and not in `config`, which does not know the stores
        raise ConfigError(
            f"{config.path.name}: vector_store is {config.vector_store!r}; it must be one of: {', '.join((*STORES, 'none'))}."
        )
    if config.file_group is not None:
        share(config.file_group, config.path.name)
    return config, service_of(config)


def where_texts_go(config: Config, service: Service) -> str:
    """To the service, and to the index: either may be on another machine."""
    words = service.sentence()
    if config.vector_store != "weaviate":
        return words
    if is_loopback(urlsplit(config.weaviate_url).hostname or "") and is_loopback(config.weaviate_grpc_host or "localhost"):
        return f"{words} Index: Weaviate at {config.weaviate_url}."
    words = words.replace("; nothing leaves this machine", "")
    return f"{words} Index: Weaviate at {config.weaviate_url}; texts and vectors are sent there."


def greet(console: Console, config: Config, service: Service) -> None:
    """Where texts go, before anything else; and what was noticed about the config."""
    console.say(where_texts_go(config, service))
    for note in config.notes:
        console.say(f"Note: {note}")
    kind = file_system_of(config.checkpoint_path)
    if kind in NETWORK_FILE_SYSTEMS:
        console.say(f"Note: {config.checkpoint_path} is on a network share ({kind}), where SQLite is not safe; use a local disk.")


def transport_of(service: Service, place: Checkpoint, *, batches: bool = False) -> Callable[[], httpx2.BaseTransport] | None:
    """The local service in this process; None for a service on the network. For batches it remembers, on disk."""
    if service.base_url != LOCAL_URL:
        return None

    def mount() -> httpx2.BaseTransport:
        import time

        from pipeline.local_service import LocalTransport, State

        if not batches:
            return LocalTransport(State(), time.time)
        if not place.local_service.is_dir():
            make_folder(place.local_service)
            fsync_folder(place.root)
        return LocalTransport(State(place.local_service / "state.sqlite"), time.time)

    return mount


@contextlib.contextmanager
def changing(options: Options, console: Console, command: str, *, take_over: bool = False) -> Iterator[Context]:
    """A command that may change something: it holds the lock, and leaves lists and a safe copy behind."""
    config, service = load(options)
    greet(console, config, service)
    place = Checkpoint(config.checkpoint_path, config.data_path)
    with writing(place, command, take_over=take_over, group=config.file_group) as ledger:
        run = ledger.start_run(command, __version__, platform.node(), os.getpid(), options.clock.now())
        context = context_of(options, config, service, place, ledger, console)
        exit_code = 1
        try:
            with table_errors(place.tables):
                yield context
            exit_code = 0
        except NamesakeError as problem:
            exit_code = problem.exit_code
            raise
        finally:
            _leave(context, run, exit_code)


def context_of(options: Options, config: Config, service: Service, place: Checkpoint, ledger: Ledger, console: Console) -> Context:
    """What the stages are given."""
    return Context(
        config=config,
        place=place,
        ledger=ledger,
        clock=options.clock,
        policy=options.policy,
        service=service,
        transport=transport_of(service, place, batches=options.batches),
        progress=console,
        say=console.say,
        limit=options.limit,
        only=tuple(options.fields),
        accept_new_input=options.accept_new_input,
        agreed=options.yes,
    )


def _leave(context: Context, run: int, exit_code: int) -> None:
    """Also after Ctrl-C. When the disk is the trouble, that trouble is told, not this one's."""
    from pipeline.commands.lists import write_lists

    failing = sys.exc_info()[0] is not None
    try:
        write_lists(context)
        context.ledger.end_run(run, context.clock.now(), exit_code)
        context.ledger.save_copy(context.place.copy)
    except NamesakeError:
        if not failing:
            raise
