"""`python -m tests.crash --points 1000 --seed 1`: a long sweep of kills, and the table of what was hit."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.crash.sweep import Tally, sweep
from tests.crash.zygote import HAS_STRACE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if not HAS_STRACE:
        print("There is no strace here: kills come at random instants, and not at system calls.", file=sys.stderr)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        sweep(Path(folder), asked.points, asked.seed, tally, say=True)
    print("\n".join(tally.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
