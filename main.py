"""Namesake: `python main.py` runs every stage; `python main.py --help` says what else there is."""

import sys

from pipeline.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
