"""The same ids sooner: a byte-level BPE in the manner of GPT-2, encoded by tiktoken where that is installed.

The library `tokenizers` joins the pair that was learned first; tiktoken the pair whose joined bytes were learned first.
They agree wherever every entry, encoded by itself, is one id: two neighbours can only be joined to an entry in the way
it was learned, since the entry's own bytes never come by another. That, and that both cut words alike in every script,
is asked before it is trusted.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from .layout import byte_alphabet

WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # Radford et al. 2019
CUTS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
SCRIPTS = (0xD800, 0xE000, 0x20000)  # below and above the surrogates, up to where ideographs alone follow


class Quick:
    """Texts to ids by tiktoken."""

    def __init__(self, encoding: Any, ids: np.ndarray):
        self.encoding, self.ids = encoding, ids  # (ranks,): the id of each of tiktoken's

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(self.encode, texts))

    def encode(self, text: str) -> np.ndarray:
        return self.ids[np.array(self.encoding.encode_ordinary(text), np.uint32)]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quick(text: str, dtype: type[np.unsignedinteger]) -> Quick | None:
    """What gives the same ids as this tokenizer.json, sooner; or None."""
    try:
        import tiktoken
    except ImportError:
        return None
    described = json.loads(text)
    model = described["model"]
    if not plain(described, model):
        return None
    vocab, letters = model["vocab"], byte_alphabet()
    pairs = [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in model["merges"]]
    words = [*letters, *("".join(pair) for pair in pairs)]
    known = set(letters)
    if len(set(words)) < len(words) or any(word not in vocab or not known.issuperset(word) for word in words):
        return None
    byte = {letter: i for i, letter in enumerate(letters)}
    ranks = {bytes(byte[letter] for letter in word): i for i, word in enumerate(words)}
    encoding = tiktoken.Encoding("bpe", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    found = Quick(encoding, np.array([vocab[word] for word in words], dtype))
    return found if alone(described, words, vocab) and alike() else None


def plain(described: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether it is a BPE of bytes in words as GPT-2 cuts them, and nothing more."""
    cuts = described.get("pre_tokenizer") or {}
    same = all(cuts.get(name) == value for name, value in CUTS.items())
    special = all(token["special"] for token in described.get("added_tokens") or [])
    rest = described.get("normalizer") is None and not any(model.get(name) for name in PLAIN)
    return model.get("type") == "BPE" and same and special and rest


def alone(described: dict[str, Any], words: list[str], vocab: dict[str, int]) -> bool:
    """Whether each entry by itself is one id."""
    bare = {"pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    made = tokenizers.Tokenizer.from_str(json.dumps(described | bare))
    return all(one.ids == [vocab[word]] for word, one in zip(words, made.encode_batch_fast(words), strict=True))


@cache
def alike() -> bool:
    """Whether both cut words at the same characters: tables of Unicode differ by year. tiktoken looks a word up before
    it takes it to pieces, so that a vocabulary of all words of the one shows whether they are those of the other."""
    import tiktoken

    first, second, end = SCRIPTS
    characters = [*map(chr, range(first)), *map(chr, range(second, end))]
    text = "".join(f"a{c}1{c} {c}" for c in characters)
    letters, level = byte_alphabet(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte = {letter: i for i, letter in enumerate(letters)}
    cuts = [bytes(byte[letter] for letter in word) for word, _ in level.pre_tokenize_str(text)]
    ranks = {word: i for i, word in enumerate(dict.fromkeys([*(bytes([i]) for i in range(256)), *cuts]))}
    encoding = tiktoken.Encoding("words", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary(text) == [ranks[word] for word in cuts]
