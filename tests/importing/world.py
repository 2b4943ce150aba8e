"""What tests of moving in share: another pipeline, which asked a running service for vectors and wrote files of its own making.

Its custom_ids mean nothing to us, its files are written by this module alone, and what it paid is asked of the service.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from pipeline import spans as span_sets
from pipeline.local_service.model import MODEL
from tests.tools import Catalogue

PEOPLE, PLACES = ("Bach", "Händel", "Schütz", "Buxtehude", "Telemann"), ("Leipzig", "Halle", "Lübeck", "Köthen", "Weimar")
Vectors = dict[str, NDArray[np.float32]]


def names(count: int) -> list[str]:
    """So many different texts, with what makes lines hard to split."""
    odd = {1: "line\nbreak", 2: "\u2028 between lines", 3: 'He said: "so?"', 4: "𝄞 cello"}
    return [
        odd.get(number, f"{PEOPLE[number % 5]}, {PLACES[number // 5 % 5]} {number}")
        if number < 10
        else f"{PEOPLE[number % 5]} {number}"
        for number in range(count)
    ]


def ask(url: str, texts: Sequence[str], change: Callable[[str], str] = lambda text: text) -> Vectors:
    """The vectors of a running service; `change` is what another model would see in the same texts."""
    found: Vectors = {}
    with httpx2.Client(timeout=60) as client:
        for start in range(0, len(texts), 1000):
            chunk = texts[start : start + 1000]
            body = {"model": MODEL, "input": [change(text) for text in chunk], "encoding_format": "base64"}
            answer = client.post(f"{url}/embeddings", json=body)
            for text, entry in zip(chunk, answer.raise_for_status().json()["data"], strict=True):
                found[text] = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
    return found


def request(name: str, texts: str | list[str], **body: Any) -> bytes:
    asked = {"model": MODEL, "input": texts, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": asked}).encode() + b"\n"


def result(name: str, *vectors: NDArray[np.float32], as_floats: bool = False) -> bytes:
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": vector.astype(float).tolist() if as_floats else base64.b64encode(vector.tobytes()).decode(),
        }
        for place, vector in enumerate(vectors)
    ]
    body = {"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    return json.dumps({"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}).encode() + b"\n"


def refused(name: str) -> bytes:
    body = {"error": {"message": "said no", "code": "invalid_input"}}
    return json.dumps({"custom_id": name, "response": {"status_code": 400, "body": body}, "error": None}).encode() + b"\n"


def write_pairs(folder: Path, vectors: Vectors, size: int = 500, *, seed: int = 7) -> int:
    """Pairs of files with names and an order of their own; every other file holds numbers, the others base64. How many pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.Random(seed)
    texts = list(vectors)
    for number, chunk in enumerate(_chunks(texts, size)):
        asked = [(f"req-{place}", text) for place, text in enumerate(chunk)]  # the same names in each pair
        (folder / f"batch_requests_run{number}.jsonl").write_bytes(b"".join(request(name, text) for name, text in asked))
        order.shuffle(asked)
        lines = (result(name, vectors[text], as_floats=number % 2 == 1) for name, text in asked)
        (folder / f"batch_results_run{number}.jsonl").write_bytes(b"".join(lines))
    return -(-len(texts) // size)


def _chunks(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def stored(catalogue: Catalogue) -> dict[tuple[str, str], bytes]:
    """(field, text) → the bytes of its vector in the tables."""
    found = {}
    for field in ("person", "title"):
        texts = catalogue.strings(field)
        for row in catalogue.table("embeddings", field=field):
            key = (field, texts[row["row"]])
            assert key not in found, "a row stands in two files"
            found[key] = np.array(row["vector"], "<f4").tobytes()
    return found


def indexed(catalogue: Catalogue) -> int:
    """How many strings the embedded index has confirmed."""
    with catalogue.ledger() as ledger:
        generation = ledger.current_generation()
        assert generation is not None
        return sum(span_sets.count(ledger.spans("indexed", f"embedded:{generation.id}", name)) for name in ledger.fields())
