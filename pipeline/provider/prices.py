"""What models cost and give, from OpenAI's published list of early 2026: the one place to change when they change.

A service by URL has the price that the config says (`price_per_million`), and free is said when it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

LISTED = "2026-01"


@dataclass(frozen=True, slots=True)
class Model:
    """A known model: its vector length, its tokenizer, and USD for 1M tokens in both modes."""

    name: str
    dimensions: int
    tokenizer: str
    price: float
    batch_price: float
    shortens: bool


OPENAI_MODELS = {
    model.name: model
    for model in (
        Model("text-embedding-3-small", 1536, "cl100k_base", 0.02, 0.01, True),
        Model("text-embedding-3-large", 3072, "cl100k_base", 0.13, 0.065, True),
        Model("text-embedding-ada-002", 1536, "cl100k_base", 0.10, 0.05, False),
    )
}


def usd(tokens: int, price_per_million: float) -> float:
    """The price of some tokens."""
    return tokens * price_per_million / 1_000_000
