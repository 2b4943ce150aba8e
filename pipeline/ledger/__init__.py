"""The ledger: the one mutable state, a small SQLite database of spans, files, intents and money."""

from pipeline.ledger.jobs import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.news import Stop, Told
from pipeline.ledger.opening import is_sound, open_draft, open_for_booking, open_for_reading, open_for_writing
from pipeline.ledger.rows import Booking, Doubt, Failure, Generation, Intent, Receipt, Run, Snapshot, Spending, TableFile

__all__ = [
    "Booking",
    "Doubt",
    "Failure",
    "Generation",
    "Intent",
    "Job",
    "Ledger",
    "Receipt",
    "Run",
    "Snapshot",
    "Spending",
    "Stop",
    "TableFile",
    "Told",
    "is_sound",
    "open_draft",
    "open_for_booking",
    "open_for_reading",
    "open_for_writing",
]
