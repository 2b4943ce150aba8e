"""The lexical model: the same bytes for ever, unit length for anything, and near for what is spelt alike."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.local_service import model
from pipeline.local_service.model import DIMENSIONS, embed

# Any text at all: every plane, lone surrogates, combining marks, control characters.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
NAME = "Bach, Johann Sebastian, 1685-1750"


def similarity(one: str, other: str) -> float:
    first, second = embed([one, other])
    return float(first @ second)


@pytest.mark.parametrize(
    ("text", "sha256"),
    [
        (NAME, "ab6dc20dfde1fb7a1a5f72daf6bc44e4a71f064a8815de191ff6b947a63f1119"),
        ("Straße ﬁn İstanbul Ǆ", "cd3d51b3d040f6dd3d319cc62aa5b427d77cbc1819c3cff73932774ad1d0c307"),
        ("朱溪 한국 Володимир", "cd255f4becb0b374813a6a1b33935e39b0c8a85b9a1377f2bd5dc8212a235928"),
        ("!?", "0074cd3314de2668add337495cb1e4bf32b899313c955bb1ee2737c7d3003ed0"),
        ("", "0f388ea2fa97894f44ec4d0182c7d0285b02646361d73f0902ee97a408d79b90"),
        ("ab " * 5000, "54e3d8972c21d2681edd56364da8e7171ca50d25a2d127084345c5c14551844b"),
    ],
)
def test_the_vectors_of_today_are_those_of_tomorrow(text: str, sha256: str) -> None:
    """A change here makes every stored embedding of the model a wrong one: it needs a new model name."""
    assert hashlib.sha256(embed([text]).astype("<f4").tobytes()).hexdigest() == sha256


@given(st.lists(ANY_TEXT, max_size=12), st.integers(0, 12), st.integers(1, DIMENSIONS))
@example(["", "", "\n", "a\nb"], 2, 384)
def test_grouping_changes_nothing(texts: list[str], cut: int, dimensions: int) -> None:
    whole = embed(texts, dimensions)
    parts = np.concatenate([embed(texts[:cut], dimensions), embed(texts[cut:], dimensions)])
    alone = [embed([text], dimensions)[0].tobytes() for text in texts]
    assert whole.tobytes() == parts.tobytes() == b"".join(alone)


@given(st.lists(ANY_TEXT, max_size=8), st.integers(1, DIMENSIONS))
@example(["", "!", "\u0301", "\ud800", "\x00", "a"], 1)
def test_any_text_has_unit_length_in_any_dimensions(texts: list[str], dimensions: int) -> None:
    vectors = embed(texts, dimensions)
    assert vectors.shape == (len(texts), dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@given(ANY_TEXT)
def test_one_pass_by_character_is_the_same_as_over_the_whole_text(text: str) -> None:
    """The letters are looked up one by one; Unicode's own rules are for whole texts."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = [c for c in folded if not unicodedata.combining(c) and unicodedata.category(c) != "Cf"]
    plain = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in kept)
    codes, _ = model._words([text])
    letters = "".join(map(chr, codes.tolist()))
    assert letters == " ".join(["", *filter(None, plain.split(" ")), ""]) or (letters == " " and not plain.strip())


def test_slices_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"name {number} {'x' * (number % 40)}" for number in range(500)]
    whole = embed(texts)
    monkeypatch.setattr(model, "_SLICE_CHARACTERS", 100)
    monkeypatch.setattr(model, "_SLICE_TEXTS", 3)
    slices = list(model._slices(texts))
    assert [text for chunk in slices for text in chunk] == texts
    assert max(map(len, slices)) == 3
    assert all(len(chunk) == 1 or sum(map(len, chunk)) <= 100 for chunk in slices)
    assert embed(texts).tobytes() == whole.tobytes()


def test_another_process_and_many_threads_give_the_same_bytes() -> None:
    texts = [chr(code) * 2 + NAME for code in range(0xC0, 0x250)]
    here = embed(texts).tobytes()
    fresh = model._Letters()  # threads that learn the same characters at the same time
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(model, "_LETTERS", fresh)
        assert set(pool.map(lambda _: embed(texts).tobytes(), range(16))) == {here}
    program = (
        "import sys, hashlib; from pipeline.local_service.model import embed\n"
        f"print(hashlib.sha256(embed({texts!r}).tobytes()).hexdigest())\n"
        "sys.exit('httpx2' in sys.modules or 'openai' in sys.modules)"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert there.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_fewer_dimensions_are_the_first_ones() -> None:
    whole = embed([NAME])[0]
    for dimensions in (32, 256, 383):
        first = whole[:dimensions] / np.linalg.norm(whole[:dimensions])
        np.testing.assert_allclose(embed([NAME], dimensions)[0], first, atol=1e-6)


@pytest.mark.parametrize("dimensions", [0, -1, 385])
def test_dimensions_that_are_not_there_are_refused(dimensions: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 384"):
        embed(["a"], dimensions)


@pytest.mark.parametrize(
    "variant",
    [
        "Johann Sebastian Bach 1685-1750",
        "BACH, JOHANN SEBASTIAN",
        "Bach, Johann Sebastain, 1685-1750",
        "Bach, J. S. (Johann Sebastian)",
        "Bách, Jóhann Sebastián",
    ],
)
def test_variants_are_nearer_than_strangers(variant: str) -> None:
    strangers = ["Bacharach, Burt, 1928-2023", "Johannes Brahms, 1833-1897", "Sebastian Münster, 1488-1552"]
    assert similarity(NAME, variant) > 0.15 + max(similarity(NAME, stranger) for stranger in strangers)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Zoë Ångström", "zoe angstrom"),
        ("Zoe\u0308", "Zoë"),
        ("Bach, Johann", "Johann  Bach!"),
        ("ﬁlm № 1", "film No 1"),
        ("co\u00adoperate", "cooperate"),
        ("STRASSE", "straße"),
    ],
)
def test_what_is_no_difference_is_none(one: str, other: str) -> None:
    assert embed([one]).tobytes() == embed([other]).tobytes()


def test_texts_without_letters_are_apart() -> None:
    vectors = embed(["!", "?", "!!", "", " ", "\u0301"])
    similarities = vectors @ vectors.T - np.eye(6)
    assert np.abs(similarities).max() < 0.3


def test_a_script_without_spaces_is_seen() -> None:
    assert similarity("東京都立図書館", "東京都図書館") > 0.5 > similarity("東京都立図書館", "大阪府")
