"""What the sweep kills: small catalogues, and what is typed for each, turn by turn."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline.local_service.model import MODEL, embed
from tests.importing.world import write_pairs

OLDER, SAMPLE = "older", 6  # the folder of another pipeline's files; the strings that prove its model


@dataclass(frozen=True)
class Scenario:
    """What is typed, one after the other and over again, until there is nothing left to do."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    keys: str = ""
    aims_at: int = 0  # the first of the commands that is killed
    pays_once: bool = True  # batch mode: never twice; real time: those on the wire, and they are reported
    refuses: bool = False  # the service refuses a row of each job: there is an error file, and a failure for good
    weaviate: bool = False
    asks: int | None = None  # moving in: so many strings are asked of the service, and those that are reported
    strings: int = 30
    workers: int = 1

    @property
    def small(self) -> bool:
        """Killed at each call that it makes; a larger one at random calls."""
        return self.strings == 30


BATCH = "use_batch_embeddings: true\nbatch_poll_interval: 1\ncreate_grace_seconds: 1\nbatch_embedding_size: {}\n"
BY_HAND = (("batch_manager.py", "--create"), ("batch_manager.py", "--download"))
MOVING_IN = (("main.py", "--end", "preprocessing"), ("main.py", "--import-embeddings", OLDER, "--model", MODEL), ("main.py",))
LATER = (("main.py", "--set", "index_later=true"), ("main.py",))
SCENARIOS = (
    Scenario("real time", (("main.py",),), pays_once=False),
    Scenario("batch, automatic", (("main.py",),), BATCH.format(16)),
    Scenario("batch, --create", BY_HAND, BATCH.format(16)),
    Scenario("batch, --download", BY_HAND, BATCH.format(16), aims_at=1, refuses=True),
    Scenario("batch, --advance", (("batch_manager.py", "--advance"),), BATCH.format(16)),
    Scenario("indexing", LATER, aims_at=1),
    Scenario("indexing, Weaviate", LATER, aims_at=1, weaviate=True),
    Scenario("moving in", MOVING_IN, f"import_sample: {SAMPLE}\n", aims_at=1, pays_once=False, asks=SAMPLE),
    Scenario("larger, real time", (("main.py",),), pays_once=False, strings=300, workers=4),
    Scenario("larger, batch", (("main.py",),), BATCH.format(40), strings=300),
)


@dataclass(frozen=True)
class Written:
    """A catalogue that was written: no other has its texts."""

    folder: Path
    texts: list[str]
    collection: str

    @property
    def config(self) -> Path:
        return self.folder / "my.yml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints"

    def typed(self, command: tuple[str, ...]) -> list[str]:
        """The arguments of a command, with this catalogue's config and files."""
        return ["--config", str(self.config), *(str(self.folder / OLDER) if word == OLDER else word for word in command[1:])]


def write(folder: Path, mark: str, scenario: Scenario, url: str, index: str) -> Written:
    """A catalogue with a mark of its own in each text; `index` holds the keys of its vector store."""
    texts = [f"Surname {number} {mark}, Forename {number % 7}" for number in range(scenario.strings)]
    made = Written(folder, texts, f"Sweep{mark}")
    folder.mkdir(parents=True)
    with (folder / "names.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "person"))
        rows.writerows(enumerate(texts))
    if scenario.asks is not None:
        write_pairs(folder / OLDER, dict(zip(texts, embed(texts), strict=True)), 12)
    made.config.write_text(
        f"input: names.csv\nfields: {{person: person}}\nembedding_service: {url}\nservice_name: loopback\n"
        f"embedding_model: local-lexical-384\nmax_concurrent_requests: {scenario.workers}\nmax_inputs_per_request: 8\n"
        f"log_level: error\n{scenario.keys}{index}",
        encoding="utf-8",
    )
    return made
