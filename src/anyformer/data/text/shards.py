"""Token ids in shards: data larger than a machine, in a folder here or elsewhere, read a shard at a time.

    index.json             `ShardIndex`; written last, so that a folder without it is not complete
    tokenizer.json         and its metadata files
    shard-000000.bin ...   ids, little-endian uint16 or uint32, an end-of-text token between documents

Shards from elsewhere are fetched into the node's cache (`data.io.node_cache`). Each is verified when it is opened.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import InputError
from ...events import report_notice
from ...parsing import check_range, check_types, parse_dataclass
from ..io.cache import data_files
from ..io.checks import parse_json
from ..io.download import is_url
from ..io.file_store import FileStore, UnreachableError
from ..io.node_cache import BOUND, FileFacts, fetch_file, find_damage, read_bound
from ..io.regular_file import BLOCK_BYTES, open_regular
from ..tokenizers.base import Tokenizer
from ..tokenizers.build import KINDS, MAX_FILE_BYTES, TOKENIZER_FILE, load_tokenizer, tokenizer_from_files
from ..tokenizers.special_tokens import METADATA_FILES

INDEX, FORMAT, VERSION = "index.json", "anyformer shards", 1
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")  # of one protocol: fsspec chains them, a::b://
MAX_INDEX_BYTES, HEAD_BYTES = 64 << 20, 4096
MAX_SHARD_TOKENS = 1 << 28
MAX_ARRAY_TOKENS = 1 << 25  # that are read into memory at once
WAITS = (1.0, 4.0, 16.0)  # seconds between the attempts to fetch a shard
MIN_OPEN = 16  # shards that are kept open


@dataclass(frozen=True)
class ShardIndex:
    """The content of index.json."""

    format: str = ""
    version: int = 0
    dtype: str = ""
    vocab_size: int = 0
    n_tokens: int = 0
    n_train: int = 0
    """The first tokens are for training, the others for validation."""
    n_documents: int = 0
    tokenizer: dict[str, str] = field(default_factory=dict)
    """File -> SHA-256."""
    shards: list[tuple[int, int]] = field(default_factory=list)
    """Tokens and CRC-32 of each."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "vocab_size", at_least=1, at_most=1 << 31)
        sizes = [n for n, _ in self.shards]
        if self.dtype not in ("<u2", "<u4"):
            raise InputError(f"dtype is {self.dtype[:20]!r}; it must be '<u2' or '<u4'")
        if not sizes or min(sizes) < 1 or max(sizes) > MAX_SHARD_TOKENS:
            raise InputError(f"shards: each must have from 1 to {MAX_SHARD_TOKENS:,} tokens")
        if sum(sizes) != self.n_tokens:
            raise InputError(f"n_tokens is {self.n_tokens:,}; the shards have {sum(sizes):,}")
        check_range(self, "n_train", at_least=0, at_most=self.n_tokens)
        if TOKENIZER_FILE not in self.tokenizer or not self.tokenizer.keys() <= {TOKENIZER_FILE, *METADATA_FILES}:
            raise InputError(f"tokenizer: must name {TOKENIZER_FILE} and its metadata files")


def name_shard(number: int) -> str:
    return f"shard-{number:06}.bin"


# --- where shards are ---


def holds_shards(data: str) -> bool:
    """Whether data are a folder of shards: a local one, or a URL. Raises nothing; what is wrong shows when it is
    read."""
    if URL.fullmatch(data):
        return _probe(data) if is_url(data) else True
    path = os.path.expanduser(data)
    if not data or not os.path.isdir(path):
        return False
    return os.path.isfile(os.path.join(path, name_shard(0))) or _has_index(FileStore(data))


@lru_cache(maxsize=32)
def _probe(url: str) -> bool:
    """Whether there is an index at a URL. The address of a file is not asked for one."""
    path = re.sub(r"^\w+://[^/?#]*|[?#].*", "", url)
    return not PurePosixPath(path).suffix and _has_index(FileStore(url))


def _has_index(store: FileStore) -> bool:
    with contextlib.suppress(InputError):
        head = next(store.read_blocks(INDEX), b"")[:HEAD_BYTES]
        return b'"format"' in head and FORMAT.encode() in head
    return False


def corpus_files(data: str) -> list[Path]:
    """Return the files that tokens depend on: of shards the index, which has the checksums of the others."""
    return [Path(data).expanduser() / INDEX] if "://" not in data and holds_shards(data) else data_files(data)


def read_index(store: FileStore) -> tuple[ShardIndex, str]:
    """Return the index of a folder of shards, and its hash. Raises InputError."""
    where = store.address(INDEX)
    try:
        content = store.read(INDEX, MAX_INDEX_BYTES)
    except InputError as error:
        hint = "; shards that were written to the end have one" if "no such file" in str(error) else ""
        raise InputError(f"{error}{hint}") from None
    values = parse_json(content.decode("utf-8", "replace"), where)
    if values.get("format") != FORMAT:
        raise InputError(f"{where}: is not the index of shards: its format is not '{FORMAT}'")
    if values.get("version") != VERSION:
        raise InputError(f"{where}: version {str(values.get('version'))[:20]} of the format, this is {VERSION}")
    return parse_dataclass(ShardIndex, values, where), hashlib.sha256(content).hexdigest()


def open_shards(data: str, tokenizer: str) -> tuple["ShardedTokens", Tokenizer, ShardIndex, str]:
    """Return the tokens of a folder of shards, their tokenizer, index and hash. Raises InputError.

    Args:
        tokenizer: a path: must be the same tokenizer. char, byte or bpe: that of the shards is taken, whatever it is.
    """
    store = FileStore(data)
    index, digest = read_index(store)
    own = read_tokenizer(store, index)
    if tokenizer not in KINDS and not is_equal(load_tokenizer(Path(tokenizer)), own):
        problem = f"the shards were written with another tokenizer ({own.kind}, {own.vocab_size:,} ids) than"
        raise InputError(f"{data}: {problem} {tokenizer}: write them with --tokenizer {tokenizer}")
    return ShardedTokens(ShardReader(store, index, digest), 0, index.n_tokens), own, index, digest


def read_tokenizer(store: FileStore, index: ShardIndex) -> Tokenizer:
    files = {}
    for name, sha256 in index.tokenizer.items():
        content = store.read(name, MAX_FILE_BYTES)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(f"{store.address(name)}: is not the tokenizer that the shards were written with")
        files[name] = content.decode("utf-8", "replace")
    tokenizer = tokenizer_from_files(files, Path(store.address(TOKENIZER_FILE)))
    if tokenizer.vocab_size != index.vocab_size:
        sizes = f"{tokenizer.vocab_size:,} ids, the shards were written with {index.vocab_size:,}"
        raise InputError(f"{store.address(TOKENIZER_FILE)}: has {sizes}")
    return tokenizer


def is_equal(one_tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers give the same ids."""
    first, second = (json.loads(tokenizer.to_json()) for tokenizer in (one_tokenizer, other))
    return first == second and one_tokenizer.end_id == other.end_id


# --- what is in them ---


class ShardReader:
    """Opens shards: verified, mapped into memory, the last ones kept open, the next ones fetched in the background."""

    def __init__(self, store: FileStore, index: ShardIndex, digest: str):
        self.store, self.index, self.folder = store, index, digest[:32]
        self.sizes = np.array([n for n, _ in index.shards], np.int64)
        self.n_open = MIN_OPEN
        self._arrays: OrderedDict[int, np.ndarray] = OrderedDict()
        self._arrays_lock, self._open_lock = threading.Lock(), threading.Lock()
        self._next: list[int] = []
        self._failed: set[int] = set()  # in the background: left to whoever needs them
        self._thread: threading.Thread | None = None

    def read(self, number: int, waits: Iterable[float] = WAITS) -> np.ndarray:
        """Return the tokens of a shard, (N,). Raises InputError, and OSError if the disk is full."""
        if (array := self._find(number)) is not None:
            return array
        with self._open_lock:
            if (array := self._find(number)) is None:
                array = self._open(number, waits)
                self._failed.discard(number)
                with self._arrays_lock:
                    self._arrays[number] = array
                    while len(self._arrays) > self.n_open:
                        self._arrays.popitem(last=False)
        return array

    def keep_open(self, n_shards: int) -> None:
        """Keep at least so many shards open: those that an update reads from, and the next ones."""
        if n_shards <= self.n_open:
            return
        self.n_open = n_shards
        n_bytes = min(n_shards, len(self.sizes)) * int(self.sizes.max()) * np.dtype(self.index.dtype).itemsize
        if self.store.local_folder is None and n_bytes > read_bound():
            need = f"${BOUND} is less than the {n_bytes / 1e9:.3g} GB of the shards that one process reads in turns"
            report_notice(f"{self.store.location}: {need}: some are fetched twice unless it is raised")

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Open these shards in the background, in this order; those of an earlier call are forgotten."""
        self._next = [n for n in dict.fromkeys(numbers) if n not in self._arrays and n not in self._failed]
        if self._next and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._open_next, name="shards", daemon=True)
            self._thread.start()

    def _open_next(self) -> None:
        while pending := self._next:
            number, self._next = pending[0], pending[1:]
            try:
                self.read(number, ())
            except (InputError, OSError):
                self._failed.add(number)

    def _find(self, number: int) -> np.ndarray | None:
        with self._arrays_lock:
            if number in self._arrays:
                self._arrays.move_to_end(number)
            return self._arrays.get(number)

    def _open(self, number: int, waits: Iterable[float]) -> np.ndarray:
        n_tokens, crc32 = self.index.shards[number]
        facts = FileFacts(name_shard(number), n_tokens * np.dtype(self.index.dtype).itemsize, crc32)
        path = self._locate(facts, waits)
        try:
            array = self._map(path, facts)
        except InputError:
            if self.store.local_folder is not None:
                raise
            path.unlink(missing_ok=True)  # it was intact when it was fetched, or was removed to make room
            array = self._map(path := self._locate(facts, waits), facts)
        if (highest := int(array.max())) >= self.index.vocab_size:
            raise InputError(f"{path}: holds the id {highest:,}, and its tokenizer has {self.index.vocab_size:,} ids")
        return array

    def _locate(self, facts: FileFacts, waits: Iterable[float]) -> Path:
        """Return the local path of a shard, fetched if it is elsewhere; attempts wait longer each time."""
        if (folder := self.store.local_folder) is not None:
            return folder / facts.name
        waits, read_blocks = iter(waits), partial(self.store.read_blocks, facts.name)
        while True:
            try:
                return fetch_file(self.folder, facts, read_blocks, self.store.address(facts.name))
            except UnreachableError:
                if (seconds := next(waits, None)) is None:
                    raise
                time.sleep(seconds)

    def _map(self, path: Path, facts: FileFacts) -> np.ndarray:
        """Return the content of a file, mapped into memory, after reading all of it. Raises InputError for damage."""
        with open_regular(path) as file:
            size, crc32 = os.fstat(file.fileno()).st_size, 0
            while size == facts.size and (block := file.read(BLOCK_BYTES)):
                crc32 = zlib.crc32(block, crc32)
            if damage := find_damage(facts, size, crc32):
                raise InputError(f"{path} {damage}: write the shards again")
            return np.asarray(np.memmap(file, np.dtype(self.index.dtype), "r"))


@dataclass(frozen=True)
class ShardedTokens:
    """Token ids in shards: `len()`, slices, which read nothing, and `np.asarray`, which reads them."""

    reader: ShardReader
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: slice) -> "ShardedTokens":
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError("tokens in shards have slices of adjacent tokens only")
        return ShardedTokens(self.reader, self.start + start, self.start + max(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if len(self) > MAX_ARRAY_TOKENS:
            problem = f"{self.reader.store.location}: {len(self):,} tokens in shards are not read into memory at once"
            raise InputError(f"{problem} (at most {MAX_ARRAY_TOKENS:,}), which this recipe or setting needs")
        parts = [self.reader.read(number)[low:high] for number, low, high in self.parts.T.tolist()]
        tokens = np.concatenate([np.zeros(0, self.reader.index.dtype), *parts])
        return tokens if dtype is None else tokens.astype(dtype)

    @property
    def parts(self) -> np.ndarray:
        """The shards that hold these tokens: their numbers, and where in each the tokens start and stop, (3, K)."""
        return _list_parts(self)


@lru_cache(maxsize=16)
def _list_parts(tokens: ShardedTokens) -> np.ndarray:
    sizes = tokens.reader.sizes
    firsts = np.cumsum(sizes) - sizes
    low, high = (np.clip(edge - firsts, 0, sizes) for edge in (tokens.start, tokens.stop))
    numbers = np.flatnonzero(low < high)
    return np.stack([numbers, low[numbers], high[numbers]])


Tokens = np.ndarray | ShardedTokens
"""Token ids: `len()`, slices, and `np.asarray` of a slice."""
