"""Token counts are exact and offline: a price that is shown before it is spent must be right without asking anybody."""

from __future__ import annotations

import importlib
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CheckpointError
from pipeline.provider import tokens
from pipeline.provider.tokens import count_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

UNHURRIED = settings(deadline=None)  # the machine may be busy


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test loads the vocabulary itself, and leaves none that it bent."""
    tokens._encoding.cache_clear()
    yield
    tokens._encoding.cache_clear()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any touch of the network fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("hello world", 2), ("tiktoken is great!", 6), ("antidisestablishmentarianism", 6), ("2 + 2 = 4", 7),
     ("\u304a\u8a95\u751f\u65e5\u304a\u3081\u3067\u3068\u3046", 9)],
)  # fmt: skip
def test_counts_are_those_that_openai_publishes(text: str, count: int) -> None:
    """The examples of tiktoken's README and of OpenAI's cookbook "How to count tokens", for cl100k_base."""
    assert count_tokens([text]) == [count]


def test_the_tokens_themselves_are_the_published_ones() -> None:
    """`tiktoken is great!` is [83, 1609, 5963, 374, 2294, 0] in cl100k_base."""
    assert tokens._encoding().encode_ordinary("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    assert tokens._encoding().encode_ordinary("hello world") == [15339, 1917]


def test_the_vocabulary_is_the_one_that_tiktoken_would_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cutting rule and the hash of the published file, as the installed tiktoken has them."""
    hashes: list[str] = []

    def not_fetched(_: str, expected_hash: str) -> dict[bytes, int]:
        hashes.append(expected_hash)
        return {}

    public = importlib.import_module("tiktoken_ext.openai_public")
    monkeypatch.setattr(public, "load_tiktoken_bpe", not_fetched)
    assert public.cl100k_base()["pat_str"] == tokens._WORDS
    assert hashes == [tokens._SHA256]


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|endofprompt|>"])
def test_a_special_token_in_a_title_is_just_text(special: str) -> None:
    """It is neither refused nor counted as one: the service sees several ordinary tokens."""
    [count] = count_tokens([f"A title {special} of 1999"])
    assert count > count_tokens(["A title  of 1999"])[0] + 1


@UNHURRIED
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_token_is_at_least_one_byte_and_none_is_lost(text: str) -> None:
    """The bound that other models are given by holds, and the tokens spell the text again."""
    encoding = tokens._encoding()
    found = encoding.encode_ordinary(text)
    assert count_tokens([text]) == [len(found)]
    assert len(found) <= len(text.encode())
    assert encoding.decode_bytes(found) == text.encode()


def test_each_text_has_its_own_count_in_order() -> None:
    """Many at once count as one by one."""
    texts = ["hello world", "", "Bach, Johann Sebastian, 1685-1750", "hello world"]
    assert count_tokens(texts) == [count_tokens([text])[0] for text in texts]


@pytest.mark.parametrize("change", ["a byte", "an end", "a token less", "all"])
def test_a_changed_vocabulary_is_refused(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, and so prices, would be wrong: the sentence says what to do, and nothing is fetched in its place."""
    content = tokens._VOCABULARY.read_bytes()
    changed = {
        "a byte": content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        "an end": content + b"\n",
        "a token less": content[: content.rindex(b"\n", 0, -1) + 1],
        "all": b"",
    }[change]
    copy = tmp_path / "cl100k_base.tiktoken"
    copy.write_bytes(changed)
    monkeypatch.setattr(tokens, "_VOCABULARY", copy)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(copy))} was changed.*Install the program again"):
        count_tokens(["hello world"])


def test_an_equal_copy_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the content that counts, not the place."""
    copy = tmp_path / "copy"
    copy.write_bytes(tokens._VOCABULARY.read_bytes())
    monkeypatch.setattr(tokens, "_VOCABULARY", copy)
    assert count_tokens(["hello world"]) == [2]


def test_nothing_asks_for_a_cache_of_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a stale cached file believed, nor is one written."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert count_tokens(["hello world"]) == [2]
    assert not list(tmp_path.iterdir())
