"""Every error that a user can meet, as one tree.

    NamesakeError                 exit 1
    ├── UserError                 exit 2   the user's command line, config, input or checkpoint folder
    │   ├── UsageError
    │   ├── ConfigError
    │   ├── InputError
    │   └── CheckpointError
    │       ├── DamagedLedgerError
    │       └── DamagedTableError
    ├── LockedError               exit 75  another run holds the lock
    ├── BudgetError               exit 1   the ceiling of `budget_usd` would be passed
    ├── DiskError                 exit 1   the disk is full or failing
    ├── StoreError                exit 1   the index refused or lost something
    │   └── StoreDownError                 it does not answer, for now
    ├── ServiceError              exit 1   the embedding service can't be used, for now
    │   └── ServiceStoppedError            until a person acts: a key, the account, the config
    └── AlreadyToldError          exit 1   the command has said itself what failed; there is nothing to add

A message says what, which value, where, and then the way out. Foreign exceptions are translated once, at the
adapter that meets them; `commands/` catches this tree once. A program error is not in the tree: it keeps its
own type, so that it is never mistaken for something the user did.
"""


class NamesakeError(Exception):
    """Something that the user should read as a sentence, not as a traceback."""

    exit_code = 1
    passes = False  # whether the same command may do better later, and nobody has to act


class UserError(NamesakeError):
    """The user's side of things: nothing was changed."""

    exit_code = 2


class UsageError(UserError):
    """The command line."""


class ConfigError(UserError):
    """`config.yml`, `--set`, or a key in the environment."""


class InputError(UserError):
    """The catalogue as it was given."""


class CheckpointError(UserError):
    """The checkpoint folder: foreign, moved, damaged, newer than this version, not writable."""


class DamagedLedgerError(CheckpointError):
    """The ledger is there and can't be used; `--restore-ledger` is for it."""


class DamagedTableError(CheckpointError):
    """A table file is damaged or gone."""


class LockedError(NamesakeError):
    """Another run holds the lock of the checkpoint folder."""

    exit_code = 75
    passes = True


class BudgetError(NamesakeError):
    """What is about to be sent would pass `budget_usd`."""


class DiskError(NamesakeError):
    """The disk is full, or failed to write."""


class StoreError(NamesakeError):
    """The index refused objects, or does not hold what it confirmed."""


class StoreDownError(StoreError):
    """The index does not answer now."""

    passes = True


class ServiceError(NamesakeError):
    """The embedding service can't be used now; what is done is kept, and the next run goes on."""

    passes = True


class ServiceStoppedError(ServiceError):
    """The embedding service will say no until a person acts."""

    passes = False


class AlreadyToldError(NamesakeError):
    """Something failed for good in this command, and its own words and document have said what."""
