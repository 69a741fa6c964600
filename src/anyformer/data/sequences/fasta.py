"""Protein sequences in FASTA, one id a residue.

The part for validation shares no near-identical sequence with the part for training: sequences whose sketches of
short words agree anywhere are kept together (the smallest hashes of a set are a fair sample of it: Broder 1997).
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..text.prepare import Corpus
from ..tokenizers.build import Characters, Tokenizer

FASTA_EXTENSIONS = (".fasta", ".fa", ".faa", ".fas")  # each also with .gz added
RESIDUES = "ACDEFGHIKLMNPQRSTVWYBJOUXZ"  # the twenty; then rare, ambiguous and unknown ones
MAX_RESIDUES = 1 << 30  # residues held in memory
WORD, SKETCH = 8, 10  # residues of a word, words of a sketch
ALPHABET = (RESIDUES + RESIDUES.lower()).encode()


def is_fasta(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(FASTA_EXTENSIONS)


def residue_tokenizer() -> Characters:
    """The tokenizer: an id for each residue, the last one for the end of a sequence."""
    return Characters(RESIDUES)


def read_fasta(path: Path) -> Iterator[str]:
    """The sequences of a file in upper case. Raises InputError, with the line, for letters that are no residues."""
    parts: list[bytes] = []
    began, total = False, 0
    for number, line in lines(path):
        if line.startswith(b">"):
            if began:
                yield whole(parts, path, number)
            began, parts = True, []
            continue
        line = line.strip().removesuffix(b"*")  # where translation stopped
        if strange := line.translate(None, ALPHABET):
            letter = strange[:1].decode("latin-1")
            raise InputError(f"{path}, line {number}: {letter!r} is no residue: expected letters of {RESIDUES}")
        if line and not began:
            raise InputError(f"{path}, line {number}: a sequence without a name: FASTA has a line '>name' before each")
        parts.append(line)
        total += len(line)
        if total > MAX_RESIDUES:
            raise InputError(f"{path}: more than {MAX_RESIDUES >> 20} Mi residues, which are held in memory: take a part")
    if not began:
        raise InputError(f"{path}: no sequence in it: FASTA has a line '>name' before each")
    yield whole(parts, path, None)


def whole(parts: Sequence[bytes], path: Path, line: int | None) -> str:
    found = b"".join(parts).decode().upper()
    if not found:
        raise InputError(f"{path}: the sequence {'at the end' if line is None else f'before line {line}'} is empty")
    return found


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_RESIDUES):
                number += 1
                yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise InputError(f"{path}: damaged gzip file ({e}): fetch or compress it again") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror or e})") from None


def prepare_sequences(paths: Sequence[Path], tokenizer: Tokenizer, val_fraction: float) -> Corpus:
    """All sequences as one row of tokens, the end of a text between them: first those for training, then those for
    validation. A foreign tokenizer reads residues with spaces between."""
    if not 0 <= val_fraction < 1:
        raise InputError(f"a validation fraction of {val_fraction} leaves nothing to train on: 0 <= fraction < 1")
    found = [sequence for path in paths for sequence in read_fasta(path)]
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    held = select_validation(found, val_fraction)
    spaced = not isinstance(tokenizer, Characters)
    end: list[Any] = [] if tokenizer.end_id is None else [np.array([tokenizer.end_id], np.uint16)]
    sides: list[np.ndarray] = []
    for side in (False, True):
        some = (" ".join(s) if spaced else s for s, out in zip(found, held, strict=True) if out == side)
        parts = [part for s in some for part in (tokenizer.encode(s), *end)]
        sides.append(np.concatenate(parts) if parts else np.zeros(0, np.uint16))
    tokens: Any = np.concatenate(sides)
    meta = {"sha256": digest, "n_documents": len(found), "n_tokens": len(tokens), "vocab_size": tokenizer.vocab_size}
    return Corpus(tokens, tokenizer, len(sides[0]), digest, meta)


def select_validation(found: Sequence[str], fraction: float) -> list[bool]:
    """Which sequences are for validation: whole families, in an order that only their content decides, until they have
    this fraction of all residues."""
    family = group_families([sketch_sequence(sequence) for sequence in found])
    key = {f: hashlib.sha256(found[f].encode()).digest() for f in set(family)}
    size = dict.fromkeys(key, 0)
    for sequence, f in zip(found, family, strict=True):
        size[f] += len(sequence)
    wanted, taken = fraction * sum(size.values()), set()
    for f in sorted(key, key=key.__getitem__):
        if size[f] <= wanted:
            taken.add(f)
            wanted -= size[f]
    return [f in taken for f in family]


def sketch_sequence(sequence: str) -> np.ndarray:
    """The smallest hashes of a sequence's words, at most SKETCH of them."""
    codes = np.frombuffer(sequence.encode(), np.uint8).astype(np.uint64) & np.uint64(31)
    word = min(WORD, len(codes))
    hashes = np.zeros(len(codes) - word + 1, np.uint64)
    for i in range(word):
        hashes = hashes << np.uint64(5) | codes[i : i + len(hashes)]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the mixing of SplitMix64
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return np.unique(hashes ^ (hashes >> np.uint64(31)))[:SKETCH]


def group_families(sketches: Sequence[np.ndarray]) -> list[int]:
    """Sequences that share a word of their sketches belong together: for each, the first of its family."""
    parent = list(range(len(sketches)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[int, int] = {}
    for i, words in enumerate(sketches):
        for word in words.tolist():
            a, b = root(first.setdefault(word, i)), root(i)
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(sketches))]
