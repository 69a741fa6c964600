"""Open public checkpoints; write folders as transformers does: config.json, model.safetensors, tokenizer.json ...

Weights are read from safetensors files, one piece at a time. Pickles are not read: the error for such a file says
how to convert it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.io.checks import read_json
from ..data.io.gguf_file import is_gguf_file
from ..data.tokenizers import marian_vocabulary
from ..data.tokenizers.subwords import END_TOKENS
from ..errors import InputError
from ..recipe import Recipe
from ..training.checkpoints import atomic_directory, collect_tensors, open_safetensors
from .config_fields import ConfigFields
from .family import Family, load_family, select_family
from .tensor_map import ConfigDict, TensorMap, WeightSource, check_shapes, export_tensors, load_weights

FINETUNING_DEFAULTS = {
    "steps": 500,
    "batch": 8,
    "lr": 1e-4,
    "warmup": 50,
    "weight_decay": 0.01,
    "eval_every": 100,
    "save_every": 100,
}
"""`train` fields of an imported checkpoint's config."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.tiktoken", "tokenizer.model", "spiece.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot")
MAX_SHARDS = 4096
DTYPES = ("BF16", "F16", "F32", "F64")
Header = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each tensor in a file."""


def is_hf_folder(path: Path) -> bool:
    """Return whether a folder holds a public checkpoint, not one of a run."""
    config = path / "config.json"
    return config.is_file() and "model_type" in read_json(config)


class PublicCheckpoint:
    """An open public checkpoint.

    Args:
        config: the public config, as the file has it.
        where: the file that is named in errors.
        tokenizers: the recipe's settings of tokenizers, for families that have one.

    Attributes:
        recipe: name of the recipe that has models of this family.
        values: that recipe's config, as JSON values.
    """

    def __init__(self, family: Family, config: ConfigDict, weights: WeightSource, where: str, tokenizers: ConfigDict):
        self.family, self.recipe = family, family.recipes[0]
        self.config, self.weights = config, family.wrap_weights(weights)
        fields = ConfigFields(config, where)
        self.values: ConfigDict = {"data": "", "train": FINETUNING_DEFAULTS}
        self.values |= family.read_config(fields, self.weights)
        fields.reject_unread()
        longest = max((n for shape in weights.shapes.values() for n in shape), default=0)
        if (vocab_size := self.values.get("padded_vocab")) is not None:
            if vocab_size > longest:
                raise InputError(f"{where}: vocab_size is {vocab_size}, but no tensor is longer than {longest}")
            self.values |= {**tokenizers, "family": family.model_type}

    def _map_tensors(self, model: nn.Module) -> tuple[TensorMap, Mapping[str, Tensor], WeightSource]:
        tensors = self.family.add_fixed_tensors(self.values, collect_tensors(model))
        return self.family.build_tensor_map(self.values, self.config), tensors, self.weights

    def check(self, model: nn.Module) -> list[str]:
        """Compare names and shapes with a model, which may lie on the meta device; see `check_shapes`."""
        return check_shapes(*self._map_tensors(model))

    def load_weights(self, model: nn.Module) -> None:
        """Copy the values into a model. Raises InputError."""
        load_weights(*self._map_tensors(model))


def find_gguf(folder: Path) -> Path | None:
    """Return the only GGUF file of a folder without config.json."""
    files = [] if (folder / "config.json").exists() else list(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def open_checkpoint(path: Path) -> PublicCheckpoint:
    """Open a folder of transformers, a GGUF file or a folder with one. Raises InputError."""
    path = find_gguf(path) or path
    if path.is_dir():
        config_path = path / "config.json"
        config = read_json(config_path)
        family = load_family(config.get("model_type"), str(config_path))
        weights = SafetensorsFolder(path, family.normalize_name)
        return PublicCheckpoint(family, config, weights, str(config_path), find_tokenizers(path.resolve()))
    if path.is_file() and is_gguf_file(path):
        from . import gguf

        return PublicCheckpoint(*gguf.read(path))
    expected = "expected a run directory, a folder with config.json and model.safetensors, or a GGUF file"
    if any(path.match(pattern) for pattern in ("*.safetensors", *PICKLES)):
        expected = f"name the folder that holds its config.json: {path.parent}"
    raise InputError(f"{path} is not a model: {expected}")


def find_tokenizers(folder: Path) -> ConfigDict:
    """Return the settings for the tokenizer in a folder, "ids" without one, or for one of each side of a pair."""
    for source, target in (marian_vocabulary.MODEL_FILES, ("source_tokenizer.json", "tokenizer.json")):
        if (folder / source).is_file() and (folder / target).is_file():
            return {"source_tokenizer": str(folder / source), "tokenizer": str(folder / target)}
    path = next((path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)), None)
    return {"tokenizer": "ids" if path is None else str(path if path.name == "tokenizer.json" else folder)}


# --- weights ---


class SafetensorsFolder(WeightSource):
    """The weights in model.safetensors of a folder, or in the shards that model.safetensors.index.json lists.

    Args:
        normalize_name: maps every spelling of a tensor's name to one; None for tensors to ignore.

    Raises:
        InputError: a file is missing, truncated or of another format.
    """

    def __init__(self, folder: Path, normalize_name: Callable[[str], str | None]):
        self.where, self.shapes = str(folder), {}
        self.locations: dict[str, tuple[Path, str]] = {}  # normalized name -> file and the name there
        for path, header in read_headers(folder).items():
            for stored_name, (shape, dtype) in header.items():
                if (name := normalize_name(stored_name)) is None:
                    continue
                if dtype not in DTYPES:
                    raise InputError(f"{path}: {stored_name} has dtype {dtype}; expected one of {', '.join(DTYPES)}")
                if name in self.locations:
                    raise InputError(f"{path}: {stored_name} is stored twice (also as {self.locations[name][1]})")
                self.shapes[name], self.locations[name] = shape or (1,), (path, stored_name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        path, stored_name = self.locations[name]
        with open_safetensors(path) as file:  # opened for each piece, so that pages already read leave memory
            if not file.get_slice(stored_name).get_shape():  # a single number
                return file.get_tensor(stored_name).reshape(1)[start:stop].to(torch.float32)
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
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder} has no model.safetensors and no model.safetensors.index.json"
    return (
        f"{pickles[0]} is a pickle, which can execute code, and is not read: where you trust it, convert it with "
        "transformers: AutoModel.from_pretrained(folder).save_pretrained(new, safe_serialization=True), and import the "
        "new folder"
    )


# --- writing ---


def write(folder: Path, recipe: Recipe, values: ConfigDict, model: nn.Module) -> None:
    """Write a folder that transformers opens.

    Args:
        values: the recipe's config, as JSON values.

    Raises:
        InputError: no family can express the model. No partial folder is left.
    """
    files, family = dict(getattr(model, "files", {})), select_family(recipe, values)
    tensors = family.add_fixed_tensors(values, collect_tensors(model))
    config: ConfigDict = {"model_type": family.model_type, "architectures": [family.architecture]}
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    contents = make_tokenizer_configs(files)
    config |= contents.pop("config.json") | family.write_config(values, tensors)
    exported = dict(export_tensors(family.build_tensor_map(values, config), tensors))
    exported |= family.make_unused_tensors(config)
    contents["config.json"] = config
    for name, content in family.make_files(values, files).items():
        contents[name] = merge_fields(contents[name], content) if name in contents else content
    texts = {name: json.dumps(content, indent=2) for name, content in contents.items()}
    texts |= {
        name: files[name]
        for name in ("tokenizer.json", "source_tokenizer.json", "chat_template.jinja")
        if name in files
    }
    with atomic_directory(folder) as temporary:
        save_file(exported, temporary / "model.safetensors", {"format": "pt"})
        for name, text in texts.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")


def merge_fields(fields: ConfigDict, others: ConfigDict) -> ConfigDict:
    """Return the fields with others added; of objects on both sides, the fields of both."""
    both = {name for name in fields.keys() & others.keys() if isinstance(fields[name], dict)}
    return fields | others | {name: fields[name] | others[name] for name in both}


def make_tokenizer_configs(files: Mapping[str, str]) -> dict[str, ConfigDict]:
    """Return what versions 4 and 5 of transformers both read besides tokenizer.json.

    config.json: bos_token_id and eos_token_id; where they are unset, transformers assumes ids of its own.
    """
    added = json.loads(files.get("tokenizer.json", "{}")).get("added_tokens") or []
    ids = {token["content"]: token["id"] for token in added}
    end = next((name for name in END_TOKENS if name in ids), None)
    generation = json.loads(files.get("generation_config.json", "{}"))
    special_ids = {name: generation.get(name, ids.get(end)) for name in ("bos_token_id", "eos_token_id")}
    if "tokenizer.json" not in files:
        return {"config.json": special_ids}
    tokenizer: ConfigDict = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    tokenizer |= ({} if end is None else {"eos_token": end}) | json.loads(files.get("tokenizer_config.json", "{}"))
    generation = generation if "generation_config.json" in files else special_ids
    return {"config.json": special_ids, "tokenizer_config.json": tokenizer, "generation_config.json": generation}
