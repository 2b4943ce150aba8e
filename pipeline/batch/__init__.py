"""Batch mode over the ledger: prepare → submit → poll → collect, and adopt after a doubt.

Each step can be killed anywhere and simply run again: what it will do is in the ledger before it does it, and what it
did is asked of the service, not remembered. `commands/` and the stage decide which steps a command takes.
"""
