"""Where tensors come from: safetensors files, opened with suspicion and read a piece at a time.

No pickle is read: a .bin or .pt gets a line that says how to convert it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError

LARGEST_JSON = 64 << 20  # bytes of an index or a config
MOST_SHARDS = 4096
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot")
NUMBERS = {"F64", "F32", "F16", "BF16"}


class Weights(Protocol):
    """Named tensors of a file or several: their shapes at once, their numbers when asked."""

    @property
    def where(self) -> str: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """tensor[start:stop] in float32"""
        ...


class Safetensors:
    """The model.safetensors of a folder, or its shards by model.safetensors.index.json.

    `spelling` makes one name of all the ways a tensor has been called, None for what is to be ignored. Raises
    InputError where a file is missing, cut short or of another format.
    """

    def __init__(self, folder: Path, spelling: Callable[[str], str | None] = lambda name: name):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, tuple[Path, str]] = {}  # our name of it -> file and its name there
        self.where = str(folder)
        for path in files(folder):
            for name, (shape, number) in header(path).items():
                known = spelling(name)
                if known is None:
                    continue
                if number not in NUMBERS:
                    raise InputError(f"{path}: {name} holds {number}; expected one of {', '.join(sorted(NUMBERS))}")
                if known in self.places:
                    raise InputError(f"{path}: {name} is there twice (also as {self.places[known][1]})")
                self.shapes[known], self.places[known] = shape, (path, name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        path, called = self.places[name]
        with safe_open(path, framework="pt") as file:  # opened anew, so that no page of the last piece stays in memory
            return file.get_slice(called)[start:stop].to(torch.float32)


def files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder."""
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.is_file():
        return [one]
    if not index.is_file():
        raise InputError(none_in(folder))
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise InputError(f"{index} has no weight_map from tensors to files")
    names = sorted(set(listed.values()))
    if len(names) > MOST_SHARDS:
        raise InputError(f"{index} names {len(names):,} files, which is more than {MOST_SHARDS:,}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} names the file {name!r}: expected a .safetensors file beside it")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} does not exist, and {index.name} says that it holds weights")
    found = {tensor for name in names for tensor in header(folder / name)}
    if missing := sorted(listed.keys() - found):
        raise InputError(f"{index} promises {missing[0]} in {listed[missing[0]]}, which is not there")
    return [folder / name for name in names]


def none_in(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder} has no model.safetensors and no model.safetensors.index.json"
    return (
        f"{folder / pickles[0]} is a pickle, which may run code of whoever wrote it, and is not read: convert it where "
        "you trust it, with transformers: AutoModel.from_pretrained(folder).save_pretrained(new, safe_serialization="
        "True), and import the new folder"
    )


def header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and number format of each tensor; the library checks the header against the file's size."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise InputError(f"{path} ({size:,} bytes) is not a whole safetensors file: {error}") from None


def read_json(path: Path) -> dict:
    """A JSON object of bounded size. Raises InputError."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(f"{path} is larger than {LARGEST_JSON >> 20} MiB, which no such file is")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} should hold a JSON object, found {type(found).__name__}")
    return found
