"""Files in class folders: the class is the name of a folder, maybe below folders for the splits.

FOLDER/CLASS/a.png           also deeper: FOLDER/CLASS/day1/a.png
FOLDER/train/CLASS/a.png     with FOLDER/val or FOLDER/test; also seg_train/seg_train/CLASS/a.png
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

VALIDATION = ("val", "valid", "validation", "dev")
SPLIT_FOLDER = re.compile(
    r"(?:.*[_-])?(train|training|test|testing|val|valid|validation|dev)(?:[_-].*)?", re.IGNORECASE
)


class ClassFile(NamedTuple):
    path: Path
    label: str
    """The name of the class folder; "" for a file outside of any."""
    split: str
    """train, val, test, or "" where the folders name none."""


def find_classes(folder: Path, files: Sequence[Path]) -> list[ClassFile]:
    """Return the class and the split of each file. A folder that holds all others is passed by."""
    parts = [list(path.relative_to(folder).parts[:-1]) for path in files]
    splits = [""] * len(parts)
    while parts and all(parts):
        tops = {part[0] for part in parts}
        is_holder = len(tops) == 1 and all(len(part) > 1 for part in parts)
        if not (is_holder or all(map(split_name, tops))):
            break
        splits = [split or split_name(part[0]) for split, part in zip(splits, parts)]
        parts = [part[1:] for part in parts]
    return [ClassFile(path, (part or [""])[0], split) for path, part, split in zip(files, parts, splits)]


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
