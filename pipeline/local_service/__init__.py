"""A small OpenAI-compatible service of our own: everything runs with no key, no server and no download.

`model` is its lexical model, `service` the one function that answers, by `embeddings`, `files` and `batches`;
`state` is what it remembers, `work` brings its jobs forward, `misbehaviour` what it can be told to do wrong.
`transport` is the way in for the SDK within one process, `server` the one over a socket (`python -m
pipeline.local_service`). It imports nothing of the rest of the pipeline, and not the `openai` SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.local_service.messages import Request, Response
    from pipeline.local_service.misbehaviour import Misbehaviour
    from pipeline.local_service.service import handle
    from pipeline.local_service.settings import BatchLimits, Pace
    from pipeline.local_service.state import State, StateError
    from pipeline.local_service.transport import LocalTransport

__all__ = ["BatchLimits", "LocalTransport", "Misbehaviour", "Pace", "Request", "Response", "State", "StateError", "handle"]

_HOMES = {
    "BatchLimits": "settings",
    "LocalTransport": "transport",
    "Misbehaviour": "misbehaviour",
    "Pace": "settings",
    "Request": "messages",
    "Response": "messages",
    "State": "state",
    "StateError": "state",
    "handle": "service",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: who wants the model alone needs no HTTP library."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
