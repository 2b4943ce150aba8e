"""How much a service takes at once in batch mode: OpenAI's limits by account tier, from its guide of early 2026.

All are settings (`openai_tier`, `max_enqueued_requests`, `max_enqueued_tokens`, `max_active_batches`): a limit in code
would be wrong for somebody. What is enqueued now is counted from our own jobs; other users of the account are not seen
here, and show up as `token_limit_exceeded`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config

ENQUEUED_TOKENS = {1: 3_000_000, 2: 20_000_000, 3: 100_000_000, 4: 500_000_000, 5: 4_000_000_000}
ENQUEUED_REQUESTS = 1_000_000
REQUESTS_A_JOB = 50_000
BYTES_A_JOB = 200_000_000
CREATIONS_AN_HOUR = 2000


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What may be enqueued in all, and what one job may hold."""

    enqueued_requests: int
    enqueued_tokens: int
    active_batches: int
    creations_an_hour: int
    requests_a_job: int
    bytes_a_job: int


def batch_limits(config: Config) -> BatchLimits:
    """The limits that a config means."""
    return BatchLimits(
        enqueued_requests=config.max_enqueued_requests or ENQUEUED_REQUESTS,
        enqueued_tokens=config.max_enqueued_tokens or ENQUEUED_TOKENS[config.openai_tier],
        active_batches=config.max_active_batches,
        creations_an_hour=CREATIONS_AN_HOUR,
        requests_a_job=min(config.batch_embedding_size, config.max_requests_per_file, REQUESTS_A_JOB),
        bytes_a_job=BYTES_A_JOB,
    )
