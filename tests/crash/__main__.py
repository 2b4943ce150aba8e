"""`python -m tests.crash --points 1000 --seed 1`: a long sweep of kills, and the table of what was hit."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.sweep import Tally, sweep
from tests.crash.zygote import HAS_STRACE
from tests.weaviate_server import NoServerError, WeaviateServer, binary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="catalogues at once (default: %(default)s)")
    asked = parser.parse_args()
    if not HAS_STRACE:
        print("There is no strace here: kills come at random instants, and not at system calls.", file=sys.stderr)
    tally, began = Tally(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    with contextlib.ExitStack() as stack:
        try:
            binary()
            weaviate = stack.enter_context(WeaviateServer(folder / "weaviate"))
        except NoServerError as problem:
            print(f"Without the Weaviate index: {problem}", file=sys.stderr)
            weaviate = None
        sweep(folder, asked.points, asked.seed, weaviate, tally, asked.workers)
    print("\n".join(tally.lines()))
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, seed {asked.seed}; folder of what failed, if anything: {folder}")
    return 1 if tally.failures or not tally.points else 0


if __name__ == "__main__":
    sys.exit(main())
