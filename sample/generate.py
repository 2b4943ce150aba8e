"""Make the sample catalogue from the table of persons: ``python sample/generate.py [--seed N] [--records N] [--out DIR]``.

The same seed gives the same bytes on every Python from 3.11 on. Three things hold that: chance comes from
``random.Random(seed).random()`` alone (the one method whose sequence Python promises to keep), nothing is taken
from the order of a set or from ``hash()``, and the CSV is written here, for the csv module has changed what it quotes.
"""

import argparse
import random
import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

HERE = Path(__file__).parent
SEED = 20260101
RECORDS = 3000
COLUMNS = ("id", "person", "title", "composite", "roles", "subjects", "provision")

Item = TypeVar("Item")


# ---- The table ----


@dataclass
class Person:
    """One block of the table; ``identity`` is what gold.csv says of each of this person's mentions."""

    heading: str
    role: str
    language: str
    weight: int
    variants: list[str] = field(default_factory=list)
    works: list[str] = field(default_factory=list)
    shared: list[tuple[str, str, str]] = field(default_factory=list)  # a work, the other's heading, the other's role
    subjects: list[str] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return slug(self.heading)

    @property
    def kind(self) -> str:
        return "music" if self.role in {"Composer", "Librettist"} else "text"

    @property
    def grown(self) -> int:
        """The first year in which something of this person's may appear; 0 for those whose birth the heading leaves out."""
        born = re.search(r", (\d{3,4})\??-", self.heading)
        return int(born[1]) + 25 if born else 0


class Publisher(NamedTuple):
    """A line ``! language | Place: Publisher | from-to | kind``."""

    language: str
    name: str
    first: int
    last: int
    kind: str


def parts(text: str, separator: str = "|") -> list[str]:
    """The pieces of a line of the table, without the space around them."""
    return [piece.strip() for piece in text.split(separator)]


def read_table(text: str) -> tuple[list[Person], list[Publisher]]:
    """The persons and the publishers of the table; an unknown line or a companion who is not there is an error."""
    persons: list[Person] = []
    publishers: list[Publisher] = []
    for number, line in enumerate(text.split("\n"), start=1):
        mark, rest = line[:1], line[2:]
        if not line or mark == "%":
            continue
        if mark == "!":
            language, name, years, kind = parts(rest)
            first, last = years.split("-")
            publishers.append(Publisher(language, name, int(first), int(last), kind))
        elif mark not in "~=+#":
            heading, role, language, *weight = parts(line)
            persons.append(Person(heading, role, language, int(weight[0]) if weight else 1))
        elif line[1:2] != " " or not persons:
            raise ValueError(f"persons.txt, line {number}: a mark, a space and the values were expected: {line!r}")
        elif mark == "+":
            work, other, role = parts(rest)
            persons[-1].shared.append((work, other, role))
        else:
            into = {"~": persons[-1].variants, "=": persons[-1].works, "#": persons[-1].subjects}[mark]
            into.extend(parts(rest, ";" if mark == "#" else "|"))
    known = [person.heading for person in persons]
    missing = [other for person in persons for _, other, _ in person.shared if other not in known]
    if missing:
        raise ValueError(f"persons.txt: a companion has no block of their own: {missing}")
    return persons, publishers


# ---- Chance ----


class Dice:
    """Every throw is one call of ``random()``."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]


# ---- What cataloguers do to a string ----


def slug(text: str) -> str:
    """An identity that one can read: ``bach-johann-sebastian-1685-1750``."""
    return re.sub(r"[^a-z0-9]+", "-", plain(text).lower()).strip("-")


def plain(text: str) -> str:
    """Without diacritics."""
    return "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))


def latin(text: str) -> bool:
    """True for a text whose letters are all Latin: elsewhere a combining mark is no ornament (й is not и)."""
    return all(ord(char) < 0x300 or 0x1E00 <= ord(char) < 0x1F00 or not char.isalpha() for char in text)


def undated(name: str) -> str:
    """Without dates: this is where namesakes fall together."""
    return re.sub(r", [^,]*\d[^,]*$", "", name)


def initials(name: str) -> str:
    """``Bach, Johann Sebastian, 1685-1750`` to ``Bach, J. S.``; a name of another shape stays as it is."""
    match re.sub(r" \(.*?\)", "", undated(name)).split(", "):
        case [surname, forenames] if forenames[:1].isupper() and latin(name):
            short = [word[0] + "." if word[0].isupper() else word for word in forenames.split()]
            return f"{surname}, {' '.join(short)}"
    return name


def direct(name: str, language: str = "") -> str:
    """The order of speech; Chinese and Japanese say the surname first, and ``Leonardo, da Vinci`` only loses its comma."""
    match re.sub(r" \(.*?\)", "", undated(name)).split(", "):
        case [surname, forenames]:
            turned = forenames[:1].isupper() and language not in {"zh", "ja"} and latin(name)
            return f"{forenames} {surname}" if turned else f"{surname} {forenames}"
    return undated(name)


def typo(dice: Dice, text: str) -> str:
    """One slip of the hand: two letters swapped, one left out, or one struck twice."""
    places = [at for at in range(1, len(text) - 1) if text[at].isalpha() and text[at + 1].isalpha()]
    way, throw = dice.below(3), dice.below(len(places) or 1)
    if len(places) < 4:
        return text
    at = places[throw]
    first, second = text[at], text[at + 1]
    return text[:at] + (second + first, second, first + first + second)[way] + text[at + 2 :]


def abbreviated(text: str) -> str:
    """A long title cut after a word."""
    return text[: text.rindex(" ", 0, 20)] + " ..." if len(text) > 24 and " " in text[:20] else text


def surface(dice: Dice, text: str, ends: Sequence[str]) -> str:
    """What may happen to any string on its way into a catalogue; most pass unharmed."""
    ways: tuple[tuple[float, Callable[[str], str]], ...] = (
        (0.020, lambda value: typo(dice, value)),
        (0.020, lambda value: plain(value) if latin(value) else value),
        (0.008, str.upper),
        (0.006, lambda value: unicodedata.normalize("NFD", value)),
        (0.025, lambda value: value + dice.pick(ends)),
    )
    for probability, change in ways:
        if dice.chance(probability):
            text = change(text)
    return text


def mention(dice: Dice, person: Person) -> str:
    """One way to write this person's name."""
    name = dice.pick(person.variants) if person.variants and dice.chance(0.30) else person.heading
    way = dice.below(100)
    if way < 18:
        name = undated(name)
    elif way < 21:
        name = initials(name)
    elif way < 24:
        name = direct(name, person.language)
    return surface(dice, name, (".", ",", " ", ", ed."))


# ---- Records ----


class Record(NamedTuple):
    """A mention of a person in a catalogue record, in the order of the columns, and who it truly is."""

    id: str
    person: str
    title: str
    roles: str
    subjects: str
    provision: str
    identity: str

    @property
    def composite(self) -> str:
        """The whole record as one text; a line that has nothing to say is left out."""
        lines = (
            ("Contributor", self.person),
            ("Title", self.title),
            ("Roles", self.roles),
            ("Subjects", self.subjects),
            ("Provision information", self.provision),
        )
        return "\n".join(f"{name}: {value}" for name, value in lines if value.strip())


EDITIONS = {
    "Composer": (": full score", ": miniature score", ": Partitur", ": arranged for piano", " [sound recording]", ". Selections"),
    "Painter": (": twelve plates", ": reproductions", ": mit einer Einleitung", " [picture]", ": a study"),
    "": (": a new edition", ": with notes", " / edited with an introduction", ", vol. 1", ", vol. 2", ": illustrated"),
}
# What a catalogue calls the part someone had in a book; of a philosopher it says author, as of a novelist.
PARTS = {"Composer": "Composer", "Librettist": "Librettist", "Painter": "Artist"}
COLLECTED = ("Works", "Works. Selections", "Selections")
ABOUT = (": a life", ": a bibliography", ": essays", ": zum Gedächtnis")
ABROAD = ("en", "de", "fr", "it", "ru")


def title_of(dice: Dice, person: Person, work: str) -> str:
    """A title a cataloguer might give to this work."""
    if dice.chance(0.02):
        work = dice.pick(COLLECTED)
    elif dice.chance(0.03):
        work = abbreviated(work)
    elif dice.chance(0.27):
        work += dice.pick(EDITIONS.get(person.role, EDITIONS[""]))
    return surface(dice, work, (".", " /", " :", ", "))


def provision_of(dice: Dice, person: Person, publishers: Sequence[Publisher]) -> str:
    """A publisher of the person's own language more often than not, in a year in which both had begun."""
    fitting = [one for one in publishers if one.kind in {"any", person.kind} and one.last > person.grown + 10]
    own = [one for one in fitting if one.language == person.language]
    home = dice.chance(0.6)
    one = dice.pick(own if own and home else [one for one in fitting if one.language in ABROAD])
    first = max(one.first, person.grown)
    year, way = first + dice.below(one.last - first + 1), dice.below(100)
    if way < 4:
        return ""
    date = str(year)
    if way < 10:
        date = f"[{year}?]"
    elif way < 16 and year > 1890:
        date = f"c{year}"
    elif way < 18 and first > 1899:
        date = "[19--?]"
    return f"{one.name}, {date}"


def some_subjects(dice: Dice, person: Person) -> str:
    """The first few of the person's subjects, sometimes none."""
    count = dice.below(len(person.subjects) + 1)
    return "; ".join(person.subjects[: count or dice.below(2)])


def book(dice: Dice, number: int, person: Person, by_heading: dict[str, Person], publishers: Sequence[Publisher]) -> list[Record]:
    """The mentions of one catalogue record: one person as a rule, two where the work had two makers."""
    works = person.works + [work for work, _, _ in person.shared]
    at = dice.below(len(works))
    title = title_of(dice, person, works[at])
    provision = provision_of(dice, person, publishers)
    subjects = some_subjects(dice, person)
    throw = dice.below(100)
    roles = PARTS.get(person.role, "Author") if throw < 72 else "Contributor" if throw < 92 else ""
    if throw > 96:
        title, roles = direct(person.heading, person.language) + dice.pick(ABOUT), "Subject"
    made = [Record(f"r{number:05d}-a", mention(dice, person), title, roles, subjects, provision, person.identity)]
    if at >= len(person.works) and roles != "Subject":
        _, heading, role = person.shared[at - len(person.works)]
        other = by_heading[heading]
        made.append(made[0]._replace(id=f"r{number:05d}-b", person=mention(dice, other), roles=role, identity=other.identity))
    return made


def edges(number: int) -> list[Record]:
    """Rows that break careless readers. They are the same for every seed, and they stand last."""
    name, peters = "Bach, Johann Sebastian, 1685-1750", "Leipzig: C.F. Peters, 1866"
    bach = (name, "Composer", "Fugue", peters, "bach-johann-sebastian-1685-1750")
    dvorak = ("Symphonies--Scores", "Praha: Supraphon, 1972", "dvorak-antonin-1841-1904")
    nemo = ("Author", "Pamphlets", "London: for the author, 1901", "nemo-invented")
    rows = (
        (name, "", *bach[1:]),  # no title
        ("   ", "Die Kunst der Fuge", "Composer", "Fugue", peters, "unnamed"),  # a name of nothing but space
        (name, 'The "Little" fugue, so called:\nfor organ, with a "preface"', *bach[1:]),  # quotes, commas and a newline
        (name, "Fugue <|endoftext|> and prelude", *bach[1:]),  # a tokeniser's own mark, here mere text
        ("<|endoftext|>", "A catalogue of signs", "Author", "", "", "endoftext-invented"),
        (name, "= Das wohltemperierte Klavier", *bach[1:]),  # a parallel title; a spreadsheet takes it for a formula
        ("=" + name, "=SUM(A1:A9)", *bach[1:]),
        ("Dvo\u0159\u00e1k, Anton\u00edn, 1841-1904", "Z nov\u00e9ho sv\u011bta", "Composer", *dvorak),  # precomposed
        ("Dvor\u030ca\u0301k, Antoni\u0301n, 1841-1904", "Z nove\u0301ho sve\u030cta", "Composer", *dvorak),  # combining
        (name, "Musikalisches Opfer\u2028Ricercar a 6", *bach[1:]),  # a line separator that is no line end of the file
        (name, "Goldberg-Variationen", "Composer", "Variations \U0001f3b9; Fugue", *bach[3:]),  # beyond the basic plane
        ("Nemo, A. (invented)", "plumless", *nemo),  # the CRC32 of both titles is 0x4ddb0c25
        ("Nemo, A. (invented)", "buckeroo", *nemo),
    )
    return [Record(f"r{number + at:05d}-a", *row) for at, row in enumerate(rows)]


def catalogue(table: str, seed: int = SEED, records: int = RECORDS) -> list[Record]:
    """As many records as were asked for, the edge rows among them."""
    persons, publishers = read_table(table)
    by_heading = {person.heading: person for person in persons}
    totals: list[int] = []
    for person in persons:
        totals.append((totals[-1] if totals else 0) + person.weight)
    dice = Dice(seed)
    wanted = records - len(edges(0))
    if wanted < 0:
        raise ValueError(f"--records {records}: there are {len(edges(0))} edge rows alone")
    made: list[Record] = []
    number = 0
    while len(made) < wanted:
        number += 1
        if made and dice.chance(0.012):  # the same record delivered twice, under another id
            made.append(dice.pick(made)._replace(id=f"r{number:05d}-a"))
            continue
        person = persons[bisect_right(totals, dice.below(totals[-1]))]
        made.extend(book(dice, number, person, by_heading, publishers))
    return made[:wanted] + edges(number + 1)


# ---- Files ----


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """RFC 4180 with LF line ends: a cell is quoted when it must be, and when space at its edge would else be lost to the eye."""

    def cell(value: str) -> str:
        special = any(char in value for char in '",\r\n') or value != value.strip()
        return '"' + value.replace('"', '""') + '"' if special else value

    return "".join(",".join(cell(value) for value in row) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write records.csv and gold.csv."""
    parser = argparse.ArgumentParser(description="Make the sample catalogue from persons.txt.")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed, another catalogue (default: %(default)s)")
    parser.add_argument("--records", type=int, default=RECORDS, help="how many mentions (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the two files go (default: beside this script)")
    options = parser.parse_args(arguments)
    made = catalogue((HERE / "persons.txt").read_text(encoding="utf-8"), options.seed, options.records)
    options.out.mkdir(parents=True, exist_ok=True)
    records = [COLUMNS, *((one.id, one.person, one.title, one.composite, one.roles, one.subjects, one.provision) for one in made)]
    gold = [("id", "identity"), *((one.id, one.identity) for one in made)]
    # Bytes, for text mode would turn LF into the platform's own line end.
    (options.out / "records.csv").write_bytes(csv_text(records).encode())
    (options.out / "gold.csv").write_bytes(csv_text(gold).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
