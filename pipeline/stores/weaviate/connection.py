"""Reaching a Weaviate server: both protocols, its version, and every error of the client as a sentence of ours.

Nothing is asked of anyone but that server: the client's own checks at connect, which call a package index, are off.
What a collection looks like is not known here.
"""

from __future__ import annotations

import contextlib
import re
import ssl
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
from weaviate.connect import ConnectionParams
from weaviate.exceptions import InsufficientPermissionsError, UnexpectedStatusCodeError, WeaviateBaseError, WeaviateStartUpError

from pipeline.config import Config
from pipeline.errors import ConfigError, StoreDownError, StoreError

OLDEST = (1, 38, 10)  # older ones can answer "1 error, 999 successes" from a read-only shard
REFUSED = {(1, 39, 0)}  # the same fault
_CLOUD = (".weaviate.cloud", ".weaviate.network")
_PING_SECONDS = 10.0
_MOST_SENT = 100 << 20  # what a server takes as it comes; our own requests are a tenth of it
_CHANNEL = [
    ("grpc.enable_http_proxy", 0),  # of the environment: REST goes through none either
    ("grpc.max_reconnect_backoff_ms", 2000),  # after a restart the next attempt finds it, and not the one after two minutes
    ("grpc.keepalive_time_ms", 60_000),
]
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
    return Address(_bracketed(host), port, _bracketed(grpc_host), grpc_port, secure)


def _bracketed(host: str) -> str:
    """An IPv6 address as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def connect(config: Config, *, to_write: bool = True) -> weaviate.WeaviateClient:
    """A client of a server that answers on both ports and, to write, has a version that we trust; StoreError says what is
    wrong."""
    address = address_of(config)
    if (address.http_host, address.http_port) == (address.grpc_host, address.grpc_port):
        raise ConfigError(
            f"{config.path.name}: weaviate_url and weaviate_grpc_port both say port {address.http_port}; the server "
            "has one for each."
        )
    client = weaviate.WeaviateClient(
        ConnectionParams.from_params(
            http_host=address.http_host,
            http_port=address.http_port,
            http_secure=address.secure,
            grpc_host=address.grpc_host,
            grpc_port=address.grpc_port,
            grpc_secure=address.secure,
        ),
        auth_client_secret=Auth.api_key(config.weaviate_api_key) if config.weaviate_api_key else None,
        additional_config=AdditionalConfig(
            timeout=Timeout(init=_PING_SECONDS, query=config.weaviate_timeout_seconds, insert=config.weaviate_timeout_seconds),
            grpc_config=GrpcConfig(channel_options=_CHANNEL, credentials=_credentials(config)),
        ),
        skip_init_checks=True,
    )
    _trust(client, config)
    try:
        with errors_told(config, ""):
            _open(client, config)
        if to_write:
            _check_version(config, str(client.get_meta().get("version", "")))
        _ping(config, address)
    except BaseException:
        client.close()
        raise
    return client


def _open(client: weaviate.WeaviateClient, config: Config) -> None:
    """The client's own first look: it takes for granted that whoever answers is a Weaviate."""
    try:
        client.connect()
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError):
        raise _no_weaviate(config) from None
    except UnexpectedStatusCodeError as problem:
        if problem.status_code in (400, 404):
            raise _no_weaviate(config) from problem
        raise
    except WeaviateStartUpError as problem:
        if too_old := re.search(r"Weaviate version v?([\d.]+\d) is not supported", str(problem)):
            _check_version(config, too_old[1])
        raise


def _no_weaviate(config: Config) -> StoreError:
    or_else = ", or one that wants https://" if config.weaviate_url.startswith("http:") else ""
    return StoreError(f"What answers at {config.weaviate_url} is no Weaviate server{or_else}. Is weaviate_url right?")


def _credentials(config: Config) -> Any:
    return grpc.ssl_channel_credentials(_authorities(config)) if address_of(config).secure else None


def _trust(client: weaviate.WeaviateClient, config: Config) -> None:
    """REST believes the certificates of `weaviate_ca_file`, and no others: the client itself has no setting for that."""
    authorities = _authorities(config)
    if authorities is None:
        return
    try:
        if not authorities:  # to Python, no certificates are those of the system
            raise ValueError("it is empty")
        context = ssl.create_default_context(cadata=authorities.decode("ascii"))
    except (ssl.SSLError, ValueError) as problem:
        raise ConfigError(
            f"{config.path.name}: weaviate_ca_file is {str(_path(config))!r}, which holds no certificates in PEM ({problem})."
        ) from None
    ours: Any = client._connection  # noqa: SLF001  # the version is pinned, and a test asks a server with such a certificate
    ours._make_client = lambda _colour: httpx.Client(headers=ours._headers, verify=context, trust_env=False)  # noqa: SLF001


def _authorities(config: Config) -> bytes | None:
    """The certificates of `weaviate_ca_file`, for a server whose certificate no public authority has signed."""
    if config.weaviate_ca_file is None:
        return None
    try:
        return _path(config).read_bytes()
    except OSError as problem:
        raise ConfigError(
            f"{config.path.name}: weaviate_ca_file is {str(_path(config))!r}, which can't be read: {problem.strerror}"
        ) from None


def _path(config: Config) -> Path:
    return config.folder / Path(config.weaviate_ca_file or "").expanduser()


def _check_version(config: Config, version: str) -> None:
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if len(found) == 3 and found >= OLDEST and found not in REFUSED:
        return
    raise StoreError(
        f"The Weaviate server at {config.weaviate_url} has version {version or 'unknown'}; needed is "
        f"{'.'.join(map(str, OLDEST))} or newer, and not 1.39.0: others can count objects as stored that are not. Upgrade it."
    )


def open_channel(config: Config) -> Any:
    """gRPC without the client: for what it has no call for."""
    address = address_of(config)
    target = f"{address.grpc_host}:{address.grpc_port}"
    options = [*_CHANNEL, ("grpc.max_send_message_length", _MOST_SENT), ("grpc.max_receive_message_length", _MOST_SENT)]
    credentials = _credentials(config)
    return grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)


def _ping(config: Config, address: Address) -> None:
    """Whether gRPC answers too: a closed port would else be met only by the first write."""
    with open_channel(config) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=_PING_SECONDS)
        except grpc.RpcError as problem:
            if problem.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise StoreError(
                    f"The Weaviate server at {config.weaviate_url} answers, but not by gRPC at {address.grpc_host}:"
                    f"{address.grpc_port} ({problem.details()}). Is weaviate_grpc_port right, and the port open?"
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
    if "CERTIFICATE_VERIFY_FAILED" in str(_root(problem)):
        return StoreError(
            f"{where} has a certificate that is not trusted here ({words(_root(problem))}). If it is your own, name the file of "
            "those to trust: weaviate_ca_file"
        )
    if is_unreachable(problem):
        return StoreDownError(f"{where} does not answer{to_do} ({words(_root(problem))}). Is it running, and weaviate_url right?")
    return StoreError(f"{where} failed{to_do}: {words(problem)}")


def is_forbidden(problem: Exception) -> bool:
    """The server knows us not, or will not let us."""
    if isinstance(problem, InsufficientPermissionsError):
        return True
    if isinstance(problem, UnexpectedStatusCodeError):
        return problem.status_code in (401, 403)
    return grpc_code(problem) in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or speaks_of_rights(
        str(problem)
    )


def speaks_of_rights(message: str) -> bool:
    """The same, said of a single object."""
    return _no_rights.search(message) is not None


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
