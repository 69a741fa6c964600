"""Read GGUF files (llama.cpp): metadata, a list of tensors, and tensor data, often quantized in blocks.

A file is not trusted: every count and length is checked against the bytes left in the file before memory is allocated.
Versions 2 and 3, little-endian. F32, F16 and BF16 are decoded here; quantized blocks by the `gguf` package, an optional
extra. The layout is documented in ggml's docs/gguf.md.
"""

import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError
from .regular_file import check_regular, open_regular

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20  # of tensor data, in bytes
MAX_ENTRIES, MAX_ARRAY_ITEMS = 65_536, 4_000_000
MAX_NAME_BYTES, MAX_STRING_BYTES = 65_535, 64 << 20
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32, STRING, ARRAY = 6, 8, 9


class StorageType(NamedTuple):
    """How values are stored: `block_size` of them in `block_bytes` bytes. `code` is ggml's number of the type."""

    code: int
    name: str
    block_size: int
    block_bytes: int


F32, F16, BF16 = StorageType(0, "F32", 1, 4), StorageType(1, "F16", 1, 2), StorageType(30, "BF16", 1, 2)


class TensorInfo(NamedTuple):
    """A tensor of a file: its shape, outermost axis first, its storage type and where its bytes are."""

    shape: tuple[int, ...]
    storage: StorageType
    start: int
    n_bytes: int


def is_gguf_file(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


class GGUFFile:
    """An open GGUF file: `metadata` by key, `tensors` by name; `read` returns values of a tensor in float32.

    Raises:
        InputError: the file is truncated, declares impossible sizes or has a storage type that cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        check_regular(path)
        try:
            self.n_bytes = path.stat().st_size
            self._data = np.memmap(path, np.uint8, "r") if self.n_bytes else np.zeros(0, np.uint8)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        self._offset = 0
        if self._read_bytes(len(MAGIC), "the magic number") != MAGIC:
            raise InputError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
        if (version := self._read_scalar("I")) not in (2, 3):
            raise InputError(f"{path} is GGUF version {version}; versions 2 and 3, little-endian, can be read")
        n_tensors = self._check_count(self._read_scalar("Q"), MAX_ENTRIES, 24, "tensors")
        n_metadata = self._check_count(self._read_scalar("Q"), MAX_ENTRIES, 13, "metadata values")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_metadata):
            key = self._read_name(self.metadata, "metadata key")
            self.metadata[key] = self._read_value(self._read_scalar("I"), key)
        self.tensors: dict[str, TensorInfo] = {}
        self._read_tensor_list(n_tensors)

    def _read_bytes(self, n: int, what: str) -> bytes:
        if n > self.n_bytes - self._offset:
            start, size = f"at byte {self._offset:,}", f"the file has {self.n_bytes:,}"
            raise InputError(f"{self.path} is truncated: {what} should have {n:,} bytes {start}, and {size}")
        self._offset += n
        return self._data[self._offset - n : self._offset].tobytes()

    def _read_scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._read_bytes(struct.calcsize(f"<{code}"), "a number"))[0]

    def _check_count(self, n: int, limit: int, min_item_bytes: int, what: str) -> int:
        """Return `n` if that many items of at least `min_item_bytes` bytes fit in the bytes that are left."""
        limit = min(limit, (self.n_bytes - self._offset) // min_item_bytes)
        if n > limit:
            raise InputError(f"{self.path} declares {n:,} {what} at byte {self._offset:,}; at most {limit:,} are valid")
        return n

    def _read_string(self, limit: int, what: str) -> str:
        n = self._read_scalar("Q")
        if n > limit:
            raise InputError(f"{self.path}: {what} should have {n:,} bytes, more than the limit of {limit:,}")
        return self._read_bytes(n, what).decode("utf-8", "replace")

    def _read_name(self, earlier: Any, what: str) -> str:
        name = self._read_string(MAX_NAME_BYTES, f"the name of a {what}")
        if name in earlier:
            raise InputError(f"{self.path} has the {what} {name!r} twice")
        return name

    def _read_value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._read_string(MAX_STRING_BYTES, key)
        if kind == ARRAY:
            return self._read_array(self._read_scalar("I"), self._read_scalar("Q"), key)
        if kind not in SCALARS:
            raise InputError(f"{self.path}: {key} has the unknown type {kind}")
        value = self._read_scalar(SCALARS[kind])
        return float(str(np.float32(value))) if kind == FLOAT32 else value  # 1e-05, not 9.999999747378752e-06

    def _read_array(self, kind: int, n: int, key: str) -> list[Any]:
        if kind == STRING:
            n = self._check_count(n, MAX_ARRAY_ITEMS, 8, f"items of {key}")
            return [self._read_string(MAX_STRING_BYTES, key) for _ in range(n)]
        if kind not in SCALARS:
            raise InputError(f"{self.path}: {key} is an array of the type {kind}, which is not supported")
        n = self._check_count(n, MAX_ARRAY_ITEMS, struct.calcsize(f"<{SCALARS[kind]}"), f"items of {key}")
        layout = f"<{n}{SCALARS[kind]}"
        return list(struct.unpack(layout, self._read_bytes(struct.calcsize(layout), key)))

    def _read_tensor_list(self, n: int) -> None:
        """Read names, shapes and offsets; offsets are relative to the end of this list, rounded up."""
        entries = {}
        for _ in range(n):
            name = self._read_name(entries, "tensor")
            n_axes = self._read_scalar("I")
            if not 1 <= n_axes <= 4:
                raise InputError(f"{self.path}: {name} has {n_axes} axes; it should have 1 to 4")
            shape = tuple(self._read_scalar("Q") for _ in range(n_axes))[::-1]
            entries[name] = (shape, self._read_scalar("I"), self._read_scalar("Q"))
        step = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(step) is not int or not 0 < step <= MAX_ALIGNMENT or step & (step - 1):
            raise InputError(f"{self.path}: general.alignment is {step!r}; it should be a power of two")
        start = -(-self._offset // step) * step
        for name, (shape, code, offset) in entries.items():
            self.tensors[name] = self._locate_tensor(name, shape, code, start + offset)

    def _locate_tensor(self, name: str, shape: tuple[int, ...], code: int, start: int) -> TensorInfo:
        """Check that a tensor's shape fits its storage type and that its data lie within the file."""
        try:
            storage = find_storage_type(code)
        except ImportError:
            needs = "needs the package gguf: pip install 'anyformer[gguf]'"
            raise InputError(f"{self.path}: {name} is quantized (ggml type {code}), which {needs}") from None
        if storage is None:
            kind = f"ggml type {code}"
            raise InputError(f"{self.path}: {name} is stored as {kind}, which the package gguf cannot decode")
        # A byte holds at most 8 values, so no axis is longer than that.
        if any(not 0 < n <= self.n_bytes * 8 for n in shape) or shape[-1] % storage.block_size:
            raise InputError(f"{self.path}: {name} has shape {list(shape)}, impossible as {storage.name}")
        n_bytes = math.prod(shape) // storage.block_size * storage.block_bytes
        if start + n_bytes > self.n_bytes:
            extent = f"{n_bytes:,} bytes from byte {start:,} on, and the file has {self.n_bytes:,}"
            raise InputError(f"{self.path} is truncated: {name} of shape {list(shape)} should have {extent}")
        return TensorInfo(shape, storage, start, n_bytes)

    def read(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
        """Read part of a vector or a matrix in float32; only the blocks that hold this part are decoded.

        Args:
            rows: start and stop along the first axis.
            columns: start and stop along the second axis of a matrix; None for all.

        Returns:
            (rows,) or (rows, columns).
        """
        info = self.tensors[name]
        if len(info.shape) == 1:
            return self._read_blocks(info, slice(0, 1), rows)[0]
        return self._read_blocks(info, rows, columns or slice(0, info.shape[-1]))

    def _read_blocks(self, info: TensorInfo, rows: slice, columns: slice) -> np.ndarray:
        size = info.storage.block_size
        first, last = columns.start // size, -(-columns.stop // size)
        shape = (math.prod(info.shape[:-1]), info.shape[-1] // size, info.storage.block_bytes)
        blocks = np.ascontiguousarray(self._map(info.start, shape)[rows, first:last])
        values = decode_blocks(blocks.reshape(len(blocks), -1), info.storage)
        return values[:, columns.start - first * size : columns.stop - first * size]

    def _map(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """Map bytes of the file; a new mapping each time, so that pages already read do not stay in memory."""
        return np.memmap(self.path, np.uint8, "r", start, shape)


@lru_cache
def find_storage_type(code: int) -> StorageType | None:
    """Look up ggml's storage type with this number; None if it cannot be decoded. Raises ImportError without gguf."""
    for storage in (F32, F16, BF16):
        if storage.code == code:
            return storage
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(code)
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return StorageType(code, kind.name, block_size, block_bytes)


def decode_blocks(blocks: np.ndarray, storage: StorageType) -> np.ndarray:
    """Decode stored bytes (rows, bytes) to values (rows, values) in float32."""
    if storage == F32:
        return blocks.view("<f4").astype(np.float32)
    if storage == F16:
        return blocks.view("<f2").astype(np.float32)
    if storage == BF16:
        return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
    import gguf

    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(storage.code))
