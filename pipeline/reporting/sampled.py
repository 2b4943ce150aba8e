"""The sections of the page that show samples: nearest neighbours, and how alike the strings of a field are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from pipeline.reporting.markup import Markup, foreign, tag
from pipeline.reporting.numbers import Neighbours, Samples, Similarities
from pipeline.reporting.parts import numbers, paragraph, table, texts
from pipeline.reporting.svg import histogram


def neighbours(samples: Samples) -> Iterator[Markup]:
    """A few strings of each field with their nearest others."""
    yield tag("h2", "Nearest neighbours")
    if samples.not_asked:
        yield paragraph("There are none to show: ", foreign(samples.not_asked, 500), ".")
        return
    yield paragraph(
        "Strings drawn at random; below each, those of its field that the index finds nearest, their cosine, how often they occur.",
        soft=True,
    )
    for field, of_field in groupby(samples.neighbours, key=lambda one: one.field):
        yield tag("h3", field)
        yield tag("div", *map(_card, of_field), class_="cards")


def _card(one: Neighbours) -> Markup:
    """A string, and below it the others."""
    rows = [(f"{near.similarity:.3f}", foreign(near.text), f"×{near.frequency:,}") for near in one.nearest]
    columns = (*numbers("cosine"), texts("string"), *numbers("occurrences"))
    others = table("nearest others", columns, rows) if rows else paragraph("It is alone in its field.", soft=True)
    return tag("div", tag("p", foreign(one.text), class_="quoted"), others)


def similarities(samples: Samples) -> Iterator[Markup]:
    """The distribution of similarities by field, with the nearest others from above marked below it."""
    yield tag("h2", "How alike strings are")
    if samples.not_read:
        yield paragraph(f"There is nothing to show: {samples.not_read}.")
        return
    yield paragraph(
        "The cosine of pairs of strings of one field, drawn at random. Marks below the line are the nearest others from above: "
        "the further they stand to the right of the hill, the better the model tells who is near.",
        soft=True,
    )
    for one in samples.similarities:
        yield tag("h3", one.field)
        yield paragraph(
            f"{one.pairs:,} pairs of {one.strings:,} strings. Half of the pairs are below {one.median:.3f}; the highest is "
            f"{one.highest:.3f}."
        )
        yield histogram(one.low, one.width, one.counts, _marks(samples, one), f"similarities of {one.field}")


def _marks(samples: Samples, of: Similarities) -> list[float]:
    return [
        near.similarity for one in samples.neighbours if one.field == of.field for near in one.nearest if near.similarity >= of.low
    ]
