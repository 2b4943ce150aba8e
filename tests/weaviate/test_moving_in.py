"""Moving in with the collection of an older pipeline: its properties have names of their own, and nothing in it is changed."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import weaviate
from weaviate.classes.config import Configure, DataType, Property

from pipeline.local_service.model import MODEL, embed
from tests.importing.world import names, stored
from tests.tools import Catalogue, record_texts
from tests.weaviate.world import connected
from tests.weaviate_server import WeaviateServer

TEXTS = names(700)
SAMPLE = 20
COLUMNS = "text=original_string,field=field_type"


@pytest.fixture
def client(weaviate_server: WeaviateServer) -> Iterator[weaviate.WeaviateClient]:
    with connected(weaviate_server) as opened:
        yield opened


@pytest.fixture
def older(client: weaviate.WeaviateClient) -> Iterator[str]:
    """A collection as an older pipeline made it: random UUIDs, a hash that is not ours, a text that nobody has any more."""
    name = f"Older{uuid.uuid4().hex[:8]}"
    texts = (("original_string", DataType.TEXT), ("hash_value", DataType.TEXT), ("field_type", DataType.TEXT))
    properties = [Property(name=one, data_type=kind) for one, kind in (*texts, ("frequency", DataType.INT))]
    made = client.collections.create(name, properties=properties, vector_config=Configure.Vectors.self_provided())
    everything = [*TEXTS, "nobody has it"]
    with made.batch.fixed_size(200) as batch:
        for text, vector in zip(everything, embed(everything), strict=True):
            facts: dict[str, Any] = {
                "original_string": text,
                "hash_value": f"{zlib.crc32(text.encode()):x}",
                "field_type": "person",
                "frequency": 1,
            }
            batch.add_object(facts, uuid=uuid.uuid4(), vector=vector.tolist())
    assert not made.batch.failed_objects
    yield name
    client.collections.delete(name)


def test_its_vectors_are_taken_in_by_text_and_field_and_it_is_left_as_it_was(
    tmp_path: Path,
    weaviate_server: WeaviateServer,
    client: weaviate.WeaviateClient,
    older: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.configure(import_sample=SAMPLE, weaviate_url=weaviate_server.url, weaviate_grpc_port=weaviate_server.grpc_port)
    catalogue.write([(str(number), text, "") for number, text in enumerate(TEXTS)])
    assert catalogue.run("--end", "preprocessing").code == 0
    asked = record_texts(monkeypatch)
    typed = ("--import-embeddings", f"weaviate:{older}", "--model", MODEL)
    wrong = catalogue.run(*typed)
    assert wrong.code == 2
    assert "there is no column 'text'" in wrong.err
    absent = catalogue.run("--import-embeddings", f"weaviate:{older}x", "--model", MODEL)
    assert absent.code == 2
    assert f"has no collection {older}x; it has" in absent.err
    before = client.collections.use(older).aggregate.over_all(total_count=True).total_count
    ran = catalogue.run(*typed, "--columns", COLUMNS, "--json")
    assert ran.code == 0, ran.err
    found = ran.document
    assert (found["vectors"], found["matched"], found["unmatched"]) == (701, 700, 1)
    assert found["imported"] == 700 - SAMPLE
    assert len(asked) == SAMPLE
    vectors = embed(TEXTS)
    assert stored(catalogue) == {("person", text): vector.tobytes() for text, vector in zip(TEXTS, vectors, strict=True)}
    assert catalogue.run().code == 0
    assert len(asked) == SAMPLE
    assert client.collections.use(older).aggregate.over_all(total_count=True).total_count == before
