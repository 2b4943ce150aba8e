"""Work spread over all cores, in processes: the same results, in the same order, as one after the other in this one.

Processes are started afresh, not forked: a fork beside DuckDB's threads may never wake up. They are worth their start
only for seconds of work, which the caller knows. Ctrl-C is for the parent to answer; when the parent is gone, however
it went, they end.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, TypeVar

from pipeline.log import event, logger

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
_log = logger(__name__)
_AHEAD = 2  # chunks under way for each process: one is worked on, one waits


@contextlib.contextmanager
def spread(
    function: Callable[[Chunk], Result], *, is_worth_it: bool, cores: int | None = None
) -> Iterator[Callable[[Iterable[Chunk]], Iterator[Result]]]:
    """Something like `map` for this function. What it needs ahead of the results is bounded."""
    cores = cores or os.cpu_count() or 1
    if not is_worth_it or cores < 2:
        yield lambda chunks: map(function, chunks)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), _begin)
    try:
        yield lambda chunks: _in_order(pool, function, iter(chunks), cores * _AHEAD)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, function: Callable[[Chunk], Result], chunks: Iterator[Chunk], most: int
) -> Iterator[Result]:
    """The first chunks are under way before the first result is asked for: the caller may do something else meanwhile."""
    under_way = deque((chunk, _submitted(pool, function, chunk)) for chunk in itertools.islice(chunks, most))

    def results() -> Iterator[Result]:
        for chunk in chunks:
            under_way.append((chunk, _submitted(pool, function, chunk)))
            yield _result(function, *under_way.popleft())
        while under_way:
            yield _result(function, *under_way.popleft())

    return results()


def _submitted(pool: ProcessPoolExecutor, function: Callable[[Chunk], Result], chunk: Chunk) -> Future[Result] | None:
    """None once a process was killed: the pool takes nothing any more."""
    try:
        return pool.submit(function, chunk)
    except BrokenExecutor:
        return None


def _result(function: Callable[[Chunk], Result], chunk: Chunk, future: Future[Result] | None) -> Result:
    """What a killed process leaves undone (a system that is short of memory kills some) is done by this one."""
    if future is not None:
        try:
            return future.result()
        except BrokenExecutor as problem:
            event(_log, "process.lost", level=logging.DEBUG, reason=str(problem))
    return function(chunk)


@contextlib.contextmanager
def ahead(chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """The same chunks, each made in a thread while the one before it is used: for two steps that mostly wait or leave Python."""
    from concurrent.futures import ThreadPoolExecutor

    last: object = object()

    def results(beside: ThreadPoolExecutor) -> Iterator[Chunk]:
        coming = beside.submit(next, chunks, last)
        while (chunk := coming.result()) is not last:
            coming = beside.submit(next, chunks, last)
            yield chunk  # type: ignore[misc]  # it is not the mark behind the last one

    with ThreadPoolExecutor(1, "ahead") as beside:
        yield results(beside)


def _begin() -> None:
    """In a new process."""
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed leaves its pipes open in its children, which would wait for work for ever."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
