"""Read pairs of texts: from a table, from two files line by line, from JSON lines, from a folder, or from a named set.

    pairs.tsv               source TAB target; further columns are ignored
    pairs.csv               columns source and target, or two columns; the delimiter is recognized
    pairs.jsonl             {"source": ..., "target": ...}, or the only two texts of each line, under any names;
                            {"translation": {"en": ..., "fr": ...}} too, as Hugging Face's; also .json, .parquet
    a.en,a.fr               two files, line by line
    folder                  STEM.SIDE files: train.en, train.fr, val.en, val.fr; also src-train.txt, tgt-train.txt
    multi30k                a named set; multi30k/test_2016_flickr is that part of it
    reverse                 strings of 5 to 20 digits and their reversals, generated

If there is no validation split, one is separated by the first side, so that no sentence is in both.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ..io.archives import unpack_archive
from ..io.cache import cache_by_files, data_files
from ..io.files import read_line_pairs, read_lines, suffix
from ..io.manifest import is_table, read_rows, split_columns
from ..io.resolve import resolve
from ..registry import SETS
from ..sampling import select_split
from ..unusable import DuplicatePolicy, EmptyPolicy, check_empty, report_duplicates

MAX_LINE_BYTES = 1 << 20
SAMPLE_PAIRS = 500
MAX_FILE_BYTES = 4 << 30  # all pairs are held in memory
TABLE_EXTENSIONS = (".tsv", ".txt", ".tab")
SOURCE_SIDES = ("src", "source", "input", "in", "complex", "original")
TARGET_SIDES = ("tgt", "trg", "target", "output", "out", "simple", "simplified", "summary")
LANGUAGES = frozenset(
    """
    en de fr es it pt nl ru zh ja ko ar cs pl fi sv da tr uk el hu ro hi vi
    """.split()  # noqa: SIM905
)
SIDE = re.compile(rf"(?:^|[._-])({'|'.join((*SOURCE_SIDES, *TARGET_SIDES, *sorted(LANGUAGES)))})(?=[._-]|$)")
VALIDATION_NAMES = ("val", "valid", "validation", "dev")
REVERSE = "reverse"
EXPECTED = (
    "source TAB target in a .tsv, a .csv with two columns, two files A,B, a .jsonl, or a folder with "
    "train.en and train.fr"
)
EXPECTED_LINE = 'each line must be an object such as {"source": "...", "target": "..."}'

Pair = tuple[str, str]
Line = tuple[str, str, str]  # place, and the two sides; "" is a missing one


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sources and targets of the splits "train" and "val"."""

    splits: dict[str, list[Pair]]
    sha256: str  # of all pairs in order
    skipped: int = 0  # pairs with an empty side that were left out
    data: str = ""
    backwards: bool = False
    columns: str = ""

    def split(self, name: str) -> list[Pair]:
        """Return the pairs of "train", "val" or "all"."""
        return select_split(name, {**self.splits, "all": [pair for pairs in self.splits.values() for pair in pairs]})

    def locate(self, pair: Pair) -> str:
        """Return where the data hold this pair, by reading them again."""
        sides = pair[::-1] if self.backwards else pair
        lines = (line for lines in _find_splits(self.data, self.columns).values() for line in lines)
        return next((where for where, source, target in lines if (source, target) == sides), self.data)


@cache_by_files(lambda data, *_, **__: data_files(data))
def read_pairs(
    data: str,
    val_fraction: float = 0.1,
    backwards: bool = False,
    empty: EmptyPolicy = "few",
    columns: str = "",
    duplicates: DuplicatePolicy = "keep",
) -> Pairs:
    """Read the pairs of a file, two files, a folder or a named set. Raises InputError.

    Args:
        backwards: swap source and target.
        empty: what becomes of pairs with an empty side.
        columns: the columns of a table for both sides, with a comma between; "" for source and target, or the only two.
        duplicates: what becomes of pairs that repeat another one.
    """
    splits: dict[str, list[Pair]] = {}
    missing: list[str] = []  # places of the pairs without one of their sides
    for name, lines in _find_splits(data, columns).items():
        splits[name] = []
        for where, source, target in lines:
            if source and target:
                splits[name].append((source, target))
            else:
                missing.append(where)
    total = len(missing) + sum(map(len, splits.values()))
    check_empty(missing, total, empty, "pairs have an empty side")
    what, kept = f"data '{data}'" if data_files(data) else "", total - len(missing)
    distinct = {name: list(dict.fromkeys(pairs)) for name, pairs in splits.items()}
    repeated = kept - len({pair for pairs in splits.values() for pair in pairs})
    report_duplicates(repeated, total, duplicates, what, "pairs")
    splits = distinct if duplicates == "skip" else splits
    if "val" not in splits:
        splits = _separate_validation(splits["train"], val_fraction)
    if without_pairs := [name for name, pairs in splits.items() if not pairs]:
        raise InputError(f"data '{data}': no pair is left for {without_pairs[0]}: bring more of them")
    if backwards:
        splits = {name: [(target, source) for source, target in pairs] for name, pairs in splits.items()}
    return Pairs(splits, _hash_pairs(splits), len(missing), data, backwards, columns)


def sample_pairs(data: str, columns: str = "") -> list[Pair]:
    """Return the first pairs of the data, with empty sides too. Raises InputError."""
    return [(source, target) for _, source, target in islice(_find_splits(data, columns)["train"], SAMPLE_PAIRS)]


def _separate_validation(pairs: list[Pair], fraction: float) -> dict[str, list[Pair]]:
    """Select sources by their hash: a sentence is in one split only, and the order of the pairs does not matter."""
    sources = {source for source, _ in pairs}
    ranked = sorted(sources, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    selected = set(ranked[: max(1, round(fraction * len(sources)))])
    return {name: [p for p in pairs if (p[0] in selected) == is_val] for name, is_val in (("train", 0), ("val", 1))}


def _hash_pairs(splits: dict[str, list[Pair]]) -> str:
    sha256 = hashlib.sha256()
    for name, pairs in splits.items():
        sha256.update(f"{name} {len(pairs)}\n".encode())
        for source, target in pairs:
            sha256.update(f"{source}\t{target}\n".encode("utf-8", "surrogatepass"))
    return sha256.hexdigest()


def _find_splits(data: str, columns: str = "") -> dict[str, Iterable[Line]]:
    """Return the lines of "train", and of "val" if the data have one. Raises InputError."""
    path = unpack_archive(Path(data).expanduser())
    names = split_columns(columns, "source,target") if columns else ()
    if data and path.is_dir():
        return _read_folder(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), data)
    if data and path.exists():
        return {"train": _read_file(path, names)}
    if "," in data:
        paths = [Path(part.strip()).expanduser() for part in data.split(",")]
        if len(paths) != 2:
            raise InputError(f"data '{data}' names {len(paths)} files; pairs need two, line by line")
        if missing := [path for path in paths if not path.is_file()]:
            raise InputError(f"data '{data}': there is no file {missing[0]}")
        return {"train": _read_two_files(*paths)}
    if data == REVERSE:
        return _reverse_pairs()
    name, _, part = data.partition("/")
    if name in SETS:
        files = resolve(name)
        return _read_folder(files, data, part) if part or len(files) > 1 else {"train": _read_file(files[0])}
    if not data or path.suffix or "/" in data:
        raise InputError(f"data '{data}': no such file, folder or set (looked in {Path.cwd()}): {EXPECTED}")
    raise InputError(f"data '{data}': no such file or data set: {suggest(data, [REVERSE, *SETS])}")


def split_side(name: str) -> tuple[str, str]:
    """Return what the names of two parallel files share, and the side: ("train", "src") for "src-train.txt"."""
    name = name.removesuffix(".gz")
    text = name.removesuffix(".txt")
    if not (matches := list(SIDE.finditer(text.lower()))):
        stem, _, side = name.rpartition(".")
        return stem, side
    start, end = matches[-1].span()
    return (text[:start] + text[end:]).strip("._-"), matches[-1][1]


def find_parallel(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the two files of each stem, the source first; the sides that are languages are in alphabetical order."""
    stems: dict[str, list[tuple[bool, str, Path]]] = {}
    for path in files:
        stem, side = split_side(path.name)
        stems.setdefault(stem, []).append((side in TARGET_SIDES, side, path))
    return {stem: [path for *_, path in sorted(sides)] for stem, sides in stems.items() if len(sides) == 2}


def _read_folder(files: list[Path], data: str, part: str = "") -> dict[str, Iterable[Line]]:
    """Read two files of each stem; "train" and "val" are stems."""
    pairs = find_parallel(files)
    train = part or "train"
    if train not in pairs:
        raise InputError(f"data '{data}' has no two files {train}.*: {suggest(train, pairs) if pairs else EXPECTED}")
    splits: dict[str, Iterable[Line]] = {"train": _read_two_files(*pairs[train])}
    val = next((pairs[stem] for stem in VALIDATION_NAMES if stem in pairs), None)
    return splits if part or val is None else splits | {"val": _read_two_files(*val)}


def _check_size(*paths: Path) -> None:
    for path in paths:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB: the pairs are kept in memory, use fewer")


def _read_two_files(first: Path, second: Path) -> Iterator[Line]:
    _check_size(first, second)
    for (where, source), (_, target) in read_line_pairs(first, second, MAX_LINE_BYTES):
        yield where, source.strip(), target.strip()


def _read_file(path: Path, columns: tuple[str, ...] = ()) -> Iterator[Line]:
    """Read lines with tabs, or a table, by the file's extension."""
    _check_size(path)
    if suffix(path) in TABLE_EXTENSIONS and columns in ((), ("1", "2")):
        for where, line in read_lines(path, MAX_LINE_BYTES):
            if line.strip():
                source, target, *_ = [*line.split("\t", 2), ""]
                yield where, source.strip(), target.strip()
    elif is_table(path):
        for where, row in read_rows(path):
            source, target, *_ = _select_sides(row, where, columns)
            yield where, source.strip(), target.strip()
    else:
        raise InputError(f"data '{path}': cannot be read as pairs: {EXPECTED}")


def _select_sides(value: dict[str, Any], where: str, columns: tuple[str, ...] = ()) -> list[str]:
    """Return both sides; a missing or null one is ""."""
    nested = [part for part in value.values() if isinstance(part, dict)]
    if not columns and len(nested) == 1 and not value.keys() & {"source", "target"}:
        value = nested[0]
    names = columns or (("source", "target") if value.keys() & {"source", "target"} else tuple(value))
    if columns and (missing := [name for name in columns if name not in value]):
        raise InputError(f"{where}: there is no column '{missing[0]}': {suggest(missing[0], map(str, value))}")
    if len(names) > 2 or not all(isinstance(value.get(name), str | None) for name in names):
        hint = f"{EXPECTED_LINE}; --columns SOURCE,TARGET names two"
        raise InputError(f"{where}: has {', '.join(map(repr, list(value)[:5]))}: {hint}")
    return [*(value.get(name) or "" for name in names), "", ""]


def _reverse_pairs() -> dict[str, Iterable[Line]]:
    """Generate strings of 5 to 20 digits and their reversals, always the same ones; no string is in both splits."""
    train, val = 50_000, 1_000
    words = np.random.Philox(key=0).random_raw((train + 2 * val) * 21).reshape(-1, 21)
    sizes, digits = (words[:, 0] % 16 + 5).tolist(), (words[:, 1:] % 10 + ord("0")).astype(np.uint8)
    texts = list(dict.fromkeys(row.tobytes()[:size].decode() for row, size in zip(digits, sizes)))
    lines = [(f"string {i}", text, text[::-1]) for i, text in enumerate(texts[: train + val])]
    return {"train": lines[val:], "val": lines[:val]}
