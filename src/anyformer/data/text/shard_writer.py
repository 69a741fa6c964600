"""Write token ids as shards, one after the other, and their index when all are there (`shards`)."""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from ...errors import InputError
from ..io.file_store import FileStore
from ..tokenizers.base import Tokenizer, dtype_for
from ..tokenizers.build import TOKENIZER_FILE
from .shards import FORMAT, INDEX, MAX_INDEX_BYTES, VERSION, ShardIndex, name_shard


class ShardWriter:
    """A file that is written as shards. Raises InputError if the folder has an index already, or cannot be written to.

    Args:
        location: a folder or a URL.
        make_tokenizer: called when the folder is known to be free.
        shard_tokens: of each shard but the last.
    """

    def __init__(self, location: str, make_tokenizer: Callable[[], Tokenizer], shard_tokens: int):
        self.store = FileStore(location)
        if self.store.has(INDEX):
            raise InputError(f"{location} holds an {INDEX} already: choose another place, or remove it first")
        self.tokenizer = make_tokenizer()
        self.dtype = np.dtype(dtype_for(self.tokenizer.vocab_size)).newbyteorder("<")
        self._size, self._buffer = shard_tokens * self.dtype.itemsize, bytearray()
        self._shards: list[tuple[int, int]] = []
        self._hashes = {}
        for name, text in {TOKENIZER_FILE: self.tokenizer.to_json(), **self.tokenizer.extra_files}.items():
            self.store.write(name, content := text.encode("utf-8"))
            self._hashes[name] = hashlib.sha256(content).hexdigest()

    def write(self, content: bytes) -> None:
        self._buffer += content
        while len(self._buffer) >= self._size:
            self._write_shard(bytes(self._buffer[: self._size]))
            del self._buffer[: self._size]

    def tell(self) -> int:
        return sum(n for n, _ in self._shards) * self.dtype.itemsize + len(self._buffer)

    def finish(self, n_train: int, n_documents: int) -> ShardIndex:
        """Write the last shard and the index, and return it."""
        if self._buffer:
            self._write_shard(bytes(self._buffer))
            self._buffer.clear()
        n_tokens, vocab_size = self.tell() // self.dtype.itemsize, self.tokenizer.vocab_size
        sizes = n_tokens, n_train, n_documents
        index = ShardIndex(FORMAT, VERSION, self.dtype.str, vocab_size, *sizes, self._hashes, self._shards)
        content = json.dumps(asdict(index)).encode()
        if len(content) > MAX_INDEX_BYTES:
            raise InputError(f"{len(self._shards):,} shards are too many for an index: write larger ones")
        self.store.write(INDEX, content)
        return index

    def _write_shard(self, content: bytes) -> None:
        self.store.write(name_shard(len(self._shards)), content)
        self._shards.append((len(content) // self.dtype.itemsize, zlib.crc32(content)))
