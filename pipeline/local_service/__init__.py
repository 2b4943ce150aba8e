"""A small OpenAI-compatible service of our own: everything runs with no key, no server and no download.

`model` is its lexical model, `service` the one function that answers, `state` what it remembers, `transport`
the way in for the SDK within one process, `server` the one over a socket (`python -m
pipeline.local_service`). It imports nothing of the rest of the pipeline, and not the `openai` SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.local_service.service import Request, Response, handle
    from pipeline.local_service.state import State, StateError
    from pipeline.local_service.transport import LocalTransport

__all__ = ["LocalTransport", "Request", "Response", "State", "StateError", "handle"]

_HOMES = {
    "LocalTransport": "transport",
    "Request": "service",
    "Response": "service",
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
