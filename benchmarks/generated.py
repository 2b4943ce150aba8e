"""Catalogues of any size, made row by row from a number and a seed, and the steps that benchmarks take with them.

Of the unique strings about a sixth are persons, a third titles and half composites, of some 60 tokens; every composite
is new. DuckDB writes the rows as a stream, so that 45 million strings need no more memory than a thousand. Steps that
no command ends with (counting without sending, a request file without its upload) are taken by the product's own
functions, called in a process of their own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import yaml

from benchmarks.racing import ROOT, Run, run
from pipeline.batch.prepare import next_job
from pipeline.batch.submit import admission, check_budget
from pipeline.checkpoint import Checkpoint, writing
from pipeline.commands.console import Console
from pipeline.commands.session import Options, context_of, load
from pipeline.context import Context
from pipeline.ledger import Generation
from pipeline.pending import preflight
from pipeline.provider.service import generation_of
from pipeline.tables.duck import connect, quoted

SEED = 20_260_101
FIELDS = {
    "person": "person",
    "title": "title",
    "composite": "Contributor: {person}\nTitle: {title}\nRoles: {roles}\nSubjects: {subjects}\nProvision information: {provision}",
}
# Such a service counts tokens exactly, as OpenAI's own; nobody answers there, and nothing is sent.
UNSENT: dict[str, Any] = {
    "embedding_service": "http://127.0.0.1:9/v1",
    "service_name": "made",
    "embedding_model": "text-embedding-3-small",
    "price_per_million": 0.01,
    "budget_usd": 1_000_000,
    "vector_store": "none",
    "use_batch_embeddings": True,
    "openai_tier": 5,
    "max_enqueued_requests": 1_000_000_000,
    "max_enqueued_tokens": 1_000_000_000_000,
    "max_active_batches": 1_000_000,
    "keep_results_gb": 1_000_000,
}
_SYLLABLES = (
    "ba", "da", "ge", "ki", "lo", "mu", "ne", "ri", "so", "tu", "va", "we", "zi", "fra", "gre", "sta", "ber", "hof", "mann", "sen",
    "ov", "ska", "lin", "dre", "mor", "tel",
)  # fmt: skip
_WORDS = (
    "Sonata", "Kunst", "Fuge", "Requiem", "Trio", "Klavier", "Werke", "Briefe", "letters", "Histoire", "opera", "Concerto",
    "Lieder", "Étude", "Reise", "treatise", "Versuch", "Symphonie", "quartet", "Orchester", "harmony", "sea", "Erinnerung",
    "monde", "winter", "Gedichte", "basso", "philosophy", "mountains", "Stadt", "memory", "lumière",
)  # fmt: skip
_ROLES = ("Composer", "Author", "Editor", "Librettist", "Translator")
_SUBJECTS = (
    "Songs with piano", "Chamber music; Correspondence", "Musicology -- 19th century", "String quartets -- Scores and parts",
    "Philosophy; Voyages and travels", "Poetry -- Translations into German", "Church music; Harmony -- Early works to 1800",
)  # fmt: skip
_PLACES = ("Leipzig", "Wien", "Paris", "London", "Mainz", "Praha", "Milano", "Amsterdam", "New-York", "Kassel")
_STEP = 7919  # a prime: neighbours in the file are no neighbours in the alphabet


def write_records(path: Path, records: int, persons: int | None = None, titles: int | None = None) -> None:
    """Records whose every person and title occurs; a third as many persons as records and two thirds as many titles, unless
    told otherwise. Beyond the seed, a row depends on its number alone."""
    persons, titles = persons or max(1, records // 3), titles or max(1, records * 2 // 3)
    with duckdb.connect(config={"threads": "2", "memory_limit": "1GB"}) as duck:
        size, words = len(_SYLLABLES), len(_WORDS)
        duck.execute(f"CREATE MACRO part(k, n) AS {list(_SYLLABLES)!r}[1 + (k // pow({size}, n)::BIGINT) % {size}]")
        duck.execute(f"CREATE MACRO word(k, n) AS {list(_WORDS)!r}[1 + (k // pow({words}, n)::BIGINT) % {words}]")
        duck.execute("CREATE MACRO capital(s) AS upper(s[1]) || s[2:]")
        duck.execute(f"CREATE MACRO one(list, i, salt) AS list[1 + (hash(i * 31 + salt + {SEED}) % len(list))::BIGINT]")
        duck.execute("CREATE MACRO surname(k) AS capital(part(k, 0)) || part(k, 1) || part(k, 2)")
        person = "surname(p) || ', ' || capital(part(p, 3)) || part(p, 4) || ', ' || (1500 + p % 460) || '-' || (1560 + p % 460)"
        title = (
            "word(t, 0) || ' for ' || word(t, 1) || ' & ' || word(t, 2) || ', op. ' || (t % 150) || ' : '"
            f" || surname(t // {words**3})"
        )
        provision = f"one({list(_PLACES)!r}, i, 1) || ': ' || surname(i * 5) || ' & ' || surname(i * 3) || ', ' || (1700 + i % 325)"
        # Each number once, scattered over all that so many syllables and words can name.
        names, phrases = size**5, words**3 * size**3
        numbers = (
            f"SELECT i, (i * {_STEP} % {persons}) * 1000003 % {names} AS p, (i * {_STEP} % {titles}) * 104729 % {phrases} AS t "
            f"FROM range({records}) made(i)"
        )
        select = (
            f"SELECT 'r' || lpad(i::VARCHAR, 9, '0') AS id, {person} AS person, {title} AS title, one({list(_ROLES)!r}, i, 2) AS "
            f"roles, one({list(_SUBJECTS)!r}, i, 3) AS subjects, {provision} || ', plate ' || i AS provision FROM ({numbers})"
        )
        duck.execute(f"COPY ({select}) TO {quoted(path)} (FORMAT csv, HEADER)")


def write_config(folder: Path, fields: tuple[str, ...] = tuple(FIELDS), **settings: Any) -> Path:
    """The config of such a catalogue, in its folder."""
    config = folder / "config.yml"
    values = {"input": "records.csv", "max_rejected_rows": 0, "fields": {name: FIELDS[name] for name in fields}, **settings}
    config.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return config


def main_py(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), "--config", str(config), "--quiet", *arguments]


def preprocess(config: Path) -> Run:
    return run(main_py(config, "--end", "preprocessing"))


def copied(pristine: Path, place: Path) -> None:
    """A checkpoint folder as it was, in the place where it was made: it knows where it belongs."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place)


@contextlib.contextmanager
def opened(config: Path, *, batches: bool = True) -> Iterator[tuple[Context, Generation]]:
    """What a command opens, and the generation that its service means; no service is asked for anything."""
    options = Options(config, batches=batches)
    found, service = load(options)
    place = Checkpoint(found.checkpoint_path, found.data_path)
    with writing(place, "benchmark") as ledger:
        context = context_of(options, found, service, place, ledger, Console(quiet=True))
        generation = generation_of(service, ledger)
        ledger.save_generation(generation, context.clock.now())
        yield context, generation


def count(config: Path) -> dict[str, int]:
    """What batch mode does before its first job: preflight, which counts every token, and the budget."""
    with opened(config) as (context, generation):
        duck = connect(context.place.scratch, context.config.memory_limit_gb)
        refused = sum(preflight(context, duck, generation, name) for name in context.fields)
        check_budget(context, duck, generation)
        duck.close()
    return {"refused": refused}


def prepare(config: Path, *, keep: bool) -> dict[str, int]:
    """Job after job until nothing is pending; without `keep` each request file is measured and deleted before the next."""
    told = {"jobs": 0, "requests": 0, "tokens": 0, "bytes": 0, "largest_file": 0}
    with opened(config) as (context, generation):
        duck = connect(context.place.scratch, context.config.memory_limit_gb)
        while True:
            room, waits_for = admission(context, generation)
            if waits_for:
                sys.exit(f"job {told['jobs'] + 1} would wait: {waits_for}")
            job = next_job(context, duck, generation, room)
            if job is None:
                break
            path = context.place.root / job.request_name
            size = path.stat().st_size
            if size != job.bytes:
                sys.exit(f"{path.name} has {size} bytes, and its job says {job.bytes}")
            told["jobs"] += 1
            told["requests"] += job.requests
            told["tokens"] += job.tokens
            told["bytes"] += size
            told["largest_file"] = max(told["largest_file"], size)
            if not keep:
                path.unlink()
        duck.close()
    return told


def count_alone(name: str) -> None:
    print(json.dumps(count(Path(name) / "config.yml")))


def prepare_alone(name: str) -> None:
    print(json.dumps(prepare(Path(name) / "config.yml", keep=False)))


def count_and_prepare(name: str, keep: str = "") -> None:
    config = Path(name) / "config.yml"
    print(json.dumps(count(config) | prepare(config, keep=bool(keep))))
