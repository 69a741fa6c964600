"""The interface of every tokenizer, and the two that need no training: characters and bytes.

Both look ids up in numpy tables, which is many times faster than the `tokenizers` library, and are saved in the layout
of its `tokenizer.json`, so that any tool reads the same ids from the file.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import InputError
from .chat_template import Chat

END = "<|endoftext|>"
CODE_POINTS = 0x110000


class Tokenizer:
    """Text to ids and back. Ids are uint16 where they fit, else uint32.

    Attributes:
        end_id: the id that ends a text and separates documents; None if there is none.
        extra_files: files to save beside tokenizer.json, name -> text, so that the same tokenizer is loaded again.
    """

    kind: str
    vocab_size: int
    end_id: int | None
    extra_files: Mapping[str, str] = MappingProxyType({})

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text; the first is `end_id`."""
        return () if self.end_id is None else (self.end_id,)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can render messages."""
        return False

    def encode(self, text: Any) -> np.ndarray:
        """Return the ids of a text, (N,). Raises InputError for what the vocabulary lacks."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[Any]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_bos_eos(self, text: Any) -> np.ndarray:
        """Return the ids of a text with the special tokens that the vocabulary puts around one: [CLS] ... [SEP]."""
        return self.encode(text)

    def encode_prompt(self, text: Any) -> np.ndarray:
        """Return the ids of a prompt to continue: with the special tokens before a text, without those after it."""
        return self.encode(text)

    def encode_parsing_special(self, text: str) -> np.ndarray:
        """Return the ids of a rendered chat. Only here, the names of special tokens in the text become these tokens."""
        return self.encode(text)

    def apply_chat_template(self, messages: Any, tools: Any = ()) -> str:
        """Render messages, [{"role", "content"}, ...], and the functions that the model may call, as it was trained to
        read them, ready for its answer."""
        return self.render_chats([Chat(messages, tools)])[0]

    def render_chats(self, chats: Sequence[Chat]) -> list[str]:
        raise InputError("this tokenizer keeps no chat template: give a prompt instead of messages")

    def decode(self, ids: Any) -> str:
        """Return the text of ids without special tokens; bytes that are not UTF-8 become U+FFFD."""
        raise NotImplementedError

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token by its name, special tokens included."""
        return self.end_id if token == END else None

    def special_name(self, token: int) -> str:
        """Return the name of a token that has no text, for display."""
        return "⟨end⟩" if token in self.end_ids else f"⟨{token}⟩"

    def count_bytes(self, ids: Any) -> int:
        """Return how many UTF-8 bytes these ids stand for; special tokens count 0."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return the content of tokenizer.json: the same tokenizer for the public library."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write tokenizer.json under a temporary name and rename it, so that no partial file is ever visible."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(self.to_json())
            os.fchmod(file.fileno(), 0o644)  # mkstemp makes it private
        os.replace(name, path)


class Characters(Tokenizer):
    """One id for each character, in the given order; the last id is the end of a text."""

    kind = "char"

    def __init__(self, characters: Iterable[str]):
        self.characters = list(dict.fromkeys(characters))
        self.end_id = len(self.characters)
        self.vocab_size = self.end_id + 1
        self._codes = np.array([ord(c) for c in self.characters], dtype="<u4")  # id -> code point
        # code point -> id; unknown ones map to end_id, which no character has
        self._ids = np.full(CODE_POINTS, self.end_id, dtype_for(self.vocab_size))
        self._ids[self._codes] = np.arange(self.end_id)
        self._lengths = np.array([len(c.encode()) for c in self.characters] + [0], np.int64)

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids[code_points(text)]
        is_unknown = ids == self.end_id
        if is_unknown.any():
            indices = np.flatnonzero(is_unknown)
            unknown = list(dict.fromkeys(text[i] for i in indices[:1000]))
            names = ", ".join(map(repr, unknown[:5])) + (" and more" if len(unknown) > 5 else "")
            problem = f"the vocabulary of {self.end_id} characters has no {names} (first at character {indices[0]})"
            raise InputError(f"{problem}: leave it out, or train with --tokenizer byte or bpe, which take anything")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text: views of one array, since looking up each text by itself takes far longer."""
        try:
            ids = self.encode("".join(texts))
        except InputError:
            return super().encode_batch(texts)  # names the character's place in its own text
        ends = list(accumulate(map(len, texts), initial=0))
        return [ids[start:end] for start, end in pairwise(ends)]

    def token_to_id(self, token: str) -> int | None:
        is_character = len(token) == 1 and int(self._ids[ord(token)]) != self.end_id
        return int(self._ids[ord(token)]) if is_character else super().token_to_id(token)

    def decode(self, ids: Any) -> str:
        return self._codes[valid_ids(ids, self.vocab_size - 1)].tobytes().decode("utf-32-le")

    def count_bytes(self, ids: Any) -> int:
        return int(self._lengths[valid_ids(ids, self.vocab_size - 1)].sum())

    def to_json(self) -> str:
        # Split at every character, look each up, join them.
        split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
        vocab = {c: i for i, c in enumerate(self.characters)}
        return _tokenizer_json({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}, split, {"type": "Fuse"})


class Bytes(Tokenizer):
    """The id of a byte is its value; 256 is the end of a text. Takes text, or bytes as they are."""

    kind = "byte"
    end_id = 256
    vocab_size = 257

    def encode(self, text: str | bytes) -> np.ndarray:
        # surrogateescape: bytes of a command line that were not UTF-8 come out as they went in
        data = encode_utf8(text, "surrogateescape") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def decode(self, ids: Any) -> str:
        return valid_ids(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def count_bytes(self, ids: Any) -> int:
        return len(valid_ids(ids, 256))

    def to_json(self) -> str:
        # A byte-level BPE without merges.
        vocab = {c: i for i, c in enumerate(byte_alphabet())}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return _tokenizer_json({"type": "BPE", "vocab": vocab, "merges": []}, level, level)


def ids_json(vocab_size: int) -> str:
    """Return a tokenizer.json for numbers, "12 7 3", for a model without a tokenizer. Nothing ends a text."""
    model = {"type": "WordLevel", "vocab": {str(i): i for i in range(vocab_size)}, "unk_token": "<unk>"}
    return json.dumps(json.loads(_tokenizer_json(model, {"type": "WhitespaceSplit"}, None)) | {"added_tokens": []})


def byte_alphabet() -> str:
    """Return the 256 printable characters that stand for the bytes 0..255 in a byte-level vocabulary, by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # these stand for themselves
    others = [b for b in range(256) if b not in printable]  # these are mapped to 256 and above, in order
    return "".join(chr(b if b in printable else 256 + others.index(b)) for b in range(256))


def _tokenizer_json(model: dict, pre_tokenizer: dict, decoder: dict | None) -> str:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": len(model["vocab"]), "content": END} | flags | {"special": True}
    fields: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end]}
    fields |= {"normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None}
    return json.dumps(fields | {"decoder": decoder, "model": model}, ensure_ascii=False, indent=2)


def is_equal_json(ours: Any, theirs: Any) -> bool:
    """Whether two JSON values are equal, except for settings that the library adds and leaves off."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours == theirs
    is_off = all(v is None or v is False for k, v in theirs.items() if k not in ours)
    return is_off and all(k in theirs and is_equal_json(v, theirs[k]) for k, v in ours.items())


def encode_each(tokenizer: Tokenizer, texts: Sequence[Any], places: Iterable[str]) -> list[np.ndarray]:
    """Encode a batch. Raises InputError with the place of the text that cannot be encoded."""
    try:
        return tokenizer.encode_batch(texts)
    except InputError:
        for text, place in zip(texts, places):  # again one by one, to find the place
            try:
                tokenizer.encode(text)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
        raise


def dtype_for(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode_utf8(text: str, errors: str = "strict") -> bytes:
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        surrogate = text[error.start]
        raise InputError(f"the text holds half a surrogate pair, {surrogate!r}, at character {error.start}") from None


def code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is then reported like any unknown character
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def valid_ids(ids: Any, n: int) -> np.ndarray:
    """Return the ids below n as an array; a model with a padded vocabulary may predict others, which mean nothing."""
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    return ids[(ids >= 0) & (ids < n)]
