"""Text to ids and back: characters, bytes, or subwords.

Every tokenizer is saved as a `tokenizer.json` in the layout of the `tokenizers` library, so that any tool reads the
same ids from it. Characters and bytes are looked up in numpy tables, which is many times faster than that library.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..errors import InputError, nearest
from . import layout

END = layout.END
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # what others call it
KINDS = ("char", "byte", "bpe")
LARGEST_FILE = 512 << 20  # bytes of a tokenizer.json
TRAIN_CHARACTERS = 200_000_000  # a BPE learns from at most this much, spread evenly over the data
CODE_POINTS = 0x110000


class Tokenizer:
    """What every tokenizer has. `end` is the id that separates documents, or None; ids are uint16 where they fit."""

    kind: str
    vocab_size: int
    end: int | None

    def encode(self, text: Any) -> np.ndarray:
        """(N,) ids of a text. Raises InputError for what the vocabulary lacks."""
        raise NotImplementedError

    def decode(self, ids: Any) -> str:
        """The text of these ids without special tokens; what is no UTF-8 becomes U+FFFD."""
        raise NotImplementedError

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
        self._ids = np.full(CODE_POINTS, self.end, _dtype(self.vocab_size))
        self._ids[self._codes] = np.arange(self.end)
        self._lengths = np.array([len(c.encode()) for c in self.characters] + [0], np.int64)

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids[_code_points(text)]
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

    def decode(self, ids: Any) -> str:
        return self._codes[_valid(ids, len(self.characters))].tobytes().decode("utf-32-le")

    def n_bytes(self, ids: Any) -> int:
        return int(self._lengths[_valid(ids, len(self.characters))].sum())

    def json(self) -> str:
        return layout.of_characters(self.characters)


class Bytes(Tokenizer):
    """The id of a byte is its value; 256 is the end of a text. Takes text, or bytes as they are."""

    kind = "byte"
    end = 256
    vocab_size = 257

    def encode(self, text: str | bytes) -> np.ndarray:
        # surrogateescape: bytes of a command line that were no UTF-8 come out as they went in
        data = _whole(text, "surrogateescape") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def decode(self, ids: Any) -> str:
        return _valid(ids, 256).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def n_bytes(self, ids: Any) -> int:
        return len(_valid(ids, 256))

    def json(self) -> str:
        return layout.of_bytes()


class Subwords(Tokenizer):
    """Any tokenizer of the `tokenizers` library. Raw text never becomes a special token, nothing is cut or padded.

    A batch is spread over the cores. `n_bytes` is exact for a byte-level vocabulary, and by decoding for others.
    """

    def __init__(self, text: str):
        self._json = text  # kept as it came, so that saving changes nothing
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.kind = type(self._tokenizer.model).__name__.lower()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # there may be holes
        self.end = next((i for e in ENDS if (i := self._tokenizer.token_to_id(e)) is not None), None)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # what the library makes of half a surrogate pair
            for text in texts:
                _whole(text)
            raise
        return [np.array(e.ids, _dtype(self.vocab_size)) for e in encodings]

    def decode(self, ids: Any) -> str:
        return self._tokenizer.decode(_valid(ids, self.vocab_size).tolist(), skip_special_tokens=True)

    def n_bytes(self, ids: Any) -> int:
        if self._lengths is None:
            return len(self.decode(ids).encode())
        return int(self._lengths[_valid(ids, self.vocab_size)].sum())

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        """id -> bytes. In a byte-level vocabulary each character of a token stands for one byte."""
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return None
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, i in self._tokenizer.get_vocab().items():
            lengths[i] = len(token)
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            lengths[i] = 0 if token.special else len(token.content.encode())
        return lengths

    def json(self) -> str:
        return self._json


def make(spec: str, make_texts: Callable[[], Iterator[str]], vocab_size: int) -> Tokenizer:
    """The tokenizer that `spec` asks for: char, byte, bpe (`vocab_size` ids), or the path of a tokenizer.json.

    `make_texts` starts a fresh pass over the data, in pieces small enough to hold. Raises InputError for anything else.
    """
    if spec == "char":
        return Characters(characters_of(make_texts()))
    if spec == "byte":
        return Bytes()
    if spec == "bpe":
        return train_bpe(spread(make_texts, TRAIN_CHARACTERS), vocab_size)
    return load(Path(spec))


def check_vocab_size(vocab_size: int) -> None:
    """Raises InputError where a byte-level BPE has no room for its bytes and the end of a text."""
    if vocab_size < 257:
        raise InputError(f"a BPE vocabulary of {vocab_size} is too small: 256 bytes and {END} need at least 257")


def characters_of(texts: Iterable[str]) -> list[str]:
    """All characters that occur, sorted."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in texts:
        seen[_code_points(text)] = True
    return [chr(i) for i in np.flatnonzero(seen)]


def spread(make_texts: Callable[[], Iterator[str]], most: int) -> Iterator[str]:
    """The texts, or if they have more than `most` characters, about that many of them at even distances."""
    total = sum(len(text) for text in make_texts())
    seen = taken = 0
    for text in make_texts():
        seen += len(text)
        if (taken + len(text)) * total <= seen * most or total <= most:
            taken += len(text)
            yield text


def train_bpe(texts: Iterable[str], vocab_size: int) -> Subwords:
    """A byte-level BPE (arXiv:1508.07909, in bytes as GPT-2 has it), the same each time for the same texts.

    Takes texts of some 64 KiB: the library holds 256 of them at once. Little text may give fewer than `vocab_size` ids.
    """
    check_vocab_size(vocab_size)
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = list(layout.byte_alphabet())
    trainer = partial(trainers.BpeTrainer, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    bpe.train_from_iterator(texts, trainer(vocab_size=vocab_size))
    return Subwords(bpe.to_str())


def load(path: Path) -> Tokenizer:
    """Open a tokenizer.json. Those of Characters and Bytes become these again. Raises InputError for a bad file."""
    path = Path(path)
    if not path.is_file():
        looks_like_path = path.suffix or len(path.parts) > 1
        right = "no such file" if looks_like_path else f"{nearest(str(path), KINDS)}, or a path to a tokenizer.json"
        raise InputError(f"tokenizer '{path}': {right}")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path}: larger than {LARGEST_FILE >> 20} MiB, which no tokenizer.json is")
    try:
        text = path.read_text("utf-8")
        data = json.loads(text)
        return _own(data) or Subwords(text)
    except Exception as e:  # the library raises bare Exception
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"{path}: not a tokenizer.json of the tokenizers library ({reason})") from None


def _own(data: Any) -> Tokenizer | None:
    """Characters or Bytes if this is the content of a file that one of them wrote."""
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ValueError("no model in it")
    candidates: list[Tokenizer] = [Bytes()]
    vocab = data["model"].get("vocab")
    if data["model"].get("type") == "WordLevel" and all(len(c) == 1 for c in vocab):
        candidates.append(Characters(sorted(vocab, key=vocab.__getitem__)))
    return next((own for own in candidates if layout.same(json.loads(own.json()), data)), None)


def _dtype(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _whole(text: str, errors: str = "strict") -> bytes:
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as e:
        strange = text[e.start]
        raise InputError(f"the text holds half a surrogate pair, {strange!r}, at character {e.start}") from None


def _code_points(text: str) -> np.ndarray:
    # surrogatepass: a lone surrogate is then refused by its name, as any unknown character
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _valid(ids: Any, n: int) -> np.ndarray:
    """The ids below n, as an array; a model with a padded vocabulary may give others, which stand for nothing."""
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    return ids[(ids >= 0) & (ids < n)]
