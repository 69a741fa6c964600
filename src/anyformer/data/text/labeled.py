"""Texts with a class each: a table (csv, tsv, jsonl), a file or a folder a class, or texts and labels side by side.

A text that comes twice with the same class is kept once, so that none is both learned and asked.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, suggest
from ..io.resolve import resolve

TABLES = (".csv", ".tsv", ".jsonl")  # each also with .gz added
LONGEST = 1 << 20  # characters of a field
PARTS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0), "all": (0.0, 1.0)}
Row = tuple[str, str, str]  # text, class, where it stands


@dataclass(frozen=True)
class LabeledTexts:
    """texts (N), their classes (N,) as numbers, what the classes are called, where each text stands, and a hash."""

    texts: list[str]
    classes: np.ndarray
    names: list[str]
    places: list[str]
    sha256: str

    def part(self, name: str, seed: int = 0) -> np.ndarray:
        """Which texts are of this part: 80 % "train", 10 % "val", 10 % "test" of each class, or "all"; the same for the
        same seed."""
        if name not in PARTS:
            raise InputError(f"split '{name}': {suggest(name, PARTS)}")
        order, (start, stop) = epoch_order(len(self.texts), seed, 0), PARTS[name]
        chosen = []
        for number in range(len(self.names)):
            own = order[self.classes[order] == number]
            chosen.append(own[round(start * len(own)) : round(stop * len(own))])
        return np.sort(np.concatenate(chosen))


def read_labeled(data: str, columns: tuple[str, str] = ("text", "label"), names: Sequence[str] | None = None) -> LabeledTexts:
    """The labelled texts of a path, a set by name, or files with commas between. names: the classes that are known, all
    others are refused. Raises InputError, with the line."""
    paths = resolve_files(data)
    if len(paths) > 1 and any(path.stem == "labels" for path in paths):
        found = list(side_by_side(paths))
    elif len(paths) > 1:
        found = list(by_file(paths))
    else:
        found = list(table(paths[0], columns))
    unique = {(text, label): where for text, label, where in reversed(found)}
    rows = [(text, label, where) for (text, label), where in reversed(unique.items())]
    known = sorted({label for _, label, _ in rows}) if names is None else list(names)
    if len(known) < 2:
        raise InputError(f"data '{data}' has one class only, {known}: there is nothing to tell apart")
    number = {name: i for i, name in enumerate(known)}
    for _, label, where in rows:
        if label not in number:
            raise InputError(f"{where}: the label '{label}' was not seen in training: {suggest(label, known)}")
    digest = hashlib.sha256(json.dumps([row[:2] for row in rows]).encode()).hexdigest()
    classes = np.array([number[label] for _, label, _ in rows], np.int64)
    return LabeledTexts([row[0] for row in rows], classes, known, [row[2] for row in rows], digest)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """An order of n things that (seed, epoch) decide."""
    return np.argsort(np.random.Philox(key=seed, counter=(0, 0, epoch, 2)).random_raw(n), kind="stable")


def resolve_files(data: str) -> list[Path]:
    if "," in data and not Path(data).exists():
        return [path for part in data.split(",") for path in resolve(part.strip())]
    return resolve(data)


def ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(line without its end, where it stands). Raises InputError."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"), where
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: byte 0x{e.object[e.start]:02X} is not UTF-8: save it as UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise InputError(f"{path}: damaged gzip file ({e}): fetch or compress it again") from None
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror or e})") from None


def by_file(paths: Sequence[Path]) -> Iterator[Row]:
    """A text a line; the class is the name of the folder, or if all files lie in one, the name of the file."""
    named: list[str] = [path.parent.name for path in paths]
    if len({path.parent for path in paths}) == 1:
        stems = [path.name.split(".")[0] for path in paths]
        named = stems if len(set(stems)) == len(stems) else [path.suffix.removeprefix(".") for path in paths]
    empty = dict.fromkeys(named, True)
    for path, name in zip(paths, named):
        for text, where in lines(path):
            if text.strip():
                empty[name] = False
                yield text.strip(), name, where
    if bare := [name for name in empty if empty[name]]:
        path = paths[named.index(bare[0])]
        raise InputError(f"{path}: the class '{bare[0]}' is empty: give it texts, or leave it out")


def side_by_side(paths: Sequence[Path]) -> Iterator[Row]:
    """A file of texts and one called labels, line by line."""
    labels = next(path for path in paths if path.stem == "labels")
    texts = [path for path in paths if path != labels]
    if len(texts) != 1:
        raise InputError(f"{labels}: there are {len(texts)} files of texts beside it: one is right")
    told, asked = list(lines(labels)), list(lines(texts[0]))
    if len(told) != len(asked):
        raise InputError(f"{texts[0]} has {len(asked)} lines and {labels} has {len(told)}: as many are right")
    for (text, where), (label, there) in zip(asked, told):
        yield checked(text, label, where, there)


def table(path: Path, columns: tuple[str, str]) -> Iterator[Row]:
    if ending(path) not in TABLES:
        wanted = f"{', '.join(TABLES)}, a folder with a file a class, or files with commas between"
        raise InputError(f"data '{path}' has no labels: expected {wanted}")
    yield from jsonl(path, columns) if ending(path) == ".jsonl" else separated(path, columns)


def separated(path: Path, columns: tuple[str, str]) -> Iterator[Row]:
    tab, at = ending(path) == ".tsv", [""]

    def source() -> Iterator[str]:
        for line, where in lines(path):
            at[0] = where
            yield line + "\n"

    quoting = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
    try:
        rows = csv.reader(source(), delimiter="\t" if tab else ",", quoting=quoting)
        header = next(rows, [])
        text, label = (column(name, header, path) for name in columns)
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(f"{at[0]}: {len(row)} fields, the header has {len(header)}")
            yield checked(row[text], row[label], at[0], at[0])
    except csv.Error as e:
        raise InputError(f"{at[0]}: {e}") from None


def column(name: str, header: Sequence[str], path: Path) -> int:
    if name not in header:
        raise InputError(f"{path} has no column '{name}': {suggest(name, header)} (--columns TEXT,LABEL names them)")
    return header.index(name)


def jsonl(path: Path, columns: tuple[str, str]) -> Iterator[Row]:
    for line, where in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise InputError(f"{where}: not JSON ({e})") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object such as {json.dumps(dict.fromkeys(columns, '...'))}")
        text, label = (list(row.values())[column(name, list(row), Path(where))] for name in columns)
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise InputError(f"{where}: {columns[0]} must be a text and {columns[1]} a text or a whole number")
        yield checked(text, str(label), where, where)


def checked(text: str, label: str, where: str, there: str) -> Row:
    if not text.strip():
        raise InputError(f"{where}: the text is empty: leave the line out")
    if not label.strip():
        raise InputError(f"{there}: the label is empty: name a class")
    return text.strip(), label.strip(), where
