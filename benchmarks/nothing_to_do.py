"""(e) What a run costs that has nothing to do, with so many strings known and embedded; and ten new records.

    python -m benchmarks.nothing_to_do [--strings 100000] [--runs 5] [--folder DIR]      the full size: --strings 10000000

Real: the input, the tables of strings, records and occurrences, made by the product from it, and the ledger. Made up:
that all strings are embedded, which stands in the ledger as spans with no vector behind it; with `vector_store: none`
nothing reads one. The service is the local one. The embedded index is not meant for so many strings, and Weaviate's
would ask a server for its count: neither is in these times.

The floor is the interpreter's own start. Afterwards ten records are added to the input: it is read again, whole, and
their strings are really embedded; that is done once. Disk: 4 GB for 10 million strings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.generated import FIELDS, main_py, opened, preprocess, write_config, write_records
from benchmarks.racing import ROOT, append, calling, race, run, seconds, together
from pipeline import spans as span_sets

BAR = 2.0
_NEW = 10


def pretend_embedded(name: str) -> None:
    """Enter every string as embedded, and its generation as the current one."""
    with opened(Path(name) / "config.yml") as (context, generation):
        with context.ledger.transaction():
            for field in context.fields:
                context.ledger.add_spans("embedded", generation.id, field, context.ledger.spans("present", "full", field))
        context.ledger.make_current(generation.id)
        print(sum(span_sets.count(context.ledger.spans("embedded", generation.id, field)) for field in context.fields))


def contest(folder: Path, strings: int, runs: int) -> None:
    for old in ("checkpoints", "records.csv"):
        if (folder / old).is_dir():
            shutil.rmtree(folder / old)
        (folder / old).unlink(missing_ok=True)
    write_records(folder / "records.csv", strings // 2)
    config = write_config(folder, vector_store="none")
    first = preprocess(config)
    known = int(run(calling("benchmarks.nothing_to_do:pretend_embedded", folder)).said)
    manager = [sys.executable, str(ROOT / "batch_manager.py"), "--config", str(config), "--quiet"]
    commands: dict[str, Sequence[str]] = {
        "main.py": main_py(config),
        "main.py --status": main_py(config, "--status"),
        "batch_manager.py --advance": [*manager, "--advance"],
        "floor: python -c pass": [sys.executable, "-c", "pass"],
    }
    for command in commands.values():
        run(command)  # what a first run writes for good (an export, the local service's file) is in no time
    taken = race({name: lambda command=command: command for name, command in commands.items()}, runs)  # type: ignore[misc]
    floor = seconds(taken["floor: python -c pass"])
    lines = [f"{'':<30}{'median':>10}{'over the floor':>16}{'peak':>10}"]
    for name, of_one in taken.items():
        lines.append(f"{name:<30}{seconds(of_one):>8.2f} s{seconds(of_one) - floor:>14.2f} s{together(of_one):>7.0f} MB")
    before = _embedded(config)
    _add_records(folder / "records.csv", strings // 2)
    again = run(main_py(config))
    fresh = _embedded(config) - before
    if fresh < _NEW:
        sys.exit(f"{fresh} strings were embedded of {_NEW} new records")
    lines += [
        f"bar: {BAR} s; {known:,} strings were known and none pending; the first reading took {first.seconds:.1f} s",
        f"{_NEW} records more: main.py read all again and embedded {fresh} in {again.seconds:.1f} s, {again.peak_mb:.0f} MB",
    ]
    append(f"(e) Nothing to do, {known:,} strings known", lines)


def _embedded(config: Path) -> int:
    with opened(config) as (context, generation):
        return sum(span_sets.count(context.ledger.spans("embedded", generation.id, name)) for name in FIELDS)


def _add_records(path: Path, number: int) -> None:
    with path.open("a", encoding="utf-8") as file:
        for place in range(number, number + _NEW):
            file.write(f'r{place:09d},"Added, Person {place}",A title added as number {place},Editor,Added,"Wien: Added, 2024"\n')


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--strings", type=int, default=100_000)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    typed = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (typed.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        contest(folder, typed.strings, typed.runs)


if __name__ == "__main__":
    main()
