"""How many names a second the local model embeds, against a plain Python loop that makes the same n-grams.

    python -m benchmarks.local_model [--names 100000] [--runs 5]

The rival counts hashed 2-to-4-grams into a dict and does nothing else: no vector, no length.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable

from pipeline.local_service.model import embed

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnrstvwz" for vowel in "aeiou"]


def names(count: int) -> list[str]:
    chance = random.Random(1)

    def word() -> str:
        return "".join(SYLLABLES[int(chance.random() * len(SYLLABLES))] for _ in range(2 + int(chance.random() * 3))).title()

    return [f"{word()}, {word()} {word()}" for _ in range(count)]


def plain_loop(texts: list[str]) -> None:
    for text in texts:
        padded = f" {text.casefold()} "
        grams: Counter[int] = Counter()
        for size in (2, 3, 4):
            for start in range(len(padded) - size + 1):
                grams[zlib.crc32(padded[start : start + size].encode()) % 384] += 1


def rate(work: Callable[[], object], count: int, runs: int) -> float:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return count / statistics.median(taken)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--names", type=int, default=100_000)
    options.add_argument("--runs", type=int, default=5)
    typed = options.parse_args()
    texts = names(typed.names)
    ours = rate(lambda: embed(texts), len(texts), typed.runs)
    few = texts[: max(1, len(texts) // 20)]
    rival = rate(lambda: plain_loop(few), len(few), typed.runs)
    print(f"medians of {typed.runs} runs, {len(texts):,} names of {sum(map(len, texts)) / len(texts):.1f} characters")
    print(f"local model   {ours:>10,.0f} names a second")
    print(f"plain loop    {rival:>10,.0f} names a second   ratio {ours / rival:.1f}")


if __name__ == "__main__":
    main()
