"""The real server that other tests stand on: ready when it says so, itself again after a kill, gone when its parent is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
import weaviate
from weaviate.classes.config import Configure, DataType, Property
from weaviate.classes.init import AdditionalConfig, GrpcConfig
from weaviate.exceptions import InsufficientPermissionsError, UnexpectedStatusCodeError, WeaviateInsertManyAllFailedError

from tests.weaviate_server import (
    NoServerError,
    ServerError,
    WeaviateCluster,
    WeaviateServer,
    binary,
    build,
    cached,
    free_ports,
    self_signed,
)

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def connected(server: WeaviateServer, key: str | None = None, trusted: Path | None = None) -> Iterator[weaviate.WeaviateClient]:
    config = AdditionalConfig()
    if trusted is not None:
        config = AdditionalConfig(
            trust_env=True, grpc_config=GrpcConfig(credentials=grpc.ssl_channel_credentials(trusted.read_bytes()))
        )
    with weaviate.connect_to_custom(
        http_host="127.0.0.1",
        http_port=server.ports.http,
        http_secure=server.tls is not None,
        grpc_host="127.0.0.1",
        grpc_port=server.grpc_port,
        grpc_secure=server.tls is not None,
        auth_credentials=key,
        skip_init_checks=True,
        additional_config=config,
    ) as client:
        yield client


def create(client: weaviate.WeaviateClient, copies: int = 1) -> None:
    client.collections.create(
        "Thing",
        properties=[Property(name="text", data_type=DataType.TEXT)],
        replication_config=Configure.replication(factor=copies),
    )


def write(client: weaviate.WeaviateClient, text: str) -> None:
    assert not client.collections.use("Thing").data.insert_many([{"text": text}]).has_errors


def count(client: weaviate.WeaviateClient) -> int | None:
    return client.collections.use("Thing").aggregate.over_all(total_count=True).total_count


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def test_a_killed_server_comes_back_with_its_data_on_its_ports_and_a_wiped_one_with_nothing(
    weaviate_binary: Path, tmp_path: Path
) -> None:
    with WeaviateServer(tmp_path) as server:
        url, ports, pid = server.url, server.ports, server.pid
        with connected(server) as client:
            create(client)
            write(client, "kept")
            server.kill()
            assert not server.running
            assert not answers(ports.http)
            server.restart()
            assert (server.url, server.ports) == (url, ports)
            assert server.pid != pid
        with connected(server) as client:
            assert count(client) == 1
        server.stop()
        server.wipe()
        server.start()
        assert (server.url, server.ports) == (url, ports)
        with connected(server) as client:
            assert not client.collections.exists("Thing")
    assert not answers(ports.http)
    assert not answers(ports.grpc)


def test_a_key_may_write_another_only_read_and_none_nothing_over_tls(
    weaviate_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[0]))
    with WeaviateServer(tmp_path / "server", api_key="one", reader_key="two", tls=tls) as server:
        assert server.url.startswith("https://")
        with connected(server, "one", tls[0]) as client:
            create(client)
            write(client, "by the writer")
        with connected(server, "two", tls[0]) as client:
            assert count(client) == 1
            with pytest.raises(InsufficientPermissionsError, match="user 'reader' has insufficient permissions"):
                client.collections.delete("Thing")
        for wrong in (None, "three"):
            with pytest.raises(UnexpectedStatusCodeError, match="401"), connected(server, wrong, tls[0]):
                pass


def write_in_the_end(client: weaviate.WeaviateClient, text: str) -> None:
    """A node may cancel what it sends to the others while it gives up its connection to one that went away."""
    until = time.monotonic() + 20
    while True:
        try:
            return write(client, text)
        except WeaviateInsertManyAllFailedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def test_of_three_nodes_two_take_writes_and_the_third_comes_back(weaviate_cluster: WeaviateCluster) -> None:
    first, second, third = weaviate_cluster.nodes
    with connected(first) as client:
        create(client, copies=3)
        second.kill()
        write_in_the_end(client, "to two of three")
        weaviate_cluster.start()
        assert sorted(third.members()) == ["weaviate-0", "weaviate-1", "weaviate-2"]
        with connected(second) as other:
            assert other.collections.exists("Thing")
        client.collections.delete("Thing")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_its_parent(weaviate_binary: Path, tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends the child of a killed parent")
    ports = free_ports()
    where = ["--data", str(tmp_path), "--port", str(ports.http), "--grpc-port", str(ports.grpc)]
    command = [sys.executable, "-m", "tests.weaviate_server", *where]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == f"http://127.0.0.1:{ports.http} {ports.grpc}\n"
        assert answers(ports.http)
        parent.send_signal(number)
        assert parent.wait(20) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while answers(ports.http) or answers(ports.grpc):
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.05)


def test_a_server_that_can_not_start_shows_its_log_and_leaves_nothing(weaviate_binary: Path, tmp_path: Path) -> None:
    server = WeaviateServer(tmp_path, environment={"GRPC_PORT": "none"})
    with pytest.raises(ServerError, match=r"(?s)weaviate-0 ended while it was started.*GRPC_PORT"):
        server.start()
    assert not server.running


def test_ports_that_somebody_has_are_not_started_on_but_left_for_others(weaviate_binary: Path, tmp_path: Path) -> None:
    server = WeaviateServer(tmp_path)
    before = server.ports
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", before.raft + 1))
        somebody.listen()
        with pytest.raises(ServerError, match=f"address already in use: {before.raft + 1}"):
            WeaviateServer(tmp_path, ports=before).start()
        with server:
            assert not {before.http, before.raft} & {server.ports.http, server.ports.raft}
            with pytest.raises(OSError, match="404"):
                server.get("/v1/objects/Nothing/00000000-0000-0000-0000-000000000000")


def test_ports_are_handed_out_once() -> None:
    given = [port for _ in range(50) for made in [free_ports()] for port in (made.http, made.grpc, made.gossip, made.raft)]
    assert len({port + next_one for port in given for next_one in (0, 1)}) == 400


def test_what_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEAVIATE_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(NoServerError, match=r"WEAVIATE_SERVER=.*nothing is not an executable file"):
        binary()


def go(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """From now on `go` is this, and the cache is empty."""
    (folder / "go").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.delenv("WEAVIATE_SERVER", raising=False)


def test_two_builders_at_once_build_one_whole_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go(tmp_path, monkeypatch, f'echo built >> {tmp_path}/builds; sleep 0.3; echo "$@" > "$GOBIN/weaviate-server"')
    command = [sys.executable, "-m", "tests.weaviate_server", "--build"]
    builders = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [builder.communicate(timeout=60)[0] for builder in builders] == [f"{cached()}\n"] * 2
    assert (tmp_path / "builds").read_text() == "built\n"
    assert cached().read_text().startswith("install -ldflags=-s -w github.com/weaviate/weaviate/cmd/weaviate-server@v1.")
    assert sorted(path.name for path in cached().parent.iterdir()) == ["weaviate-server-v1.38.11", "weaviate-server.lock"]


def test_a_build_that_fails_or_can_not_begin_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go(tmp_path, monkeypatch, "echo first >&2; echo no such version >&2; exit 1")
    with pytest.raises(NoServerError, match=r"^go install failed: no such version$"):
        build()
    assert not cached().exists()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(
        NoServerError, match=r"^install Go, which builds it once in a few minutes, or let WEAVIATE_SERVER name one$"
    ):
        build()


@pytest.mark.parametrize(("required", "word", "code"), [("", "SKIPPED", 0), ("1", "REQUIRE_WEAVIATE=1, but", 1)])
def test_the_reason_stands_at_the_end_of_a_run_without_a_server(tmp_path: Path, required: str, word: str, code: int) -> None:
    environment = {**os.environ, "WEAVIATE_SERVER": str(tmp_path / "nothing"), "REQUIRE_WEAVIATE": required}
    one = f"{__file__}::{test_a_server_that_can_not_start_shows_its_log_and_leaves_nothing.__name__}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", one]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    reason = ran.stdout.strip().splitlines()[-2 + code]  # behind the skipped one stands the line of numbers
    assert ran.returncode == code, ran.stdout
    assert reason.startswith(word)
    assert "no Weaviate server: WEAVIATE_SERVER=" in reason
