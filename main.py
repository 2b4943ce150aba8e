"""Namesake: `python main.py` runs every stage; `python main.py --help` says what else there is."""

import os
import sys

from pipeline.commands.main import INTERRUPTED, main

if __name__ == "__main__":
    exit_code = main()
    if exit_code == INTERRUPTED:
        # After a second Ctrl-C, requests may still be on the wire: the interpreter would wait for their threads.
        sys.stdout.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
