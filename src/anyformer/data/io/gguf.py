"""A GGUF file: named values, then a list of tensors, then their numbers, some in blocks of a few bits.

Nothing in it is believed: a count or a length is bounded by the bytes that are left before memory is taken.
Versions 2 and 3, little-endian. The layout is that of ggml (docs/gguf.md there).
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the numbers, unless the file says otherwise
MOST_VALUES, MOST_TENSORS, MOST_ENTRIES = 65_536, 65_536, 4_000_000
LONGEST_NAME, LONGEST_TEXT = 65_535, 64 << 20  # bytes
MOST_AXES = 4
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT, BOOL, STRING, ARRAY = 6, 7, 8, 9


@dataclass(frozen=True)
class Kind:
    """How numbers are stored: `n` of them in a block of `size` bytes."""

    name: str
    n: int
    size: int


KINDS = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    8: Kind("Q8_0", 32, 34),
    30: Kind("BF16", 1, 2),
}


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: its shape, outermost axis first, and where its bytes lie."""

    shape: tuple[int, ...]
    kind: Kind
    start: int

    @property
    def row(self) -> int:
        """Bytes of one row: of the innermost axis."""
        return self.shape[-1] // self.kind.n * self.kind.size

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row


def begins(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


class File:
    """`values`: the metadata by name; `tensors`: what is stored. Raises InputError for a file that is cut short, lies
    about its sizes, or holds a kind of numbers that is not read."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.n_bytes = path.stat().st_size
            self._data = np.memmap(path, np.uint8, "r") if self.n_bytes else np.zeros(0, np.uint8)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        self._at = 0
        if self._take(4, "its first bytes") != MAGIC:
            raise InputError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
        if (version := self._number("I")) not in VERSIONS:
            raise InputError(f"{path} is GGUF of version {version}: versions 2 and 3, little-endian, are read")
        n_tensors = self._count(self._number("Q"), MOST_TENSORS, 24, "tensors")
        n_values = self._count(self._number("Q"), MOST_VALUES, 13, "values")
        self.values: dict[str, Any] = {}
        for _ in range(n_values):
            name = self._name(self.values, "value")
            self.values[name] = self._value(self._number("I"), name)
        self.tensors: dict[str, Stored] = {}
        self._list(n_tensors)

    # --- the parts of a file, one after the other ---

    def _take(self, n: int, what: str) -> bytes:
        if n > self.n_bytes - self._at:
            raise InputError(
                f"{self.path} is cut short: {what} should have {n:,} bytes at byte {self._at:,}, and the file has "
                f"{self.n_bytes:,}"
            )
        self._at += n
        return self._data[self._at - n : self._at].tobytes()

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}"), "a number"))[0]

    def _count(self, n: int, most: int, least_bytes: int, what: str) -> int:
        """How many follow, each of at least so many bytes."""
        most = min(most, (self.n_bytes - self._at) // least_bytes)
        if n > most:
            raise InputError(f"{self.path} promises {n:,} {what} at byte {self._at:,}, where at most {most:,} may be")
        return n

    def _text(self, longest: int, what: str) -> str:
        n = self._number("Q")
        if n > longest:
            raise InputError(f"{self.path}: {what} should have {n:,} bytes, more than the {longest:,} that it may have")
        return self._take(n, what).decode("utf-8", "replace")

    def _name(self, known: Any, what: str) -> str:
        name = self._text(LONGEST_NAME, f"the name of a {what}")
        if name in known:
            raise InputError(f"{self.path} has the {what} {name!r} twice")
        return name

    def _value(self, kind: int, name: str) -> Any:
        if kind == STRING:
            return self._text(LONGEST_TEXT, name)
        if kind == ARRAY:
            inner = self._number("I")
            return self._array(inner, self._number("Q"), name)
        if kind not in SCALARS:
            raise InputError(f"{self.path}: {name} is of the unknown kind {kind}")
        found = self._number(SCALARS[kind])
        return written(found) if kind == FLOAT else found

    def _array(self, kind: int, n: int, name: str) -> list[Any]:
        if kind == STRING:
            n = self._count(n, MOST_ENTRIES, 8, f"entries of {name}")
            return [self._text(LONGEST_TEXT, name) for _ in range(n)]
        if kind not in SCALARS:
            raise InputError(f"{self.path}: {name} is a list of the kind {kind}, which is not read")
        size = struct.calcsize(f"<{SCALARS[kind]}")
        n = self._count(n, MOST_ENTRIES, size, f"entries of {name}")
        return list(struct.unpack(f"<{n}{SCALARS[kind]}", self._take(n * size, name)))

    def _list(self, n: int) -> None:
        """The list of tensors; where their numbers begin is known after it."""
        listed = {}
        for _ in range(n):
            name = self._name(listed, "tensor")
            n_axes = self._number("I")
            if not 1 <= n_axes <= MOST_AXES:
                raise InputError(f"{self.path}: {name} has {n_axes} axes; it should be 1 to {MOST_AXES}")
            shape = tuple(self._number("Q") for _ in range(n_axes))[::-1]
            listed[name] = (shape, self._number("I"), self._number("Q"))
        step = self.values.get("general.alignment", ALIGNMENT)
        if type(step) is not int or not 0 < step <= 1 << 20 or step & (step - 1):
            raise InputError(f"{self.path}: general.alignment is {step!r}; it should be a power of two")
        start = -(-self._at // step) * step
        for name, (shape, kind, offset) in listed.items():
            if kind not in KINDS:
                names = ", ".join(k.name for k in KINDS.values())
                raise InputError(f"{self.path}: {name} is stored as ggml's type {kind}, which is not read: {names} are")
            self.tensors[name] = self._placed(name, Stored(shape, KINDS[kind], start + offset))

    def _placed(self, name: str, one: Stored) -> Stored:
        if any(not 0 < side <= self.n_bytes * 2 for side in one.shape) or one.shape[-1] % one.kind.n:
            raise InputError(f"{self.path}: {name} has shape {list(one.shape)}, which {one.kind.name} cannot have")
        if one.start + one.n_bytes > self.n_bytes:
            raise InputError(
                f"{self.path} is cut short: {name} of shape {list(one.shape)} should have {one.n_bytes:,} bytes from "
                f"byte {one.start:,} on, and the file has {self.n_bytes:,}"
            )
        return one

    # --- numbers ---

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are stored with the same bytes."""
        a, b = self.tensors[one], self.tensors[other]
        if (a.shape, a.kind) != (b.shape, b.kind):
            return False
        step = 1 << 22
        for at in range(0, a.n_bytes, step):
            n = min(step, a.n_bytes - at)
            if not np.array_equal(self._stored(a.start + at, (n,)), self._stored(b.start + at, (n,))):
                return False
        return True

    def part(self, name: str, rows: slice, columns: slice | None = None) -> np.ndarray:
        """A part of a vector or a matrix in float32: (rows,) or (rows, columns)."""
        one = self.tensors[name]
        if len(one.shape) == 1:
            return self._read(one, slice(0, 1), rows)[0]
        return self._read(one, rows, columns or slice(0, one.shape[-1]))

    def _read(self, one: Stored, rows: slice, columns: slice) -> np.ndarray:
        """Whole blocks are read, and then cut."""
        shape = (math.prod(one.shape[:-1]), one.shape[-1] // one.kind.n, one.kind.size)
        first, last = columns.start // one.kind.n, -(-columns.stop // one.kind.n)
        blocks = np.ascontiguousarray(self._stored(one.start, shape)[rows, first:last])
        numbers = decoded(blocks, one.kind).reshape(len(blocks), -1)
        return numbers[:, columns.start - first * one.kind.n : columns.stop - first * one.kind.n]

    def _stored(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """Bytes of the file, opened anew so that no page of the last piece stays in memory."""
        return np.memmap(self.path, np.uint8, "r", start, shape)


def written(found: float) -> float:
    """A float32 as it was written: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(found)))


def decoded(blocks: np.ndarray, kind: Kind) -> np.ndarray:
    """(..., bytes) of blocks -> (..., n) in float32. A block of few bits has a scale, perhaps a least value, then the
    numbers: bytes, or halves of bytes, of which the low ones come first."""
    if kind.name == "F32":
        return blocks.view("<f4").astype(np.float32)
    if kind.name == "F16":
        return blocks.view("<f2").astype(np.float32)
    if kind.name == "BF16":
        return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
    scale = blocks[..., :2].copy().view("<f2").astype(np.float32)
    if kind.name == "Q8_0":
        return scale * blocks[..., 2:].view(np.int8).astype(np.float32)
    packed = blocks[..., kind.size - 16 :]
    numbers = np.concatenate([packed & 15, packed >> 4], -1).astype(np.float32)
    if kind.name == "Q4_0":
        return scale * (numbers - 8)
    return scale * numbers + blocks[..., 2:4].copy().view("<f2").astype(np.float32)
