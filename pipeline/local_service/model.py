"""The lexical model: texts to unit vectors that are near when their spelling is near.

Each word, with a space on either side, is cut into its runs of two, three and four characters; each run adds
its weight, with a sign, to one of 384 places that an integer hash picks; then the square root of each place
is taken, so that what is repeated doesn't drown the rest. So it forgives typing errors, word order, accents
and left-out words, needs no download, and is nothing more than that: it knows no meaning, no other script, no
nickname, and it can't tell two persons of one name apart.

The same text gives the same bytes on every machine, however texts are grouped into calls: all sums are of
whole numbers, exact in float64 in whatever order they are added; only then come square roots and one
division, which IEEE 754 rounds in one way. What a letter is comes from Python's own Unicode tables: a
character that was assigned after Unicode 14 (Python 3.11) may be seen differently by a later Python.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

MODEL = "local-lexical-384"
DIMENSIONS = 384

_SLICE_CHARACTERS = 1 << 15  # worked on at once: some megabytes, which stay in the processor's cache
_SLICE_TEXTS = 1 << 9
# By length of a run; whole numbers, see above. Measured on name and title variants: longer runs alone lose
# what has a typing error in each word, pairs alone lose long titles.
_WEIGHTS = {2: 3, 3: 2, 4: 1}

_SPACE = ord(" ")
_UNKNOWN, _DROPPED = 0, -1  # in `_Letters.codes`; below -1 is the number of an expansion


def embed(texts: Sequence[str], dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Unit vectors of all texts, one row each, in their order.

    Fewer dimensions are the first ones of the whole vector, brought back to unit length. Where nothing is
    left to scale (a text with no letter or digit, or one whose runs all fall elsewhere or cancel out) the row
    is a signature of the raw text, which has no zero in any dimension: the same text gets the same vector,
    others a far one.
    """
    if not 1 <= dimensions <= DIMENSIONS:
        raise ValueError(f"dimensions is {dimensions}; it must be from 1 to {DIMENSIONS}.")
    vectors = np.empty((len(texts), dimensions), np.float32)
    start = 0
    for chunk in _slices(texts):
        sums = _sums(chunk)[:, :dimensions]
        totals = np.abs(sums).sum(axis=1)  # the squared length of what the roots will be
        for row in np.flatnonzero(totals == 0).tolist():
            sums[row] = _signature(chunk[row])[:dimensions]
            totals[row] = dimensions
        roots = np.copysign(np.sqrt(np.abs(sums)), sums)
        np.divide(roots, np.sqrt(totals)[:, None], out=vectors[start : start + len(chunk)], casting="same_kind")
        start += len(chunk)
    return vectors


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The list in runs of bounded size, so that memory follows the longest text and not the list."""
    start = size = 0
    for end, text in enumerate(texts):
        if end > start and (size + len(text) > _SLICE_CHARACTERS or end - start == _SLICE_TEXTS):
            yield texts[start:end]
            start, size = end, 0
        size += len(text) + 1
    if start < len(texts):
        yield texts[start:]


def _sums(texts: Sequence[str]) -> NDArray[np.float64]:
    """For each text, the whole-numbered sums of its runs in 384 places."""
    codes, owners = _words(texts)  # at least one space, whatever the texts
    inside = codes != _SPACE
    owners = owners[1:]  # a run's second character, or the space after it, tells whose it is
    hashes = codes.astype(np.uint32)
    first = hashes
    places: list[NDArray[np.intp]] = []
    weights: list[NDArray[np.float64]] = []
    whole = np.ones(len(codes), np.bool_)  # runs that hold no space within: never of two words, nor of two texts
    for size, weight in _WEIGHTS.items():
        hashes = hashes[:-1] * np.uint32(0x9E3779B1) + first[size - 1 :]
        whole = whole[:-1] if size == 2 else whole[:-1] & inside[size - 2 : -1]
        mixed = hashes[whole] + np.uint32(size)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(0xC2B2AE35)
        place = ((mixed >> np.uint32(16)) * np.uint32(DIMENSIONS)) >> np.uint32(16)
        sign = (mixed >> np.uint32(15)) & np.uint32(1)
        places.append(owners[: len(hashes)][whole] * DIMENSIONS + place.astype(np.intp))
        weights.append((sign.astype(np.float64) * 2 - 1) * weight)
    sums = np.bincount(np.concatenate(places), np.concatenate(weights), len(texts) * DIMENSIONS)
    # No copy: with weights it is float64 already, which the stubs don't know.
    return sums.astype(np.float64, copy=False).reshape(len(texts), DIMENSIONS)


def _words(texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """The letters of all texts with one space around each word, and for each the number of its text.

    A space belongs to the text before it.
    """
    raw = np.frombuffer(("\n" + "\n".join(texts) + "\n").encode("utf-32-le", "surrogatepass"), np.int32)
    lengths = np.fromiter(map(len, texts), np.intp, len(texts)) + 1
    lengths[0] += 1
    owners = np.repeat(np.arange(len(texts)), lengths)
    codes, owners = _LETTERS.plain(raw, owners)
    spaces = codes == _SPACE
    kept = np.ones(len(codes), np.bool_)
    kept[1:] = ~(spaces[1:] & spaces[:-1])
    return codes[kept], owners[kept]


class _Letters:
    """What each character becomes: its letters without accents or case, a space, or nothing.

    Learnt as characters are met, since the whole of Unicode takes a second. Compatibility forms (NFKD) and
    folding are looked up one character at a time; that is exact, since the marks whose order could change are
    dropped.
    """

    def __init__(self) -> None:
        self._codes = np.zeros(0x110000, np.int32)
        self._expansions: list[list[int]] = []
        self._lock = threading.Lock()

    def plain(self, raw: NDArray[np.int32], owners: NDArray[np.intp]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        codes = self._codes[raw]
        if codes.min() <= _UNKNOWN:
            if (codes == _UNKNOWN).any():
                self._learn(np.unique(raw[codes == _UNKNOWN]))
                codes = self._codes[raw]
            counts = (codes > 0).astype(np.intp)
            many = np.flatnonzero(codes < _DROPPED)
            letters = [self._expansions[-2 - number] for number in codes[many].tolist()]
            counts[many] = list(map(len, letters))
            starts = np.cumsum(counts) - counts
            owners = np.repeat(owners, counts)
            longer = np.repeat(codes, counts)
            for start, expansion in zip(starts[many].tolist(), letters, strict=True):
                longer[start : start + len(expansion)] = expansion
            codes = longer
        return codes, owners

    def _learn(self, unknown: NDArray[np.int32]) -> None:
        with self._lock:
            for code in unknown.tolist():
                letters = _letters_of(chr(code))
                if len(letters) > 1:
                    self._expansions.append(letters)
                    self._codes[code] = -1 - len(self._expansions)
                else:
                    self._codes[code] = letters[0] if letters else _DROPPED


def _letters_of(character: str) -> list[int]:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    letters = []
    for part in folded:
        category = unicodedata.category(part)
        if unicodedata.combining(part) or category == "Cf":
            continue  # an accent; or a joiner, soft hyphen or direction mark inside a word
        letters.append(ord(part) if category[0] in "LNM" else _SPACE)
    return letters


def _signature(text: str) -> NDArray[np.float64]:
    """A sign for each dimension, from a hash of the text as it is."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(DIMENSIONS // 8)
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float64) * 2 - 1


_LETTERS = _Letters()
