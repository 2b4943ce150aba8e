"""A made catalogue in a checkpoint, embedded and not yet indexed: what the benchmarks of indexes write.

    python -m benchmarks.catalogue FOLDER [--objects 20000] [--dimensions 1536] [--set KEY=VALUE ...]

The texts go through preprocessing as any do; the embeddings are random unit vectors, put into tables as collecting puts
them, in files of the size that real time makes. The same seed gives the same catalogue. It is made in a process of its
own (`make`), so that whoever measures memory measures the index alone.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline import spans as span_sets
from pipeline.commands.console import Console
from pipeline.commands.main import main as run_command
from pipeline.commands.session import Options, changing
from pipeline.context import Context
from pipeline.files import publish, sha256_of, temporary
from pipeline.ledger import Generation, TableFile
from pipeline.provider.service import generation_of
from pipeline.tables.embeddings import write_embeddings

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("person", "title", "composite")
_SEED = 20_260_101
_FILE_ROWS = 8192  # as many as a spool file of real time holds, at 1,536 dimensions
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnrstvwz" for vowel in "aeiou"]
_FORENAMES = (
    "Anna|Bartolomeo|Carl|Clara|Dmitri|Elisabeth|Fanny|Franz|Georg|Giacomo|Giuseppe|Hélène|Ignaz|Jacob|Jan|Jean-Baptiste|"
    "Johann|Josef|Karel|Leoš|Louise|Ludwig|Maria|Niccolò|Ottorino|Pauline|Richard|Robert|Sofia|Zoltán"
)
_FORMS = (
    "Sonata|Sonates|Kunst der Fuge|Requiem|Trio für Klavier|Sämtliche Werke|Briefe an|The collected letters of|Histoire de|"
    "Opera omnia|Concerto grosso|Lieder und Gesänge|Étude|Die Reise nach|A treatise on|Versuch über|Symphonie|Quartetto"
)
_NOUNS = (
    "violin|Klavier|voices|Orchester|natural harmony|the sea|Erinnerung|monde|winter|Gedichte|basso continuo|philosophy|"
    "mountains|Stadt|memory|lumière|machines|flute|Orgel"
)
_SUBJECTS = (
    "Songs with piano|Chamber music|Correspondence|Musicology -- 19th century|String quartets -- Scores and parts|Philosophy|"
    "Voyages and travels|Poetry -- Translations into German|Church music|Harmony -- Early works to 1800"
)
_PLACES = "Leipzig|Wien|Paris|London|Mainz|Praha|Milano|Amsterdam|New-York|Kassel"
_ROLES = "Composer|Author|Editor|Librettist|Contributor|Translator"


def make(folder: Path, objects: int, dimensions: int, settings: Sequence[str] = ()) -> Path:
    """Make it in a process of its own; the path of its config."""
    arguments = [str(folder), "--objects", str(objects), "--dimensions", str(dimensions)]
    for setting in settings:
        arguments += ["--set", setting]
    subprocess.run([sys.executable, "-m", "benchmarks.catalogue", *arguments], check=True, cwd=ROOT)
    return folder / "config.yml"


def write_records(path: Path, objects: int) -> None:
    """Records that have, over all fields, exactly so many unique strings: half of them composites, a fifth persons."""
    chance = random.Random(_SEED)
    composites, persons = max(1, objects // 2), max(1, objects // 5)
    people = _unique(persons, lambda: _person(chance))
    titles = _unique(objects - composites - persons, lambda: _title(chance))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", *FIELDS))
        for number in range(composites):  # more than there are persons or titles: each occurs, most of them several times
            person, title = people[number % len(people)], titles[number % len(titles)]
            writer.writerow((f"r{number:07d}", person, title, _composite(chance, number, person, title)))


def _unique(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(_SYLLABLES, k=chance.randint(2, 4))).title()


def _some(chance: random.Random, words: str, most: int = 1) -> list[str]:
    return chance.sample(words.split("|"), chance.randint(1, most))


def _one(chance: random.Random, words: str) -> str:
    return _some(chance, words)[0]


def _person(chance: random.Random) -> str:
    born = chance.randint(1500, 1960)
    years = chance.choice([f", {born}-{born + chance.randint(25, 90)}", f", {born}-", ""])
    return f"{_word(chance)}, {' '.join(_some(chance, _FORENAMES, 2))}{years}"


def _title(chance: random.Random) -> str:
    number = chance.choice(
        [f", op. {chance.randint(1, 150)}", f" no. {chance.randint(1, 40)} in {chance.choice('CDEFGA')} major", ""]
    )
    about = f"{_one(chance, _NOUNS)} & {_one(chance, _NOUNS)} {_word(chance)}"
    return f"{_one(chance, _FORMS)} {_word(chance)}{number}: {about}"


def _composite(chance: random.Random, number: int, person: str, title: str) -> str:
    provision = f"{_one(chance, _PLACES)}: {_word(chance)} & {_word(chance)}, {chance.randint(1700, 2024)}, plate {number + 1000}"
    return (
        f"Contributor: {person}\nTitle: {title}\nRoles: {_one(chance, _ROLES)}\n"
        f"Subjects: {'; '.join(_some(chance, _SUBJECTS, 3))}\nProvision information: {provision}"
    )


def vectors_of(place: int, count: int, dimensions: int) -> NDArray[np.float32]:
    """Random unit vectors; another place, others."""
    vectors = np.random.default_rng((_SEED, place)).standard_normal((count, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _embed(context: Context, dimensions: int) -> None:
    """Every present string gets its vector, in one commit a file."""
    place, ledger, now = context.place, context.ledger, context.clock.now()
    asked = generation_of(context.service, ledger)
    generation = Generation(asked.service, asked.model, asked.asked, dimensions)
    ledger.save_generation(generation, now)
    for name, rows in _slices(context):
        number = ledger.next_file_number()
        final = place.tables / f"embeddings_{generation.id}_{name}_{number:06d}.parquet"
        write_embeddings(temporary(final), np.array(rows, np.int64), vectors_of(number, len(rows), dimensions))
        publish(final)
        size, hashed = final.stat().st_size, sha256_of(final)
        file = TableFile("embeddings", generation.id, name, final.name, len(rows), rows[0], rows[-1] + 1, size, hashed, now)
        with ledger.transaction():
            ledger.add_file(file)
            ledger.add_spans("embedded", generation.id, name, span_sets.of_rows(rows))
    ledger.make_current(generation.id)


def _slices(context: Context) -> Iterator[tuple[str, list[int]]]:
    for name in context.fields:
        for window in span_sets.windows(context.ledger.spans("present", "full", name), _FILE_ROWS):
            yield name, list(span_sets.rows_of(window))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--objects", type=int, default=20_000)
    options.add_argument("--dimensions", type=int, default=1536)
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    typed = options.parse_args()
    typed.folder.mkdir(parents=True, exist_ok=True)
    config = typed.folder / "config.yml"
    settings = {
        "input": "records.csv",
        "fields": {name: name for name in FIELDS},
        # A service of this machine that nobody is going to ask: all is embedded already.
        "embedding_service": "http://127.0.0.1:9/v1",
        "service_name": "made",
        "embedding_model": f"random-{typed.dimensions}",
        "vector_store": "weaviate",
        **{name: yaml.safe_load(value) for name, _, value in (setting.partition("=") for setting in typed.set)},
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    write_records(typed.folder / "records.csv", typed.objects)
    if code := run_command(["--config", str(config), "--quiet", "--end", "preprocessing"]):
        sys.exit(code)
    with changing(Options(config), Console(quiet=True), "benchmarks.catalogue") as context:
        _embed(context, typed.dimensions)
        count = sum(file.rows for file in context.ledger.files("embeddings"))
    if count != typed.objects:
        sys.exit(f"{count} strings were made instead of {typed.objects}")


if __name__ == "__main__":
    main()
