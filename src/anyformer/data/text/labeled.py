"""Texts with a class each: a table, a file or folder for each class, or a file of labels.

    reviews.csv           columns text and label, or others; also tsv, jsonl, json, parquet
    FOLDER/CLASS/*.txt    a text in each file, or in each line where a class has one file; maybe below train/ and test/
    polarity.neg, .pos    a text in each line; the class is the ending, or the name before it
    texts.txt, labels.txt a text and its class in the same line of both
    train.txt             lines "__label__CLASS text", as fastText reads them; also "DESC:def What is it ?", "1 good"

A text that occurs twice with the same class is kept once by default, so that none is in training and in validation.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, suggest
from ..io.archives import unpack_archive
from ..io.cache import data_files
from ..io.file_index import list_files
from ..io.files import is_documentation, is_text, open_data, read_line_pairs, read_lines, read_start, suffix
from ..io.manifest import TABLE_EXTENSIONS, is_table, read_rows
from ..io.regular_file import read_bounded
from ..io.resolve import resolve
from ..sampling import select_split
from ..unusable import DuplicatePolicy, EmptyPolicy, check_empty, select_distinct
from .batches import epoch_order

Row = tuple[str, str, str]  # text, class, place
UNLABELED_FOLDERS = ("unsup", "unlabeled", "unlabelled")
FASTTEXT = b"__label__"
LEADING = re.compile(r"([A-Za-z]+:\w+|\d)\s+(\S.*)")  # a class before a text
MAX_LEADING_SHARE, MIN_LEADING_LINES = 0.2, 20  # of the lines: so many different classes at most
MAX_FILES_OF_LINES = 2  # of a class: with more, each file is a text
MAX_TEXT_BYTES = 16 << 20  # of a file that is a text


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
        order = epoch_order(len(self.texts), 0, 0)
        members = [order[self.classes[order] == number] for number in range(len(self.names))]
        return np.sort(np.concatenate([select_split(name, split_class(rows)) for rows in members]))


def split_class(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the splits of the texts of a class; of few texts, "val" has one before "test" has."""
    start, stop = round(0.8 * len(rows)), round(0.9 * len(rows))
    stop = max(stop, min(start + 1, len(rows)))
    return {"train": rows[:start], "val": rows[start:stop], "test": rows[stop:], "all": rows}


def read_labeled(
    data: str,
    columns: tuple[str, str] = ("text", "label"),
    names: Sequence[str] | None = None,
    empty: EmptyPolicy = "few",
    duplicates: DuplicatePolicy = "skip",
) -> LabeledTexts:
    """Read the labeled texts of a path, a named set, or files with commas between. Raises InputError with the place.

    Args:
        columns: the columns of a table.
        names: the classes, if they are fixed; others are refused.
        empty: what becomes of rows without a text or a label.
        duplicates: what becomes of rows that repeat a text and its label.
    """
    parts = [part.strip() for part in data.split(",")] if "," in data and not Path(data).exists() else [data]
    paths = [path for part in parts for path in _list_files(part)]
    if len(paths) > 1:
        lines = _read_two_files(paths) if any(p.stem == "labels" for p in paths) else _read_file_per_class(paths)
    else:
        lines = _read_table(paths[0], columns)
    rows, empty_places, n_without_text = [], [], 0
    for text, label, where in lines:
        if text and label:
            rows.append((text, label, where))
        else:
            empty_places.append(where)
            n_without_text += not text
    kinds = f"{n_without_text:,} without a text, {len(empty_places) - n_without_text:,} without a label"
    check_empty(empty_places, len(rows) + len(empty_places), empty, f"rows are empty, {kinds}")
    what = f"data '{data}'" if data_files(data) else ""
    rows = select_distinct(rows, lambda row: row[:2], duplicates, what, "rows")
    names = sorted({label for _, label, _ in rows}) if names is None else list(names)
    if len(names) < 2:
        raise InputError(f"data '{data}' has one class only, {names}: there is nothing to tell apart")
    number = {name: i for i, name in enumerate(names)}
    for _, label, where in rows:
        if label not in number:
            raise InputError(f"{where}: the label '{label}' was not seen in training: {suggest(label, names)}")
    digest = hashlib.sha256(json.dumps([row[:2] for row in rows]).encode()).hexdigest()
    classes = np.array([number[label] for _, label, _ in rows], np.int64)
    return LabeledTexts([text for text, _, _ in rows], classes, names, [where for _, _, where in rows], digest)


def _list_files(data: str) -> list[Path]:
    """Return the files of a path or of a named set; of a folder the texts as deep in it as most are, since what lies
    above the class folders belongs to no class."""
    path = unpack_archive(Path(data).expanduser())
    if not path.is_dir():
        return resolve(data)
    files = [file for file in list_files(path, ("",)) if not is_documentation(file)]
    files = [file for file in files if file.parent.name not in UNLABELED_FOLDERS and is_text(file)]
    depths = Counter(len(file.parts) for file in files)
    files = [file for file in files if len(file.parts) == depths.most_common(1)[0][0]]
    tables = [file for file in files if suffix(file) in TABLE_EXTENSIONS]
    if not files or tables:
        return tables or resolve(data)
    return files


def _read_file_per_class(paths: Sequence[Path]) -> Iterator[Row]:
    """Read a text from each line of a class that has one file, from each file of a class that has several; the class
    is the name of the folder, or of the file if all are in one folder."""
    names: list[str] = [path.parent.name for path in paths]
    if len({path.parent for path in paths}) == 1:
        stems = [path.name.split(".")[0] for path in paths]
        names = stems if len(set(stems)) == len(stems) else [path.suffix.removeprefix(".") for path in paths]
    counts, is_empty = Counter(names), dict.fromkeys(names, True)
    is_text_file = max(counts.values()) > MAX_FILES_OF_LINES
    for path, name in zip(paths, names):
        for where, text in _read_text_file(path) if is_text_file else read_lines(path):
            if text.strip():
                is_empty[name] = False
                yield text.strip(), name, where
    if empty := [name for name in is_empty if is_empty[name]]:
        path = paths[names.index(empty[0])]
        raise InputError(f"{path}: the class '{empty[0]}' is empty: give it texts, or leave it out")


def _read_text_file(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the only text of a file; bytes that are not UTF-8 are replaced, as old mails and news have them."""
    with open_data(path) as file:
        yield str(path), read_bounded(file, MAX_TEXT_BYTES, path).decode("utf-8-sig", "replace")


def _read_two_files(paths: Sequence[Path]) -> Iterator[Row]:
    """Read a file of texts and one called labels, line by line."""
    labels_path = next(path for path in paths if path.stem == "labels")
    text_paths = [path for path in paths if path != labels_path]
    if len(text_paths) != 1:
        raise InputError(f"{labels_path}: there are {len(text_paths)} files of texts beside it: one is right")
    for (where, text), (label_where, label) in read_line_pairs(text_paths[0], labels_path):
        yield text.strip(), label.strip(), where if label.strip() else label_where


def _read_table(path: Path, columns: tuple[str, str]) -> Iterator[Row]:
    if read_start(path, len(FASTTEXT)) == FASTTEXT:
        yield from _read_fasttext(path)
        return
    if suffix(path) not in TABLE_EXTENSIONS and has_leading_labels(read_start(path).decode("utf-8", "replace")):
        yield from _read_leading(path)
        return
    if not is_table(path):
        expected = f"{', '.join(TABLE_EXTENSIONS)}, a folder with a file a class, or files with commas between"
        raise InputError(f"data '{path}' has no labels: expected {expected}")
    for where, row in read_rows(path, tsv_quotes=False):
        for name in columns:
            if name not in row:
                hint = f"{suggest(name, row)} (--columns TEXT,LABEL names them)"
                raise InputError(f"{where}: there is no column '{name}': {hint}")
        text, label = ("" if row[name] is None else row[name] for name in columns)
        label = int(label) if isinstance(label, float) and label.is_integer() else label
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise InputError(f"{where}: {columns[0]} must be a text and {columns[1]} a text or a whole number")
        yield text.strip(), str(label).strip(), where


def has_leading_labels(text: str) -> bool:
    """Whether a class of one form stands before the text of each line: TYPE:KIND or a digit, few different ones that
    come in any order; texts have various numbers of words, and rows of a table as many values each."""
    lines = [line for line in text.split("\n")[:-1] if line.strip()]
    matches = [match for line in lines if (match := LEADING.fullmatch(line.strip()))]
    if not MIN_LEADING_LINES <= len(matches) == len(lines):
        return False
    labels, n_texts = [match[1] for match in matches], sum(bool(re.search(r"[^\W\d]", match[2])) for match in matches)
    is_mixed = labels != sorted(labels) and len({":" in label for label in labels}) == 1
    is_mixed &= len({len(line.split()) for line in lines}) > 2
    return is_mixed and n_texts > 0.95 * len(lines) and 2 <= len(set(labels)) <= MAX_LEADING_SHARE * len(lines)


def _read_leading(path: Path) -> Iterator[Row]:
    for where, line in read_lines(path):
        if line.strip():
            label, _, text = line.strip().partition(" ")
            yield text.strip(), label, where


def _read_fasttext(path: Path) -> Iterator[Row]:
    """Read lines "__label__CLASS text"; of several labels the first."""
    for where, line in read_lines(path):
        labels = [word for word in line.split() if word.startswith(FASTTEXT.decode())]
        text = " ".join(word for word in line.split() if word not in labels)
        if line.strip():
            yield text, labels[0].removeprefix(FASTTEXT.decode()) if labels else "", where
