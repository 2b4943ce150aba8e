"""The stages in their order: one tuple. A stage joins by one line here and one file beside this one.

A stage runs from the checkpoints that the one before it left, so a run resumes by simply running again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.context import Context
from pipeline.errors import UsageError


@dataclass(frozen=True, slots=True)
class Stage:
    """A name, how it runs, and how it forgets what it derived."""

    name: str
    run: Callable[[Context], object]
    reset: Callable[[Context], None]


# Imports happen when a stage runs: --help and --status need the names only.
def _run_preprocessing(context: Context) -> object:
    from pipeline import preprocessing

    return preprocessing.run(context)


def _reset_preprocessing(context: Context) -> None:
    from pipeline import preprocessing

    preprocessing.reset(context.ledger)


def _run_embedding(context: Context) -> object:
    from pipeline import embedding_and_indexing

    return embedding_and_indexing.run(context)


def _reset_embedding(context: Context) -> None:
    from pipeline import embedding_and_indexing

    embedding_and_indexing.reset(context)


STAGES = (
    Stage("preprocessing", _run_preprocessing, _reset_preprocessing),
    Stage("embedding_and_indexing", _run_embedding, _reset_embedding),
)


def stage_named(name: str) -> Stage:
    """The stage of a name; UsageError names the nearest one."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    names = [stage.name for stage in STAGES]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"There is no stage {name!r}; the stages are {', '.join(names)}.{hint}")


def stages_between(start: str | None, end: str | None) -> tuple[Stage, ...]:
    """The stages from `start` to `end`, both included."""
    first = STAGES.index(stage_named(start)) if start else 0
    last = STAGES.index(stage_named(end)) if end else len(STAGES) - 1
    if last < first:
        raise UsageError(f"--end {end} comes before --start {start}; the order is {', '.join(stage.name for stage in STAGES)}.")
    return STAGES[first : last + 1]
