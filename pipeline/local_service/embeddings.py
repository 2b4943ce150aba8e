"""`/v1/embeddings`: what may be asked, and the answer, for real time and for the lines of a batch alike.

Its limits are the real ones: 1 to 2,048 inputs a request, none empty, 8,192 tokens an input, 300,000 a
request. Its tokens are its own: one for each started four bytes of a text's UTF-8, since the model has no
vocabulary. It doesn't know how a request came, and counts nothing in the state.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from pipeline.local_service import model
from pipeline.local_service.messages import Answer, Call, RefusedError, json_object, only, required

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
MAX_REQUEST_TOKENS = 300_000

_KEYS = {"input", "model", "dimensions", "encoding_format", "user"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for embeddings that is in order."""

    texts: Sequence[str]
    tokens: int
    dimensions: int
    base64: bool


def embeddings(call: Call) -> Answer:
    """Answer one request."""
    wanted = checked(json_object(call.request.body))
    body = answer_of(wanted, model.embed(wanted.texts, wanted.dimensions))
    return Answer(msgspec.json.encode(body), texts=wanted.texts, tokens=wanted.tokens)


def checked(body: Mapping[str, Any]) -> Wanted:
    """What a body asks for, or the refusal of it."""
    only(body, _KEYS)
    known_model(required(body, "model"))
    texts = _texts(required(body, "input"))
    tokens = _tokens(texts)
    dimensions = _dimensions(body.get("dimensions"))
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise RefusedError(
            "Invalid 'encoding_format': it must be 'float' or 'base64'.",
            param="encoding_format",
            code="invalid_value",
        )
    if not isinstance(body.get("user", ""), str | None):
        raise RefusedError("Invalid type for 'user': expected a string.", param="user", code="invalid_type")
    return Wanted(texts, tokens, dimensions, encoding == "base64")


def answer_of(wanted: Wanted, vectors: NDArray[np.float32]) -> dict[str, object]:
    """The body of an answer, for msgspec to encode."""
    coded: Sequence[str | list[float]] = _base64(vectors) if wanted.base64 else _decimals(vectors)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(coded)],
        "model": model.MODEL,
        "usage": {"prompt_tokens": wanted.tokens, "total_tokens": wanted.tokens},
    }


def known_model(name: object) -> None:
    """Refuse every model but ours."""
    if not isinstance(name, str):
        raise RefusedError("Invalid type for 'model': expected a string.", param="model", code="invalid_type")
    if name != model.MODEL:
        raise RefusedError(
            f"The model `{name[:100]}` does not exist or you do not have access to it.",
            status=404,
            code="model_not_found",
        )


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise RefusedError(
            "Invalid type for 'input': expected a string or an array of strings.",
            param="input",
            code="invalid_type",
        )
    if not texts:
        raise RefusedError(
            "Invalid 'input': empty array. Expected an array with minimum length 1.",
            param="input",
            code="empty_array",
        )
    if all(isinstance(text, int) for text in texts) or isinstance(texts[0], list):
        raise RefusedError(
            "Invalid type for 'input': arrays of tokens are not taken, the model has no vocabulary.",
            param="input",
            code="invalid_type",
        )
    if len(texts) > MAX_INPUTS:
        raise RefusedError(
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, but got "
            f"an array with length {len(texts)} instead.",
            param="input",
            code="array_above_max_length",
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise RefusedError(f"Invalid type for 'input[{index}]': expected a string.", param="input", code="invalid_type")
        if not text:
            raise RefusedError(
                f"Invalid 'input[{index}]': input cannot be an empty string.",
                param="input",
                code="empty_string",
            )
    return texts


def _tokens(texts: Sequence[str]) -> int:
    total = 0
    for index, text in enumerate(texts):
        tokens = (len(text.encode()) + 3) // 4
        if tokens > MAX_INPUT_TOKENS:
            raise RefusedError(
                f"Invalid 'input[{index}]': maximum length is {MAX_INPUT_TOKENS} tokens, it has {tokens}.",
                param="input",
                code="context_length_exceeded",
            )
        total += tokens
    if total > MAX_REQUEST_TOKENS:
        raise RefusedError(
            f"Requested {total} tokens, max {MAX_REQUEST_TOKENS} tokens per request",
            kind="max_tokens_per_request",
            code="max_tokens_per_request",
        )
    return total


def _dimensions(value: object) -> int:
    if value is None:
        return model.DIMENSIONS
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedError("Invalid type for 'dimensions': expected an integer.", param="dimensions", code="invalid_type")
    if not 1 <= value <= model.DIMENSIONS:
        raise RefusedError(
            f"Invalid value for 'dimensions' = {value}. Must be from 1 to {model.DIMENSIONS}.",
            param="dimensions",
            code="invalid_value",
        )
    return value


def _base64(vectors: NDArray[np.float32]) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4", copy=False)]


def _decimals(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Ten decimals where they name the very same float32, as they nearly always do; elsewhere all of them."""
    whole = vectors.astype(np.float64)
    short = np.round(whole, 10)
    values: list[list[float]] = np.where(short.astype(np.float32) == vectors, short, whole).tolist()
    return values
