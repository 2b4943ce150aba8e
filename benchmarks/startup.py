"""(f) How long `main.py --help` and `main.py --status` take over the interpreter's own start.

    python -m benchmarks.startup [--runs 15]

The status is that of a real catalogue: the sample, run once into a temporary folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from benchmarks.racing import ROOT, race, report, seconds

HELP_BAR, STATUS_BAR = 0.3, 0.6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=15)
    typed = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        product = [sys.executable, str(ROOT / "main.py"), "--set", f"checkpoint_dir={folder}/checkpoints"]
        subprocess.run([*product, "--quiet"], check=True, cwd=ROOT)
        commands = {
            "main.py --help": [sys.executable, str(ROOT / "main.py"), "--help"],
            "main.py --status": [*product, "--status"],
            "floor: python -c pass": [sys.executable, "-c", "pass"],
        }
        taken = race({name: lambda command=command: command for name, command in commands.items()}, typed.runs)  # type: ignore[misc]
    shown, status, floor = (seconds(runs) for runs in taken.values())
    over = f"--help {shown - floor:.2f} s (bar: {HELP_BAR}), --status {status - floor:.2f} s (bar: {STATUS_BAR})"
    report("(f) Start-up", taken, [f"over the interpreter's own start: {over}"])


if __name__ == "__main__":
    main()
