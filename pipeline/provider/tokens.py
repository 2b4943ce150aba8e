"""Exact token counts for OpenAI's models, offline: the vocabulary ships with us and is checked by us.

tiktoken would download it at first use, and asks the network again when a cached file does not match; here a wrong
file is an error and nothing is ever fetched. For other models only a bound is known: a token is at least one byte.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    import tiktoken

EXACT = "cl100k_base"
BYTES = "bytes"
_VOCABULARY = Path(__file__).parent / "vocabulary" / "cl100k_base.tiktoken"
_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
# How cl100k_base cuts a text into words before it merges bytes; part of the vocabulary's definition.
_WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"


@functools.cache
def _encoding() -> tiktoken.Encoding:
    import tiktoken

    content = _VOCABULARY.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256:
        raise CheckpointError(
            f"{_VOCABULARY} was changed (sha256 {found[:12]}…); token counts would be wrong. Install the program again."
        )
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in content.splitlines())}
    return tiktoken.Encoding("cl100k_base", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={})


def count_tokens(texts: Sequence[str]) -> list[int]:
    """The tokens of each text, as OpenAI's embedding models count them; `<|endoftext|>` in a title is just text."""
    encode = _encoding().encode_ordinary
    return [len(encode(text)) for text in texts]
