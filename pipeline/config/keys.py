"""Every key of `config.yml`: its type, default, range and one comment line, in one place.

`load.py` reads them, `render.py` writes them out for `--init`, and a test holds the README's table to them. Nothing
here reads a file or the environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import checks, headers
from pipeline.config.checks import Check
from pipeline.config.headers import Header
from pipeline.fields import Field, parse_field

SAMPLE_FIELDS = {"person": "person", "title": "title", "composite": "composite"}


def _key(default: Any, comment: str, check: Check, *, title: str = "", secret: bool = False) -> Any:
    """A key of the file; `title` opens a group of keys in the written file; a secret is in no repr."""
    return dataclasses.field(default=default, repr=not secret, metadata={"comment": comment, "check": check, "title": title})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the user asked for. A path in it is relative to the folder of the config file."""

    input: str = _key("sample/records.csv", "a file, a folder or a glob of .csv .tsv .jsonl .ndjson .parquet", checks.text,
                      title="Your catalogue")  # fmt: skip
    input_encoding: str = _key("utf-8", "of CSV and TSV; byte-order marks are known", checks.encoding)
    input_delimiter: str | None = _key(None, 'between cells; null: "," for .csv, a tab for .tsv',
                                       checks.optional(checks.delimiter))  # fmt: skip
    id_column: str = _key("id", "the column whose value names a record, each once", checks.text)
    input_mode: str = _key("snapshot", "snapshot: the input is the whole catalogue; additions: records to add to it, or to replace",
                           checks.one_of("snapshot", "additions"))  # fmt: skip
    fields: tuple[Field, ...] = _key(
        tuple(parse_field(name, source) for name, source in SAMPLE_FIELDS.items()),
        'name: a column, or a template such as "Contributor: {person}\\nTitle: {title}"',
        checks.fields,
    )
    max_rejected_rows: int = _key(1000, "bad rows are listed and left out; beyond this many the run stops", checks.whole(0))
    checkpoint_dir: str = _key("checkpoints", "where all state is kept; one folder a catalogue, on a local disk", checks.text)
    data_dir: str | None = _key(None, "tables, the index, request and result files: large; null: in checkpoint_dir too",
                                checks.optional(checks.text))  # fmt: skip
    file_group: int | None = _key(None, "a group of this machine that may read and write that folder; null: you alone",
                                  checks.optional(checks.group))  # fmt: skip

    embedding_service: str = _key("local", "local (free, nothing leaves this machine), openai, or a URL that ends in /v1",
                                  checks.service, title="Who embeds")  # fmt: skip
    service_name: str | None = _key(None, "for a URL: what the service is called, wherever it runs", checks.optional(checks.text))
    service_headers: tuple[Header, ...] | None = _key(
        None, "for a URL: lines of name: text, env:NAME or file:PATH; a secret never stands here",
        checks.optional(headers.headers), secret=True)  # fmt: skip
    service_api_version: str | None = _key(None, "for a URL: sent as ?api-version=…, as Azure wants it",
                                           checks.optional(checks.word))  # fmt: skip
    service_deployment: str | None = _key(None, "for a URL: texts go to /deployments/NAME/embeddings, as Azure wants it",
                                          checks.optional(checks.word))  # fmt: skip
    embedding_model: str | None = _key(None, "null: the service's usual one (openai: text-embedding-3-small)",
                                       checks.optional(checks.text))  # fmt: skip
    embedding_dimensions: int | None = _key(None, "null: as many as the model gives",
                                            checks.optional(checks.whole(1, 65536)))  # fmt: skip
    encoding_format: str = _key("base64", "how vectors travel: base64 (a third of the size) or float; the same vectors",
                                checks.one_of("float", "base64"))  # fmt: skip
    allow_insecure: bool = _key(False, "true: a URL may be http:// on another machine; texts and key go in the clear", checks.flag)
    openai_api_key: str | None = _key(None, "better in the environment: OPENAI_API_KEY, or OPENAI_API_KEY_FILE",
                                      checks.optional(checks.text), secret=True)  # fmt: skip
    max_concurrent_requests: int = _key(4, "requests on the wire at once; what a kill may make you pay twice", checks.whole(1, 64))
    max_inputs_per_request: int = _key(2048, "strings in one request; fewer for a slow service", checks.whole(1, 2048))
    request_timeout_seconds: float = _key(120.0, "a request without an answer for so long counts as lost", checks.number(1, 3600))

    budget_usd: float = _key(25.0, "never spend more than this on the catalogue, over its whole life", checks.number(0),
                             title="Money")  # fmt: skip
    price_per_million: float | None = _key(None, "USD for 1M tokens; needed for a URL, where null counts as free",
                                           checks.optional(checks.number(0)))  # fmt: skip
    import_sample: int = _key(100, "strings that --import-embeddings embeds anew, as proof of the model", checks.whole(1, 10_000))

    # Which stores there are is known to `stores/`; what is no store's name is refused when a command opens.
    vector_store: str = _key("embedded", "embedded (files in the checkpoint folder), weaviate, or none", checks.text,
                             title="The index")  # fmt: skip
    index_later: bool = _key(False, "true: embed now, and index in a later run without it; no server is needed", checks.flag)
    verify_vectors: int | None = _key(10_000, "vectors that --verify compares one by one; null: every one",
                                      checks.optional(checks.whole(0)))  # fmt: skip

    weaviate_url: str = _key("http://localhost:8080", "of its REST interface; https:// is TLS for both", checks.server,
                             title="With vector_store: weaviate")  # fmt: skip
    weaviate_grpc_port: int = _key(50_051, "of its gRPC interface; Weaviate Cloud's is known", checks.whole(1, 65_535))
    weaviate_grpc_host: str | None = _key(None, "null: the host of weaviate_url", checks.optional(checks.host))
    weaviate_ca_file: str | None = _key(None, "certificates to trust (PEM), for a server with a certificate of your own",
                                        checks.optional(checks.text))  # fmt: skip
    weaviate_api_key: str | None = _key(None, "better in the environment: WEAVIATE_API_KEY, or WEAVIATE_API_KEY_FILE",
                                        checks.optional(checks.text), secret=True)  # fmt: skip
    weaviate_timeout_seconds: float = _key(90.0, "a request without an answer for so long counts as lost", checks.number(1, 3600))
    collection: str = _key("EntityString", "the alias; a model's own collection is called COLLECTION_<8 hex digits>",
                           checks.collection)  # fmt: skip
    hybrid_fields: tuple[str, ...] = _key((), "fields that --hybrid searches by letters too; each costs as much again as its "
                                          "vectors", checks.names)  # fmt: skip
    weaviate_quantizer: str = _key("rq8", "rq8 (a quarter of the memory), rq1 (less, and less exact), or none",
                                   checks.one_of("rq8", "rq1", "none"))  # fmt: skip
    weaviate_ef_construction: int = _key(128, "of HNSW: more is slower to build and finds better", checks.whole(4, 4096))
    weaviate_max_connections: int = _key(32, "of HNSW: more takes more memory and finds better", checks.whole(4, 256))
    weaviate_shards: int | None = _key(None, "null: one for each node", checks.optional(checks.whole(1, 1024)))
    weaviate_replication: int = _key(1, "copies of everything, at most one for each node", checks.whole(1, 16))
    weaviate_chunk: int = _key(500, "strings written by one request, of 8 MB at most", checks.whole(1, 10_000))
    weaviate_workers: int = _key(2, "requests that write at once", checks.whole(1, 32))

    use_batch_embeddings: bool = _key(
        False, "true: through the provider's Batch API, at half the price, within 24 hours", checks.flag, title="Batch mode"
    )
    batch_embedding_size: int = _key(50_000, "strings in one job", checks.whole(1, 50_000))
    max_requests_per_file: int = _key(50_000, "requests in one file", checks.whole(1, 50_000))
    batch_manual_polling: bool = _key(False, "true: create jobs and exit; collect them later", checks.flag)
    batch_poll_interval: int = _key(60, "seconds between two looks at a job", checks.whole(1, unit="second"))
    batch_max_wait_time: int = _key(93_600, "seconds that automatic mode waits for one job", checks.whole(1, unit="second"))

    batch_deadline_hours: float | None = _key(
        None,
        "then open jobs are cancelled and harvested, and the late rest goes through real time",
        checks.optional(checks.number(1)),
    )
    openai_tier: int = _key(1, "of the account: how many tokens may wait at once", checks.whole(1, 5))
    max_enqueued_tokens: int | None = _key(None, "null: as the tier says", checks.optional(checks.whole(1)))
    max_enqueued_requests: int | None = _key(None, "null: 1,000,000", checks.optional(checks.whole(1)))
    max_active_batches: int = _key(100, "jobs at the service at once", checks.whole(1))
    batch_max_attempts: int = _key(3, "a string that comes back without a vector so often has failed", checks.whole(1, 10))
    create_grace_seconds: float = _key(
        600.0, "a create whose reply was lost is repeated after so long, if no listing shows the job", checks.number(0)
    )
    keep_remote_hours: float = _key(
        0.0, "a collected job's files stay at the service so long, for a restore from an older backup", checks.number(0, 720)
    )
    keep_results_gb: float = _key(5.0, "request and result files kept for audit; beyond, the oldest go", checks.number(0))

    notify_command: tuple[str, ...] | None = _key(
        None, "a program that is told: JSON on its standard input when all is finished, a person is needed, or nothing moves",
        checks.optional(checks.program), secret=True, title="Being told")  # fmt: skip
    notify_no_progress_hours: float | None = _key(30.0, "so long without progress is told; null: never",
                                                  checks.optional(checks.number(0.01)))  # fmt: skip
    ping_url: str | None = _key(None, "asked for after each --advance that did well; whoever misses it raises the alarm",
                                checks.optional(checks.ping), secret=True)  # fmt: skip

    memory_limit_gb: float = _key(2.0, "for the work on tables, which spills to disk beyond it", checks.number(0.25, 4096),
                                  title="The machine")  # fmt: skip
    log_level: str = _key("info", "debug, info, warning or error; a terminal shows warnings, and bars instead",
                          checks.one_of("debug", "info", "warning", "error"))  # fmt: skip

    # Not keys of the file: where it stands, and what was noticed while it was read.
    path: Path = Path("config.yml")
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that the paths are relative to."""
        return self.path.parent

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint folder as a whole path; not resolved, so that a symbolic link is seen and refused."""
        return (self.folder / Path(self.checkpoint_dir).expanduser()).absolute()

    @property
    def data_path(self) -> Path | None:
        """The folder for what is large, if it has one of its own."""
        return None if self.data_dir is None else (self.folder / Path(self.data_dir).expanduser()).absolute()

    @property
    def is_url(self) -> bool:
        """A service by URL, neither `local` nor `openai`."""
        return self.embedding_service not in ("local", "openai")

    @property
    def secret_variables(self) -> frozenset[str]:
        """Variables of the environment that hold a secret by this config, beside the keys of known names."""
        return frozenset(header.variable for header in self.service_headers or () if header.variable is not None)

    def reading(self) -> str:
        """A short name for everything that decides how the input is read, fields aside."""
        facts = "\0".join((self.input, self.input_encoding, self.input_delimiter or "", self.id_column))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


KEYS = tuple(entry for entry in dataclasses.fields(Config) if entry.metadata)
