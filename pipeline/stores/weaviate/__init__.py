"""The Weaviate store: confirmed writing into one collection a generation, read by others through one alias."""

from pipeline.stores.weaviate.store import WeaviateStore

__all__ = ["WeaviateStore"]
