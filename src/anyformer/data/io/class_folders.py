"""Files in class folders: the class is the name of a folder, maybe below folders for the splits.

FOLDER/CLASS/a.png           also deeper: FOLDER/CLASS/day1/a.png
FOLDER/train/CLASS/a.png     with FOLDER/val or FOLDER/test; also seg_train/seg_train/CLASS/a.png
FOLDER/CLASS.1.png           without class folders: also CLASS_1.png, CLASS-1.png, with three files of each class
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

VALIDATION = ("val", "valid", "validation", "dev")
SPLIT_FOLDER = re.compile(
    r"(?:.*[_-])?(train|training|test|testing|val|valid|validation|dev)(?:[_-].*)?", re.IGNORECASE
)


NAMED_CLASS = re.compile(r"([A-Za-z]+|\d{1,2})[._-]")
MIN_FILES_OF_NAME = 3  # of a class that the names of files begin with


class ClassFile(NamedTuple):
    path: Path
    label: str
    """The name of the class folder; "" for a file outside of any."""
    split: str
    """train, val, test, or "" where the folders name none."""


def find_classes(folder: Path, files: Sequence[Path], by_name: bool = True) -> list[ClassFile]:
    """Return the class and the split of each file. A folder that holds all others is passed by.

    by_name: without class folders, take what the names of the files begin with.
    """
    parts = [list(path.relative_to(folder).parts[:-1]) for path in files]
    splits = [""] * len(parts)
    while parts and all(parts):
        tops = {part[0] for part in parts}
        is_holder = len(tops) == 1 and all(len(part) > 1 for part in parts)
        if not (is_holder or all(map(split_name, tops))):
            break
        splits = [split or split_name(part[0]) for split, part in zip(splits, parts)]
        parts = [part[1:] for part in parts]
    labels = [part[0] if part else "" for part in parts]
    if by_name and len(set(labels)) == 1:
        labels = label_by_name([path.name for path in files]) or labels
    return [ClassFile(path, label, split) for path, label, split in zip(files, labels, splits)]


def label_by_name(names: Sequence[str]) -> list[str]:
    """Return the class with which the names of files begin: cat.0.jpg, 7_theo_1.wav; nothing where they do not."""
    labels = [match[1] if (match := NAMED_CLASS.match(name)) else "" for name in names]
    counts = Counter(labels)
    is_labeled = len(counts) > 1 and "" not in counts and min(counts.values()) >= MIN_FILES_OF_NAME
    return labels if is_labeled else []


def split_name(folder: str) -> str:
    """Return train, val or test for a folder of a split, "" for any other."""
    if not (match := SPLIT_FOLDER.fullmatch(folder)):
        return ""
    name = match[1].lower()
    return "val" if name in VALIDATION else name.removesuffix("ing")


def select_validation(files: Sequence[ClassFile]) -> tuple[list[ClassFile], list[bool] | None]:
    """Return the files for training and validation, and which of them are for validation; None where the folders do
    not say. With train/ and val/, those of test/ are left out."""
    splits = {file.split for file in files}
    if "train" not in splits or len(splits) < 2:
        return list(files), None
    val = "val" if "val" in splits else "test"
    used = [file for file in files if file.split in ("train", val)]
    return used, [file.split == val for file in used]
