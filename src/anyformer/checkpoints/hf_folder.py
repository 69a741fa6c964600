"""Open public checkpoints; write folders as transformers does: config.json, model.safetensors, tokenizer.json ..."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ..data.io.checks import read_json
from ..data.io.gguf_file import is_gguf_file
from ..data.tokenizers.subwords import END_TOKENS
from ..errors import InputError
from ..recipe import Recipe
from ..training.checkpoints import atomic_directory, collect_tensors
from .config_fields import ConfigFields
from .family import load_family, select_family
from .safetensors_files import PICKLES, SafetensorsFolder
from .tensor_map import ConfigDict, WeightSource, check_shapes, export_tensors, load_weights

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


def is_hf_folder(path: Path) -> bool:
    """Return whether a folder holds a public checkpoint, not one of a run."""
    config = path / "config.json"
    return config.is_file() and "model_type" in read_json(config)


class PublicCheckpoint:
    """An open public checkpoint.

    Args:
        config: the public config, as config.json has it.
        where: the file that is named in errors.
        tokenizer: the recipe's `tokenizer` setting, for families that have one.

    Attributes:
        recipe: name of the recipe that has models of this family.
        values: that recipe's config, as JSON values.
    """

    def __init__(self, config: ConfigDict, weights: WeightSource, where: str, tokenizer: str):
        self.family = load_family(config.get("model_type"), where)
        self.weights, self.recipe = self.family.wrap_weights(weights), self.family.recipes[0]
        fields = ConfigFields(config, where)
        self.values: ConfigDict = {"data": "", "train": FINETUNING_DEFAULTS}
        self.values |= self.family.read_config(fields, weights)
        fields.reject_unread()
        self.config = config | {"tie_word_embeddings": self.values.get("tied")}
        longest = max((n for shape in weights.shapes.values() for n in shape), default=0)
        vocab_size = self.values.get("padded_vocab")
        if vocab_size is not None:
            if vocab_size > longest:
                raise InputError(f"{where}: vocab_size is {vocab_size}, but no tensor is longer than {longest}")
            self.values["tokenizer"] = tokenizer

    def check(self, model: nn.Module) -> list[str]:
        """Compare names and shapes with a model, which may lie on the meta device; see `check_shapes`."""
        return check_shapes(self.family.build_tensor_map(self.config), collect_tensors(model), self.weights)

    def load_weights(self, model: nn.Module) -> None:
        """Copy the values into a model. Raises InputError."""
        load_weights(self.family.build_tensor_map(self.config), collect_tensors(model), self.weights)


def open_checkpoint(path: Path) -> PublicCheckpoint:
    """Open a folder of transformers or a GGUF file. Raises InputError."""
    if path.is_dir():
        return open_folder(path)
    if path.is_file() and is_gguf_file(path):
        from . import gguf

        config, weights, has_tokenizer = gguf.read(path)
        return PublicCheckpoint(config, weights, str(path), str(path.resolve()) if has_tokenizer else "ids")
    expected = "expected a run directory, a folder with config.json and model.safetensors, or a GGUF file"
    if any(path.match(pattern) for pattern in ("*.safetensors", *PICKLES)):
        expected = f"name the folder that holds its config.json: {path.parent}"
    raise InputError(f"{path} is not a model: {expected}")


def open_folder(folder: Path) -> PublicCheckpoint:
    path = folder / "config.json"
    config = read_json(path)
    family = load_family(config.get("model_type"), str(path))
    return PublicCheckpoint(
        config, SafetensorsFolder(folder, family.normalize_name), str(path), find_tokenizer(folder.resolve())
    )


def find_tokenizer(folder: Path) -> str:
    """Return the `tokenizer` setting for the tokenizer in a folder: "ids" without one."""
    path = next((path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)), None)
    return "ids" if path is None else str(path if path.name == "tokenizer.json" else folder)


def write(folder: Path, recipe: Recipe, values: ConfigDict, model: nn.Module) -> None:
    """Write a folder that transformers opens.

    Args:
        values: the recipe's config, as JSON values.

    Raises:
        InputError: no family can express the model. No partial folder is left.
    """
    tensors, files = collect_tensors(model), dict(getattr(model, "files", {}))
    family = select_family(recipe, values)
    config: ConfigDict = {"model_type": family.model_type, "architectures": [family.architecture]}
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    config |= (
        get_special_token_ids(files) | family.write_config(values, tensors) | family.write_extra_config(values, files)
    )
    exported = dict(export_tensors(family.build_tensor_map(config), tensors)) | family.make_unused_tensors(config)
    texts = {"config.json": json.dumps(config, indent=2)} | make_tokenizer_files(files, config)
    texts |= family.write_extra_files(values, files)
    with atomic_directory(folder) as temporary:
        save_file(exported, temporary / "model.safetensors", {"format": "pt"})
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")


def get_special_token_ids(files: Mapping[str, str]) -> ConfigDict:
    """Return bos_token_id and eos_token_id; where they are unset, transformers assumes ids of its own."""
    end = find_end_token(files)
    defaults = dict.fromkeys(("bos_token_id", "eos_token_id"), None if end is None else end[1])
    generation = json.loads(files.get("generation_config.json", "{}"))
    return defaults | {name: generation[name] for name in defaults if name in generation}


def make_tokenizer_files(files: Mapping[str, str], config: ConfigDict) -> dict[str, str]:
    """Return the files of a tokenizer that versions 4 and 5 of transformers both read."""
    if "tokenizer.json" not in files:
        return {}
    tokenizer: ConfigDict = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    end = find_end_token(files)
    if end is not None:
        tokenizer["eos_token"] = end[0]
    tokenizer |= json.loads(files.get("tokenizer_config.json", "{}"))
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id") if name in config}
    generation = json.loads(files["generation_config.json"]) if "generation_config.json" in files else ids
    unchanged = {name: files[name] for name in ("tokenizer.json", "chat_template.jinja") if name in files}
    return unchanged | {
        "tokenizer_config.json": json.dumps(tokenizer, indent=2),
        "generation_config.json": json.dumps(generation, indent=2),
    }


def find_end_token(files: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the token that ends a text, and its id."""
    if "tokenizer.json" not in files:
        return None
    added = json.loads(files["tokenizer.json"]).get("added_tokens") or []
    ids = {token["content"]: token["id"] for token in added}
    return next(((name, ids[name]) for name in END_TOKENS if name in ids), None)
