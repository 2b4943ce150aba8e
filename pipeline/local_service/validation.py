"""The lines of a batch's input file: what they must be, and what is wrong with each that isn't.

Only the form is looked at here; a body that asks for too much or for nothing is refused when its row is worked
on, and fails no other. It doesn't know jobs or the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from pipeline.local_service import model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.local_service.settings import BatchLimits

ENDPOINT = "/v1/embeddings"
MAX_LINE_BYTES = 8 << 20  # what a request in real time may have

_MAX_ERRORS = 100  # that are told; nobody reads more


@dataclass(slots=True)
class Validated:
    """What a file holds; of no use when there are errors."""

    model: str = ""
    total: int = 0
    inputs: int = 0
    tokens: int = 0
    errors: list[dict[str, object]] = field(default_factory=list)

    def wrong(self, code: str, message: str, param: str | None = None, line: int | None = None) -> None:
        self.errors.append({"code": code, "message": message, "param": param, "line": line})


def lines(file: BinaryIO, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Each line that is not blank, and where the next one begins."""
    file.seek(start)
    while line := file.readline(MAX_LINE_BYTES + 1):
        start += len(line)
        if not line.isspace():
            yield line, start


def validate(file: BinaryIO, limits: BatchLimits) -> Validated:
    """Read a file to its end, or until enough is wrong with it."""
    found = Validated()
    seen: set[str] = set()
    for number, (line, _) in enumerate(lines(file), 1):
        if number > limits.requests:
            found.wrong(
                "too_many_requests",
                f"The batch input file contains too many requests. At most {limits.requests} requests are allowed in a batch.",
            )
            break
        found.total = number
        _line(found, seen, line, number)
        if len(found.errors) >= _MAX_ERRORS:
            break
    if not found.total:
        found.wrong("empty_file", "The input file is empty. Please ensure that the batch contains at least one request.")
    if found.inputs > limits.inputs:
        found.wrong(
            "too_many_inputs",
            f"The batch contains more than {limits.inputs} embedding inputs across all of its requests.",
        )
    return found


def _line(found: Validated, seen: set[str], line: bytes, number: int) -> None:
    try:
        request = msgspec.json.decode(line) if len(line) <= MAX_LINE_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        request = None
    if not isinstance(request, dict):
        found.wrong("invalid_json_line", "This line is not parseable as valid JSON.", line=number)
        return
    for key in ("custom_id", "method", "url", "body"):
        if request.get(key) is None:
            found.wrong("missing_required_parameter", f"Missing required parameter: '{key}'.", key, number)
            return
    custom_id, body = request["custom_id"], request["body"]
    if not isinstance(custom_id, str) or not custom_id:
        found.wrong("invalid_type", "Invalid 'custom_id': expected a string that is not empty.", "custom_id", number)
    elif custom_id in seen:
        found.wrong(
            "duplicate_custom_id",
            "The custom_id for this request is a duplicate of another request. "
            "The custom_id parameter must be unique for each request in a batch.",
            "custom_id",
            number,
        )
    else:
        seen.add(custom_id)
    if request["method"] != "POST":
        found.wrong("invalid_method", "The method of a request in a batch must be 'POST'.", "method", number)
    if request["url"] != ENDPOINT:
        found.wrong("invalid_url", "The URL provided for this request does not match the batch endpoint.", "url", number)
    if not isinstance(body, dict):
        found.wrong("invalid_type", "Invalid type for 'body': expected an object.", "body", number)
    else:
        _body(found, body, number)


def _body(found: Validated, body: dict[str, Any], number: int) -> None:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        found.wrong("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model", number)
    elif not found.model:
        found.model = name
        if name != model.MODEL:
            found.wrong(
                "model_not_found",
                f"The provided model '{name[:100]}' is not supported by the Batch API.",
                "body.model",
                number,
            )
    elif name != found.model:
        found.wrong(
            "mismatched_model",
            f"The provided model '{name[:100]}' does not match the model of the batch, '{found.model[:100]}'.",
            "body.model",
            number,
        )
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, list):
        found.inputs += len(texts)
        found.tokens += sum((len(text.encode()) + 3) // 4 for text in texts if isinstance(text, str))
