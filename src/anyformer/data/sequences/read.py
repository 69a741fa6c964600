"""Read protein sequences from FASTA files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InputError
from ..io.files import open_data, suffix

FASTA_EXTENSIONS = (".fasta", ".fa", ".faa", ".fas")  # each also with .gz added
RESIDUES = "ACDEFGHIKLMNPQRSTVWYBJOUXZ"  # the twenty; then rare, ambiguous and unknown ones
MAX_RESIDUES = 1 << 30  # held in memory
LETTERS = (RESIDUES + RESIDUES.lower()).encode()


def is_fasta(path: Path) -> bool:
    return suffix(path) in FASTA_EXTENSIONS


def read_fasta(path: Path) -> Iterator[str]:
    """Yield the sequences of a file in upper case. Raises InputError with the line of a letter that is no residue."""
    parts: list[bytes] = []
    has_name, total = False, 0
    for number, line in _read_lines(path):
        if line.startswith(b">"):
            if has_name:
                yield _join(parts, path, number)
            has_name, parts = True, []
            continue
        line = line.strip().removesuffix(b"*")  # the end of translation
        if unknown := line.translate(None, LETTERS):
            letter = unknown[:1].decode("latin-1")
            raise InputError(f"{path}, line {number}: {letter!r} is no residue: expected letters of {RESIDUES}")
        if line and not has_name:
            raise InputError(f"{path}, line {number}: a sequence without a name: FASTA has a line '>name' before each")
        parts.append(line)
        total += len(line)
        if total > MAX_RESIDUES:
            raise InputError(f"{path}: more than {MAX_RESIDUES >> 20} Mi residues, which are held in memory: use fewer")
    if not has_name:
        raise InputError(f"{path}: no sequence in it: FASTA has a line '>name' before each")
    yield _join(parts, path, None)


def _join(parts: Sequence[bytes], path: Path, line: int | None) -> str:
    sequence = b"".join(parts).decode().upper()
    if not sequence:
        raise InputError(f"{path}: the sequence {'at the end' if line is None else f'before line {line}'} is empty")
    return sequence


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open_data(path) as file:
        number = 0
        while line := file.readline(MAX_RESIDUES):
            number += 1
            yield number, line
