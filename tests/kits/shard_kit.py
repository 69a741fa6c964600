"""Shards for tests: a corpus whose every token is its own place, and an HTTP server with the files of a folder."""

from pathlib import Path

import numpy as np

from anyformer.data.text.shard_writer import ShardWriter
from anyformer.data.text.shards import ShardedTokens, open_shards
from anyformer.data.tokenizers.base import ids_json
from anyformer.data.tokenizers.build import Subwords
from hub_kit import Hub


def write_numbers(location: object, n_tokens: int, shard_tokens: int, n_train: int | None = None) -> str:
    """Write the ids 0, 1, 2 ... as shards. Returns the location."""
    writer = ShardWriter(str(location), lambda: Subwords(ids_json(n_tokens)), shard_tokens)
    writer.write(np.arange(n_tokens).astype(writer.dtype).tobytes())
    writer.finish(n_tokens if n_train is None else n_train, 1)
    return str(location)


def open_tokens(location: object) -> ShardedTokens:
    """Return the tokens, by a reader of their own."""
    return open_shards(str(location), "char")[0]


def serve_folder(hub: Hub, folder: Path) -> str:
    """Let a hub serve the files of a folder. Returns their URL."""
    hub.files |= {f"/{folder.name}/{path.name}": ({}, path.read_bytes()) for path in folder.iterdir()}
    return f"{hub.url}/{folder.name}"
