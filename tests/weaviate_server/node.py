"""One node: a process, its data and its log. What it stores, and how a client asks it, is not known here."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.weaviate_server.binary import binary
from tests.weaviate_server.ports import Ports, free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_SECONDS, _STOP_SECONDS, TRIES = 60, 10, 5
IN_USE = "address already in use"
SETTINGS = {
    "API_BASED_MODULES_DISABLED": "true",
    "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
    "AUTOSCHEMA_ENABLED": "false",
    "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
    "CLUSTER_BIND_ADDR": "127.0.0.1",
    "CLUSTER_IN_LOCALHOST": "true",
    "DEFAULT_VECTORIZER_MODULE": "none",
    "DISABLE_TELEMETRY": "true",
    "GOMEMLIMIT": "2GiB",
    "GO_PROFILING_DISABLE": "true",
    "LOG_LEVEL": "warning",
    "QUERY_DEFAULTS_LIMIT": "20",
}
# The kernel ends a server whose parent was killed. Not by preexec_fn, which is unsafe beside threads.
_WITH_ITS_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
# To the kernel "parent" is the thread that started it: this one lasts, a test's own thread may end before its server.
_launcher = ThreadPoolExecutor(1, "weaviate-launcher")


class ServerError(Exception):
    """A server did not start, did not join the others, or has ended; with the end of its log."""


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost and 127.0.0.1, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", *made, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


class WeaviateServer:
    """One node, its data and its log in a folder of its own.

    `environment` overrides what is set here, and may be changed between a stop and a start. With `api_key` nobody comes in
    without a key; who has `reader_key` may only read. `tls` is a certificate and its key, for REST and gRPC.
    `peers` are all nodes of a cluster, this one included.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        api_key: str | None = None,
        reader_key: str | None = None,
        tls: tuple[Path, Path] | None = None,
        ports: Ports | None = None,
        name: str = "weaviate-0",
        peers: Mapping[str, Ports] | None = None,
    ) -> None:
        self.folder, self.name = folder.resolve(), name
        self.environment, self.api_key, self.reader_key, self.tls = dict(environment or {}), api_key, reader_key, tls
        self.ports = ports or free_ports()
        self._may_move = ports is None  # until it was ready once: from then on its ports are known to others
        self._peers = peers
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What it said since its last start."""
        return self.folder / "server.log"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.ports.http}"

    @property
    def grpc_port(self) -> int:
        return self.ports.grpc

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        process = self._process
        return process is not None and process.poll() is None

    def start(self) -> None:
        """Start it and wait until it is ready; the first time on other ports, when somebody took ours."""
        for left in reversed(range(TRIES)):
            try:
                self.launch()
                self.wait_until_ready()
            except ServerError as error:
                self.kill()
                if not (left and self._may_move and IN_USE in str(error)):
                    raise
                self.ports = free_ports()
            else:
                self._may_move = False
                return

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        assert not self.running, "it runs already"
        program = binary()
        if in_use := self.ports.in_use():
            raise ServerError(f"{self.name} can't be started, {IN_USE}: {', '.join(map(str, in_use))}")
        self.data.mkdir(parents=True, exist_ok=True)
        command = [str(program), *self._arguments()]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _WITH_ITS_PARENT, *command]
        self._process = _launcher.submit(self._popen, command).result()
        atexit.register(self.kill)

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), process_group=0
            )

    def _arguments(self) -> list[str]:
        limits = ["--read-timeout=600s", "--write-timeout=600s"]
        if self.tls is None:
            return ["--scheme=http", "--host=127.0.0.1", f"--port={self.ports.http}", *limits]
        certificate, key = (path.resolve() for path in self.tls)
        files = [f"--tls-certificate={certificate}", f"--tls-key={key}"]
        return ["--scheme=https", "--tls-host=127.0.0.1", f"--tls-port={self.ports.http}", *files, *limits]

    def _environment(self) -> dict[str, str]:
        """Nothing of the user's own: a variable that is set for another server must not reach this one."""
        peers = self._peers or {self.name: self.ports}
        made = {
            **SETTINGS,
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "PERSISTENCE_DATA_PATH": str(self.data),
            "GRPC_PORT": str(self.ports.grpc),
            "CLUSTER_HOSTNAME": self.name,
            "CLUSTER_GOSSIP_BIND_PORT": str(self.ports.gossip),
            "CLUSTER_DATA_BIND_PORT": str(self.ports.gossip + 1),
            "CLUSTER_JOIN": ",".join(f"127.0.0.1:{ports.gossip}" for name, ports in peers.items() if name != self.name),
            "RAFT_PORT": str(self.ports.raft),
            "RAFT_INTERNAL_RPC_PORT": str(self.ports.raft + 1),
            "RAFT_JOIN": ",".join(f"{name}:{ports.raft}" for name, ports in peers.items()),
            "RAFT_BOOTSTRAP_EXPECT": str(len(peers)),
            # How long they wait before they elect a leader, in units that are made for a real network: 8 s at the default of 5.
            "RAFT_TIMEOUTS_MULTIPLIER": "1" if len(peers) == 1 else "2",
        }
        if self.api_key:
            keys = {"writer": self.api_key, **({"reader": self.reader_key} if self.reader_key else {})}
            made |= {
                "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
                "AUTHENTICATION_APIKEY_ENABLED": "true",
                "AUTHENTICATION_APIKEY_ALLOWED_KEYS": ",".join(keys.values()),
                "AUTHENTICATION_APIKEY_USERS": ",".join(keys),
                "AUTHORIZATION_ADMINLIST_ENABLED": "true",
                "AUTHORIZATION_ADMINLIST_USERS": "writer",
                "AUTHORIZATION_ADMINLIST_READONLY_USERS": "reader",
            }
        if self.tls:
            made |= {"GRPC_CERT_FILE": str(self.tls[0].resolve()), "GRPC_KEY_FILE": str(self.tls[1].resolve())}
        return {**made, **self.environment}

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Until REST says so and gRPC takes connections."""
        deadline = time.monotonic() + seconds
        while not self._is_ready():
            if not self.running:
                raise ServerError(f"{self.name} ended while it was started; the end of its log:\n{self.last_lines()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} was not ready after {seconds:g} s; the end of its log:\n{self.last_lines()}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.get("/v1/.well-known/ready")
            socket.create_connection(("127.0.0.1", self.grpc_port), 1).close()
            return self.running
        return False

    def get(self, path: str) -> bytes:
        """What REST answers to the writer with 200; OSError for anything else."""
        address = ("127.0.0.1", self.ports.http)
        connection = http.client.HTTPConnection(*address, timeout=5)
        if self.tls:
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # whom a client trusts is not asked here
            connection = http.client.HTTPSConnection(*address, timeout=5, context=trusting)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise OSError(f"{answer.status} {body.decode(errors='replace')}")
        return body

    def members(self) -> list[str]:
        """The nodes that this one knows to be well."""
        return [node["name"] for node in json.loads(self.get("/v1/nodes"))["nodes"] if node["status"] == "HEALTHY"]

    def last_lines(self, count: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it does not end."""
        self.ask_to_stop()
        self._end(_STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self._end(0)

    def ask_to_stop(self) -> None:
        """SIGTERM, and wait for nothing."""
        if self._process is not None:
            self._process.terminate()

    def _end(self, seconds: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()  # does nothing to one that has ended
            process.wait()
        atexit.unregister(self.kill)

    def restart(self) -> None:
        """Start it again (stopped, killed or running) on the same data and the same ports."""
        self.stop()
        self.launch()
        self.wait_until_ready()

    def wipe(self) -> None:
        """Remove the data of a stopped server."""
        assert not self.running, "stop it first"
        shutil.rmtree(self.data, ignore_errors=True)
