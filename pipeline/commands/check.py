"""`--check`: whether a run could work here, before one is tried: folder, disk, clock, lock, service, key.

It embeds nothing. The right to embed is asked with an empty text, which a service refuses by its rules and at no cost.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pipeline.checkpoint import Checkpoint, reading
from pipeline.commands.console import Console, size
from pipeline.commands.session import Options, load, transport_of, where_texts_go
from pipeline.config import Config
from pipeline.errors import NamesakeError
from pipeline.files import NETWORK_FILE_SYSTEMS, file_system_of, free_bytes
from pipeline.locking import lock_holder
from pipeline.provider.service import LOCAL_URL, Service, generation_of, need_key

_LITTLE = 1 << 30
_SKEW = 300.0  # seconds between our clock and the service's; more, and deadlines and logs mislead


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `verdict` is ok, warning or failed."""

    name: str
    verdict: str
    words: str


def check(options: Options, console: Console) -> int:
    """Look at everything, even when something early fails."""
    config, service = load(options)
    findings = [
        *_config(config, service),
        *_folder(config),
        *_input(config),
        *_service(options, config, service),
        *_index(config, service),
        *_telling(config),
    ]
    console.document({"findings": [asdict(finding) for finding in findings]})
    for finding in findings:
        console.answer(f"  {finding.verdict:<8} {finding.name:<14} {finding.words}")
    failed = sum(finding.verdict == "failed" for finding in findings)
    console.answer(f"{failed} of {len(findings)} checks failed." if failed else "All is well: python main.py")
    return 1 if failed else 0


def _config(config: Config, service: Service) -> Iterator[Finding]:
    yield Finding("config", "ok", f"{config.path}; {where_texts_go(config, service)}")
    for note in config.notes:
        yield Finding("config", "warning", note)


def _folder(config: Config) -> Iterator[Finding]:
    place = Checkpoint(config.checkpoint_path, config.data_path)
    root = place.root
    there = root
    while not there.exists():
        there = there.parent
    if root.is_symlink() or not there.is_dir():
        yield Finding("folder", "failed", f"{root} is {'a symbolic link' if root.is_symlink() else f'not possible below {there}'}")
        return
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding("folder", "failed", f"{there} can't be written")
    elif root.exists() and stat.S_IMODE(root.stat().st_mode) & (0o077 if config.file_group is None else 0o007):
        yield Finding("folder", "warning", f"{root} can be read by others; chmod 700 keeps texts to yourself")
    else:
        yield Finding("folder", "ok", f"{root} {'is there and' if root.exists() else 'can be made and'} can be written")
    kind = file_system_of(root)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding("file system", "failed", f"{kind} is a network share: SQLite's log is not safe there; use a local disk")
    else:
        yield Finding("file system", "ok", kind)
    data = place.data
    if data != root and data.exists() and not os.access(data, os.W_OK | os.X_OK):
        yield Finding("data folder", "failed", f"{data} can't be written")
    elif data != root:
        yield Finding(
            "data folder", "ok", f"{data} {'is there' if data.exists() else 'will be made; a disk for it is mounted, is it?'}"
        )
    free = free_bytes(data)
    yield Finding("disk", "warning" if free < _LITTLE else "ok", f"{size(free)} free; --dry-run says what a run needs")
    yield from _state(place)


def _state(place: Checkpoint) -> Iterator[Finding]:
    holder = lock_holder(place.lock)
    if holder is None:
        yield Finding("lock", "ok", "free")
    else:
        yield Finding("lock", "warning", f"process {holder.pid} on {holder.host} is at work ({holder.command}): wait for it")
    try:
        with reading(place) as ledger:
            yield Finding("ledger", "ok", "there, and of this version" if ledger else "none yet; the first run makes it")
    except NamesakeError as problem:
        yield Finding("ledger", "failed", str(problem))


def _input(config: Config) -> Iterator[Finding]:
    from pipeline.reading import find_sources

    try:
        sources = find_sources(config.folder, config.input)
    except NamesakeError as problem:
        yield Finding("input", "failed", str(problem))
        return
    total = sum(source.path.stat().st_size for source in sources)
    first = sources[0].name + (f" and {len(sources) - 1:,} more" if len(sources) > 1 else "")
    yield Finding("input", "ok", f"{first}, {size(total)}")


def _service(options: Options, config: Config, service: Service) -> Iterator[Finding]:
    from pipeline.provider.client import Answered, EmbeddingClient, Refused

    try:
        need_key(service, config)
    except NamesakeError as problem:
        yield Finding("key", "failed", str(problem))
        return
    mount = transport_of(service, Checkpoint(config.checkpoint_path, config.data_path))
    client = EmbeddingClient(service, options.clock, mount() if mount else None)
    try:
        trouble = client.look()
        yield Finding("service", "failed" if trouble else "ok", trouble or f"{service.name} answers, and knows {service.model}")
        if trouble:
            return
        outcome = client.ask([""])
        may = isinstance(outcome, Answered | Refused)
        yield Finding("embeddings", "ok" if may else "failed", "may be asked for" if may else getattr(outcome, "reason", ""))
        if service.base_url != LOCAL_URL:
            yield _clock(options.clock.now(), client.date_seen)
    finally:
        client.close()


def _index(config: Config, service: Service) -> Iterator[Finding]:
    """A server is tried out; the embedded index is files in the folder, which was looked at."""
    if config.vector_store in ("none", "embedded"):
        return
    from pipeline.stores import STORES, Wanted

    place = Checkpoint(config.checkpoint_path, config.data_path)
    try:
        with reading(place) as ledger:
            generation = generation_of(service, ledger)
            catalogue = (ledger.meta("catalogue_id") if ledger else None) or ""
        store = STORES[config.vector_store](Wanted(config, place.store, catalogue, generation))
        try:
            for words in store.try_out():
                yield Finding("index", "ok", words)
        finally:
            store.close()
    except NamesakeError as problem:
        yield Finding("index", "failed", str(problem))


def _telling(config: Config) -> Iterator[Finding]:
    """Whether the program is there; it is not run, and `ping_url` is not asked for: both would tell what is not so."""
    if config.notify_command is None:
        return
    name = config.notify_command[0]
    found = shutil.which(name if os.sep not in name else config.folder.absolute() / name)
    words = f"{name} is there and may be run" if found else f"{name}: there is no such program, or it may not be run"
    yield Finding("notify_command", "ok" if found else "failed", words)


def _clock(now: float, said: str | None) -> Finding:
    try:
        there = email.utils.parsedate_to_datetime(said or "").timestamp()
    except ValueError:
        return Finding("clock", "warning", "the service did not say what time it is")
    skew = now - there
    when = dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Finding("clock", "warning" if abs(skew) > _SKEW else "ok", f"{when}; {abs(skew):.0f} s off the service's")
