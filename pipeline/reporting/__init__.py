"""The report: where the catalogue stands, for people (`report.html`) and for programs (`report.json`).

`facts.py` is what the ledger says, `samples.py` what a bounded look into tables, lists and index shows, `page.py` the
page as a pure function of both. Nothing here changes state, and nothing is ever read back as state.
"""

from pipeline.reporting.writing import write_report

__all__ = ["write_report"]
