"""A model to ask: loaded from a run of ours or a public checkpoint, brought in from one, given out as one."""

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import recipe as recipes
from .checkpoints import gguf, onnx
from .checkpoints import hf_folder as directory
from .checkpoints import peft as adapters
from .errors import InputError
from .model.quantization.quantize import Weights, narrow
from .training import checkpoints as checkpoint
from .training import loop, lora
from .training.config import LoRA
from .training.device import device as find_device
from .training.run_directory import Run, describe


class Model:
    """A trained model with the recipe that knows what to ask of it."""

    def __init__(self, name: str, config: Any, module: nn.Module, state: dict[str, Any], path: Path):
        self.name, self.recipe = name, recipes.load(name)
        self.config, self.module, self.path = config, module.eval(), path
        self.step: int = state["step"]
        self.place: recipes.Place = state.get("place") or {}
        self.fresh: list[str] = state.get("fresh") or []
        """Tensors that the public checkpoint it came from had nothing for: train them before you believe them."""

    def predict(self, request: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Plain values in and out; what a request may hold is the recipe's to say."""
        return self.recipe.predict(self.module, (request or {}) | more)

    def generate(self, prompt: str | list[str] | None = None, **more: Any) -> dict[str, Any]:
        """Continue a prompt (a new line, if there is none), or several at once:
        {"samples": [{"prompt", "text", "tokens", "finish_reason"}, ...]}.
        More: tokens, samples, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, keep, messages."""
        return self.predict(more if prompt is None else {"prompt": prompt} | more)

    def evaluate(self, data: str | None = None, every: int = 1) -> dict[str, float]:
        """A fixed pass over the whole validation split, or every so many batches of it. Other data than the training's
        is taken whole."""
        config, split = for_data(self, data)
        batches = (batch for batch, _ in islice(self.recipe.batches(config, split, None), 0, None, every))
        return loop.evaluate(self.recipe, self.module, batches, self.config.train.dtype)

    def judge(self, data: str | None = None, **request: Any) -> dict[str, Any]:
        """What takes longer than `evaluate` because the model has to answer: the scores its recipe knows, over the same
        split. Raises InputError where it knows none."""
        scores = getattr(self.recipe, "judge", None)
        if scores is None:
            raise InputError(f"the recipe '{self.name}' has no further scores than those of its evaluation")
        config = self.config if data is None else anchored(dataclasses.replace(self.config, data=data))
        _, place = next(self.recipe.batches(config, "val", None))
        with torch.inference_mode():
            return scores(self.module, config, "val" if place["data"] == self.place.get("data") else "all", **request)


def for_data(model: Model, data: str | None = None) -> tuple[Any, str]:
    """The model's config with this data, or its own, and which part of it the model was not trained on. Raises
    InputError."""
    if data is None and not model.config.data:
        raise InputError(f"{model.path} came without data: name some to evaluate it on (--data)")
    config = model.config if data is None else anchored(dataclasses.replace(model.config, data=data))
    _, place = next(model.recipe.batches(config, "val" if data is None else "all", None))  # a part may be empty
    if model.place.get("data") in (None, place.get("data")):
        return config, "val"
    if data is None:
        raise InputError(f"the data '{config.data}' has changed since this run began: bring it back, or name data")
    return config, "all"


def load(path: str | Path, device: str = "auto", merged: bool = True, weights: Weights | None = None) -> Model:
    """The best checkpoint of a run directory, the very checkpoint that is named, or a folder (or GGUF file) of a public
    checkpoint, read where it lies. Adapters are folded into the weights they were trained on (`merged`). weights: None
    leaves the model as it was trained, and to be trained on; float32 makes it ready for answering, with the same
    answers; bfloat16 and int8 answer sooner still, and nearly the same. Raises InputError."""
    model = load_whole(Path(path), device, merged)
    if weights is not None:
        narrow(model.module, weights)
    return model


def load_whole(path: Path, device: str, merged: bool) -> Model:
    if path.is_file() or directory.foreign(path):
        return load_public(path, device)
    folder = find_checkpoint(path)
    described = checkpoint.read_json(folder / "config.json")
    for name in ("recipe", "config"):
        if name not in described:
            raise InputError(f"{folder / 'config.json'} names no {name}: it is not a checkpoint of anyformer")
    recipe = recipes.load(described["recipe"])
    config = recipes.at_home(config_of(recipe, described["config"], f"{folder / 'config.json'}"), folder)
    model = recipe.build(config)
    if described.get("lora"):
        prepare(model, described)
    model = model.to(find_device(device))
    checkpoint.load_model(folder, model)
    if merged:
        lora.merge(model)
    return Model(described["recipe"], config, model, checkpoint.read_state(folder), folder)


def find_checkpoint(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"there is no run at {path}")
    if (path / "model.safetensors").is_file():
        return path
    found = checkpoint.best(path / "checkpoints")
    if found is None:
        raise InputError(f"{path} has no checkpoint: expected {path / 'checkpoints' / 'step-N' / 'model.safetensors'}")
    return found


def config_of(recipe: recipes.Recipe, values: dict[str, Any], where: str) -> Any:
    return recipes.from_json(type(recipes.preset(recipe, recipes.default_preset(recipe))), values, where)


def anchored(config: Any) -> Any:
    """Files are meant from here, wherever the run is continued from."""
    paths = {"data": config.data} if config.data and Path(config.data).exists() else {}
    for name in ("tokenizer", "source_tokenizer", "schema"):
        beside = str(getattr(config, name, ""))
        if beside.endswith((".json", ".toml")) or Path(beside).is_absolute():
            paths[name] = beside
    return dataclasses.replace(config, **{name: str(Path(path).resolve()) for name, path in paths.items()})


# --- public checkpoints ---


class Unfilled(TorchFunctionMode):
    """Modules are made without drawing their first weights, which a file is about to bring."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "zeros_", "zero_")
        return (args[0] if args else kwargs["tensor"]) if drawn else func(*args, **kwargs)


def load_public(path: Path, device: str = "auto") -> Model:
    """A public checkpoint, read where it lies: every name and shape is checked before memory is taken."""
    found = directory.open_folder(path) if path.is_dir() else directory.open_file(path)
    recipe = recipes.load(found.recipe)
    config = config_of(recipe, found.values, str(path))
    with torch.device("meta"), Unfilled():
        fresh = found.check(recipe.build(config))
    with nullcontext() if fresh else Unfilled():
        model = recipe.build(config)
    found.fill(model)
    place = {"data": "", "tokens": 0}  # of which it has seen nothing that we know: other data is taken whole
    return Model(found.recipe, config, model.to(find_device(device)), {"step": 0, "place": place, "fresh": fresh}, path)


def bring_in(source: Path, out: Path, command: str = "") -> Model:
    """Turn a public checkpoint into a run of ours. Raises InputError; nothing half-written stays behind."""
    run = Run(out)
    run.refuse_others()
    if not source.exists():
        raise InputError(f"there is no checkpoint at {source}")
    if source.is_dir() and not directory.foreign(source):
        raise InputError(f"{source} has no config.json with a model_type: expected a folder of a public checkpoint")
    model = load_public(source, "cpu")
    described = describe(model.name, "imported", model.config, command)
    run.create(described)
    try:
        state = {"step": 0, "place": model.place, "best": {}, "fresh": model.fresh}
        with checkpoint.whole(run.checkpoints / "step-0") as folder:
            checkpoint.write_model(folder, model.module, described, state)
    except BaseException:
        run.remove()
        raise
    return model


# --- from one model to the next ---


def prepare(model: nn.Module, described: Mapping[str, Any]) -> list[str]:
    """What a run begins from besides its config: the weights of another model, and adapters on them. Returns the
    tensors that begin fresh all the same."""
    init = described.get("init")
    if init is None:
        return []
    source = load(init["path"], "cpu")
    small = LoRA(**(described.get("lora") or {}))
    if small.rank and seal(source.path) != init["sha256"]:
        raise InputError(f"{init['path']} has changed since adapters were trained on it: bring the old weights back")
    fresh = adopt(model, source)
    if small.rank:
        lora.adapt(model, small, fresh)
    return fresh


def begin_from(source: Path) -> dict[str, str]:
    """What a run's config.json says of the model it began from."""
    return {"path": str(source.resolve()), "sha256": seal(load(source, "cpu").path)}


def seal(folder: Path) -> str:
    """sha256 of the weights in a checkpoint."""
    digest = hashlib.sha256()
    for path in [folder] if folder.is_file() else sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


@torch.no_grad()
def adopt(model: nn.Module, source: Model) -> list[str]:
    """Take over the weights of another model: all of them, but for heads, which another task may need anew. Returns the
    names that begin fresh. Raises InputError naming the first tensor that does not fit."""
    own, given = checkpoint.tensors(model), checkpoint.tensors(source.module)
    fresh = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if bad := [name for name in fresh if not name.startswith("head")]:
        found = list(given[bad[0]].shape) if bad[0] in given else "nothing"
        raise InputError(
            f"{source.path} does not fit: {bad[0]} has shape {list(own[bad[0]].shape)} here, there {found}"
        )
    for name in own.keys() - set(fresh):
        own[name].copy_(given[name])
    return fresh


def give_out(source: Path, to: str, folder: Path) -> list[str]:
    """Write a model in a public format: hf, gguf, onnx or peft. Returns the names of the files. Raises InputError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty: name a new folder")
    if to == "peft":
        model = load(source, "cpu", merged=False)
        base = checkpoint.read_json(model.path / "config.json").get("init", {}).get("path", "")
        adapters.write(folder, model.name, recipes.to_json(model.config), model.module, base)
        return sorted(path.name for path in folder.iterdir())
    model = load(source, "cpu")
    values = recipes.to_json(model.config)
    if to == "gguf":
        gguf.write(folder, model.name, values, model.module)
    elif to == "onnx":
        onnx.write(folder, model.name, values, model.module)
    else:
        directory.export(folder, model.name, values, model.module)
    return sorted(path.name for path in folder.iterdir())
