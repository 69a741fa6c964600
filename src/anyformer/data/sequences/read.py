"""Biological sequences from FASTA files and from alignments, which are read as their sequences without gaps.

    a.fasta        ">name" before each sequence; also a3m, whose insertions are lower-case, and aligned FASTA
    a.sto          Stockholm: "name sequence" in each line, maybe in several blocks
    a.aln          Clustal: the same below a line that begins with CLUSTAL

The format is recognized by the first line. Gaps (- and .) are left out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InputError
from ..io.files import read_lines, read_start, suffix

FASTA_EXTENSIONS = (".fasta", ".fa", ".faa", ".fas", ".fna", ".ffn", ".a3m", ".a2m", ".afa")  # each also with .gz added
ALIGNMENT_EXTENSIONS = (".sto", ".stk", ".stockholm", ".aln")
RESIDUES = "ACDEFGHIKLMNPQRSTVWYBJOUXZ"  # the twenty; then rare, ambiguous and unknown ones
MAX_RESIDUES = 1 << 30  # held in memory
GAPS = str.maketrans("", "", "-.")
ALIGNMENT_STARTS = ("# STOCKHOLM", "CLUSTAL")


def is_sequence_file(path: Path) -> bool:
    """Whether a file holds sequences, by its name or its first line."""
    if suffix(path) in (*FASTA_EXTENSIONS, *ALIGNMENT_EXTENSIONS):
        return True
    start = read_start(path, 4096).decode("utf-8", "replace")
    lines = start.split("\n")
    is_fasta = start.startswith(">") and len(lines) > 1 and set(RESIDUES + "-.*\r").issuperset(lines[1].upper())
    return start.startswith(ALIGNMENT_STARTS) or (is_fasta and bool(lines[1].strip()))


def read_sequences(path: Path, aligned: bool = False) -> Iterator[str]:
    """Yield the sequences of a file in upper case and without gaps; `aligned`: as they are. Raises InputError with the
    line of a letter that is no residue."""
    start = read_start(path, 256).decode("utf-8", "replace")
    yield from (read_alignment if start.startswith(ALIGNMENT_STARTS) else read_fasta)(path, aligned)


def read_fasta(path: Path, aligned: bool = False) -> Iterator[str]:
    parts: list[str] | None = None  # of the sequence after the last name
    total = 0
    expected = "FASTA has a line '>name' before each"
    for where, line in read_lines(path):
        if line.startswith(">"):
            if parts is not None:
                yield _join(parts, f"{where}: the sequence before this line")
            parts = []
            continue
        sequence = check_residues(line.strip().removesuffix("*"), where, aligned)  # * is the end of translation
        if parts is None:
            if sequence:
                raise InputError(f"{where}: a sequence without a name: {expected}")
            continue
        parts.append(sequence)
        total += len(sequence)
        check_total(total, path)
    if parts is None:
        raise InputError(f"{path}: no sequence in it: {expected}")
    yield _join(parts, f"{path}: the sequence at the end")


def read_alignment(path: Path, aligned: bool = False) -> Iterator[str]:
    """Yield the sequences of a Stockholm or Clustal file, whose blocks are joined by the names in them."""
    sequences: dict[str, list[str]] = {}
    total = 0
    for where, line in read_lines(path):
        name, *parts = line.split()[:2] or [""]
        if not parts or line.startswith(("#", "//", " ", "\t", *ALIGNMENT_STARTS)):
            continue
        sequences.setdefault(name, []).append(check_residues(parts[0], where, aligned))
        total += len(parts[0])
        check_total(total, path)
    if not sequences:
        raise InputError(f"{path}: no sequence in it: expected lines of a name and a sequence")
    for name, parts in sequences.items():
        yield _join(parts, f"{path}: the sequence {name}")


def check_residues(sequence: str, where: str, aligned: bool = False) -> str:
    """Return a part of a sequence in upper case and without gaps, or, `aligned`, as it is. Raises InputError for what
    is no residue."""
    letters = sequence.translate(GAPS).upper()
    if wrong := [letter for letter in letters if letter not in RESIDUES]:
        raise InputError(f"{where}: {wrong[0]!r} is no residue: expected letters of {RESIDUES}")
    return sequence if aligned else letters


def check_total(total: int, path: Path) -> None:
    if total > MAX_RESIDUES:
        raise InputError(f"{path}: more than {MAX_RESIDUES >> 20} Mi residues, which are held in memory: use fewer")


def _join(parts: Sequence[str], what: str) -> str:
    if not any(parts):
        raise InputError(f"{what} is empty")
    return "".join(parts)
