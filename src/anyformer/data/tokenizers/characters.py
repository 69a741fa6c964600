"""What every tokenizer has, and the two that need no training: characters and bytes.

Both are looked up in numpy tables, which is many times faster than the `tokenizers` library, and saved in its layout.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import InputError
from . import json_layout as layout

END = layout.END
CODE_POINTS = 0x110000


class Tokenizer:
    """What every tokenizer has. `end` is the id that separates documents, or None; ids are uint16 where they fit."""

    kind: str
    vocab_size: int
    end: int | None
    beside: Mapping[str, str] = MappingProxyType({})
    """Files to keep with tokenizer.json, name -> text, so that the same tokenizer comes back."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text; the first is `end`."""
        return () if self.end is None else (self.end,)

    def encode(self, text: Any) -> np.ndarray:
        """(N,) ids of a text. Raises InputError for what the vocabulary lacks."""
        raise NotImplementedError

    def decode(self, ids: Any) -> str:
        """The text of these ids without special tokens; what is no UTF-8 becomes U+FFFD."""
        raise NotImplementedError

    def whole(self, text: Any) -> np.ndarray:
        """(N,) ids of a text that stands alone, with what its vocabulary puts around one: [CLS] ... [SEP], <s> ..."""
        return self.encode(text)

    def prompt(self, text: Any) -> np.ndarray:
        """(N,) ids of the beginning of a text, for a causal model to go on: what stands before one, and none after."""
        return self.encode(text)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, special ones included."""
        return self.end if token == END else None

    def encode_special(self, text: str) -> np.ndarray:
        """(N,) ids of a rendered chat: here, and only here, the names of special tokens become these tokens."""
        return self.encode(text)

    def chat(self, messages: Any) -> str:
        """Messages, [{"role", "content"}, ...], as the model was trained to read them, up to where it answers."""
        raise InputError("this tokenizer keeps no chat template: give a prompt instead of messages")

    def n_bytes(self, ids: Any) -> int:
        """How many UTF-8 bytes these ids stand for; special tokens count 0."""
        raise NotImplementedError

    def json(self) -> str:
        """The content of tokenizer.json: the same tokenizer for the public library."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[Any]) -> list[np.ndarray]:
        """The ids of each text by itself."""
        return [self.encode(text) for text in texts]

    def save(self, path: Path) -> None:
        """Write tokenizer.json under a temporary name and rename it, so that no half a file is ever seen."""
        path = Path(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(self.json())
            os.fchmod(file.fileno(), 0o644)  # mkstemp makes it private
        os.replace(name, path)


class Characters(Tokenizer):
    """One id a character, in the order given; the last id is the end of a text."""

    kind = "char"

    def __init__(self, characters: Iterable[str]):
        self.characters = list(dict.fromkeys(characters))
        self.end = len(self.characters)
        self.vocab_size = self.end + 1
        self._codes = np.array([ord(c) for c in self.characters], dtype="<u4")  # id -> code point
        # code point -> id; unknown ones look like `end`, which no character is
        self._ids = np.full(CODE_POINTS, self.end, dtype_for(self.vocab_size))
        self._ids[self._codes] = np.arange(self.end)
        self._lengths = np.array([len(c.encode()) for c in self.characters] + [0], np.int64)

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids[code_points(text)]
        if (ids == self.end).any():
            self._refuse(text, ids)
        return ids

    def _refuse(self, text: str, ids: np.ndarray) -> None:
        at = np.flatnonzero(ids == self.end)
        strange = list(dict.fromkeys(text[i] for i in at[:1000]))
        names = ", ".join(map(repr, strange[:5])) + (" and more" if len(strange) > 5 else "")
        raise InputError(
            f"the vocabulary of {self.end} characters has no {names} (first at character {at[0]}): "
            "leave it out, or train with --tokenizer byte or bpe, which take anything"
        )

    def id_of(self, token: str) -> int | None:
        known = len(token) == 1 and int(self._ids[ord(token)]) != self.end
        return int(self._ids[ord(token)]) if known else super().id_of(token)

    def decode(self, ids: Any) -> str:
        return self._codes[valid(ids, len(self.characters))].tobytes().decode("utf-32-le")

    def n_bytes(self, ids: Any) -> int:
        return int(self._lengths[valid(ids, len(self.characters))].sum())

    def json(self) -> str:
        return layout.of_characters(self.characters)


class Bytes(Tokenizer):
    """The id of a byte is its value; 256 is the end of a text. Takes text, or bytes as they are."""

    kind = "byte"
    end = 256
    vocab_size = 257

    def encode(self, text: str | bytes) -> np.ndarray:
        # surrogateescape: bytes of a command line that were no UTF-8 come out as they went in
        data = utf8(text, "surrogateescape") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def decode(self, ids: Any) -> str:
        return valid(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def n_bytes(self, ids: Any) -> int:
        return len(valid(ids, 256))

    def json(self) -> str:
        return layout.of_bytes()


def dtype_for(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def utf8(text: str, errors: str = "strict") -> bytes:
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as e:
        strange = text[e.start]
        raise InputError(f"the text holds half a surrogate pair, {strange!r}, at character {e.start}") from None


def code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is then refused by its name, as any unknown character
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def valid(ids: Any, n: int) -> np.ndarray:
    """The ids below n, as an array; a model with a padded vocabulary may give others, which stand for nothing."""
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    return ids[(ids >= 0) & (ids < n)]
