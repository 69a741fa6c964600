"""Structures of proteins (PDB, mmCIF, each also .gz): where the residues of an alignment's columns are in space."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..io.files import import_optional, suffix
from .alignment import STATES, Alignment

STRUCTURE_EXTENSIONS = (".pdb", ".ent", ".cif", ".mmcif")
MAX_BYTES = 1 << 28
MAX_RESIDUES = 5000  # of a chain
MIN_IDENTITY = 0.5  # of the residues of the most similar row
WORD = 3  # residues by which rows are compared with a chain
CONTACT = 8.0  # Angstrom between two C-beta
SEPARATION = 6  # residues between the two of a pair, at least


@dataclass(frozen=True, eq=False)
class Structure:
    """A chain whose residues belong to columns of an alignment."""

    chain: str
    columns: np.ndarray
    """(M,) which of the kept columns have a residue."""
    numbers: np.ndarray
    """(M,) their places in the chain, from 0."""
    beta: np.ndarray
    """(M, 3) where their C-beta is (of glycine C-alpha), in Angstrom."""
    alpha: np.ndarray
    """(all residues of the chain, 3) C-alpha."""

    @property
    def contacts(self) -> np.ndarray:
        """Which pairs are in contact: (M, M) bool."""
        return np.linalg.norm(self.beta[:, None] - self.beta, axis=-1) < CONTACT


def load_structure(path: Path, alignment: Alignment) -> Structure:
    """Read the chain that is most similar to a row of the alignment. Raises InputError."""
    chains = read_chains(path)
    rows = ["".join(STATES[i] for i in row) for row in alignment.ids]
    matches = [(*match_row(sequence, rows), name) for name, (sequence, _, _) in chains.items()]
    identity, columns, numbers, name = max(matches, key=lambda match: match[0])
    if identity < MIN_IDENTITY or len(columns) < 2:
        problem = f"its chain {name} has {identity:.0%} of the residues of the most similar row"
        raise InputError(f"{path} does not match the alignment: {problem}; at least {MIN_IDENTITY:.0%} must be equal")
    _, beta, alpha = chains[name]
    return Structure(name, columns, numbers, beta[numbers], alpha)


def read_chains(path: Path) -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Return the sequence, C-beta and C-alpha of each protein chain of the first model. Raises InputError."""
    if suffix(path) not in STRUCTURE_EXTENSIONS:
        raise InputError(f"{path} is no structure: expected {', '.join(STRUCTURE_EXTENSIONS)}, maybe with .gz")
    gemmi: Any = import_optional("gemmi", "structures are read by gemmi: pip install 'anyformer[proteins]'")
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {'it is too large' if path.is_file() else 'no such file'}")
    try:
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a structure: {' '.join(str(error).split())}") from None
    chains = {chain.name: read_residues(gemmi, chain) for model in [*structure][:1] for chain in model}
    chains = {name: parts for name, parts in chains.items() if len(parts[0]) >= WORD}
    if not chains:
        raise InputError(f"{path}: no chain of a protein in it")
    return chains


def read_residues(gemmi: Any, chain: Any) -> tuple[str, np.ndarray, np.ndarray]:
    letters, beta, alpha = [], [], []
    for residue in chain.first_conformer():
        kind, trace = gemmi.find_tabulated_residue(residue.name), residue.find_atom("CA", "*")
        if not kind.is_amino_acid() or trace is None or len(letters) == MAX_RESIDUES:
            continue
        letters.append(kind.one_letter_code.upper())
        alpha.append(trace.pos.tolist())
        beta.append((residue.find_atom("CB", "*") or trace).pos.tolist())
    return "".join(letters), np.array(beta), np.array(alpha)


def match_row(sequence: str, rows: Sequence[str]) -> tuple[float, np.ndarray, np.ndarray]:
    """Return how much of the row that is most similar to a sequence equals it, which columns of the row have a residue
    of the sequence, and which ones these are."""
    words = split_words(sequence)
    best = max(rows, key=lambda row: len(words & split_words(row.replace("-", ""))))
    places = [column for column, letter in enumerate(best) if letter != "-"]
    pairs, n_equal = [], 0
    blocks = SequenceMatcher(None, sequence, best.replace("-", ""), autojunk=False).get_opcodes()
    for kind, start, stop, left, right in blocks:
        if kind == "equal" or (kind == "replace" and stop - start == right - left):
            pairs += [(places[left + i], start + i) for i in range(stop - start)]
            n_equal += (stop - start) * (kind == "equal")
    columns, numbers = np.array(pairs, np.int64).reshape(-1, 2).T
    return n_equal / max(1, len(places)), columns, numbers


def split_words(sequence: str) -> set[str]:
    return {sequence[i : i + WORD] for i in range(len(sequence) - WORD + 1)}
