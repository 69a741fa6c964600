"""Pairs of texts that say the same: from a table, from two files line by line, from JSON lines, or a set by name.

    pairs.tsv               source TAB target; further columns are left out
    pairs.jsonl             {"source": ..., "target": ...}, or the only two texts of each line, under any names
    a.en,a.fr               two files, line by line
    folder                  STEM.SIDE files, as train.en, train.fr, val.en, val.fr
    multi30k                a set; multi30k/test_2016_flickr is that part of it
    reverse                 strings of 5 to 20 digits and the same from behind, made on the spot

Where there is no part for validation, one is split off by the first side, so that no sentence is on both.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ...errors import InputError, suggest
from ..io import resolve as sets

MAX_LINE_BYTES = 1 << 20  # bytes
MAX_FILE_BYTES = 4 << 30  # bytes of a file: its pairs are kept in memory
TABLES = (".tsv", ".txt", ".tab")
VALIDATION = ("val", "valid", "validation", "dev")
REVERSE = "reverse"
WHAT = "source TAB target in a .tsv, two files A,B, a .jsonl, or a folder with train.en and train.fr"

Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Texts and what they become, by part: "train" and "val"."""

    parts: dict[str, list[Pair]]
    sha256: str
    """Of all pairs in order."""
    skipped: int = 0
    """Pairs with a missing side that were left out."""


@dataclass(frozen=True)
class Line:
    """One line of the data: where it stands, and its two sides; "" is one that is missing."""

    where: str
    first: str
    second: str


@lru_cache(maxsize=4)
def read_pairs(
    data: str, val_fraction: float = 0.1, backwards: bool = False, skip_missing: bool = False, stamp: tuple = ()
) -> Pairs:
    """The pairs of a file, two, a folder or a set. `backwards`: from the second side to the first. What was read is
    kept while the `stamp` of the files is the same.

    Raises InputError for what cannot be used; for pairs with a missing side (how many, and the first) unless
    `skip_missing`; and where a part has no pairs.
    """
    if not 0 < val_fraction < 1:
        raise InputError(f"a validation fraction of {val_fraction} leaves a part without pairs: 0 < fraction < 1")
    missing: list[str] = []
    parts = {name: whole(lines, missing) for name, lines in find_parts(data).items()}
    if missing and not skip_missing:
        count = "1 pair has" if len(missing) == 1 else f"{len(missing):,} pairs have"
        raise InputError(
            f"{count} a missing side, the first at {missing[0]}: mend it, or leave such out (skip_missing)"
        )
    if "val" not in parts:
        parts = split_pairs(parts["train"], val_fraction)
    for name, pairs in parts.items():
        if not pairs:
            raise InputError(f"data '{data}': no pair is left for {name}: bring more of them")
    if backwards:
        parts = {name: [(target, source) for source, target in pairs] for name, pairs in parts.items()}
    return Pairs(parts, hash_pairs(parts), len(missing))


def whole(lines: Iterable[Line], missing: list[str]) -> list[Pair]:
    """The pairs that have both sides; where the others stand goes to `missing`."""
    pairs = []
    for line in lines:
        if line.first and line.second:
            pairs.append((line.first, line.second))
        else:
            missing.append(line.where)
    return pairs


def split_pairs(pairs: list[Pair], fraction: float) -> dict[str, list[Pair]]:
    """First sides are drawn by their hash: the same sentence is never in both parts, and the order decides nothing."""
    firsts = {first for first, _ in pairs}
    drawn = sorted(firsts, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    kept = set(drawn[: max(1, round(fraction * len(firsts)))])
    return {
        "train": [pair for pair in pairs if pair[0] not in kept],
        "val": [pair for pair in pairs if pair[0] in kept],
    }


def hash_pairs(parts: dict[str, list[Pair]]) -> str:
    sha256 = hashlib.sha256()
    for name, pairs in parts.items():
        sha256.update(f"{name} {len(pairs)}\n".encode())
        for source, target in pairs:
            sha256.update(f"{source}\t{target}\n".encode("utf-8", "surrogatepass"))
    return sha256.hexdigest()


# --- where pairs come from ---


def find_parts(data: str) -> dict[str, Iterable[Line]]:
    """The lines of each part that there is: "train", and perhaps "val". Raises InputError."""
    path = Path(data).expanduser()
    if data and path.is_dir():
        return folder(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), data)
    if data and path.exists():
        return {"train": one_file(path)}
    if "," in data:
        return {"train": two_files(*both([Path(name.strip()).expanduser() for name in data.split(",")], data))}
    if data == REVERSE:
        return reverse_pairs()
    name, _, part = data.partition("/")
    if name in sets.SETS:
        files = sets.resolve(name)
        return {"train": one_file(files[0])} if len(files) == 1 and not part else folder(files, data, part)
    if not data or path.suffix or "/" in data:
        raise InputError(f"data '{data}': no such file, folder or set (looked in {Path.cwd()}): {WHAT}")
    raise InputError(f"data '{data}': no such file or data set: {suggest(data, [REVERSE, *sets.SETS])}")


def folder(files: list[Path], data: str, part: str = "") -> dict[str, Iterable[Line]]:
    """Files STEM.SIDE, two of each stem, the sides in alphabetical order; a stem such as "train" or "val" is a part."""
    stems: dict[str, list[Path]] = {}
    for path in files:
        stems.setdefault(path.name.removesuffix(".gz").rpartition(".")[0], []).append(path)
    paired = {stem: paths for stem, paths in stems.items() if stem and len(paths) == 2}
    if part or "train" not in paired:
        wanted = part or "train"
        if wanted not in paired:
            raise InputError(
                f"data '{data}' has no two files {wanted}.*: {suggest(wanted, paired) if paired else WHAT}"
            )
        return {"train": two_files(*paired[wanted])}
    val = next((paired[stem] for stem in VALIDATION if stem in paired), None)
    return {"train": two_files(*paired["train"])} | ({} if val is None else {"val": two_files(*val)})


def both(paths: list[Path], data: str) -> list[Path]:
    if len(paths) != 2:
        raise InputError(f"data '{data}' names {len(paths)} files; pairs need two, line by line")
    for path in paths:
        if not path.is_file():
            raise InputError(f"data '{data}': there is no file {path}")
    return paths


def two_files(first: Path, second: Path) -> Iterator[Line]:
    """Line by line. Raises InputError with both counts where one file has more lines."""
    counts = [0, 0]
    for number, pair in enumerate(zip_longest(lines(first), lines(second)), start=1):
        for side, line in enumerate(pair):
            counts[side] += line is not None
        if None not in pair:
            yield Line(f"{first}, line {number}", *(text.strip() for text in pair))
    if counts[0] != counts[1]:
        raise InputError(
            f"{first} has {counts[0]:,} lines and {second} has {counts[1]:,}: line n of one must belong to line n of "
            "the other"
        )


def one_file(path: Path) -> Iterator[Line]:
    """A table or JSON lines, by the file's ending."""
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in (*TABLES, ".jsonl"):
        raise InputError(f"data '{path}': cannot be read as pairs: {WHAT}")
    for number, line in enumerate(lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if ending == ".jsonl":
            yield Line(where, *json_sides(line, where))
        else:
            first, _, rest = line.partition("\t")
            yield Line(where, first.strip(), rest.partition("\t")[0].strip())


def json_sides(line: str, where: str) -> tuple[str, str]:
    """Missing or null sides are ""."""
    wanted = 'each line must be an object such as {"source": "...", "target": "..."}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}): {wanted}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: {type(value).__name__}: {wanted}")
    names = ("source", "target") if value.keys() & {"source", "target"} else tuple(value)
    if len(names) > 2 or not all(isinstance(value.get(name), str | None) for name in names):
        raise InputError(f"{where}: has {', '.join(map(repr, list(value)[:5]))}: {wanted}")
    sides = [(value.get(name) or "").strip() for name in names] + ["", ""]
    return sides[0], sides[1]


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, perhaps gzipped, without their ends. Raises InputError with the line that is wrong."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB: the pairs are kept in memory, use fewer")
        number = 0
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB: one pair a line")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as e:
        raise InputError(
            f"{path}, line {number}: byte 0x{e.object[e.start]:02X} is not UTF-8: save it as UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise InputError(f"{path}: damaged gzip file ({e}): fetch or compress it again") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror or e})") from None


def reverse_pairs(train: int = 50_000, val: int = 1_000) -> dict[str, Iterable[Line]]:
    """Strings of 5 to 20 digits, and the same from behind: always the same ones. No string is in both parts."""
    words = np.random.Philox(key=0).random_raw((train + 2 * val) * 21).reshape(-1, 21)
    sizes, digits = (words[:, 0] % 16 + 5).tolist(), (words[:, 1:] % 10 + ord("0")).astype(np.uint8)
    texts = list(dict.fromkeys(row.tobytes()[:size].decode() for row, size in zip(digits, sizes)))
    made = [Line(f"string {i}", text, text[::-1]) for i, text in enumerate(texts[: train + val])]
    return {"train": made[val:], "val": made[:val]}


def pair_files(data: str) -> tuple:
    """Which files the data are right now: changes when one of them does."""
    named = [Path(data), *(Path(name.strip()) for name in data.split(","))] if data else []
    files = [inner for path in named for inner in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return tuple((str(p.resolve()), p.stat().st_mtime_ns, p.stat().st_size) for p in files if p.is_file())
