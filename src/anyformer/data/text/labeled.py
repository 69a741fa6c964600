"""Texts with a class each: a table (csv, tsv, jsonl), a file or folder for each class, or a file of labels.

A text that occurs twice with the same class is kept once, so that none is in training and in validation.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, suggest
from ...events import report_notice
from ..io.cache import data_files
from ..io.files import read_line_pairs, read_lines, suffix
from ..io.manifest import TABLE_EXTENSIONS, read_rows
from ..io.resolve import resolve
from ..sampling import select_split
from ..unusable import EmptyPolicy, check_empty
from .batches import epoch_order

SPLITS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0), "all": (0.0, 1.0)}
Row = tuple[str, str, str]  # text, class, place


@dataclass(frozen=True)
class LabeledTexts:
    """N texts, their classes (N,) as indices of `names`, their places for messages, and a hash of the content."""

    texts: list[str]
    classes: np.ndarray
    names: list[str]
    places: list[str]
    sha256: str

    def split(self, name: str) -> np.ndarray:
        """Return the indices of a split: 80 % "train", 10 % "val", 10 % "test" of each class, or "all"."""
        order, (start, stop) = epoch_order(len(self.texts), 0, 0), select_split(name, SPLITS)
        members = [order[self.classes[order] == number] for number in range(len(self.names))]
        return np.sort(np.concatenate([rows[round(start * len(rows)) : round(stop * len(rows))] for rows in members]))


def read_labeled(
    data: str,
    columns: tuple[str, str] = ("text", "label"),
    names: Sequence[str] | None = None,
    empty: EmptyPolicy = "few",
) -> LabeledTexts:
    """Read the labeled texts of a path, a named set, or files with commas between. Raises InputError with the place.

    Args:
        columns: the columns of a table.
        names: the classes, if they are fixed; others are refused.
        empty: what becomes of rows without a text or a label.
    """
    parts = [part.strip() for part in data.split(",")] if "," in data and not Path(data).exists() else [data]
    paths = [path for part in parts for path in resolve(part)]
    if len(paths) > 1:
        rows = _read_two_files(paths) if any(p.stem == "labels" for p in paths) else _read_file_per_class(paths)
    else:
        rows = _read_table(paths[0], columns)
    places: dict[tuple[str, str], str] = {}
    total, empty_places, n_without_text = 0, [], 0
    for text, label, where in rows:
        total += 1
        if text and label:  # the place of the first occurrence, in the order of the last ones
            places[text, label] = places.pop((text, label), where)
        else:
            empty_places.append(where)
            n_without_text += not text
    kinds = f"{n_without_text:,} without a text, {len(empty_places) - n_without_text:,} without a label"
    check_empty(empty_places, total, empty, f"rows are empty, {kinds}")
    if (repeated := total - len(empty_places) - len(places)) and data_files(data):
        report_notice(f"data '{data}': {repeated:,} of {total:,} rows repeat a text and its label: kept once")
    names = sorted({label for _, label in places}) if names is None else list(names)
    if len(names) < 2:
        raise InputError(f"data '{data}' has one class only, {names}: there is nothing to tell apart")
    number = {name: i for i, name in enumerate(names)}
    for (_, label), where in places.items():
        if label not in number:
            raise InputError(f"{where}: the label '{label}' was not seen in training: {suggest(label, names)}")
    digest = hashlib.sha256(json.dumps(list(places)).encode()).hexdigest()
    classes = np.array([number[label] for _, label in places], np.int64)
    return LabeledTexts([text for text, _ in places], classes, names, list(places.values()), digest)


def _read_file_per_class(paths: Sequence[Path]) -> Iterator[Row]:
    """Read a text from each line; the class is the name of the folder, or of the file if all are in one folder."""
    names: list[str] = [path.parent.name for path in paths]
    if len({path.parent for path in paths}) == 1:
        stems = [path.name.split(".")[0] for path in paths]
        names = stems if len(set(stems)) == len(stems) else [path.suffix.removeprefix(".") for path in paths]
    is_empty = dict.fromkeys(names, True)
    for path, name in zip(paths, names):
        for where, text in read_lines(path):
            if text.strip():
                is_empty[name] = False
                yield text.strip(), name, where
    if empty := [name for name in is_empty if is_empty[name]]:
        path = paths[names.index(empty[0])]
        raise InputError(f"{path}: the class '{empty[0]}' is empty: give it texts, or leave it out")


def _read_two_files(paths: Sequence[Path]) -> Iterator[Row]:
    """Read a file of texts and one called labels, line by line."""
    labels_path = next(path for path in paths if path.stem == "labels")
    text_paths = [path for path in paths if path != labels_path]
    if len(text_paths) != 1:
        raise InputError(f"{labels_path}: there are {len(text_paths)} files of texts beside it: one is right")
    for (where, text), (label_where, label) in read_line_pairs(text_paths[0], labels_path):
        yield text.strip(), label.strip(), where if label.strip() else label_where


def _read_table(path: Path, columns: tuple[str, str]) -> Iterator[Row]:
    if suffix(path) not in TABLE_EXTENSIONS:
        expected = f"{', '.join(TABLE_EXTENSIONS)}, a folder with a file a class, or files with commas between"
        raise InputError(f"data '{path}' has no labels: expected {expected}")
    for where, row in read_rows(path, tsv_quotes=False):
        for name in columns:
            if name not in row:
                hint = f"{suggest(name, row)} (--columns TEXT,LABEL names them)"
                raise InputError(f"{where}: there is no column '{name}': {hint}")
        text, label = ("" if row[name] is None else row[name] for name in columns)
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise InputError(f"{where}: {columns[0]} must be a text and {columns[1]} a text or a whole number")
        yield text.strip(), str(label).strip(), where
