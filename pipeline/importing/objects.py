"""Reading a source that is a collection at the Weaviate server of the config: each object as text, field and vector.

It may be of any making, an older pipeline's most often; nothing is written there. Objects come in the order of their UUIDs, so
that the first of two is the same every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.importing.sources import Columns, missing_column
from pipeline.stores.weaviate import connection

_CHUNK = 2048
_PAGE = 256  # objects in one answer: 6 MB at 6,000 numbers each

Batch = tuple[range, list[Any], list[Any], list[Any]]


def read_objects(config: Config, name: str, columns: Columns) -> Iterator[Batch]:
    """Some thousand objects at a time: their numbers, texts, fields, vectors. `vector` names one of several, if there are."""
    client = connection.connect(config, to_write=False)
    try:
        with connection.errors_told(config, f"read the collection {name}"):
            if not client.collections.exists(name):
                there = ", ".join(sorted(client.collections.list_all())[:20]) or "none"
                raise InputError(f"{config.weaviate_url} has no collection {name}; it has {there}.")
            collection = client.collections.use(name)
            known = [entry.name for entry in collection.config.get().properties]
            wanted = [columns.text] if columns.field is None else [columns.text, columns.field]
            for column in wanted:
                if column not in known:
                    raise missing_column(f"weaviate:{name}", column, known)
            found = collection.iterator(include_vector=True, return_properties=wanted, cache_size=_PAGE)
            objects = (entry for entry in found)  # the client's own begins again each time it is asked for an iterator
            first = 1
            while chunk := list(islice(objects, _CHUNK)):
                texts = [entry.properties.get(columns.text) for entry in chunk]
                fields = [None if columns.field is None else entry.properties.get(columns.field) for entry in chunk]
                yield range(first, first + len(chunk)), texts, fields, [_vector_of(entry.vector, columns.vector) for entry in chunk]
                first += len(chunk)
    finally:
        client.close()


def _vector_of(vectors: dict[str, Any], name: str) -> Any:
    """The one that is named, or the only one there is."""
    content = vectors.get(name, next(iter(vectors.values())) if len(vectors) == 1 else None)
    return None if content is None or not len(content) else np.array(content, np.float32)
