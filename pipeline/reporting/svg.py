"""The charts: pure functions from numbers to inline SVG.

Places are percentages and heights are pixels, so a chart is as wide as the page is and its letters stay as large as they
are. Colours are classes, which the page's style gives: charts follow its dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reporting.markup import Markup, join, tag

_LEAST = 0.4  # percent: what there is can be seen
_LANE, _AXIS, _TALLEST = 16, 22, 640
_BARS = 110
_MARKS = 12


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a bar."""

    kind: str
    count: int
    words: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A bar on a time line, from a moment to another one, or to the end of the picture when there is none yet."""

    label: str
    kind: str
    start: float
    end: float | None
    words: str


def percent(share: float) -> str:
    """A share of 1 as SVG wants it."""
    return f"{100 * share:.2f}%"


def stacked(parts: Sequence[Part], label: str) -> Markup:
    """One bar, divided. A part of a million that is one string is seen as well."""
    shown = [part for part in parts if part.count]
    total = sum(part.count for part in shown)
    widths = [max(_LEAST / 100, part.count / total) for part in shown]
    at, drawn = 0.0, []
    for part, width in zip(shown, widths, strict=True):
        share = width / sum(widths)
        drawn.append(_box(part.kind, part.words, percent(at), 0, percent(share), 14))
        at += share
    return tag("svg", *drawn, class_="bar", width="100%", height=14, role="img", aria_label=label)


def histogram(low: float, width: float, counts: Sequence[int], marks: Sequence[float], label: str) -> Markup:
    """Bars of a distribution up to 1, and below it a mark for each single value that is worth seeing."""
    past = low + width * len(counts)
    tallest = max(counts)
    drawn = []
    for number, count in enumerate(counts):
        if count:
            height = max(1.0, _BARS * count / tallest)
            start = low + width * number
            words = f"{start:.3f} to {start + width:.3f}: {count:,} pairs"
            x, wide = percent(number / len(counts)), percent(0.86 / len(counts))
            drawn.append(_box("pairs", words, x, _BARS - height, wide, height))
    base = _BARS + 0.5
    drawn.append(tag("line", class_="axis", x1="0", x2="100%", y1=base, y2=base))
    for value in marks:
        x = percent((value - low) / (past - low))
        title = tag("title", f"a nearest other: {value:.3f}")
        drawn.append(tag("line", title, class_="mark", x1=x, x2=x, y1=_BARS + 2, y2=_BARS + 2 + _MARKS))
    ticks = [tick / 10 for tick in range(-10, 11) if low - 1e-9 <= tick / 10 <= past + 1e-9]
    shown = ticks if len(ticks) <= 6 else ticks[(len(ticks) + 1) % 2 :: 2]
    at = [(percent((tick - low) / (past - low)), f"{tick:.1f}", _anchor((tick - low) / (past - low))) for tick in shown]
    drawn += _axis(at, _BARS + _MARKS + 16)
    return tag("svg", *drawn, class_="plot", width="100%", height=_BARS + _MARKS + _AXIS, role="img", aria_label=label)


def timeline(lanes: Sequence[Lane], ticks: Sequence[tuple[float, str]], start: float, end: float, label: str) -> Markup:
    """A bar for each lane, its label beside it. Many lanes are drawn thinner, and only some of their labels."""
    height = min(_LANE, _TALLEST / len(lanes))
    every = math.ceil(_LANE / height)
    bottom = math.ceil(height * len(lanes))
    labels = [
        tag("text", lane.label, x="100%", y=_short(place * height + min(12, height + 6)), text_anchor="end", class_="tick")
        for place, lane in enumerate(lanes)
        if place % every == 0
    ]
    grid = [
        tag("line", class_="grid", x1=x, x2=x, y1=0, y2=bottom) for x in (percent(_at(moment, start, end)) for moment, _ in ticks)
    ]
    drawn = []
    for place, lane in enumerate(lanes):
        first = min(_at(lane.start, start, end), 1 - _LEAST / 100)
        last = 1.0 if lane.end is None else _at(lane.end, start, end)
        width = percent(max(_LEAST / 100, last - first))
        gap = 3 if height > 8 else 0
        kind = lane.kind if lane.end is not None else f"{lane.kind} unended"
        drawn.append(_box(kind, lane.words, percent(first), place * height + gap, width, height - 2 * gap))
    at = [(percent(_at(moment, start, end)), words, _anchor(_at(moment, start, end))) for moment, words in ticks]
    size = bottom + _AXIS
    return tag(
        "div",
        tag("svg", *labels, class_="lanes", width=8 + 7 * max(len(lane.label) for lane in lanes), height=size, aria_hidden="true"),
        tag("svg", join(*grid), join(*drawn), *_axis(at, bottom + 16), class_="plot", height=size, role="img", aria_label=label),
        class_="timeline",
    )


def _box(kind: str, words: str, x: str, y: float, width: str, height: float) -> Markup:
    return tag("rect", tag("title", words), class_=kind, x=x, y=_short(y), width=width, height=_short(height))


def _short(pixels: float) -> str:
    return f"{pixels:.2f}"


def _at(moment: float, start: float, end: float) -> float:
    return min(1.0, max(0.0, (moment - start) / (end - start)))


def _anchor(share: float) -> str:
    return "start" if share < 0.08 else "end" if share > 0.92 else "middle"


def _axis(ticks: Sequence[tuple[str, str, str]], y: float) -> list[Markup]:
    return [tag("text", words, x=x, y=y, text_anchor=anchor, class_="tick") for x, words, anchor in ticks]
