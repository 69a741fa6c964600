"""The same ids sooner: a byte-level BPE in the manner of GPT-2, encoded by tiktoken where that is installed.

The library `tokenizers` joins the pair that was learned first; tiktoken the pair whose joined bytes were learned first.
They agree wherever every entry, encoded by itself, is one id: two neighbours can only be joined to an entry in the way
it was learned, since the entry's own bytes never come by another. That, and that both cut words alike in every script,
is asked before it is trusted.
"""

import json
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from .base import byte_alphabet

# Radford et al. 2019. In brackets is what needs no look ahead: by itself it is found by a quicker machine.
WORDS = r"""(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"""
CUTS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
SCRIPTS = ((0, 0xD800), (0xE000, 0x20000))  # below and above the surrogates, up to where ideographs alone follow
ROW = 4096  # characters


class TiktokenBackend:
    """Texts to ids by tiktoken."""

    def __init__(self, encoding: Any, ids: np.ndarray):
        self.encoding, self.ids = encoding, ids  # (ranks,): the id of each of tiktoken's

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with ThreadPoolExecutor(count_cores()) as pool:
            return list(pool.map(self.encode, texts))

    def encode(self, text: str) -> np.ndarray:
        made = array("I", self.encoding.encode_ordinary(text))  # numpy takes longer over a list
        return self.ids[np.frombuffer(made, np.uintc)]


def count_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_backend(text: str, dtype: type[np.unsignedinteger]) -> TiktokenBackend | None:
    """What gives the same ids as this tokenizer.json, sooner; or None."""
    try:
        import tiktoken
    except ImportError:
        return None
    described = json.loads(text)
    model = described["model"]
    if not is_gpt2_bpe(described, model):
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
    found = TiktokenBackend(encoding, np.array([vocab[word] for word in words], dtype))
    return found if entries_encode_to_themselves(described, words, vocab) and has_equal_word_splits() else None


def is_gpt2_bpe(described: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether it is a BPE of bytes in words as GPT-2 cuts them, and nothing more."""
    cuts = described.get("pre_tokenizer") or {}
    same = all(cuts.get(name) == value for name, value in CUTS.items())
    special = all(token["special"] for token in described.get("added_tokens") or [])
    rest = described.get("normalizer") is None and not any(model.get(name) for name in PLAIN)
    return model.get("type") == "BPE" and same and special and rest


def entries_encode_to_themselves(described: dict[str, Any], words: list[str], vocab: dict[str, int]) -> bool:
    """Whether each entry by itself is one id."""
    bare = {"pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    made = tokenizers.Tokenizer.from_str(json.dumps(described | bare))
    return all(one.ids == [vocab[word]] for word, one in zip(words, made.encode_batch_fast(words), strict=True))


@cache
def has_equal_word_splits() -> bool:
    """Whether both cut words at the same characters: tables of Unicode differ by year. With a vocabulary of
    bytes that tells the last of a word from the others, the library shows where it cuts; tiktoken looks a word up
    before it takes it to pieces, so that a vocabulary of all those words shows whether they are its own."""
    import tiktoken

    rows = [row for first, end in SCRIPTS for row in split_probes(first, end)]
    letters = byte_alphabet()
    vocab = {letter: i for i, letter in enumerate([*letters, *(f"{letter}\0" for letter in letters)])}
    cutter = tokenizers.Tokenizer(models.BPE(vocab, [], end_of_word_suffix="\0"))
    cutter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cuts = []
    for row, made in zip(rows, cutter.encode_batch_fast(rows), strict=True):
        ends = np.flatnonzero(np.array(made.ids) >= len(letters)) + 1
        cuts.append([row.encode()[start:end] for start, end in pairwise([0, *ends.tolist()])])
    words = dict.fromkeys([*(bytes([i]) for i in range(256)), *(word for row in cuts for word in row)])
    ranks = {word: i for i, word in enumerate(words)}
    encoding = tiktoken.Encoding("words", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    return all(encoding.encode_ordinary(row) == [ranks[word] for word in cut] for row, cut in zip(rows, cuts))


def split_probes(first: int, end: int) -> list[str]:
    """Each of these characters behind a letter, before a number and behind a space, in rows of some thousand."""
    return [
        "".join(f"a{chr(c)}1 {chr(c)}" for c in range(start, min(start + ROW, end))) for start in range(first, end, ROW)
    ]
