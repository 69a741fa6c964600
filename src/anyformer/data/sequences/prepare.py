"""Biological sequences to token ids, one for each residue.

The validation split has no sequence that is nearly identical to one of the training split: sequences whose sketches of
short words share a hash stay together (the smallest hashes of a set are a uniform sample of it: Broder 1997).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..text.prepare import Corpus
from ..tokenizers.base import Characters, Tokenizer
from ..unusable import DuplicatePolicy, select_distinct
from .read import read_sequences

WORD_LENGTH, SKETCH_SIZE = 8, 10  # residues of a word, words of a sketch


def prepare_sequences(
    paths: Sequence[Path], tokenizer: Tokenizer, val_fraction: float, duplicates: DuplicatePolicy = "keep"
) -> Corpus:
    """Return all sequences as one array of ids, each followed by the end id: first training, then validation.

    A public tokenizer reads residues with spaces between.
    """
    sequences = [sequence for path in paths for sequence in read_sequences(path)]
    sequences = select_distinct(sequences, lambda sequence: sequence, duplicates, str(paths[0]), "sequences")
    digest = hashlib.sha256("\n".join(sequences).encode()).hexdigest()
    is_val = select_validation(sequences, val_fraction)
    separator = "" if isinstance(tokenizer, Characters) else " "
    end: list[Any] = [] if tokenizer.end_id is None else [np.array([tokenizer.end_id], np.uint16)]
    splits: list[np.ndarray] = []
    for split in (False, True):
        texts = [separator.join(text) for text, val in zip(sequences, is_val, strict=True) if val == split]
        parts = [part for text in texts for part in (tokenizer.encode(text), *end)]
        splits.append(np.concatenate(parts) if parts else np.zeros(0, np.uint16))
    tokens: Any = np.concatenate(splits)
    meta = {"sha256": digest, "n_documents": len(sequences), "n_tokens": len(tokens)}
    return Corpus(tokens, tokenizer, len(splits[0]), digest, meta | {"vocab_size": tokenizer.vocab_size})


def select_validation(sequences: Sequence[str], fraction: float) -> list[bool]:
    """Select whole families, in an order by their content, until they have this fraction of all residues."""
    families = group_families([sketch_sequence(sequence) for sequence in sequences])
    keys = {f: hashlib.sha256(sequences[f].encode()).digest() for f in set(families)}
    sizes = dict.fromkeys(keys, 0)
    for sequence, family in zip(sequences, families, strict=True):
        sizes[family] += len(sequence)
    remaining, selected = fraction * sum(sizes.values()), set()
    for family in sorted(keys, key=keys.__getitem__):
        if sizes[family] <= remaining:
            selected.add(family)
            remaining -= sizes[family]
    return [family in selected for family in families]


def sketch_sequence(sequence: str) -> np.ndarray:
    """Return the smallest hashes of a sequence's words, at most SKETCH_SIZE of them."""
    codes = np.frombuffer(sequence.encode(), np.uint8).astype(np.uint64) & np.uint64(31)
    length = min(WORD_LENGTH, len(codes))
    hashes = np.zeros(len(codes) - length + 1, np.uint64)
    for i in range(length):
        hashes = hashes << np.uint64(5) | codes[i : i + len(hashes)]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the mixing of SplitMix64
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return np.unique(hashes ^ (hashes >> np.uint64(31)))[:SKETCH_SIZE]


def group_families(sketches: Sequence[np.ndarray]) -> list[int]:
    """Group sequences that share a word of their sketches: for each, return the index of its family's first."""
    parent = list(range(len(sketches)))

    def find_root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[int, int] = {}
    for i, words in enumerate(sketches):
        for word in words.tolist():
            a, b = find_root(first.setdefault(word, i)), find_root(i)
            parent[max(a, b)] = min(a, b)
    return [find_root(i) for i in range(len(sketches))]
