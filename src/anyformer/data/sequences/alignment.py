"""Alignments of a family of proteins: the rows and columns that a model reads, and how much each row counts.

Rows with many gaps, columns with many gaps and rows that repeat another one are left out; letters that are none of the
twenty residues are read as gaps. Close relatives share a weight: a row counts one over the number of rows that are at
least 80 % identical to it.

Shapes: N rows, W columns of the file, L columns that are kept.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...events import report_notice
from ..io.files import suffix
from ..sampling import sample_evenly, select_split, split_by_mask
from .read import ALIGNMENT_EXTENSIONS, FASTA_EXTENSIONS, is_sequence_file, read_sequences

STATES = "-ACDEFGHIKLMNPQRSTVWY"
INSERTION_EXTENSIONS = (".a3m", ".a2m")  # their lower-case letters belong to no column
MAX_CELLS = 1 << 28  # of an alignment, a byte each
MAX_ROWS = 20_000  # whose similarities are measured; of more rows an even sample is taken
MAX_COLUMNS = 1024  # that are kept: a model has a weight for each pair of them
MAX_COMPARISONS = 1 << 26  # of letters at once
IDENTITY = 0.8


@dataclass(frozen=True, eq=False)
class Alignment:
    """The rows and columns of an alignment that are kept."""

    ids: np.ndarray
    """(N, L) int8: index of each letter in STATES."""
    columns: np.ndarray
    """(L,) which column of the file each one is, from 0."""
    width: int
    """Columns of the file."""
    weights: np.ndarray
    """(N,)"""
    is_val: np.ndarray
    """(N,) bool"""
    sha256: str

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        return split_by_mask(self.is_val)

    def split(self, name: str) -> np.ndarray:
        """Return the indices of "train", "val" or "all"."""
        return select_split(name, self.splits)


def prepare_alignment(path: Path, max_gaps: float, val_fraction: float) -> Alignment:
    """Read an alignment and keep the columns, and then the rows, whose share of gaps is below `max_gaps`. Raises
    InputError."""
    letters = read_alignment(path)
    table = np.zeros(256, np.int8)
    for index, letter in enumerate(STATES):
        table[ord(letter)] = index
    ids = table[np.unique(letters, axis=0)]
    columns = np.flatnonzero((ids == 0).mean(0) < max_gaps)
    if len(columns) < 2:
        hint = "are these sequences aligned? else raise --max-gaps"
        raise InputError(f"{path}: fewer than 2 columns have less than {max_gaps:.0%} gaps: {hint}")
    if len(columns) > MAX_COLUMNS:
        hint = "leave out columns with a lower --max-gaps, or cut a domain out of it"
        raise InputError(f"{path}: {len(columns):,} columns are kept, at most {MAX_COLUMNS:,} can be: {hint}")
    ids = ids[:, columns]
    ids = ids[(ids == 0).mean(1) < max_gaps]
    if len(ids) < 2:
        raise InputError(f"{path}: {len(ids)} different rows of few gaps, an alignment needs hundreds of relatives")
    if len(ids) > MAX_ROWS:
        report_notice(f"{path}: an even sample of {MAX_ROWS:,} of {len(ids):,} rows is read")
        ids = sample_evenly(ids, MAX_ROWS)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(ids))
    n_val = min(max(1, round(val_fraction * len(ids))), len(ids) - 1)
    digest = hashlib.sha256(ids.tobytes() + columns.tobytes()).hexdigest()
    return Alignment(
        ids, columns, letters.shape[1], weigh_rows(ids), np.isin(np.arange(len(ids)), order[:n_val]), digest
    )


def read_alignment(path: Path) -> np.ndarray:
    """Return the letters of an alignment: (N, W) uint8, in upper case, "-" for a gap. Raises InputError."""
    if not is_sequence_file(path):
        endings = ", ".join((*FASTA_EXTENSIONS, *ALIGNMENT_EXTENSIONS))
        raise InputError(f"{path} is no alignment: expected FASTA, A3M, Stockholm or Clustal ({endings})")
    rows = list(iterate_rows(path))
    if len(rows) < 2:
        raise InputError(f"{path}: a single sequence is no alignment: bring hundreds of aligned relatives")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            problem = f"sequence {i + 1} has {len(row):,} columns, the first has {len(rows[0]):,}"
            hint = ": in FASTA lower-case letters are residues, name the file .a3m if they are insertions"
            raise InputError(
                f"{path}: {problem}: rows must be aligned{hint if suffix(path) in ('.fa', '.fasta') else ''}"
            )
    return np.frombuffer("".join(rows).encode("ascii"), np.uint8).reshape(len(rows), -1)


def iterate_rows(path: Path) -> Iterator[str]:
    n_cells, has_insertions = 0, suffix(path) in INSERTION_EXTENSIONS
    for row in read_sequences(path, aligned=True):
        row = "".join(c for c in row if not (c.islower() or c == ".")) if has_insertions else row.upper()
        n_cells += len(row)
        if n_cells > MAX_CELLS:
            raise InputError(
                f"{path}: more than {MAX_CELLS >> 20} Mi letters, which are held in memory: use fewer rows"
            )
        yield row.replace(".", "-")


def weigh_rows(ids: np.ndarray) -> np.ndarray:
    """Return one over the number of rows that are at least 80 % identical to each: (N,)"""
    size = max(1, MAX_COMPARISONS // ids.size)
    least = IDENTITY * ids.shape[1]
    blocks = (ids[start : start + size, None] == ids for start in range(0, len(ids), size))
    return np.concatenate([1 / (block.sum(-1, dtype=np.int16) >= least).sum(1) for block in blocks])
