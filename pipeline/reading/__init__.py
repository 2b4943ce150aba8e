"""Reading the input: files of rows in, Arrow batches of texts out, bad rows listed, broken files refused."""

from pipeline.reading.batches import read_rows
from pipeline.reading.rows import Reader, Rejected
from pipeline.reading.sources import Source, find_sources, fingerprint_of

__all__ = ["Reader", "Rejected", "Source", "find_sources", "fingerprint_of", "read_rows"]
