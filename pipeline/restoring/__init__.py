"""Bringing the last safe copy of a lost ledger up to date: from our own files that are newer, and from the service's list.

Everything here works on a draft that nobody else sees: it is thrown away or published whole (`checkpoint.put_in_place`).
Nothing is sent that costs, and no file is deleted.
"""

from pipeline.restoring.draft import Restored, restore

__all__ = ["Restored", "restore"]
