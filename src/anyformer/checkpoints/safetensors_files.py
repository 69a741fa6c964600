"""Read the weights of a public checkpoint folder from safetensors files, one piece at a time.

Pickles are not read: a .bin or .pt file gets an error that says how to convert it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..data.io.checks import read_json
from ..errors import InputError
from ..training.checkpoints import open_safetensors

MAX_SHARDS = 4096
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot")
DTYPES = ("BF16", "F16", "F32", "F64")
Header = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each tensor in a file."""


class SafetensorsFolder:
    """The weights in model.safetensors of a folder, or in the shards that model.safetensors.index.json lists.

    Args:
        normalize_name: maps every spelling of a tensor's name to one; None for tensors to ignore.

    Raises:
        InputError: a file is missing, truncated or of another format.
    """

    def __init__(self, folder: Path, normalize_name: Callable[[str], str | None] = lambda name: name):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.locations: dict[str, tuple[Path, str]] = {}  # normalized name -> file and the name there
        self.where = str(folder)
        for path, header in read_headers(folder).items():
            for stored_name, (shape, dtype) in header.items():
                name = normalize_name(stored_name)
                if name is None:
                    continue
                if dtype not in DTYPES:
                    raise InputError(f"{path}: {stored_name} has dtype {dtype}; expected one of {', '.join(DTYPES)}")
                if name in self.locations:
                    raise InputError(f"{path}: {stored_name} is stored twice (also as {self.locations[name][1]})")
                self.shapes[name], self.locations[name] = shape, (path, stored_name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        path, stored_name = self.locations[name]
        with open_safetensors(path) as file:  # opened for each piece, so that pages already read leave memory
            return file.get_slice(stored_name)[start:stop].to(torch.float32)


def read_headers(folder: Path) -> dict[Path, Header]:
    """Find the weight files of a folder and read their headers."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return {single: read_header(single)}
    if not index.is_file():
        raise InputError(describe_missing_weights(folder))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} has no weight_map from tensors to files")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise InputError(f"{index} names {len(names):,} files, more than the limit of {MAX_SHARDS:,}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} names the file {name!r}: expected a .safetensors file in the same folder")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} does not exist, and {index.name} lists it")
    headers = {folder / name: read_header(folder / name) for name in names}
    if missing := sorted(weight_map.keys() - {tensor for header in headers.values() for tensor in header}):
        raise InputError(f"{index} lists {missing[0]} in {weight_map[missing[0]]}, which no file has")
    return headers


def read_header(path: Path) -> Header:
    with open_safetensors(path) as file:  # the safetensors library checks the header against the file's size
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def describe_missing_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder} has no model.safetensors and no model.safetensors.index.json"
    return (
        f"{folder / pickles[0]} is a pickle, which can execute code, and is not read: where you trust it, convert it "
        "with transformers: AutoModel.from_pretrained(folder).save_pretrained(new, safe_serialization=True), and "
        "import the new folder"
    )
