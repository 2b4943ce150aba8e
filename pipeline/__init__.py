"""Namesake: a catalogue's strings, each embedded once and indexed for good.

The floors, from the ground up (`lint-imports` holds them): errors, log, identity, fields, spans, files, retry,
config; then ledger, tables, spool, provider; then stores, realtime, collecting, indexing; then the stages; then
`stages`; then `commands`. `local_service` stands beside it all and imports nothing of the rest.
"""

__version__ = "0.1.0"
