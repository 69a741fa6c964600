"""A folder as the public library writes it: config.json, model.safetensors, tokenizer.json and their kin.

The family is named by `model_type` in config.json; a family is one file here with these names: RECIPE, ARCHITECTURE and
PRESETS (which recipe it fills, what the library calls the model, presets of ours that it can say), `spelling` (one name
for each tensor), `read` (their config -> the recipe's), `write` (and back) and `rows` (the table of names).
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..training.checkpoints import tensors, whole
from .config_fields import Fields
from .safetensors_files import Safetensors, Weights, read_json
from .tensor_map import Row, Values, check, fill, give

FAMILIES = ("gpt2", "llama", "bert", "t5", "vit", "whisper", "decision_transformer")
TUNING = {
    "steps": 500,
    "batch": 8,
    "lr": 1e-4,
    "warmup": 50,
    "weight_decay": 0.01,
    "eval_every": 100,
    "save_every": 100,
}
"""How training goes on from a checkpoint of others, unless told otherwise."""
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "*.tiktoken", "tokenizer.model", "spiece.model")


class Family(Protocol):
    """One file of this folder."""

    RECIPE: str
    ARCHITECTURE: str
    PRESETS: tuple[str, ...]

    def spelling(self, name: str) -> str | None: ...
    def read(self, c: Fields, weights: Weights) -> Values: ...
    def write(self, values: Values, own: Mapping[str, Tensor]) -> Values: ...
    def rows(self, c: Values) -> list[Row]: ...


def family(name: Any, where: str) -> Family:
    if name not in FAMILIES:
        raise InputError(f"{where}: model_type is {name!r}: {nearest(str(name), FAMILIES)}")
    return cast(Family, importlib.import_module(f"{__package__}.{name}"))


def foreign(path: Path) -> bool:
    """Whether this is a checkpoint of the public library's, not one of ours."""
    described = path / "config.json"
    return described.is_file() and "model_type" in read_json(described)


class Checkpoint:
    """A public checkpoint, opened: which recipe it is for, that recipe's config, and numbers to fill its model with."""

    def __init__(self, config: Values, weights: Weights, where: str, home: Path | None = None):
        """config: theirs, as their config.json has it. home: the folder in which a tokenizer may lie."""
        self.family = family(config.get("model_type"), where)
        fold = getattr(self.family, "folded", lambda weights: weights)  # two tensors of theirs that are one of ours
        self.config, self.weights = config, fold(weights)
        self.recipe = self.family.RECIPE
        fields = Fields(config, where)
        self.values: Values = {"data": "", "train": TUNING} | self.family.read(fields, weights)
        fields.done()
        longest = max((side for shape in weights.shapes.values() for side in shape), default=0)
        if self.values.get("padded_vocab", 0) > longest:
            raise InputError(
                f"{where}: vocab_size is {self.values['padded_vocab']}, but no tensor is longer than {longest}"
            )
        if home is not None and "padded_vocab" in self.values:
            self.values.setdefault("tokenizer", tokenizer_in(home.resolve()))

    def check(self, model: nn.Module) -> list[str]:
        """Every name and shape, without reading a number: `model` may lie on the meta device. Returns the tensors that
        the checkpoint has nothing for. Raises InputError."""
        return check(self.family.rows(self.config), tensors(model), self.weights)

    def fill(self, model: nn.Module) -> None:
        """Read the numbers. Raises InputError."""
        fill(self.family.rows(self.config), tensors(model), self.weights)


def open_folder(folder: Path) -> Checkpoint:
    """A folder of the public library's. Raises InputError."""
    described = folder / "config.json"
    config = read_json(described)
    spelling = family(config.get("model_type"), str(described)).spelling
    return Checkpoint(config, Safetensors(folder, spelling), str(described), folder)


def open_file(path: Path) -> Checkpoint:
    """A GGUF file. Raises InputError."""
    from . import gguf

    config, weights, speaks = gguf.read(path)
    found = Checkpoint(config, weights, str(path))
    found.values["tokenizer"] = str(path.resolve()) if speaks else "ids"
    return found


def tokenizer_in(folder: Path) -> str:
    """What a recipe's config says of the tokenizer in this folder."""
    found = next((path for pattern in TOKENIZERS for path in folder.glob(pattern)), None)
    return "ids" if found is None else str(found if found.name == "tokenizer.json" else folder)


# --- ours -> theirs ---


def fitting(recipe: str, values: Values, own: Mapping[str, Tensor]) -> tuple[Family, Values]:
    """The family that can say a model with these tensors, and its config. Raises InputError: why each one cannot."""
    reasons, presets = [], []
    for name in FAMILIES:
        candidate = family(name, recipe)
        if recipe != candidate.RECIPE:
            continue
        try:
            return candidate, candidate.write(values, own)
        except InputError as error:
            reasons.append(f"{name}: {error}")
            presets += candidate.PRESETS
    if not reasons:
        raise InputError(f"no public family is known for the recipe '{recipe}'")
    raise InputError(
        f"no public family has this architecture ({'; '.join(reasons)}): train with --preset {' or '.join(presets)}"
    )


def export(folder: Path, recipe: str, values: Values, model: nn.Module) -> Family:
    """Write a folder that the public library opens. Raises InputError; nothing half-written stays behind."""
    own = tensors(model)
    found, config = fitting(recipe, values, own)
    idle = getattr(found, "unread", lambda config: {})(config)  # tensors of theirs that change nothing
    numbers = dict(give(found.rows(config), own)) | idle
    texts = dict(getattr(model, "files", {}))
    config |= getattr(found, "besides", lambda values, texts: {})(values, texts)
    named = {"architectures": [found.ARCHITECTURE], "dtype": "float32", "torch_dtype": "float32"}
    named |= getattr(found, "named", lambda texts: {})(texts)  # what a family's config says of what lies beside
    config = named | special(texts) | config  # a family that knows its ids itself is right
    also = getattr(found, "beside", lambda values, texts: {})(values, texts)  # what a family wants written besides
    with whole(folder) as temporary:
        save_file(numbers, temporary / "model.safetensors", {"format": "pt"})
        for name, content in {"config.json": json.dumps(config, indent=2), **public(texts, config), **also}.items():
            (temporary / name).write_text(content, encoding="utf-8")
    return found


def special(texts: Mapping[str, str]) -> Values:
    """Which ids begin and end a text, for the library's own generation; it has guesses of its own for the unsaid."""
    end = end_of(texts)
    guessed = dict.fromkeys(("bos_token_id", "eos_token_id"), None if end is None else end[1])
    kept = json.loads(texts.get("generation_config.json", "{}"))
    return guessed | {name: kept[name] for name in guessed if name in kept}


def public(texts: Mapping[str, str], config: Values) -> dict[str, str]:
    """The files of a tokenizer, as both versions of the library read them."""
    if "tokenizer.json" not in texts:
        return {}
    described: Values = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    end = end_of(texts)
    if end is not None:
        described["eos_token"] = end[0]
    described |= json.loads(texts.get("tokenizer_config.json", "{}"))  # what it was called where it came from
    known = {name: texts[name] for name in ("tokenizer.json", "chat_template.jinja") if name in texts}
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id") if name in config}
    kept = json.loads(texts["generation_config.json"]) if "generation_config.json" in texts else generation
    return known | {
        "tokenizer_config.json": json.dumps(described, indent=2),
        "generation_config.json": json.dumps(kept, indent=2),
    }


def end_of(texts: Mapping[str, str]) -> tuple[str, int] | None:
    """The token that ends a text, and its id."""
    if "tokenizer.json" not in texts:
        return None
    from ..data.tokenizers.build import ENDS

    added = {token["content"]: token["id"] for token in json.loads(texts["tokenizer.json"]).get("added_tokens") or []}
    return next(((name, added[name]) for name in ENDS if name in added), None)
