"""The keys of an index at a server: its secret is never shown and goes nowhere else, and its address is safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import log
from pipeline.commands.main import main
from pipeline.config import Config
from tests.test_config import CANARY, lines, load, refused

AT_SERVER = {"vector_store": "weaviate"}
SERVER = "vector_store: weaviate\n"


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers as a secret is hidden in that test only; the machine's own environment is not asked."""
    monkeypatch.setattr(log, "_secrets", set())
    for name in ("WEAVIATE_API_KEY", "OPENAI_API_KEY", "SERVICE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.yml"


# The key


def test_the_key_comes_from_the_environment_then_from_a_file_named_there_then_from_the_config(file: Path, tmp_path: Path) -> None:
    place = tmp_path / "key"
    place.write_text(f"{CANARY}-file\n", encoding="utf-8")
    words = f"{SERVER}weaviate_api_key: {CANARY}-config\n"
    everywhere = {"WEAVIATE_API_KEY": f"{CANARY}-env", "WEAVIATE_API_KEY_FILE": str(place)}
    assert load(file, words, (), everywhere).weaviate_api_key == f"{CANARY}-env"
    assert load(file, words, (), {"WEAVIATE_API_KEY_FILE": str(place)}).weaviate_api_key == f"{CANARY}-file"
    assert load(file, words, (), {"WEAVIATE_API_KEY": "", "WEAVIATE_API_KEY_FILE": ""}).weaviate_api_key == f"{CANARY}-config"
    assert load(file, SERVER, (), {"WEAVIATE_API_KEY": f"  {CANARY}\n"}).weaviate_api_key == CANARY
    assert load(file, SERVER).weaviate_api_key is None


def test_a_key_in_the_config_is_warned_about_and_one_in_the_environment_is_not(file: Path) -> None:
    assert load(file, f"{SERVER}weaviate_api_key: {CANARY}\n").notes == (
        "weaviate_api_key stands in my.yml: better in the environment (WEAVIATE_API_KEY), where no copy of it is kept.",
    )
    assert load(file, SERVER, (), {"WEAVIATE_API_KEY": CANARY}).notes == ()


@pytest.mark.parametrize("store", ["embedded", "none"])
def test_the_key_goes_to_no_other_store(file: Path, store: str) -> None:
    for words, environment in (("", {"WEAVIATE_API_KEY": CANARY}), (f"weaviate_api_key: {CANARY}\n", {})):
        assert load(file, f"vector_store: {store}\n{words}", (), environment).weaviate_api_key is None


def test_each_key_goes_its_own_way(file: Path) -> None:
    config = load(
        file, f"{SERVER}embedding_service: openai\n", (), {"OPENAI_API_KEY": CANARY, "WEAVIATE_API_KEY": "weaviate-key-0123"}
    )
    assert (config.openai_api_key, config.weaviate_api_key) == (CANARY, "weaviate-key-0123")


def test_a_key_file_that_can_not_be_read_is_named(file: Path, tmp_path: Path) -> None:
    said = refused(file, SERVER, (), {"WEAVIATE_API_KEY_FILE": str(tmp_path / "gone")})
    assert said.startswith(f"WEAVIATE_API_KEY_FILE is {str(tmp_path / 'gone')!r}, which can't be read: ")


def test_the_key_is_in_no_repr_and_hidden_in_whatever_is_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, environment in ((f"weaviate_api_key: {CANARY}\n", {}), ("", {"WEAVIATE_API_KEY": CANARY})):
        config = load(file, SERVER + words, (), environment)
        assert config.weaviate_api_key == CANARY
        assert CANARY not in repr(config) + str(config.notes)
    file.write_text(f"{SERVER}weaviate_api_key: {CANARY}\ninput: {CANARY}.csv\n", encoding="utf-8")
    assert main(["--config", str(file), "--debug"]) == 2
    shown = capsys.readouterr()
    assert CANARY not in shown.out + shown.err
    assert "[hidden].csv" in shown.err


def test_a_key_that_another_store_does_not_need_is_hidden_all_the_same(file: Path) -> None:
    load(file, f"weaviate_api_key: {CANARY}\n")
    assert log.without_secrets(f"a {CANARY}") == "a [hidden]"


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (f"weaviate_api_key: [{CANARY}]\n", ""),
        (f"weaviate_api_key: {CANARY}\nbudget_usd: -1\nzzz: 1\n", ""),
        (f"weaviate_api_kye: {CANARY}\n", ""),
        (f"weaviate_api_key: '{CANARY}\n", ""),
        (f"weaviate_api_key: {CANARY}: x\n", ""),
        (f"weaviate_api_key: *{CANARY}\n", ""),
        (f"weaviate_api_key: !{CANARY} x\n", ""),
        (f"weaviate_api_key: {CANARY}\nweaviate_api_key: {CANARY}\n", ""),
        (f"weaviate_url: https://me:{CANARY}@host\n", ""),
        (f"weaviate_url: https://host?key={CANARY}\n", ""),
        (f"weaviate_url: https://host#{CANARY}\n", ""),
        (f"weaviate_url: ftp://me:{CANARY}@host\n", ""),
        ("", f"weaviate_api_key=[{CANARY}"),
        ("", f"weaviate_api_key=[{CANARY}]"),
        ("", f"weaviate_api_key=*{CANARY}"),
        ("", f"weaviate_api_key=!{CANARY} x"),
        ("", f"weaviate_api_key={{{CANARY}: 1}}"),
        ("", f"weaviate_api_key:{CANARY}"),
        ("", f"weaviate_api_key {CANARY}"),
        ("", f"weaviate_api_kye={CANARY}"),
        ("", f"weaviate_key={CANARY}"),
        ("", f"weaviate_url=https://{CANARY}@host"),
    ],
)
def test_no_message_shows_the_key(words: str, setting: str, file: Path) -> None:
    assert "canary" not in refused(file, SERVER + words, [setting] if setting else [])


def test_a_broken_setting_of_the_key_is_called_by_its_name(file: Path) -> None:
    assert refused(file, SERVER, [f"weaviate_api_key:{CANARY}"]) == "my.yml: --set weaviate_api_key: write it as KEY=VALUE."
    assert refused(file, SERVER, [f"weaviate_api_key=[{CANARY}]"]) == "my.yml: weaviate_api_key is set; it must be a text."


# The address


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:8080", "https://index.example.org", "https://10.1.2.3:8443",
     "https://abc.c0.europe-west3.gcp.weaviate.cloud"],
)  # fmt: skip
def test_this_machine_or_https_is_taken(url: str, file: Path) -> None:
    assert load(file, lines({**AT_SERVER, "weaviate_url": url})).weaviate_url == url
    assert load(file, lines({**AT_SERVER, "weaviate_url": f"{url}/"})).weaviate_url == url


@pytest.mark.parametrize(
    "keys",
    [{"weaviate_url": "http://index.example.org:8080"}, {"weaviate_url": "http://192.168.0.7:8080"},
     {"weaviate_grpc_host": "grpc.example.org"}, {"weaviate_url": "http://localhost.example.org"},
     {"weaviate_url": "http://0.0.0.0:8080"}],
)  # fmt: skip
def test_http_to_another_machine_by_either_protocol_needs_allow_insecure(keys: dict[str, str], file: Path) -> None:
    url = keys.get("weaviate_url", "http://localhost:8080")
    assert refused(file, lines({**AT_SERVER, **keys})) == (
        f"my.yml: weaviate_url is {url!r}; texts and key would travel in the clear: use https://, or set allow_insecure: true."
    )
    assert load(file, lines({**AT_SERVER, **keys, "allow_insecure": True})).weaviate_url == url
    assert load(file, lines(keys)).weaviate_url == url, "which the embedded index does not use"


def test_a_grpc_host_of_this_machine_or_with_https_needs_nothing(file: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert load(file, lines({**AT_SERVER, "weaviate_grpc_host": host})).weaviate_grpc_host == host
    load(file, lines({**AT_SERVER, "weaviate_url": "https://index.example.org", "weaviate_grpc_host": "grpc.example.org"}))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("https://me@host", "a URL without a name or password in it; keys come from the environment"),
        ("https://me:pass@host", "a URL without a name or password in it; keys come from the environment"),
        ("https://host?a=b", "a URL without '?' or '#'"),
        ("https://host#a", "a URL without '?' or '#'"),
        ("https://host/v1", "the URL of the server's root, without a path"),
        ("https://host/v1/", "the URL of the server's root, without a path"),
        ("http://169.254.169.254", "the URL of a service of yours, not of a cloud's metadata service"),
        ("http://metadata.google.internal", "the URL of a service of yours, not of a cloud's metadata service"),
        ("http://[::ffff:169.254.169.254]", "the URL of a service of yours, not of a cloud's metadata service"),
        ("http://0xA9FEA9FE:8080", "the URL of a service of yours, not of a cloud's metadata service"),
        ("localhost:8080", "a URL such as http://localhost:8080"),
        ("ftp://localhost:8080", "a URL such as http://localhost:8080"),
        ("http://", "a URL such as http://localhost:8080"),
        ("http://host:port", "a URL such as http://localhost:8080"),
        ("local", "a URL such as http://localhost:8080"),
        (None, "a URL such as http://localhost:8080"),
        (8080, "a URL such as http://localhost:8080"),
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_told_what_one_is(value: object, said: str, file: Path) -> None:
    assert f"it must be {said}." in refused(file, lines({**AT_SERVER, "weaviate_url": value, "allow_insecure": True}))


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "metadata.google.internal", "host:50051", "http://host", "host/x", "me@host", "0xA9FEA9FE",
      "::ffff:169.254.169.254", "[::1]", "", "a b"],
)  # fmt: skip
def test_a_grpc_host_is_a_host_and_no_metadata_service(host: str, file: Path) -> None:
    words = lines({**AT_SERVER, "weaviate_url": "https://host", "weaviate_grpc_host": host})
    assert "weaviate_grpc_host is " in refused(file, words)


# Names and numbers


@pytest.mark.parametrize("name", ["EntityString", "E", "A1_b", "X" * 128])
def test_a_collection_is_called_as_weaviate_takes_it(name: str, file: Path) -> None:
    assert load(file, f"collection: {name}").collection == name


@pytest.mark.parametrize(
    "name", ["entityString", "1st", "_E", "Entity-String", "Entity String", "Entité", "", "X" * 129, 7, None, ["E"]]
)
def test_another_name_is_refused_and_not_changed(name: object, file: Path) -> None:
    said = refused(file, lines({"collection": name}))
    assert "it must be a name of letters, digits and _ that begins with a capital, e.g. EntityString." in said


def test_hybrid_fields_are_fields_each_once_in_a_fixed_order(file: Path) -> None:
    assert load(file).hybrid_fields == ()
    assert load(file, "hybrid_fields: [title, person, title]").hybrid_fields == ("person", "title")
    assert load(file, "", ["hybrid_fields=[title]"]).hybrid_fields == ("title",)
    assert refused(file, "hybrid_fields: [person, author]") == (
        "my.yml: hybrid_fields names 'author'; there is no such field: person, title, composite."
    )
    for value in ("person", "{person: 1}", "[1]", "null", "[[person]]"):
        assert "it must be a list of fields, e.g. [person, title]." in refused(file, f"hybrid_fields: {value}")


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("weaviate_grpc_port", 1, 65_535), ("weaviate_timeout_seconds", 1, 3600), ("weaviate_ef_construction", 4, 4096),
        ("weaviate_max_connections", 4, 256), ("weaviate_shards", 1, 1024), ("weaviate_replication", 1, 16),
        ("weaviate_chunk", 1, 10_000), ("weaviate_workers", 1, 32),
    ],
)  # fmt: skip
def test_a_number_has_a_range(key: str, low: int, high: int, file: Path) -> None:
    for good in (low, high):
        assert getattr(load(file, f"{key}: {good}"), key) == good
    for bad in (low - 1, high + 1):
        assert refused(file, f"{key}: {bad}") == f"my.yml: {key} is {bad}; it must be from {low:,} to {high:,}."


def test_verify_vectors_is_a_number_or_null_for_all(file: Path) -> None:
    assert (load(file).verify_vectors, load(file, "verify_vectors: null").verify_vectors) == (10_000, None)
    assert load(file, "verify_vectors: 0").verify_vectors == 0
    assert "it must be at least 0." in refused(file, "verify_vectors: -1")


def test_words_are_of_a_few(file: Path) -> None:
    assert refused(file, "weaviate_quantizer: pq") == "my.yml: weaviate_quantizer is 'pq'; it must be one of: rq8, rq1, none."
    assert refused(file, "index_later: 1") == "my.yml: index_later is 1; it must be true or false."


def test_what_a_config_says_of_the_server_is_kept_as_it_is(file: Path) -> None:
    keys = {"weaviate_ca_file": "certs/ca.pem", "weaviate_grpc_host": "localhost", "weaviate_shards": 3, "index_later": True}
    config = load(file, lines({**AT_SERVER, **keys}))
    assert {name: getattr(config, name) for name in keys} == keys
    assert Config().weaviate_ca_file is None
