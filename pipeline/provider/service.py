"""Which service, which model, at what price and within which limits: the facts of a config, looked up once.

`local`, `openai` and a service by URL differ only in these facts; the code that talks to them is the same.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.config import Config
from pipeline.config.headers import KEY_HEADERS, Header
from pipeline.errors import ConfigError
from pipeline.ledger import Generation, Ledger
from pipeline.provider.prices import OPENAI_MODELS, Model, usd
from pipeline.provider.tokens import BYTES, EXACT

OPENAI_URL = "https://api.openai.com/v1"
LOCAL_URL = "http://local/v1"  # never resolved: the transport answers in this process
LOCAL_MODEL = "local-lexical-384"
LOCAL_DIMENSIONS = 384
MOST_INPUTS = 2048
MOST_REQUEST_TOKENS = 300_000
MOST_INPUT_TOKENS = 8192
_UNKNOWN_DIMENSIONS = 8192  # of a model that we do not know: twice those of the largest in use
_MOST_NUMBER_BYTES = 32  # of one number as text, with a sign, 17 digits, an exponent and what stands between two of them
_BESIDE_A_VECTOR = 1_000
_BESIDE_A_RESULT = 64 << 10  # in a result line: a message that quotes the text that was sent


@dataclass(frozen=True, slots=True)
class Service:
    """An embedding service as one run uses it."""

    name: str
    base_url: str
    api_key: str | None = field(repr=False)
    model: str
    asked_dimensions: int | None
    dimensions: int  # 0: told by the first answer
    tokenizer: str
    price: float
    batch_price: float | None
    encoding_format: str
    timeout: float
    headers: tuple[Header, ...] = ()
    api_version: str | None = None
    deployment: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether tokens are counted exactly; if not, bytes are the bound."""
        return self.tokenizer == EXACT

    @property
    def asked_model(self) -> str:
        """What a request line of a job calls the model: in Azure's words, the deployment."""
        return self.deployment or self.model

    @property
    def brings_its_key(self) -> bool:
        """Whether a header of the user's is the key, so that no other is sent."""
        return any(header.name.lower() in KEY_HEADERS for header in self.headers)

    @property
    def job_price(self) -> float:
        """USD for 1M tokens in batch mode; the full price where a service has not said what half of it would be."""
        return self.price if self.batch_price is None else self.batch_price

    def usd(self, tokens: int) -> float:
        return usd(tokens, self.price)

    def sentence(self) -> str:
        """Where texts go, in plain words."""
        if self.base_url == LOCAL_URL:
            return "Service: local; free; nothing leaves this machine."
        price = f"${self.price:g} for 1M tokens" if self.price else "free (price_per_million is 0 or not given)"
        return f"Service: {self.name} ({urlsplit(self.base_url).netloc}), model {self.model}; {price}; texts are sent there."


def service_of(config: Config) -> Service:
    """The service that a config means; ConfigError when the model does not fit it."""
    if config.embedding_service == "local":
        return _local(config)
    if config.embedding_service == "openai":
        return _openai(config)
    known = OPENAI_MODELS.get(config.embedding_model or "")
    return Service(
        name=config.service_name or "",
        base_url=config.embedding_service,
        api_key=config.openai_api_key,
        model=config.embedding_model or "",
        asked_dimensions=config.embedding_dimensions,
        dimensions=config.embedding_dimensions or 0,
        tokenizer=known.tokenizer if known else BYTES,
        price=config.price_per_million or 0.0,
        batch_price=None,
        encoding_format=config.encoding_format,
        timeout=config.request_timeout_seconds,
        headers=config.service_headers or (),
        api_version=config.service_api_version,
        deployment=config.service_deployment,
    )


def _local(config: Config) -> Service:
    if config.embedding_model not in (None, LOCAL_MODEL):
        raise ConfigError(
            f"{config.path.name}: embedding_model is {config.embedding_model!r}, but the local service knows only "
            f"{LOCAL_MODEL!r}. Remove the key, or set embedding_service: openai"
        )
    if (config.embedding_dimensions or 1) > LOCAL_DIMENSIONS:
        raise ConfigError(
            f"{config.path.name}: embedding_dimensions is {config.embedding_dimensions}; the local model has {LOCAL_DIMENSIONS}."
        )
    return Service(
        name="local",
        base_url=LOCAL_URL,
        api_key=None,
        model=LOCAL_MODEL,
        asked_dimensions=config.embedding_dimensions,
        dimensions=config.embedding_dimensions or LOCAL_DIMENSIONS,
        tokenizer=BYTES,
        price=0.0,
        batch_price=0.0,
        encoding_format=config.encoding_format,
        timeout=config.request_timeout_seconds,
    )


def _openai(config: Config) -> Service:
    model = _openai_model(config)
    return Service(
        name="openai",
        base_url=OPENAI_URL,
        api_key=config.openai_api_key,
        model=model.name,
        asked_dimensions=config.embedding_dimensions,
        dimensions=config.embedding_dimensions or model.dimensions,
        tokenizer=EXACT,
        price=config.price_per_million if config.price_per_million is not None else model.price,
        batch_price=model.batch_price,
        encoding_format=config.encoding_format,
        timeout=config.request_timeout_seconds,
    )


def _openai_model(config: Config) -> Model:
    name, asked = config.embedding_model or "text-embedding-3-small", config.embedding_dimensions
    model = OPENAI_MODELS.get(name)
    if model is None:
        near = difflib.get_close_matches(name, OPENAI_MODELS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{config.path.name}: embedding_model is {name!r}; known are {', '.join(OPENAI_MODELS)}.{hint}")
    if asked is not None and asked > model.dimensions:
        raise ConfigError(f"{config.path.name}: embedding_dimensions is {asked}; {name} has at most {model.dimensions}.")
    if asked not in (None, model.dimensions) and not model.shortens:
        raise ConfigError(f"{config.path.name}: embedding_dimensions is {asked}; {name} always gives {model.dimensions}.")
    return model


def generation_of(service: Service, ledger: Ledger | None) -> Generation:
    """The generation that a service's answers belong to. Asking for the model's own length is asking for nothing."""
    native = {**{model.name: model.dimensions for model in OPENAI_MODELS.values()}, LOCAL_MODEL: LOCAL_DIMENSIONS}.get(
        service.model
    )
    asked = None if service.asked_dimensions == native else service.asked_dimensions
    plain = Generation(service.name, service.model, None, service.dimensions)
    if ledger is not None:
        known_plain = ledger.generation(plain.id)
        if known_plain is not None and asked in (None, known_plain.dimensions):
            return known_plain
        wanted = ledger.generation(Generation(service.name, service.model, asked, 0).id)
        if wanted is not None:
            return wanted
    return Generation(service.name, service.model, asked, service.dimensions)


def need_key(service: Service, config: Config) -> None:
    """Stop before anything is done when OpenAI is asked for without a key, or a header has no value."""
    for header in service.headers:
        if header.value is None:
            raise ConfigError(
                f"{config.path.name}: the header {header.name} of service_headers is to come from "
                f"{'the environment' if header.variable else 'a file'}, and nothing is there that can be sent. Set the variable "
                "(cron starts with few of them), or write the file: one line of plain ASCII."
            )
    if service.name == "openai" and not service.api_key:
        raise ConfigError(
            f"{config.path.name}: embedding_service is openai, but no API key is set. In the environment: export "
            "OPENAI_API_KEY=…, or OPENAI_API_KEY_FILE=/path/to/key. Without a key: embedding_service: local"
        )


def most_answer_bytes(inputs: int, dimensions: int) -> int:
    """How large an answer in real time can be; 0 dimensions are not known yet."""
    return inputs * (_vector_bytes(dimensions) + _BESIDE_A_VECTOR) + _BESIDE_A_RESULT


def most_result_bytes(requests: int, dimensions: int) -> int:
    """How large a result file of a job can be."""
    return (requests + 1) * (_vector_bytes(dimensions) + _BESIDE_A_RESULT)


def _vector_bytes(dimensions: int) -> int:
    return (dimensions or _UNKNOWN_DIMENSIONS) * _MOST_NUMBER_BYTES
