"""What every tokenizer has, and the two that need no training: characters and bytes.

Both are looked up in numpy tables, which is many times faster than the `tokenizers` library, and saved in its 
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import InputError

END = "<|endoftext|>"
CODE_POINTS = 0x110000


class Tokenizer:
    """What every tokenizer has. `end` is the id that separates documents, or None; ids are uint16 where they fit."""

    kind: str
    vocab_size: int
    end_id: int | None
    extra_files: Mapping[str, str] = MappingProxyType({})
    """Files to keep with tokenizer.json, name -> text, so that the same tokenizer comes back."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text; the first is `end`."""
        return () if self.end_id is None else (self.end_id,)

    def encode(self, text: Any) -> np.ndarray:
        """(N,) ids of a text. Raises InputError for what the vocabulary lacks."""
        raise NotImplementedError

    def decode(self, ids: Any) -> str:
        """The text of these ids without special tokens; what is no UTF-8 becomes U+FFFD."""
        raise NotImplementedError

    def encode_with_bos_eos(self, text: Any) -> np.ndarray:
        """(N,) ids of a text that stands alone, with what its vocabulary puts around one: [CLS] ... [SEP], <s> ..."""
        return self.encode(text)

    def encode_prompt(self, text: Any) -> np.ndarray:
        """(N,) ids of the beginning of a text, for a causal model to go on: what stands before one, and none after."""
        return self.encode(text)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, special ones included."""
        return self.end_id if token == END else None

    def encode_parsing_special(self, text: str) -> np.ndarray:
        """(N,) ids of a rendered chat: here, and only here, the names of special tokens become these tokens."""
        return self.encode(text)

    def apply_chat_template(self, messages: Any) -> str:
        """Messages, [{"role", "content"}, ...], as the model was trained to read them, up to where it answers."""
        raise InputError("this tokenizer keeps no chat template: give a prompt instead of messages")

    def count_bytes(self, ids: Any) -> int:
        """How many UTF-8 bytes these ids stand for; special tokens count 0."""
        raise NotImplementedError

    def to_json(self) -> str:
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
            file.write(self.to_json())
            os.fchmod(file.fileno(), 0o644)  # mkstemp makes it private
        os.replace(name, path)


class Characters(Tokenizer):
    """One id a character, in the order given; the last id is the end of a text."""

    kind = "char"

    def __init__(self, characters: Iterable[str]):
        self.characters = list(dict.fromkeys(characters))
        self.end_id = len(self.characters)
        self.vocab_size = self.end_id + 1
        self._codes = np.array([ord(c) for c in self.characters], dtype="<u4")  # id -> code point
        # code point -> id; unknown ones look like `end`, which no character is
        self._ids = np.full(CODE_POINTS, self.end_id, dtype_for(self.vocab_size))
        self._ids[self._codes] = np.arange(self.end_id)
        self._lengths = np.array([len(c.encode()) for c in self.characters] + [0], np.int64)

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids[code_points(text)]
        if (ids == self.end_id).any():
            self._refuse(text, ids)
        return ids

    def _refuse(self, text: str, ids: np.ndarray) -> None:
        at = np.flatnonzero(ids == self.end_id)
        strange = list(dict.fromkeys(text[i] for i in at[:1000]))
        names = ", ".join(map(repr, strange[:5])) + (" and more" if len(strange) > 5 else "")
        raise InputError(
            f"the vocabulary of {self.end_id} characters has no {names} (first at character {at[0]}): "
            "leave it out, or train with --tokenizer byte or bpe, which take anything"
        )

    def token_to_id(self, token: str) -> int | None:
        known = len(token) == 1 and int(self._ids[ord(token)]) != self.end_id
        return int(self._ids[ord(token)]) if known else super().token_to_id(token)

    def decode(self, ids: Any) -> str:
        return self._codes[valid_ids(ids, len(self.characters))].tobytes().decode("utf-32-le")

    def count_bytes(self, ids: Any) -> int:
        return int(self._lengths[valid_ids(ids, len(self.characters))].sum())

    def to_json(self) -> str:
        return characters_json(self.characters)


class Bytes(Tokenizer):
    """The id of a byte is its value; 256 is the end of a text. Takes text, or bytes as they are."""

    kind = "byte"
    end_id = 256
    vocab_size = 257

    def encode(self, text: str | bytes) -> np.ndarray:
        # surrogateescape: bytes of a command line that were no UTF-8 come out as they went in
        data = encode_utf8(text, "surrogateescape") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def decode(self, ids: Any) -> str:
        return valid_ids(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def count_bytes(self, ids: Any) -> int:
        return len(valid_ids(ids, 256))

    def to_json(self) -> str:
        return bytes_json()


def dtype_for(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode_utf8(text: str, errors: str = "strict") -> bytes:
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as e:
        strange = text[e.start]
        raise InputError(f"the text holds half a surrogate pair, {strange!r}, at character {e.start}") from None


def code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is then refused by its name, as any unknown character
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def valid_ids(ids: Any, n: int) -> np.ndarray:
    """The ids below n, as an array; a model with a padded vocabulary may give others, which stand for nothing."""
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    return ids[(ids >= 0) & (ids < n)]


# --- the layout of tokenizer.json ---


def characters_json(characters: Sequence[str]) -> str:
    """One id a character: split at every character, look each up, glue them together. The last id is the end."""
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    vocab = {c: i for i, c in enumerate(characters)}
    return _layout({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}, split, {"type": "Fuse"})


def bytes_json() -> str:
    """One id a byte: a byte-level BPE that merges nothing. The last id is the end."""
    vocab = {c: i for i, c in enumerate(byte_alphabet())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _layout({"type": "BPE", "vocab": vocab, "merges": []}, level, level)


def ids_json(vocab_size: int) -> str:
    """The numbers themselves, "12 7 3", for a model that came without a tokenizer. No id ends a text."""
    vocab = {str(i): i for i in range(vocab_size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    return json.dumps(json.loads(_layout(model, {"type": "WhitespaceSplit"}, None)) | {"added_tokens": []})


def byte_alphabet() -> str:
    """The 256 printable characters that stand for the bytes 0..255 in a byte-level vocabulary, in order of the byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # these stand for themselves
    hidden = [b for b in range(256) if b not in shown]  # these are moved up, in order
    return "".join(chr(b if b in shown else 256 + hidden.index(b)) for b in range(256))


def is_equal_json(own: Any, other: Any) -> bool:
    """Whether two JSON values are equal, but for settings that the library adds and leaves off."""
    if not (isinstance(own, dict) and isinstance(other, dict)):
        return own == other
    off = all(v is None or v is False for k, v in other.items() if k not in own)
    return off and all(k in other and is_equal_json(v, other[k]) for k, v in own.items())


def _layout(model: dict, pre_tokenizer: dict, decoder: dict | None) -> str:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": len(model["vocab"]), "content": END} | flags | {"special": True}
    fields: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end]}
    fields |= {"normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None}
    fields |= {"decoder": decoder, "model": model}
    return json.dumps(fields, ensure_ascii=False, indent=2)
