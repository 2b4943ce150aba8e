"""Money and bytes as one reads them."""

from __future__ import annotations


def dollars(usd: float) -> str:
    """An amount as one reads it: cents for dollars, more digits for less."""
    if usd == 0:
        return "$0"
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}" if usd >= 0.0001 else f"${usd:.2g}"


def size(count: float) -> str:
    """Bytes as one reads them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
