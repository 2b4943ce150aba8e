"""Reaching a Weaviate server: both protocols, its version, and every error of the client as a sentence of ours.

Nothing is asked of anyone but that server: the client's own checks at connect, which call a package index, are off.
What a collection looks like is not known here.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import httpx
import weaviate
from weaviate.classes.init import AdditionalConfig, Auth, Timeout
from weaviate.config import GrpcConfig
from weaviate.exceptions import InsufficientPermissionsError, UnexpectedStatusCodeError, WeaviateBaseError

from pipeline.config import Config
from pipeline.errors import ConfigError, StoreError

OLDEST = (1, 38, 10)  # older ones can answer "1 error, 999 successes" from a read-only shard
REFUSED = {(1, 39, 0)}  # the same fault
_CLOUD = (".weaviate.cloud", ".weaviate.network")
_PING_SECONDS = 10.0
CLIENT_ERRORS = (WeaviateBaseError, httpx.HTTPError, grpc.RpcError, OSError)
_no_rights = re.compile(r"(?i)unauthenticated|forbidden|permission denied|unauthorized|anonymous access not enabled")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, for each of the two protocols."""

    http_host: str
    http_port: int
    grpc_host: str
    grpc_port: int
    secure: bool


def address_of(config: Config) -> Address:
    """The two ends of `weaviate_url`; Weaviate Cloud has a host of its own for gRPC."""
    parts = urlsplit(config.weaviate_url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    grpc_host, grpc_port = config.weaviate_grpc_host or host, config.weaviate_grpc_port
    if host.endswith(_CLOUD) and config.weaviate_grpc_host is None:
        name, _, domain = host.partition(".")
        grpc_host = f"{name}.grpc.{domain}" if host.endswith(".weaviate.network") else f"grpc-{host}"
        grpc_port = 443
    return Address(host, port, grpc_host, grpc_port, secure)


def connect(config: Config) -> weaviate.WeaviateClient:
    """A client of a server that answers on both ports and has a version that we trust; StoreError says what is wrong."""
    address = address_of(config)
    with errors_told(config, ""):
        client = weaviate.connect_to_custom(
            http_host=address.http_host,
            http_port=address.http_port,
            http_secure=address.secure,
            grpc_host=address.grpc_host,
            grpc_port=address.grpc_port,
            grpc_secure=address.secure,
            auth_credentials=Auth.api_key(config.weaviate_api_key) if config.weaviate_api_key else None,
            additional_config=AdditionalConfig(
                timeout=Timeout(init=_PING_SECONDS, query=config.weaviate_timeout_seconds, insert=config.weaviate_timeout_seconds),
                grpc_config=GrpcConfig(
                    # After a restart of the server the next attempt finds it, and not the one after two minutes.
                    channel_options=[("grpc.max_reconnect_backoff_ms", 2000), ("grpc.keepalive_time_ms", 60_000)],
                    credentials=_credentials(config),
                ),
            ),
            skip_init_checks=True,
        )
    try:
        _check_version(config, str(client.get_meta().get("version", "")))
        _ping(config, address)
    except BaseException:
        client.close()
        raise
    return client


def _credentials(config: Config) -> Any:
    return grpc.ssl_channel_credentials(_authorities(config)) if address_of(config).secure else None


def _authorities(config: Config) -> bytes | None:
    """The certificates of `weaviate_ca_file`, for a server whose certificate no public authority has signed."""
    if config.weaviate_ca_file is None:
        return None
    path = config.folder / Path(config.weaviate_ca_file).expanduser()
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ConfigError(
            f"{config.path.name}: weaviate_ca_file is {str(path)!r}, which can't be read: {problem.strerror}"
        ) from None


def _check_version(config: Config, version: str) -> None:
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if len(found) == 3 and found >= OLDEST and found not in REFUSED:
        return
    raise StoreError(
        f"The Weaviate server at {config.weaviate_url} has version {version or 'unknown'}; needed is "
        f"{'.'.join(map(str, OLDEST))} or newer, and not 1.39.0: others can count objects as stored that are not. Upgrade it."
    )


def _ping(config: Config, address: Address) -> None:
    """Whether gRPC answers too: a closed port would else be met only by the first write."""
    target = f"{address.grpc_host}:{address.grpc_port}"
    options = [("grpc.enable_http_proxy", 0)]
    credentials = _credentials(config)
    with grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=_PING_SECONDS)
        except grpc.RpcError as problem:
            if problem.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise StoreError(
                    f"The Weaviate server at {config.weaviate_url} answers, but not by gRPC at {target} "
                    f"({problem.details()}). Is weaviate_grpc_port right, and the port open?"
                ) from None


@contextlib.contextmanager
def errors_told(config: Config, doing: str) -> Iterator[None]:
    """The client's and the libraries' exceptions as StoreError."""
    try:
        yield
    except CLIENT_ERRORS as problem:
        raise told(config, doing, problem) from problem


def told(config: Config, doing: str, problem: Exception) -> StoreError:
    """What the client says, as a sentence with a way out."""
    where = f"The Weaviate server at {config.weaviate_url}"
    to_do = f" to {doing}" if doing else ""
    if is_forbidden(problem):
        key = "The key in WEAVIATE_API_KEY has no right to this" if config.weaviate_api_key else "It wants a key: WEAVIATE_API_KEY"
        return StoreError(f"{where} did not allow us{to_do}. {key}.")
    if is_unreachable(problem):
        return StoreError(f"{where} does not answer{to_do} ({words(_root(problem))}). Is it running, and weaviate_url right?")
    return StoreError(f"{where} failed{to_do}: {words(problem)}")


def is_forbidden(problem: Exception) -> bool:
    """The server knows us not, or will not let us."""
    if isinstance(problem, InsufficientPermissionsError):
        return True
    if isinstance(problem, UnexpectedStatusCodeError):
        return problem.status_code in (401, 403)
    return grpc_code(problem) in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or (
        _no_rights.search(str(problem)) is not None
    )


def is_unreachable(problem: Exception) -> bool:
    """No answer came, or not in time."""
    names = ("WeaviateConnectionError", "WeaviateTimeoutError", "WeaviateRetryError", "WeaviateStartUpError")
    return (
        type(problem).__name__ in names
        or isinstance(problem, httpx.HTTPError | OSError)
        or (grpc_code(problem) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
    )


def grpc_code(problem: BaseException) -> grpc.StatusCode | None:
    """The gRPC status under a client's exception, which itself keeps only the words."""
    under: BaseException | None = problem
    while under is not None:
        if isinstance(under, grpc.RpcError) and callable(getattr(under, "code", None)):
            return under.code()
        under = under.__cause__ or under.__context__
    return None


def _root(problem: BaseException) -> BaseException:
    """What happened first: the client wraps it in words of its own."""
    while (under := problem.__cause__ or problem.__context__) is not None and str(under):
        problem = under
    return problem


def words(problem: BaseException) -> str:
    """What an exception says, on one bounded line."""
    said = problem.details() if isinstance(problem, grpc.RpcError) and hasattr(problem, "details") else None
    line = " ".join(str(said or getattr(problem, "message", "") or problem).split()) or type(problem).__name__
    return line[:300].rstrip(".: ")


class _Listener(logging.Filter):
    """Lets nothing of the client's logger through, which prints refused objects whole; and hears that it retried.

    When the connection breaks, `insert_many` sends the same objects again by itself and says so only there. What it
    sent twice may be half stored, which its answer does not tell.
    """

    heard = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if "exponential backoff" in str(record.msg):
            self.heard.retried = True
        return False


logging.getLogger("weaviate-client").addFilter(_Listener())


@contextlib.contextmanager
def blind_retries() -> Iterator[list[bool]]:
    """Whether the client, in this thread, repeated a call by itself: the list holds True afterwards."""
    _Listener.heard.retried = False
    found: list[bool] = []
    try:
        yield found
    finally:
        if _Listener.heard.retried:
            found.append(True)
