"""Reading the configuration: all problems at once, each with its key, its value and the way out.

Keys for services come from the environment first. What a value may be is `checks.py`; what keys exist is `keys.py`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.config.checks import is_loopback
from pipeline.config.headers import with_value
from pipeline.config.keys import KEYS, Config
from pipeline.errors import ConfigError
from pipeline.log import hide

_MOST_BYTES = 1_000_000
_NOT_SHOWN = (
    "openai_api_key",
    "weaviate_api_key",
    "notify_command",
    "ping_url",
    "service_headers",
)  # arguments and paths may hold tokens
_PLACEHOLDER = re.compile(r"(?i)^(sk-)?(your|my|insert|paste|put|the|change|replace|todo|example|dummy|placeholder|api)[-_ ]|"
                          r"^<.*>$|\.\.\.|…|x{6,}|\*{4,}|^sk-?$|^(change|replace)me$|^your|^none$|^null$")  # fmt: skip
_USERINFO = re.compile(r"//.*@")
_QUERY = re.compile(r"([?#]).+")
_NAMED_VALUE = re.compile(r"\b(alias|anchor|tag) '[^']*'")  # a key that begins with * & or ! would be shown


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, and a key that stands twice is an error instead of a silent last word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", node.start_mark)
        return mapping


def load_config(path: Path, settings: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    """The config of a file with `--set` on top; ConfigError lists everything that is wrong."""
    environment = os.environ if environment is None else environment
    raw = _read(path)
    problems = _apply(raw, settings)
    values, more = _check(raw)
    problems += more
    config = Config(**values, path=path)
    problems += _together(config)
    if problems:
        raise ConfigError(_sentence(path, problems))
    return _with_keys(config, environment)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. Write one with: python main.py --init {path.name}") from None
    except OSError as problem:
        raise ConfigError(f"{path}: can't be read: {problem.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: larger than 1 MB; this can't be a config file. Is --config right?")
    try:
        raw = _parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path}: not UTF-8 at byte {problem.start}; save it as UTF-8.") from None
    except yaml.YAMLError as problem:
        raise ConfigError(f"{path}: broken YAML: {_yaml_words(problem)}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold lines such as 'input: catalogue.csv', but it is a {type(raw).__name__}.")
    return raw


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        # A date in a 13th month, say: the loader passes on what Python says.
        raise yaml.YAMLError(str(problem)) from None
    finally:
        loader.dispose()


def _yaml_words(problem: yaml.YAMLError) -> str:
    if isinstance(problem, yaml.MarkedYAMLError) and problem.problem_mark is not None:
        mark = problem.problem_mark
        words = _NAMED_VALUE.sub(r"\1", problem.problem or "")
        return f"line {mark.line + 1}, column {mark.column + 1}: {words}."
    return str(problem).splitlines()[0] + "."


def _apply(raw: dict[str, Any], settings: Sequence[str]) -> list[str]:
    """Put `--set KEY=VALUE` over the file; `fields.NAME=COLUMN` sets one field."""
    problems = []
    for setting in settings:
        name, equals, words = setting.partition("=")
        shown = setting
        if "api_k" in setting:
            shown = "weaviate_api_key" if "weaviate" in setting else "openai_api_key"
        elif name.strip() in _NOT_SHOWN:
            shown = name.strip()
        if not equals:
            problems.append(f"--set {shown}: write it as KEY=VALUE.")
            continue
        group, dot, inner = name.strip().partition(".")
        is_field = bool(dot) and group == "fields"
        try:
            value = _parse(words)
        except yaml.YAMLError as problem:
            if not is_field:
                problems.append(f"--set {shown}: broken YAML: {_yaml_words(problem)}")
                continue
            value = words
        if is_field:
            fields = raw.get("fields")
            # To YAML a template such as {author} is a mapping; to whoever types it, it is a text.
            source = value if isinstance(value, str) else words
            raw["fields"] = {**(fields if isinstance(fields, dict) else {}), inner: source}
        else:
            raw[name.strip()] = value
    return problems


def _check(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    known = {entry.name: entry for entry in KEYS}
    values: dict[str, Any] = {}
    problems = []
    for name, value in raw.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]!r}?" if near else " python main.py --init NEW.yml writes all keys there are."
            problems.append(f"Unknown key {name!r}.{hint}")
            continue
        try:
            values[name] = known[name].metadata["check"](value)
        except ValueError as problem:
            is_field = name == "fields" and isinstance(value, dict) and value
            problems.append(f"{name}: {problem}." if is_field else f"{name} is {_shown(name, value)}; it must be {problem}.")
    return values, problems


def _shown(name: str, value: Any) -> str:
    """A wrong value as the user wrote it, but for what may be a secret."""
    if name in (*_NOT_SHOWN, "fields"):
        return "given" if name == "fields" else "set"
    shown = repr(value)
    if name in ("embedding_service", "weaviate_url"):
        shown = _QUERY.sub(r"\1…'", _USERINFO.sub("//…@", shown))
    return {"True": "true", "False": "false", "None": "null"}.get(shown, shown)


def _together(config: Config) -> list[str]:
    """What is wrong only in combination."""
    problems = [*_index_problems(config)]
    if not config.is_url:
        if config.service_name is not None:
            problems.append("service_name is set; it belongs to a service by URL: remove it, or set embedding_service.")
        problems += [
            f"{name} is set; it belongs to a service by URL: remove it, or set embedding_service."
            for name in ("service_headers", "service_api_version", "service_deployment")
            if getattr(config, name)
        ]
        return problems
    if config.service_name is None:
        problems.append(
            "service_name is missing; a service by URL needs one (e.g. service_name: our-gpu-server), because its vectors are "
            "kept under that name and not under an address that may change."
        )
    elif config.service_name in ("local", "openai"):
        problems.append(f"service_name is {config.service_name!r}; that name is taken: choose another for this URL.")
    parts = urlsplit(config.embedding_service)
    if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not config.allow_insecure:
        problems.append(
            f"embedding_service is {config.embedding_service!r}; texts and key would travel in the clear: use https://, or set "
            "allow_insecure: true."
        )
    if config.embedding_model is None:
        problems.append("embedding_model is missing; a service by URL must be told which of its models to use.")
    return problems


def _index_problems(config: Config) -> Iterator[str]:
    known = [entry.name for entry in config.fields]
    for name in config.hybrid_fields:
        if name not in known:
            yield f"hybrid_fields names {name!r}; there is no such field: {', '.join(known)}."
    parts = urlsplit(config.weaviate_url)
    is_far = not (is_loopback(parts.hostname or "") and is_loopback(config.weaviate_grpc_host or "localhost"))
    if config.vector_store == "weaviate" and parts.scheme == "http" and is_far and not config.allow_insecure:
        yield (
            f"weaviate_url is {config.weaviate_url!r}; texts and key would travel in the clear: use https://, or set "
            "allow_insecure: true."
        )


def _sentence(path: Path, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{path.name}: {problems[0]}"
    return "\n".join((f"{path.name} has {len(problems)} problems:", *(f"  - {problem}" for problem in problems)))


def _with_keys(config: Config, environment: Mapping[str, str]) -> Config:
    """The key for the service: from the environment, from a file named there, or (OpenAI's, warned about) from the config.

    OpenAI's key goes to OpenAI alone: a service by URL has a key of its own name, or none.
    """
    notes = []
    name = "SERVICE_API_KEY" if config.is_url else "OPENAI_API_KEY"
    in_file = config.openai_api_key
    if in_file:
        hide(in_file)
        where = f"openai_api_key stands in {config.path.name}: "
        if config.is_url:
            notes.append(f"{where}it is OpenAI's and is not sent to {config.service_name}, whose key is {name} in the environment.")
            in_file = None
        else:
            notes.append(f"{where}better in the environment ({name}), where no copy of it is kept.")
    key = environment.get(name) or _key_file(name, environment) or in_file
    if key is not None:
        key = key.strip()
        hide(key)
        is_placeholder = _PLACEHOLDER.search(key) is not None
        if config.embedding_service == "openai" and (is_placeholder or len(key) < 12):
            raise ConfigError(
                f"{config.path.name}: the API key is a placeholder, not a key. Set the real one in the environment: export {name}=…"
            )
        if config.embedding_service == "local":
            key = None
        if config.embedding_service == "local" and not is_placeholder:
            notes.append(f"A key is set ({name}), but the service is local: it is not used. For OpenAI: embedding_service: openai")
    if environment.get("OPENAI_BASE_URL"):
        notes.append("OPENAI_BASE_URL is set in the environment and not obeyed: embedding_service alone says where texts go.")
    values = {entry.name: getattr(config, entry.name) for entry in KEYS}
    index_key = _weaviate_key(config, environment, notes)
    if config.ping_url is not None:
        hide(config.ping_url)  # its path is as good as a key to whoever reads it in a log
    if config.service_headers is not None:
        values["service_headers"] = tuple(with_value(header, config.folder, environment) for header in config.service_headers)
    return Config(**{**values, "openai_api_key": key, "weaviate_api_key": index_key}, path=config.path, notes=tuple(notes))


def _weaviate_key(config: Config, environment: Mapping[str, str], notes: list[str]) -> str | None:
    """Weaviate's key, for Weaviate alone."""
    name, in_file = "WEAVIATE_API_KEY", config.weaviate_api_key
    if in_file:
        notes.append(
            f"weaviate_api_key stands in {config.path.name}: better in the environment ({name}), where no copy of it is kept."
        )
    key = environment.get(name) or _key_file(name, environment) or in_file
    if key is None:
        return None
    hide(key.strip())
    return key.strip() if config.vector_store == "weaviate" else None


def _key_file(name: str, environment: Mapping[str, str]) -> str | None:
    place = environment.get(f"{name}_FILE")
    if not place:
        return None
    try:
        return Path(place).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as problem:
        # The key itself is put there by mistake now and then: what looks like no path is not shown.
        shown = repr(place) if Path(place).is_absolute() or Path(place).exists() else "set, but not to a file"
        why = problem.strerror if isinstance(problem, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"{name}_FILE is {shown}, which can't be read: {why}") from None
