"""Batch mode by hand or by cron: `python batch_manager.py --help`."""

import sys

from pipeline.commands.batch_manager import main

if __name__ == "__main__":
    sys.exit(main())
