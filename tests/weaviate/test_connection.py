"""Reaching a server: TLS, keys, versions and ports; and nobody else is ever asked anything."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.session import where_texts_go
from pipeline.config import Config
from pipeline.errors import ConfigError, NamesakeError, StoreError
from pipeline.provider.service import service_of
from pipeline.stores.weaviate import connection
from tests.tools import Catalogue
from tests.weaviate_server import WeaviateServer, self_signed

ROWS = [("1", "Bach, Johann Sebastian", "Die Kunst der Fuge"), ("2", "Mozart", "Requiem")]
WRITER, READER = "key-of-a-writer-0123", "key-of-a-reader-0123"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEAVIATE_API_KEY", raising=False)
    monkeypatch.delenv("WEAVIATE_API_KEY_FILE", raising=False)


def config_of(server: WeaviateServer, **keys: object) -> Config:
    return replace(Config(vector_store="weaviate", weaviate_url=server.url, weaviate_grpc_port=server.grpc_port), **keys)  # type: ignore[arg-type]


def refused(config: Config) -> str:
    """Why there is no connection."""
    with pytest.raises(NamesakeError) as caught:
        connection.connect(config).close()
    return str(caught.value)


def findings(catalogue: Catalogue) -> list[tuple[str, str]]:
    found = catalogue.run("--check", "--json").document["findings"]
    return [(finding["verdict"], finding["words"]) for finding in found if finding["name"] == "index"]


# --check, at a server without keys


@pytest.fixture
def catalogue(tmp_path: Path, weaviate_server: WeaviateServer) -> Catalogue:
    made = Catalogue(tmp_path)
    at(made, weaviate_server)
    made.write(ROWS)
    return made


def at(catalogue: Catalogue, server: WeaviateServer, **keys: object) -> None:
    address = {"weaviate_url": server.url, "weaviate_grpc_port": server.grpc_port, "collection": "TConnection"}
    catalogue.configure(**{"vector_store": "weaviate", **address, **keys})


def names_at(server: WeaviateServer) -> tuple[list[str], list[str]]:
    """The collections and aliases there are, which the server lists in any order."""
    collections = json.loads(server.get("/v1/schema"))["classes"]
    aliases = json.loads(server.get("/v1/aliases"))["aliases"]
    return sorted(entry["class"] for entry in collections), sorted(entry["alias"] for entry in aliases)


def test_check_tries_everything_that_a_run_needs_and_leaves_nothing(catalogue: Catalogue, weaviate_server: WeaviateServer) -> None:
    before = names_at(weaviate_server)
    (first, second, third) = findings(catalogue)
    assert first == ("ok", f"Weaviate 1.38.11 at {weaviate_server.url}, 1 node, answers on both ports")
    assert second[0] == "ok"
    assert second[1].startswith("TConnection_")
    assert second[1].endswith(" can be made; the alias is TConnection")
    assert third == ("ok", "collections and aliases may be created and deleted")
    assert names_at(weaviate_server) == before
    assert catalogue.run("--check").code == 0
    assert not catalogue.checkpoint.exists()


def test_check_says_that_there_are_fewer_nodes_than_copies(catalogue: Catalogue, weaviate_server: WeaviateServer) -> None:
    at(catalogue, weaviate_server, weaviate_replication=3)
    assert findings(catalogue)[-1] == ("failed", "weaviate_replication is 3, more than the server has nodes: 1.")


def closed_port() -> int:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        port: int = somebody.getsockname()[1]
        return port


@pytest.mark.parametrize("command", [("--check",), (), ("--verify",), ("--drop-index", "X", "--yes")])
def test_a_port_where_nobody_listens_is_said_by_each_command(
    catalogue: Catalogue, weaviate_server: WeaviateServer, command: tuple[str, ...]
) -> None:
    port = closed_port()
    if command == ("--verify",):
        catalogue.run("--set", "index_later=true")
    at(catalogue, weaviate_server, weaviate_url=f"http://127.0.0.1:{port}")
    ran = catalogue.run(*command)
    assert ran.code == 1
    said = ran.out + ran.err
    assert f"The Weaviate server at http://127.0.0.1:{port} does not answer" in said
    assert "Connection refused" in said
    assert "Is it running, and weaviate_url right?" in said


def test_a_wrong_port_for_grpc_is_told_apart_and_nothing_is_embedded(catalogue: Catalogue, weaviate_server: WeaviateServer) -> None:
    port = closed_port()
    at(catalogue, weaviate_server, weaviate_grpc_port=port)
    words = f"The Weaviate server at {weaviate_server.url} answers, but not by gRPC at 127.0.0.1:{port}"
    verdict, said = findings(catalogue)[-1]
    assert (verdict, said.startswith(words)) == ("failed", True)
    assert "Is weaviate_grpc_port right, and the port open?" in said
    ran = catalogue.run()
    assert (ran.code, words in ran.err, "Nothing was sent to be embedded." in ran.err) == (1, True, True)


def test_one_port_for_both_is_a_mistake_of_the_config(weaviate_server: WeaviateServer) -> None:
    config = config_of(weaviate_server, weaviate_grpc_port=weaviate_server.ports.http)
    assert f"weaviate_url and weaviate_grpc_port both say port {weaviate_server.ports.http}" in refused(config)


# Whoever answers


@contextlib.contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[Config]:
    """A server that answers this to everything, by REST alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield Config(vector_store="weaviate", weaviate_url=url, weaviate_grpc_port=closed_port())
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("version", ["1.20.0", "1.26.9", "1.27.0", "1.38.9", "1.38.9-rc.1", "1.39.0", "0.99.99", "2"])
def test_a_version_that_can_not_be_trusted_is_refused_with_those_that_can(version: str) -> None:
    with answering(json.dumps({"version": version, "hostname": "http://[::]:8080", "modules": {}}).encode()) as config:
        said = refused(config)
    assert f"has version {version}; needed is 1.38.10 or newer, and not 1.39.0" in said
    assert "Upgrade it." in said


@pytest.mark.parametrize("version", ["1.38.10", "1.38.11", "1.39.1", "1.40.1-rc.1", "2.0.0"])
def test_a_newer_version_goes_on_to_grpc(version: str) -> None:
    with answering(json.dumps({"version": version, "modules": {}}).encode()) as config:
        assert "answers, but not by gRPC" in refused(config)


@pytest.mark.parametrize(
    ("body", "status"), [(b"<html>hello</html>", 200), (b"{}", 200), (b"[]", 200), (b"null", 200), (b"not here", 404), (b"", 500)]
)
def test_what_is_no_weaviate_is_told_in_a_sentence(body: bytes, status: int) -> None:
    with answering(body, status) as config:
        said = refused(config)
    assert config.weaviate_url in said
    assert "\n" not in said


def test_a_port_that_says_nothing_is_given_up(weaviate_server: WeaviateServer) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = config_of(weaviate_server, weaviate_url=f"http://127.0.0.1:{silent.getsockname()[1]}", weaviate_timeout_seconds=1)
        assert "does not answer" in refused(config)


# Keys and TLS


@pytest.fixture(scope="module")
def secure(weaviate_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeaviateServer]:
    """A server with a certificate of its own, a key for writers and one for readers."""
    folder = tmp_path_factory.mktemp("secure")
    server = WeaviateServer(folder / "server", tls=self_signed(folder), api_key=WRITER, reader_key=READER)
    server.start()
    yield server
    server.kill()
    server.wipe()


def trusted(server: WeaviateServer) -> str:
    assert server.tls is not None
    return str(server.tls[0])


@pytest.fixture
def secured(tmp_path: Path, secure: WeaviateServer, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    made = Catalogue(tmp_path)
    at(made, secure, weaviate_ca_file=trusted(secure), collection=f"T{uuid.uuid4().hex[:12]}")
    made.write(ROWS)
    monkeypatch.setenv("WEAVIATE_API_KEY", WRITER)
    return made


def test_with_its_certificate_and_a_key_all_goes_by_tls(secured: Catalogue, tmp_path: Path, secure: WeaviateServer) -> None:
    assert secured.run("--check").code == 0
    ran = secured.run()
    assert ran.code == 0, ran.err
    assert "4 strings written to the weaviate index" in ran.out
    assert f"Index: Weaviate at {secure.url}." in ran.out
    assert secured.run("--verify", "--json").document["is_well_now"] is True
    assert secured.run("--search", "Bach", "--json").document["results"][0]["text"] == "Bach, Johann Sebastian"
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "ours.pem").write_bytes(Path(trusted(secure)).read_bytes())
    assert secured.run("--set", "weaviate_ca_file=certs/ours.pem", "--search", "Bach").code == 0, "relative to the config"


def test_a_certificate_that_is_not_trusted_is_told_with_the_key_of_the_config_to_set(
    secured: Catalogue, secure: WeaviateServer
) -> None:
    ran = secured.run("--set", "weaviate_ca_file=null")
    assert ran.code == 1
    assert f"The Weaviate server at {secure.url} has a certificate that is not trusted here" in ran.err
    assert "weaviate_ca_file" in ran.err


def test_another_certificate_is_not_trusted_either(secured: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other, _ = self_signed(tmp_path / "other")
    ran = secured.run("--set", f"weaviate_ca_file={other}")
    assert (ran.code, "has a certificate that is not trusted here" in ran.err) == (1, True)


def test_a_file_of_certificates_that_is_none_is_told(secured: Catalogue, tmp_path: Path) -> None:
    for name, content in (("gone.pem", None), ("empty.pem", b""), ("text.pem", b"no certificate"), ("binary.pem", b"\xff\xfe\x00")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        ran = secured.run("--set", f"weaviate_ca_file={name}")
        assert (ran.code, "weaviate_ca_file" in ran.err) == (2, True), name
        assert str(tmp_path / name) in ran.err


def test_http_to_a_port_of_tls_and_the_other_way_round_are_told(secure: WeaviateServer, weaviate_server: WeaviateServer) -> None:
    plain = secure.url.replace("https", "http")
    said = refused(config_of(secure, weaviate_url=plain))
    assert said == f"What answers at {plain} is no Weaviate server, or one that wants https://. Is weaviate_url right?"
    by_tls = weaviate_server.url.replace("http", "https")
    assert f"The Weaviate server at {by_tls} does not answer (" in refused(config_of(weaviate_server, weaviate_url=by_tls))


@pytest.mark.parametrize("key", [None, "key-of-nobody-0123456"])
def test_without_a_key_or_with_a_wrong_one_a_person_is_told_what_to_set(
    secured: Catalogue, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key is None:
        monkeypatch.delenv("WEAVIATE_API_KEY")
    else:
        monkeypatch.setenv("WEAVIATE_API_KEY", key)
    ran = secured.run()
    assert ran.code == 1
    assert "did not allow us" in ran.err
    assert ("It wants a key: WEAVIATE_API_KEY." in ran.err) == (key is None)
    assert "Nothing was sent to be embedded." in ran.err
    assert "key-of-nobody" not in ran.out + ran.err


def test_a_key_that_may_only_read_is_found_by_check_and_by_the_first_write(
    secured: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert secured.run().code == 0
    monkeypatch.setenv("WEAVIATE_API_KEY", READER)
    assert secured.run("--search", "Bach").code == 0
    assert secured.run("--verify").code == 0
    verdicts = findings(secured)
    assert [verdict for verdict, _ in verdicts] == ["ok", "ok", "failed"]
    assert "did not allow us to create and delete a collection and an alias, for a trial" in verdicts[-1][1]
    assert "The key in WEAVIATE_API_KEY has no right to this." in verdicts[-1][1]
    secured.write([*ROWS, ("3", "Haydn", "Die Schöpfung")])
    ran = secured.run()
    assert (ran.code, "did not allow us to write into" in ran.err) == (1, True)
    assert secured.run("--status", "--json").document["fields"]["person"]["to_index"] == 1
    assert READER not in ran.out + ran.err
    monkeypatch.setenv("WEAVIATE_API_KEY", WRITER)
    assert secured.run("--json").document["stages"]["embedding_and_indexing"]["indexed"] == 2


# Nobody else


def test_only_the_server_is_asked_and_no_proxy(
    catalogue: Catalogue, weaviate_server: WeaviateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No package index, no proxy of the environment: neither by Python's sockets nor by gRPC's own."""
    ours = {("127.0.0.1", weaviate_server.ports.http), ("127.0.0.1", weaviate_server.grpc_port)}
    asked: set[tuple[str, int]] = set()
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def only_ours(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        asked.add((str(host), int(port or 0)))
        return look_up(host, port, *more, **named)

    def connect_to_ours(self: socket.socket, address: Any) -> None:
        asked.add(tuple(address[:2]))
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", only_ours)
    monkeypatch.setattr(socket.socket, "connect", connect_to_ours)
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        for command in ((), ("--verify",), ("--check",), ("--search", "Bach"), ("--reindex",)):
            ran = catalogue.run(*command)
            assert ran.code == 0, ran.out + ran.err
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert asked == ours - {("127.0.0.1", weaviate_server.grpc_port)}, "gRPC has sockets of its own"
    (name,) = [name for name in _collections(weaviate_server) if name.startswith("TConnection_")]
    assert catalogue.run("--drop-index", name, "--yes").code == 0


def _collections(server: WeaviateServer) -> list[str]:
    return [entry["class"] for entry in json.loads(server.get("/v1/schema"))["classes"]]


# Where a server listens


@pytest.mark.parametrize(
    ("keys", "address"),
    [
        ({"weaviate_url": "http://localhost:8080"}, ("localhost", 8080, "localhost", 50051, False)),
        ({"weaviate_url": "https://a.example.org"}, ("a.example.org", 443, "a.example.org", 50051, True)),
        ({"weaviate_url": "http://localhost"}, ("localhost", 80, "localhost", 50051, False)),
        ({"weaviate_url": "http://[::1]:8080"}, ("[::1]", 8080, "[::1]", 50051, False)),
        (
            {"weaviate_url": "https://a.example.org", "weaviate_grpc_host": "g.example.org", "weaviate_grpc_port": 443},
            ("a.example.org", 443, "g.example.org", 443, True),
        ),
        (
            {"weaviate_url": "https://abc.c0.europe-west3.gcp.weaviate.cloud"},
            ("abc.c0.europe-west3.gcp.weaviate.cloud", 443, "grpc-abc.c0.europe-west3.gcp.weaviate.cloud", 443, True),
        ),
        (
            {"weaviate_url": "https://abc.weaviate.network"},
            ("abc.weaviate.network", 443, "abc.grpc.weaviate.network", 443, True),
        ),
    ],
)  # fmt: skip
def test_both_ends_of_a_server_follow_from_its_url(keys: dict[str, Any], address: tuple[object, ...]) -> None:
    found = connection.address_of(Config(vector_store="weaviate", **keys))
    assert (found.http_host, found.http_port, found.grpc_host, found.grpc_port, found.secure) == address


def test_errors_of_the_config_are_the_users_and_those_of_the_server_are_not(weaviate_server: WeaviateServer) -> None:
    with pytest.raises(ConfigError):
        connection.connect(config_of(weaviate_server, weaviate_grpc_port=weaviate_server.ports.http))
    with pytest.raises(StoreError):
        connection.connect(config_of(weaviate_server, weaviate_grpc_port=closed_port()))


# Where texts go


@pytest.mark.parametrize("far", ["https://index.example.org", "https://10.0.0.1:8443"])
def test_with_an_index_far_away_nobody_is_told_that_nothing_leaves_this_machine(far: str) -> None:
    config = Config(vector_store="weaviate", weaviate_url=far)
    words = where_texts_go(config, service_of(config))
    assert words == f"Service: local; free. Index: Weaviate at {far}; texts and vectors are sent there."
    by_grpc = replace(config, weaviate_url="https://localhost", weaviate_grpc_host=far.removeprefix("https://").split(":")[0])
    assert "nothing leaves this machine" not in where_texts_go(by_grpc, service_of(by_grpc))
