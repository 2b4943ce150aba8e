"""How long `main.py --help` and `main.py --status` take over the interpreter's own start.

    python -m benchmarks.startup [--runs 15]

The status is that of a real catalogue: the sample, run once into a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(command: Sequence[str]) -> float:
    """The wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=15)
    runs = options.parse_args().runs
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        product = [python, str(ROOT / "main.py"), "--set", f"checkpoint_dir={folder}/checkpoints"]
        subprocess.run([*product, "--quiet"], check=True, cwd=ROOT)
        commands = {
            "python -c pass": [python, "-c", "pass"],
            "main.py --help": [python, str(ROOT / "main.py"), "--help"],
            "main.py --status": [*product, "--status"],
        }
        # In turn, so that a machine that gets slower or faster meanwhile does so for all of them.
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                taken[name].append(seconds(command))
    floor = statistics.median(taken["python -c pass"])
    print(f"medians of {runs} runs in turn; the floor is the interpreter's own start")
    for name, times in taken.items():
        middle = statistics.median(times)
        print(f"{name:<18} {middle:.3f} s   {middle - floor:.3f} s over the floor   ratio {middle / floor:.1f}")


if __name__ == "__main__":
    main()
