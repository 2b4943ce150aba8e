"""The config: everything that is wrong is said at once, by key, value and range; and a secret is never shown."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline import log
from pipeline.commands.main import main
from pipeline.config import Config, load_config, render_config
from pipeline.config.keys import KEYS, SAMPLE_FIELDS
from pipeline.errors import ConfigError
from pipeline.provider.service import service_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNHURRIED = settings(deadline=None)  # the machine may be busy
ROOT = Path(__file__).resolve().parent.parent
CANARY = "sk-canary-0123456789abcdef"
URL = {"service_name": "ours", "embedding_model": "m"}


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers as a secret is hidden in that test only; the machine's own environment is not asked."""
    monkeypatch.setattr(log, "_secrets", set())
    for name in ("OPENAI_API_KEY", "SERVICE_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.yml"


def load(file: Path, words: str = "", settings: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    file.write_text(words, encoding="utf-8")
    return load_config(file, settings, environment or {})


def refused(file: Path, words: str = "", settings: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, words, settings, environment)
    assert caught.value.exit_code == 2
    return str(caught.value)


def lines(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values))


# Unknown keys


def test_all_unknown_keys_are_said_at_once_each_with_the_nearest(file: Path) -> None:
    """Nobody wants to run a command three times to learn of three typos."""
    said = refused(file, "use_batch_embedding: true\nopenai_key: null\ncheckpoint_dri: x\nzzz: 1\nbudget_usd: 3\n")
    assert said.splitlines() == [
        "my.yml has 4 problems:",
        "  - Unknown key 'use_batch_embedding'. Did you mean 'use_batch_embeddings'?",
        "  - Unknown key 'openai_key'. Did you mean 'openai_api_key'?",
        "  - Unknown key 'checkpoint_dri'. Did you mean 'checkpoint_dir'?",
        "  - Unknown key 'zzz'. python main.py --init NEW.yml writes all keys there are.",
    ]


def test_unknown_keys_and_wrong_values_are_said_together(file: Path) -> None:
    """One problem is one line; several are a list."""
    said = refused(file, "imput: x\nbatch_poll_interval: 0\n", ["budget_usd=-1", "nonsense"])
    assert len(said.splitlines()) == 5
    assert refused(file, "imput: x\n") == "my.yml: Unknown key 'imput'. Did you mean 'input'?"


@pytest.mark.parametrize("name", ["1", "true", "null", "[a]", "2024-01-01"])
def test_a_key_that_is_no_text_is_an_unknown_key(name: str, file: Path) -> None:
    """YAML allows keys of any kind; here they are typos."""
    assert re.search("Unknown key|broken YAML", refused(file, f"? {name}\n: x\n"))


def test_what_a_config_is_not_cannot_be_set(file: Path) -> None:
    """`path` and `notes` are facts about the config, not keys of it."""
    said = refused(file, "path: /etc/passwd\nnotes: []\n")
    assert "Unknown key 'path'" in said
    assert "Unknown key 'notes'" in said


# Values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("batch_poll_interval: 0", "batch_poll_interval is 0; it must be at least 1 second."),
        ("batch_poll_interval: 1.5", "batch_poll_interval is 1.5; it must be a whole number, at least 1 second."),
        ("batch_poll_interval: '60'", "batch_poll_interval is '60'; it must be a whole number, at least 1 second."),
        ("batch_poll_interval: true", "batch_poll_interval is true; it must be a whole number, at least 1 second."),
        ("batch_poll_interval: null", "batch_poll_interval is null; it must be a whole number, at least 1 second."),
        ("batch_embedding_size: 50001", "batch_embedding_size is 50001; it must be from 1 to 50,000."),
        ("max_requests_per_file: 0", "max_requests_per_file is 0; it must be from 1 to 50,000."),
        ("max_concurrent_requests: 65", "max_concurrent_requests is 65; it must be from 1 to 64."),
        ("max_concurrent_requests: []", "max_concurrent_requests is []; it must be a whole number, from 1 to 64."),
        ("max_rejected_rows: -1", "max_rejected_rows is -1; it must be at least 0."),
        ("embedding_dimensions: 0", "embedding_dimensions is 0; it must be from 1 to 65,536."),
        ("budget_usd: -0.01", "budget_usd is -0.01; it must be at least 0."),
        ("budget_usd: .nan", "budget_usd is nan; it must be a number, at least 0."),
        ("budget_usd: .inf", "budget_usd is inf; it must be a number, at least 0."),
        ("budget_usd: much", "budget_usd is 'much'; it must be a number, at least 0."),
        ("budget_usd: false", "budget_usd is false; it must be a number, at least 0."),
        ("price_per_million: -1", "price_per_million is -1; it must be at least 0."),
        ("memory_limit_gb: 0.2", "memory_limit_gb is 0.2; it must be from 0.25 to 4,096."),
        ("request_timeout_seconds: 3601", "request_timeout_seconds is 3601; it must be from 1 to 3,600."),
        ("allow_insecure: 1", "allow_insecure is 1; it must be true or false."),
        ("batch_manual_polling: 'yes'", "batch_manual_polling is 'yes'; it must be true or false."),
        ("use_batch_embeddings: null", "use_batch_embeddings is null; it must be true or false."),
        ("encoding_format: int8", "encoding_format is 'int8'; it must be one of: float, base64."),
        ("log_level: INFO", "log_level is 'INFO'; it must be one of: debug, info, warning, error."),
        ("log_level: {}", "log_level is {}; it must be one of: debug, info, warning, error."),
        ("input: ''", "input is ''; it must be a text."),
        ("input: '  '", "input is '  '; it must be a text."),
        ("input: 7", "input is 7; it must be a text."),
        ("input: null", "input is null; it must be a text."),
        ('checkpoint_dir: "a\\0b"', "checkpoint_dir is 'a\\x00b'; it must be a text without NUL."),
        ("id_column: [id]", "id_column is ['id']; it must be a text."),
        ("input_encoding: utf-9", "input_encoding is 'utf-9'; it must be an encoding that Python knows"),
        ("input_encoding: base64", "input_encoding is 'base64'; it must be an encoding that Python knows"),
        ("input_encoding: 8", "input_encoding is 8; it must be an encoding that Python knows"),
        ("input_delimiter: ';;'", "input_delimiter is ';;'; it must be one character"),
        ("input_delimiter: ''", "input_delimiter is ''; it must be one character"),
        ("input_delimiter: ' '", "input_delimiter is ' '; it must be one character"),
        ("input_delimiter: '\"'", "input_delimiter is '\"'; it must be one character"),
        ("input_delimiter: 1", "input_delimiter is 1; it must be one character"),
        ("fields: []", "fields is given; it must be a list of lines such as 'person: author'"),
        ("fields: {}", "fields is given; it must be a list of lines such as 'person: author'"),
        ("fields: person", "fields is given; it must be a list of lines such as 'person: author'"),
        ("fields: {person: 7}", "fields: names and sources are texts, but 'person' is 7; put it in quotes if it is meant so."),
        (
            "fields: {person: null}",
            "fields: names and sources are texts, but 'person' is None; put it in quotes if it is meant so.",
        ),
        ("fields: {no: author}", "fields: names and sources are texts, but False is 'author'; put it in quotes if it is meant so."),
        ("fields: {Person: author}", "fields: the field name 'Person' must start with a small letter"),
        ("fields: {person: '{author'}", "fields: the template of the field 'person' has a lone brace"),
        ("fields: {person: ' '}", "fields: the field 'person' names no column"),
    ],
)
def test_a_wrong_value_names_key_value_and_range(words: str, said: str, file: Path) -> None:
    """A sentence to act on, with the value as it was understood."""
    found = refused(file, words)
    assert found.startswith("my.yml: ")
    assert said in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize("value", ["9" * 400, "1" + "0" * 309, "9" * 5000, "1e400"])
@pytest.mark.parametrize("key", ["budget_usd", "price_per_million", "memory_limit_gb"])
def test_a_number_beyond_all_bounds_is_refused_as_a_sentence(key: str, value: str, file: Path) -> None:
    """It is no float, and perhaps not even a number that Python reads."""
    assert re.search(f"{key} is .*it must be|broken YAML", refused(file, f"{key}: {value}"))


def test_every_key_refuses_what_is_not_its_type(file: Path) -> None:
    """No key takes whatever comes; a new key joins this test by being one."""
    for entry in KEYS:
        said = refused(file, f"{entry.name}: [[1]]\n")
        assert f"my.yml: {entry.name} is " in said
        assert "it must be" in said


def test_every_default_is_a_value_that_its_own_check_takes() -> None:
    """Also one that is null."""
    for entry in KEYS:
        if entry.name != "fields":
            assert entry.metadata["check"](entry.default) == entry.default, entry.name


def test_every_key_has_a_comment_of_one_line() -> None:
    """It is what `--init` writes beside it."""
    for entry in KEYS:
        assert entry.metadata["comment"].strip()
        assert "\n" not in entry.metadata["comment"]


@pytest.mark.parametrize(
    ("words", "known"), [("latin1", "iso8859-1"), ("UTF8", "utf-8"), ("utf-16", "utf-16"), ("CP1252", "cp1252")]
)
def test_encodings_are_known_by_any_of_their_names(words: str, known: str, file: Path) -> None:
    """And called by one, so that another spelling is no change of the input."""
    config = load(file, f"input_encoding: {words}")
    assert config.input_encoding == known
    assert config.reading() == load(file, f"input_encoding: {known}").reading()


def test_what_decides_the_reading_changes_its_name(file: Path) -> None:
    """Input, encoding, delimiter and id column: and nothing else."""
    readings = [
        load(file, words).reading() for words in ("", "input: b", "input_encoding: cp1252", "input_delimiter: ';'", "id_column: x")
    ]
    assert len(set(readings)) == 5
    assert load(file, "budget_usd: 1").reading() == readings[0]


# The file


@pytest.mark.parametrize(
    ("words", "line"),
    [("input: a\nbudget_usd: [1\n", 3), ("input: 'a\n", 2), ("a: b: c\n", 1), ("input: a\n\tb: c\n", 2), ("{", 1),
     ("input: @a", 1), ("- a\nb: c", 2),
     ("input: *nothing\n", 1), ("input: a\n---\ninput: b\n", 2), ("input: !!python/object/apply:os.system ['true']\n", 1)],
)  # fmt: skip
def test_broken_yaml_is_said_with_its_line(words: str, line: int, file: Path) -> None:
    """YAML's own words, its line counted from 1. What would make an object is as broken as the rest."""
    assert re.match(rf"{re.escape(str(file))}: broken YAML: line {line}, column \d+: .+\.$", refused(file, words))


@pytest.mark.parametrize(
    "words",
    ["id_column: 2024-13-45", "a: !!int x", "a: !!float x", "a: !!timestamp x", "a: !!bool x", "a: 0b_", "a: !!binary '\u00e9'",
     "[" * 3000, "a: \x01", "a: \x7f"],
)  # fmt: skip
def test_what_yaml_itself_stumbles_over_is_broken_yaml_too(words: str, file: Path) -> None:
    """A date in a thirteenth month, a tag that does not fit, a thousand brackets: a sentence, not a traceback."""
    said = refused(file, words)
    assert "broken YAML" in said
    assert len(said.splitlines()) == 1
    assert "broken YAML" in refused(file, "", [f"input={words}"])


def test_a_key_that_stands_twice_is_named(file: Path) -> None:
    """YAML would silently take the last one; also within fields."""
    assert "line 1, column 1: the key 'input' stands twice." in refused(file, "input: a\nbudget_usd: 1\ninput: b\n")
    assert "the key 'person' stands twice." in refused(file, "fields:\n  person: a\n  person: b\n")


@pytest.mark.parametrize(("words", "kind"), [("- a", "list"), ("just words", "str"), ("7", "int"), ("2024-01-01", "date")])
def test_a_file_that_is_no_mapping_is_told_what_one_is(words: str, kind: str, file: Path) -> None:
    """With an example."""
    assert refused(file, words) == f"{file}: must hold lines such as 'input: catalogue.csv', but it is a {kind}."


def test_a_missing_file_says_how_to_write_one(file: Path) -> None:
    """And a folder in its place is said to be one."""
    with pytest.raises(ConfigError, match=r"there is no such file\. Write one with: python main\.py --init my\.yml"):
        load_config(file, (), {})
    file.mkdir()
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load_config(file, (), {})


def test_a_file_that_is_not_utf8_names_the_byte(file: Path) -> None:
    """A config saved by an old editor."""
    file.write_bytes("input: caf\u00e9.csv".encode("cp1252"))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 10; save it as UTF-8"):
        load_config(file, (), {})


def test_a_byte_order_mark_is_passed_over(file: Path) -> None:
    """Windows editors write one."""
    file.write_bytes(b"\xef\xbb\xbfinput: a.csv\r\n")
    assert load_config(file, (), {}).input == "a.csv"


def test_a_catalogue_in_the_place_of_a_config_is_not_read_whole(file: Path) -> None:
    """`--config records.csv`, of 20 GB."""
    with file.open("wb") as big:
        big.truncate(1_000_001)
    with pytest.raises(ConfigError, match=r"larger than 1 MB; this can't be a config file\. Is --config right\?"):
        load_config(file, (), {})


@pytest.mark.parametrize("words", ["", "# nothing but a comment\n", "---\n", "null"])
def test_an_empty_file_means_the_defaults(words: str, file: Path) -> None:
    """Every key may be left out."""
    config = load(file, words)
    assert config == Config(path=file)
    assert [field.name for field in config.fields] == list(SAMPLE_FIELDS)


# --set


def test_set_stands_over_the_file(file: Path) -> None:
    """Read as YAML reads a value, so that numbers are numbers; the last one counts."""
    config = load(
        file, "budget_usd: 1\ninput: a\n", ["budget_usd=2", "input=b=c", " log_level = debug", "budget_usd=3.5", "embedding_model="]
    )
    assert (config.budget_usd, config.input, config.log_level, config.embedding_model) == (3.5, "b=c", "debug", None)


def test_set_adds_or_changes_one_field(file: Path) -> None:
    """The others stay as they are in the file; a file without fields has none but these."""
    words = "fields:\n  person: a\n  title: b\n"
    config = load(file, words, ["fields.title=x y", "fields.composite={a}"])
    assert [field.name for field in config.fields] == ["person", "title", "composite"]
    assert config.fields[1].source == "x y"
    assert [field.name for field in load(file, "", ["fields.only=a"]).fields] == ["only"]


@pytest.mark.parametrize("value", ["{author}", "{author}: {title}", "'{author}'", '"Name: {author}\\nTitle: {title}"'])
def test_set_takes_a_template_with_or_without_quotes(value: str, file: Path) -> None:
    """To YAML `{author}` is a mapping; to whoever types it, it is a template."""
    [field] = load(file, "", [f"fields.person={value}"]).fields
    assert "author" in field.columns
    assert not field.source.startswith(("'", '"'))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("budget_usd", "--set budget_usd: write it as KEY=VALUE."),
        ("budget_usd:3", "--set budget_usd:3: write it as KEY=VALUE."),
        ("budget=3", "Unknown key 'budget'. Did you mean 'budget_usd'?"),
        ("=3", "Unknown key ''."),
        ("budget_usd=[", "--set budget_usd=[: broken YAML: line 1, column 2: "),
        ("budget_usd=lots", "budget_usd is 'lots'; it must be a number, at least 0."),
        ("fields.Bad=x", "fields: the field name 'Bad'"),
        ("fields.=x", "fields: the field name ''"),
        ("input.x=1", "Unknown key 'input.x'. Did you mean 'input'?"),
    ],
)
def test_what_is_wrong_with_set_is_said(setting: str, said: str, file: Path) -> None:
    """As of the file."""
    assert said in refused(file, "", [setting])


# Paths


def test_a_path_is_relative_to_the_config_and_not_to_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cron stands elsewhere."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    config = load(tmp_path / "a" / "my.yml", "checkpoint_dir: state\n")
    assert config.checkpoint_path == tmp_path / "a" / "state"
    assert config.folder == tmp_path / "a"
    relative = load(Path("../a/my.yml"), "checkpoint_dir: state\n")
    assert relative.checkpoint_path.resolve() == tmp_path / "a" / "state"
    assert relative.checkpoint_path.is_absolute()
    assert load(tmp_path / "a" / "my.yml", f"checkpoint_dir: {tmp_path}/c\n").checkpoint_path == tmp_path / "c"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(tmp_path / "a" / "my.yml", "checkpoint_dir: ~/state\n").checkpoint_path == tmp_path / "home" / "state"


# Secrets

OPENAI = "embedding_service: openai\n"
AT_URL = "embedding_service: https://host/v1\nservice_name: ours\nembedding_model: m\n"


def test_a_key_comes_from_the_environment_first(file: Path, tmp_path: Path) -> None:
    """Then from the file that the environment names, then from the config, which is warned about."""
    place = tmp_path / "key"
    place.write_text(f"{CANARY}-file\n", encoding="utf-8")
    everywhere = {"OPENAI_API_KEY": f"{CANARY}-env", "OPENAI_API_KEY_FILE": str(place)}
    words = f"{OPENAI}openai_api_key: {CANARY}-config\n"
    assert load(file, words, (), everywhere).openai_api_key == f"{CANARY}-env"
    assert load(file, words, (), {"OPENAI_API_KEY_FILE": str(place)}).openai_api_key == f"{CANARY}-file"
    assert load(file, words, (), {"OPENAI_API_KEY": "", "OPENAI_API_KEY_FILE": ""}).openai_api_key == f"{CANARY}-config"
    assert load(file, OPENAI).openai_api_key is None
    assert load(file, OPENAI, (), {"OPENAI_API_KEY": f"  {CANARY}\n"}).openai_api_key == CANARY


def test_a_key_in_the_config_works_and_is_warned_about(file: Path) -> None:
    """A copy of it is kept by whoever has the file."""
    config = load(file, f"{OPENAI}openai_api_key: {CANARY}\n")
    assert config.notes == (
        "openai_api_key stands in my.yml: better in the environment (OPENAI_API_KEY), where no copy of it is kept.",
    )
    assert not load(file, OPENAI, (), {"OPENAI_API_KEY": CANARY}).notes


def test_a_service_by_url_has_a_key_of_its_own(file: Path) -> None:
    """OpenAI's key in the environment never goes to another host."""
    assert load(file, AT_URL, (), {"OPENAI_API_KEY": CANARY}).openai_api_key is None
    assert load(file, AT_URL, (), {"OPENAI_API_KEY": "other-key-1234", "SERVICE_API_KEY": CANARY}).openai_api_key == CANARY


def test_a_key_file_that_is_not_there_is_named(file: Path, tmp_path: Path) -> None:
    """Or that is no text."""
    said = refused(file, OPENAI, (), {"OPENAI_API_KEY_FILE": str(tmp_path / "gone")})
    assert said.startswith(f"OPENAI_API_KEY_FILE is {str(tmp_path / 'gone')!r}, which can't be read: ")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "can't be read" in refused(file, OPENAI, (), {"OPENAI_API_KEY_FILE": str(tmp_path / "binary")})


@pytest.mark.parametrize(
    "key",
    ["your-api-key", "YOUR_KEY", "sk-your-key-here", "<your key>", "sk-...", "sk-\u2026", "sk-xxxxxxxxxxxxxxxxxxxx",
     "changeme", "ChangeMe",
     "insert-key-here", "sk-", "none", "null", "TODO add it here", "sk-********", "api_key_goes_here", "short"],
)  # fmt: skip
def test_a_placeholder_is_no_key(key: str, file: Path) -> None:
    """With OpenAI it stops before anything is sent; the local service needs none and never looks at it."""
    said = refused(file, OPENAI, (), {"OPENAI_API_KEY": key})
    assert said == "my.yml: the API key is a placeholder, not a key. Set the real one in the environment: export OPENAI_API_KEY=…"
    if key != "short":
        config = load(file, "", (), {"OPENAI_API_KEY": key})
        assert config.openai_api_key is None
        assert not config.notes


@pytest.mark.parametrize("key", [CANARY, "sk-proj-AbC_dEf-123456", "0123456789abcdef0123456789abcdef"])
def test_a_key_is_not_taken_for_a_placeholder(key: str, file: Path) -> None:
    """Whatever a service's keys look like."""
    assert load(file, OPENAI, (), {"OPENAI_API_KEY": key}).openai_api_key == key


def test_the_key_of_a_url_is_sent_as_it_is(file: Path) -> None:
    """Services of one's own have keys of any look."""
    config = load(file, AT_URL, (), {"SERVICE_API_KEY": "my-key"})
    assert config.openai_api_key == "my-key"
    assert config.notes == ()


def test_a_key_for_openai_in_the_file_does_not_go_to_a_url(file: Path) -> None:
    """It was written down for OpenAI; the host of a URL may be anyone's."""
    config = load(file, f"{AT_URL}openai_api_key: {CANARY}\n", (), {})
    assert config.openai_api_key is None
    assert "is not sent" in config.notes[0]


def test_a_key_with_the_local_service_is_noted(file: Path) -> None:
    """Somebody set a key and may think that it is used."""
    config = load(file, "", (), {"OPENAI_API_KEY": CANARY})
    assert config.notes == (
        "A key is set (OPENAI_API_KEY), but the service is local: it is not used. For OpenAI: embedding_service: openai",
    )
    assert not load(file, "").notes


def test_openai_base_url_is_noted_and_not_obeyed(file: Path) -> None:
    """The SDK would send texts and key there."""
    config = load(file, OPENAI, (), {"OPENAI_API_KEY": CANARY, "OPENAI_BASE_URL": "https://elsewhere/v1"})
    assert config.notes == (
        "OPENAI_BASE_URL is set in the environment and not obeyed: embedding_service alone says where texts go.",
    )
    assert service_of(config).base_url == "https://api.openai.com/v1"


def test_a_key_is_in_no_repr(file: Path) -> None:
    """A traceback of a debugger or a test shows the repr of what it finds."""
    config = load(file, f"{OPENAI}openai_api_key: {CANARY}\n")
    assert config.openai_api_key == CANARY
    assert CANARY not in repr(config)
    assert CANARY not in repr(service_of(config))
    assert CANARY not in str(config.notes)


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (f"openai_api_key: [{CANARY}]\n", ""),
        (f"openai_api_key: {CANARY}\nbudget_usd: -1\nzzz: 1\n", ""),
        (f"openai_api_kye: {CANARY}\n", ""),
        (f"openai_api_key: '{CANARY}\n", ""),
        (f"openai_api_key: {CANARY}: x\n", ""),
        (f"openai_api_key: *{CANARY}\n", ""),
        (f"openai_api_key: &{CANARY} x\nzzz: 1\nb: *{CANARY}{CANARY}\n", ""),
        (f"openai_api_key: !{CANARY} x\n", ""),
        (f"openai_api_key: {CANARY}\nopenai_api_key: {CANARY}\n", ""),
        (f"embedding_service: https://me:{CANARY}@host/v1\n", ""),
        (f"embedding_service: https://{CANARY}@host/v1\n", ""),
        (f"embedding_service: https://host/v1?key={CANARY}\n", ""),
        (f"embedding_service: https://host/v1#{CANARY}\n", ""),
        (f"embedding_service: ftp://me:{CANARY}@host/v1\n", ""),
        (f"embedding_service: https://me:{CANARY}@host:99999999/v1\n", ""),
        ("", f"openai_api_key=[{CANARY}"),
        ("", f"openai_api_key=*{CANARY}"),
        ("", f"openai_api_key:{CANARY}"),
        ("", f"openai_api_key {CANARY}"),
        ("", f"openai_api_kye={CANARY}"),
        ("", f"embedding_service=https://{CANARY}@host/v1"),
    ],
)
def test_no_message_shows_a_secret(words: str, setting: str, file: Path) -> None:
    """Whatever is wrong around it. Messages go to logs and to mails of cron."""
    said = refused(file, words, [setting] if setting else [])
    assert CANARY not in said
    assert "canary" not in said


def test_a_key_never_reaches_output_or_log(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a call site passes it by mistake: what is printed and logged goes through one sieve."""
    file.write_text(f"{OPENAI}openai_api_key: {CANARY}\ninput: {CANARY}.csv\n", encoding="utf-8")
    assert main(["--config", str(file), "--debug"]) == 2
    log.event(log.logger("pipeline.test"), "request.sent", level=logging.WARNING, key=CANARY)
    shown = capsys.readouterr()
    assert CANARY not in shown.out + shown.err
    assert "[hidden].csv" in shown.err
    assert "key=[hidden]" in shown.err


@pytest.mark.parametrize("key", ["none", "x", "EMPTY", "e", " ", "local"])
def test_a_word_that_is_no_secret_does_not_blacken_what_is_shown(key: str, file: Path) -> None:
    """`OPENAI_API_KEY=x` is usual where no key is needed; hiding it would garble every word with an x."""
    for name in ("OPENAI_API_KEY", "SERVICE_API_KEY"):
        load(file, AT_URL if name == "SERVICE_API_KEY" else "", (), {name: key})
    assert log.without_secrets("vector_store is none, index, EMPTY, local") == "vector_store is none, index, EMPTY, local"


# Services


@pytest.mark.parametrize(
    "url",
    ["https://host/v1", "https://host:8443/v1", "http://localhost:8000/v1", "http://127.0.0.1:8000/v1",
     "http://127.8.8.8/v1", "http://[::1]:80/v1",
     "HTTPS://Host/v1"],
)  # fmt: skip
def test_a_url_is_https_or_this_machine(url: str, file: Path) -> None:
    """Texts and key never go in the clear by mistake."""
    config = load(file, lines({**URL, "embedding_service": url}))
    assert config.embedding_service == url
    assert config.is_url


def test_a_slash_at_the_end_makes_no_difference(file: Path) -> None:
    """The same service, whichever way one writes it."""
    assert load(file, lines({**URL, "embedding_service": "https://host/v1/"})).embedding_service == "https://host/v1"


@pytest.mark.parametrize(
    "url", ["http://host/v1", "http://192.168.0.7:8000/v1", "http://localhost.example.org/v1", "http://127.0.0.1.example.org/v1"]
)
def test_http_to_another_machine_needs_allow_insecure(url: str, file: Path) -> None:
    """And then it is taken."""
    said = refused(file, lines({**URL, "embedding_service": url}))
    assert said == (
        f"my.yml: embedding_service is {url!r}; texts and key would travel in the clear: use https://, or set allow_insecure: true."
    )
    assert load(file, lines({**URL, "embedding_service": url, "allow_insecure": True})).embedding_service == url


@pytest.mark.parametrize(
    "value",
    ["OpenAI", "host/v1", "host:8000", "ftp://host/v1", "file:///etc/passwd", "https://", "https:///v1",
     "http://host:port/v1", "http://host:99999/v1",
     "https://[::1/v1", "", 7, None, True, ["openai"], "javascript://host/%0a"],
)  # fmt: skip
def test_what_is_no_service_is_told_what_one_is(value: object, file: Path) -> None:
    """Three ways to say who embeds."""
    said = refused(file, lines({**URL, "embedding_service": value}))
    assert "it must be local, openai, or a URL such as https://host/v1." in said


@pytest.mark.parametrize("url", ["https://me@host/v1", "https://me:pass@host/v1", "https://:pass@host/v1", "https://@host/v1"])
def test_a_url_holds_no_name_or_password(url: str, file: Path) -> None:
    """They would stand in every log of every proxy."""
    assert "it must be a URL without a name or password in it; keys come from the environment" in refused(
        file, lines({**URL, "embedding_service": url})
    )


@pytest.mark.parametrize("url", ["https://host/v1?a=b", "https://host/v1#a"])
def test_a_url_has_no_query(url: str, file: Path) -> None:
    """Paths are put behind it."""
    assert "it must be a URL without '?' or '#'." in refused(file, lines({**URL, "embedding_service": url}))


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "169.254.169.254.", "metadata.google.internal", "METADATA.google.internal",
     "metadata.google.internal.", "metadata",
     "100.100.100.200", "[fd00:ec2::254]", "[FD00:EC2:0::254]", "[::ffff:169.254.169.254]", "2852039166", "0xA9FEA9FE",
     "0251.0376.0251.0376",
     "169.254.43518", "169.254.170.2"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_metadata_service_of_a_cloud_is_refused(host: str, scheme: str, file: Path) -> None:
    """However its address is written: it hands out the machine's credentials to whoever asks."""
    said = refused(file, lines({**URL, "embedding_service": f"{scheme}://{host}/v1", "allow_insecure": True}))
    assert "it must be the URL of a service of yours, not of a cloud's metadata service." in said


def test_a_url_needs_a_name_and_a_model(file: Path) -> None:
    """Vectors are kept under the name, not under an address that may change."""
    said = refused(file, "embedding_service: https://host/v1\n")
    assert "service_name is missing; a service by URL needs one (e.g. service_name: our-gpu-server)" in said
    assert "embedding_model is missing; a service by URL must be told which of its models to use." in said
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize("name", ["local", "openai"])
def test_a_url_does_not_take_a_name_that_is_taken(name: str, file: Path) -> None:
    """Its vectors would be mixed with those of another model."""
    said = refused(file, lines({"embedding_service": "https://host/v1", "service_name": name, "embedding_model": "m"}))
    assert said == f"my.yml: service_name is {name!r}; that name is taken: choose another for this URL."


@pytest.mark.parametrize("service", ["local", "openai"])
def test_a_service_name_belongs_to_a_url(service: str, file: Path) -> None:
    """Set without one it would be silently ignored."""
    said = refused(file, f"embedding_service: {service}\nservice_name: ours\n")
    assert said == "my.yml: service_name is set; it belongs to a service by URL: remove it, or set embedding_service."


# Writing


def test_the_shipped_config_is_what_init_writes() -> None:
    """One place for keys, defaults and comments."""
    assert (ROOT / "config.yml").read_text(encoding="utf-8") == render_config({})


def test_the_written_defaults_are_the_defaults(file: Path) -> None:
    """Deleting a line changes nothing."""
    assert load(file, render_config({})) == Config(path=file)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(lambda text: bool(text.strip()))
ODD = st.sampled_from(
    ["123", "1.5", "1e5", "0x1F", "1_000", ".inf", ".nan", "-", "---", "...", "~", "yes", "No", "ON", "off", "y", "True",
     "NULL", "2024-01-01", "12:30",
     "a: b", "# a", " a ", "a\nb", "'",
     '"', "\\", "a\u2028b", "a\u0085b", "\x7f", "\x1b", "\ufeff", "\ufffe", "\U0001f3b5", "=", "<<", "_", "/", "."]
)  # fmt: skip
WORDS = st.one_of(TEXTS, ODD)
FIELD_NAMES = st.one_of(
    st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), st.sampled_from(["no", "on", "yes", "null", "true", "off"])
)
SOURCES = WORDS.map(lambda text: text.replace("{", "(").replace("}", ")"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "my.yml"


@UNHURRIED
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "input": WORDS,
            "id_column": WORDS,
            "checkpoint_dir": WORDS,
            "input_delimiter": st.one_of(st.none(), st.sampled_from([";", "\t", "|", ",", "#", ":", "'", "\u00a7"])),
            "fields": st.dictionaries(FIELD_NAMES, SOURCES, min_size=1, max_size=4),
            "max_rejected_rows": st.integers(0, 10**12),
            "embedding_dimensions": st.one_of(st.none(), st.integers(1, 65536)),
            "embedding_model": st.one_of(st.none(), WORDS),
            "encoding_format": st.sampled_from(["float", "base64"]),
            "allow_insecure": st.booleans(),
            "budget_usd": st.floats(0, 1e299),
            "price_per_million": st.one_of(st.none(), st.floats(0, 1e299)),
            "memory_limit_gb": st.floats(0.25, 4096),
            "batch_poll_interval": st.integers(1, 10**9),
        },
    )
)
@example({"budget_usd": 1e-05, "price_per_million": 5e-324})
@example({"budget_usd": 1e22, "price_per_million": 1.5e299})
@example({"fields": {"no": "123", "on": "null", "null": "{a}\n{b}"}})
def test_what_is_written_is_read_back(written: Path, values: dict[str, Any]) -> None:
    """Any value of any key: numbers stay numbers and texts texts, whatever YAML would like to make of them."""
    try:
        wanted = Config(path=written, **{**values, **({"fields": parse(values["fields"])} if "fields" in values else {})})
    except ValueError:
        assume(False)
    config = load(written, render_config(values))
    assert dataclasses.asdict(config) == dataclasses.asdict(wanted)


def parse(fields: Mapping[str, str]) -> tuple[Any, ...]:
    from pipeline.fields import parse_field

    return tuple(parse_field(name, source) for name, source in fields.items())
