"""The compose files: of the version that the tests run, open to this machine only, and made of what the server knows."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.weaviate_server import VERSION, WeaviateServer

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "compose.yml", ROOT / "compose.three-nodes.yml"]
of_each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
_MARKED = re.compile(r"^( *)# ([A-Z][A-Z_]+: .*)$", re.MULTILINE)  # a setting that the user may take
_OWN = {"PERSISTENCE_DATA_PATH", "CLUSTER_HOSTNAME"}  # which a server on loopback has its own values for


def services(path: Path, *, marked: bool = False) -> dict[str, dict[str, Any]]:
    """With `marked` also the settings that stand there as comments."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(_MARKED.sub(r"\1\2", text) if marked else text)["services"]
    return found


def compose() -> list[str]:
    """The command of a Docker client that has compose; no engine is asked."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip("no docker client with compose")


@of_each_file
def test_the_image_is_the_version_that_the_tests_run_and_that_refuses_loudly(path: Path) -> None:
    version = tuple(map(int, VERSION.split(".")))
    assert version >= (1, 38, 10), "older ones can call a write to a read-only shard a success"
    assert version != (1, 39, 0)
    assert {each["image"] for each in services(path).values()} == {f"cr.weaviate.io/semitechnologies/weaviate:{VERSION}"}


@of_each_file
def test_only_this_machine_gets_in(path: Path) -> None:
    ports = [port for each in services(path).values() for port in each["ports"]]
    numbers = range(len(services(path)))
    assert sorted(ports) == sorted(
        [*(f"127.0.0.1:{8080 + number}:8080" for number in numbers), *(f"127.0.0.1:{50051 + number}:50051" for number in numbers)]
    )
    assert not any({"network_mode", "privileged"} & set(each) for each in services(path).values())


@of_each_file
def test_each_node_keeps_its_data_and_is_asked_how_it_is(path: Path) -> None:
    volumes = yaml.safe_load(path.read_text(encoding="utf-8"))["volumes"]
    found = services(path)
    assert [each["volumes"] for each in found.values()] == [[f"{name}:/var/lib/weaviate"] for name in volumes]
    for each in found.values():
        assert each["environment"]["PERSISTENCE_DATA_PATH"] == "/var/lib/weaviate"
        assert each["restart"] == "unless-stopped"
        assert each["healthcheck"]["test"][-1] == "http://127.0.0.1:8080/v1/.well-known/ready"


def test_three_nodes_know_each_other_by_name() -> None:
    found = services(FILES[1])
    for name, each in found.items():
        environment = each["environment"]
        assert each["hostname"] == environment["CLUSTER_HOSTNAME"] == name
        gossip = environment["CLUSTER_GOSSIP_BIND_PORT"]
        assert environment["CLUSTER_DATA_BIND_PORT"] == str(int(gossip) + 1)
        assert environment["CLUSTER_JOIN"].split(",") == [f"{other}:{gossip}" for other in found if other != name]
        assert environment["RAFT_JOIN"].split(",") == list(found)
        assert environment["RAFT_BOOTSTRAP_EXPECT"] == str(len(found))


@of_each_file
def test_the_server_knows_each_setting(path: Path, weaviate_binary: Path) -> None:
    named = {name for each in services(path, marked=True).values() for name in each["environment"]}
    assert {"ASYNC_INDEXING", "AUTHENTICATION_APIKEY_ALLOWED_KEYS"} < named
    with weaviate_binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        assert [name for name in sorted(named) if binary.find(name.encode()) < 0] == []
        assert binary.find(b"AUTOSCHEMA_ENABLEDS") < 0, "what nobody knows is not found"


def test_a_server_starts_with_these_settings_and_with_the_key_that_they_offer(weaviate_binary: Path, tmp_path: Path) -> None:
    text = json.dumps(services(FILES[0], marked=True)["weaviate"]["environment"])
    settings: dict[str, str] = json.loads(text.replace("${WEAVIATE_API_KEY:?}", "a-key"))
    settings["AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED"] = "false"  # the line that is removed, as good as
    with WeaviateServer(tmp_path, environment={name: settings[name] for name in settings.keys() - _OWN}) as server:
        with pytest.raises(OSError, match="401"):
            server.get("/v1/schema")
        server.api_key = "a-key"
        assert json.loads(server.get("/v1/schema")) == {"classes": []}
        assert json.loads(server.get("/v1/meta"))["version"] == VERSION


@of_each_file
def test_compose_accepts_it_as_it_stands_and_with_all_that_it_offers(path: Path, tmp_path: Path) -> None:
    command = compose()
    all_of_it = tmp_path / path.name
    all_of_it.write_text(_MARKED.sub(r"\1\2", path.read_text(encoding="utf-8")), encoding="utf-8")
    environment = {**os.environ, "WEAVIATE_API_KEY": "a-key"}
    for file in (path, all_of_it):
        ran = subprocess.run([*command, "-f", file, "config", "-q"], env=environment, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
