"""What a stage is given: the config, the places, the ledger, the clock, and how to reach the service and the user.

Made in `commands/` for each command. The transport is how the local service, which this side of the house does not
import, is put under the SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.ledger import Job, Ledger
from pipeline.progress import Progress
from pipeline.provider.service import Service
from pipeline.retry import Clock, RetryPolicy

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True, slots=True)
class Context:
    """One run of stages. `limit` and `only` narrow it; they mark nothing absent."""

    config: Config
    place: Checkpoint
    ledger: Ledger
    clock: Clock
    policy: RetryPolicy
    service: Service
    transport: Callable[[], httpx2.BaseTransport] | None
    progress: Progress
    say: Callable[[str], None]
    limit: int | None = None
    only: tuple[str, ...] = ()
    accept_new_input: bool = False
    agreed: bool = False  # --yes

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that this run is about."""
        names = tuple(field.name for field in self.config.fields)
        return tuple(name for name in names if name in self.only) if self.only else names

    @property
    def scope(self) -> str:
        """Which snapshot says what is present: the whole catalogue, or a trial of its first records."""
        return "full" if self.limit is None else "trial"

    def is_here(self, job: Job) -> bool:
        """Whether a job is at the service that is asked: another one would say of its batch and its files that they are gone."""
        generation = self.ledger.generation(job.generation)
        return generation is not None and generation.service == self.service.name

    def jobs_here(self, states: Sequence[str]) -> list[Job]:
        """The jobs in some states, but for those of another service: they wait for a config that names it."""
        return [job for job in self.ledger.jobs.all(states) if self.is_here(job)]
