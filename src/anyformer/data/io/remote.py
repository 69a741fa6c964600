"""Data that are not on this machine: at a URL, in a bucket, or on the Hugging Face hub."""

from ..text.shards import holds_shards
from .download import fetch_url, is_url
from .hub import parse_reference
from .hub_dataset import fetch_dataset


def is_remote(source: str) -> bool:
    """Whether data are named by a URL or by the name of a data set on the hub."""
    return "://" in source or parse_reference(source, "dataset") is not None


def fetch_data(source: str) -> str:
    """Return the local path of data that are elsewhere, downloaded once; any other text as it is, and the URL of
    shards, which are fetched one by one. Raises InputError."""
    if parse_reference(source, "dataset") is not None:
        return str(fetch_dataset(source))
    return str(fetch_url(source)) if is_url(source) and not holds_shards(source) else source
