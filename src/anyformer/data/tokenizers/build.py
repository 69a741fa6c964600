"""Text to ids and back: characters, bytes, or subwords.

Every tokenizer is saved as a `tokenizer.json` in the layout of the `tokenizers` library, so that any tool reads the
same ids from it; what a checkpoint says of it elsewhere is kept in files beside.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ...errors import InputError, suggest
from ..io.gguf import GGUFFile, is_gguf_file
from . import base as layout
from .base import CODE_POINTS, END, Bytes, Characters, Tokenizer, code_points
from .gguf_read import convert_from_gguf
from .special_tokens import read_metadata_files
from .subwords import END_TOKENS, Subwords

__all__ = [
    "END",
    "END_TOKENS",
    "KINDS",
    "Bytes",
    "Characters",
    "Subwords",
    "Tokenizer",
    "collect_characters",
    "check_vocab_size",
    "load_tokenizer",
    "build_tokenizer",
    "tokenizer_from_files",
    "subsample_texts",
    "train_bpe",
]
KINDS = ("char", "byte", "bpe")
NAME = "tokenizer.json"
MAX_FILE_BYTES = 512 << 20  # bytes of a tokenizer.json
MAX_TRAIN_CHARACTERS = 50_000_000  # a BPE learns from at most this much, spread evenly over the data


def build_tokenizer(spec: str, make_texts: Callable[[], Iterator[str]], vocab_size: int) -> Tokenizer:
    """The tokenizer that `spec` asks for: char, byte, bpe (`vocab_size` ids), or the path of a tokenizer.json.

    `make_texts` starts a fresh pass over the data, in pieces small enough to hold. Raises InputError for anything else.
    """
    if spec == "char":
        return Characters(collect_characters(make_texts()))
    if spec == "byte":
        return Bytes()
    if spec == "bpe":
        return train_bpe(subsample_texts(make_texts, MAX_TRAIN_CHARACTERS), vocab_size)
    return load_tokenizer(Path(spec))


def check_vocab_size(vocab_size: int) -> None:
    """Raises InputError where a byte-level BPE has no room for its bytes and the end of a text."""
    if vocab_size < 257:
        raise InputError(f"a BPE vocabulary of {vocab_size} is too small: 256 bytes and {END} need at least 257")


def collect_characters(texts: Iterable[str]) -> list[str]:
    """All characters that occur, sorted."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in texts:
        seen[code_points(text)] = True
    return [chr(i) for i in np.flatnonzero(seen)]


def subsample_texts(make_texts: Callable[[], Iterator[str]], most: int) -> Iterator[str]:
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


def load_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer.json, a folder with one or with an older vocabulary, or a GGUF file; what stands beside is read.

    Those of Characters and Bytes become these again. Raises InputError for a bad file.
    """
    path = Path(path)
    if path.is_dir() and not (path / NAME).is_file():
        from .vocabularies import convert_folder

        beside = read_metadata_files(path)
        return Subwords(convert_folder(path, beside), beside, f"{path}/")
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        looks_like_path = path.suffix or len(path.parts) > 1
        right = "no such file" if looks_like_path else f"{suggest(str(path), KINDS)}, or a path to a tokenizer.json"
        raise InputError(f"tokenizer '{path}': {right}")
    if is_gguf_file(path):
        return tokenizer_from_files(convert_from_gguf(GGUFFile(path).metadata, str(path)), path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, which no tokenizer.json is")
    beside = read_metadata_files(path.parent) if path.name == NAME else {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: not a tokenizer.json of the tokenizers library ({e})") from None
    return tokenizer_from_files({**beside, NAME: text}, path)


def tokenizer_from_files(files: Mapping[str, str], path: Path = Path(NAME)) -> Tokenizer:
    """The tokenizer of these texts, name -> text: tokenizer.json and what stands beside it. Raises InputError."""
    text = files[NAME]
    try:
        data = json.loads(text)
        return _own(data) or Subwords(text, files, f"{path.parent}/")
    except InputError:
        raise
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
    return next((own for own in candidates if layout.is_equal_json(json.loads(own.to_json()), data)), None)
