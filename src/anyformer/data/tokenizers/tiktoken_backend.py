"""A faster backend, tiktoken, for byte-level BPE vocabularies with GPT-2's word splits, where it is installed.

The library `tokenizers` merges the pair that was learned first; tiktoken merges the pair whose merged bytes were
learned first. The two agree if every entry of the vocabulary, encoded by itself, is one id: two neighbors can then only
be merged to an entry in the way that was learned, since no other way gives the entry's bytes. That, and that both split
words equally in every script, is checked before the backend is used.
"""

import json
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from .base import byte_alphabet

# Radford et al. 2019. The group in parentheses needs no look-ahead; by itself it runs on a faster regex engine.
WORDS = r"""(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"""
GPT2_PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
SCRIPTS = ((0, 0xD800), (0xE000, 0x20000))  # below and above the surrogates; above 0x20000 are only ideographs
PROBE_CHARACTERS = 4096


class TiktokenBackend:
    """Encodes texts with tiktoken. `ids`: (ranks,), the id of each of tiktoken's ranks."""

    def __init__(self, encoding: Any, ids: np.ndarray):
        self.encoding, self.ids = encoding, ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(cores) as pool:
            return list(pool.map(self.encode, texts))

    def encode(self, text: str) -> np.ndarray:
        ranks = array("I", self.encoding.encode_ordinary(text))  # numpy takes longer to convert a list
        return self.ids[np.frombuffer(ranks, np.uintc)]


def build_backend(text: str, dtype: type[np.unsignedinteger]) -> TiktokenBackend | None:
    """Build a backend with the same ids as this tokenizer.json; None if there is none."""
    try:
        import tiktoken
    except ImportError:
        return None
    content = json.loads(text)
    if not _is_gpt2_bpe(content):
        return None
    vocab, letters = content["model"]["vocab"], byte_alphabet()
    pairs = [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in content["model"]["merges"]]
    words = [*letters, *("".join(pair) for pair in pairs)]
    alphabet = set(letters)
    if len(set(words)) < len(words) or any(word not in vocab or not alphabet.issuperset(word) for word in words):
        return None
    ids = [vocab[word] for word in words]
    bare = content | {"pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    encodings = tokenizers.Tokenizer.from_str(json.dumps(bare)).encode_batch_fast(words)
    if [encoding.ids for encoding in encodings] != [[i] for i in ids] or not splits_words_equally():
        return None
    byte = {letter: i for i, letter in enumerate(letters)}
    ranks = {bytes(byte[letter] for letter in word): i for i, word in enumerate(words)}
    encoding = tiktoken.Encoding("bpe", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    return TiktokenBackend(encoding, np.array(ids, dtype))


def _is_gpt2_bpe(content: dict[str, Any]) -> bool:
    """Whether it is a BPE on bytes with GPT-2's word splits and nothing else."""
    model, pre_tokenizer = content["model"], content.get("pre_tokenizer") or {}
    has_gpt2_splits = all(pre_tokenizer.get(name) == value for name, value in GPT2_PRE_TOKENIZER.items())
    has_only_special = all(token["special"] for token in content.get("added_tokens") or [])
    is_plain = content.get("normalizer") is None and not any(model.get(name) for name in UNSUPPORTED)
    return model.get("type") == "BPE" and has_gpt2_splits and has_only_special and is_plain


@cache
def splits_words_equally() -> bool:
    """Whether both libraries split words at the same characters: their Unicode tables may differ in version.

    tiktoken looks a word up before it merges: with a vocabulary of all words into which `tokenizers` splits the texts,
    it gives one id for each word exactly if it splits equally.
    """
    import tiktoken

    starts = [(start, end) for first, end in SCRIPTS for start in range(first, end, PROBE_CHARACTERS)]
    characters = [map(chr, range(start, min(start + PROBE_CHARACTERS, end))) for start, end in starts]
    texts = ["".join(f"a{c}1 {c}" for c in part) for part in characters]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    splits = [[text[slice(*span)].encode() for _, span in split(text)] for text in texts]
    words = dict.fromkeys([*(bytes([i]) for i in range(256)), *(word for row in splits for word in row)])
    ranks = {word: i for i, word in enumerate(words)}
    encoding = tiktoken.Encoding("words", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    return all(encoding.encode_ordinary(text) == [ranks[word] for word in row] for text, row in zip(texts, splits))
