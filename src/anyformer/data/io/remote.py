"""Data that are not files on this machine: at a URL, in a bucket, on the Hugging Face hub, or rows in memory."""

from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...parsing import show_value
from ..text.shards import holds_shards
from .download import fetch_url, is_url
from .hub import parse_reference
from .hub_dataset import fetch_dataset
from .rows import store_rows
from .sources import SourceName, is_source, join_sources, parse_source, parse_weight, split_sources


def is_remote(source: str) -> bool:
    """Whether data are named by a URL or by the name of a data set on the hub."""
    return "://" in source or parse_reference(source, "dataset") is not None


def fetch_data(data: Any) -> str:
    """Return the local path of data that are elsewhere, downloaded once, or rows that were passed, stored once; of
    several sources all of them as one text. Any other text is returned as it is, and so is the URL of shards, which are
    fetched one by one. Raises InputError.

    Args:
        data: A path, a name, or rows: an iterable of texts or dicts. A list of those, each maybe in a pair with its
            weight, is a mixture, and so is a text such as "a.jsonl:3 b.parquet".
    """
    if isinstance(data, list | tuple) and data and not isinstance(data[0], dict):
        if all(isinstance(item, str) and not (is_source(item) or is_remote(item)) for item in data):
            problem = f"data is a list in which nothing names a file or a set ({show_value(data[0])} ...)"
            raise InputError(f"{problem}: pass texts as iter(texts), or as objects such as {{'text': '...'}}")
        return join_sources([fetch_source(*split_pair(item)) for item in data])
    if isinstance(data, str):
        return join_sources([fetch_source(*source) for source in split_sources(data)])
    return fetch_source(data, Decimal(1)).name


def split_pair(item: Any) -> tuple[Any, Decimal]:
    """Return a source of a list and its weight. Raises InputError for a weight that is none."""
    match item:
        case (source, Real() as weight) if not isinstance(weight, bool):
            return source, parse_weight(str(source)[:80], str(weight))
        case str():
            return parse_source(item)
    return item, Decimal(1)


def fetch_source(source: Any, weight: Decimal) -> SourceName:
    if not isinstance(source, str | Path):
        return SourceName(str(store_rows(source)), weight)
    name = str(source)
    if parse_reference(name, "dataset") is not None:
        name = str(fetch_dataset(name))
    return SourceName(str(fetch_url(name)) if is_url(name) and not holds_shards(name) else name, weight)
