"""From what a person asks for to one `TrainingJob`: recipe, preset, overrides, paths, budget and start weights."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import recipe as recipes
from .checkpoints.hf_folder import FINETUNING_DEFAULTS
from .errors import InputError, suggest
from .parsing import RENAMED_FIELDS, parse_dataclass, to_json
from .recipe import Recipe, SupportsSizes, parse_config, resolve_paths
from .trained_model import Model, load_source
from .training import checkpoints
from .training.budget import Budget
from .training.config import LoRAConfig
from .training.job import InitWeights, TrainingJob
from .training.run_directory import RunDirectory

MACHINE_FIELDS = ("seed", "device", "dtype", "compile")  # of TrainConfig: they do not decide how a model learns


def resolve_job(
    recipe: Any,
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    minutes: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    lora: dict[str, Any] | None = None,
    command: str = "",
) -> TrainingJob:
    """Resolve everything that decides a training, once; nothing is written. Raises InputError.

    Args:
        recipe: What `load_recipe` takes: a name, a Python path, a file, a module.
        preset: Where the defaults of the config come from.
        overrides: Config fields, nested: {"data": "my.txt", "train": {"lr": 1e-3}}.
        minutes: A time limit instead of a number of steps.
        out: The run directory; None: a new one below runs/.
        resume: Continue the run in `out`, if there is one.
        init: A run or public checkpoint to start from.
        lora: Settings of adapters, to be trained on the model of `init`.
        command: The command line or call, for config.json.
    """
    started_at, module = time.monotonic(), recipes.load_recipe(recipe)
    name, settings = recipes.recipe_name(module), parse_dataclass(LoRAConfig, lora or {}, "lora")
    run = None if out is None else RunDirectory(Path(out))
    if run is not None and resume and run.exists:
        if minutes is not None:
            raise InputError(f"--minutes plans a new run, and {run.path} is one already: change --steps")
        return resume_job(module, preset, overrides or {}, run, command)
    if init is None and settings.rank:
        raise InputError("--lora.rank trains adapters on an existing model: name it with --init RUN")
    source = None if init is None else load_source(Path(init), module)
    config = build_config(module, preset, overrides or {}, source)
    choose_size = source is None and can_choose_size(module, preset, config)
    budget = None if minutes is None else Budget(minutes=minutes, started_at=started_at, choose_size=choose_size)
    return TrainingJob(
        recipe=module,
        recipe_name=name,
        preset=preset or recipes.default_preset(module),
        config=config,
        run=run or choose_run(name, config),
        init=init_weights(source, init),
        lora=settings,
        budget=budget,
        command=command,
    )


def resume_job(
    module: Recipe, preset: str | None, overrides: dict[str, Any], run: RunDirectory, command: str
) -> TrainingJob:
    """Continue a run: its stored config, with other training settings at most."""
    stored, name, where = run.read_config(), recipes.recipe_name(module), str(run.path / "config.json")
    if stored["recipe"] != name:
        raise InputError(f"{run.path} is a run of recipe '{stored['recipe']}', not '{name}'")
    if preset not in (None, stored["preset"]):
        raise InputError(f"{run.path} began with preset '{stored['preset']}', not '{preset}': leave --preset out")
    old = parse_config(module, stored["config"], where)
    config = resolve_paths(parse_config(module, merge_overrides(to_json(old), overrides), ""))
    check_same_model(run, resolve_paths(old), config)
    settings = parse_dataclass(LoRAConfig, stored.get("lora") or {}, where)
    needs_source = settings.rank or checkpoints.find_latest(run.checkpoints) is None
    init = stored.get("init") if needs_source else None
    source = None if init is None else load_source(Path(init["path"]), module, init["sha256"])
    return TrainingJob(
        recipe=module,
        recipe_name=name,
        preset=stored["preset"],
        config=config,
        run=run,
        is_resumed=True,
        init=init_weights(source, stored.get("init", {}).get("path")),
        lora=settings,
        command=command,
    )


# --- the config ---


def build_config(module: Recipe, preset: str | None, overrides: dict[str, Any], source: Model | None) -> Any:
    """Merge the preset, the shape of the model to start from and the overrides into a config. Raises InputError."""
    values = to_json(recipes.get_preset(module, preset or recipes.default_preset(module)))
    if source is not None:
        values = adapt_to_source(module, values, source, is_gentle=preset is None)
    return resolve_paths(parse_config(module, merge_overrides(values, overrides), ""))


def adapt_to_source(module: Recipe, values: dict[str, Any], source: Model, is_gentle: bool) -> dict[str, Any]:
    """Take over the shape and vocabulary of the model to start from.

    Args:
        module: The recipe.
        values: The preset's config.
        source: The model to start from.
        is_gentle: Use the training settings of fine-tuning, unless a preset was named.
    """
    stored = to_json(source.config)
    shape = {name: stored[name] for name in values if name in stored and name not in ("data", "labels", "train")}
    data = {"data": stored["data"]} if source.recipe is module and stored["data"] else {}
    train = {"train": FINETUNING_DEFAULTS | {"seed": values["train"]["seed"]}} if is_gentle else {}
    return values | shape | data | train


def merge_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Replace values by overrides, nested dicts field by field. Dataclasses among the overrides become dicts."""
    merged = dict(values)
    for name, value in overrides.items():
        value = to_json(value) if dataclasses.is_dataclass(value) else value
        nested = isinstance(value, dict) and isinstance(values.get(name), dict)
        merged[name] = merge_overrides(values[name], value) if nested else value
    return merged


def expand_short_names(recipe: Recipe, overrides: dict[str, Any]) -> dict[str, Any]:
    """Move fields of the training config to their place: {"steps": 3} -> {"train": {"steps": 3}}.

    Raises InputError for an unknown name, with the right place for a field of another nested config.
    """
    config = recipes.get_preset(recipe, recipes.default_preset(recipe))
    places = {path: path.rpartition(".")[0] for path, _ in flatten(config)}
    names = [field.name for field in dataclasses.fields(config)]
    expanded: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in names and f"train.{name}" in places:
            value, name = {name: value}, "train"
        elif name not in names and RENAMED_FIELDS.get(name) not in names:
            for path, place in places.items():
                if place and path == f"{place}.{name}":
                    raise InputError(f"unknown field '{name}': write {place}={{'{name}': {value!r}}}")
            valid = dict.fromkeys([*names, *(path.removeprefix("train.") for path in places)])
            raise InputError(f"unknown field '{name}': {suggest(name, valid)}")
        expanded = merge_overrides(expanded, {name: value})
    return expanded


def can_choose_size(module: Recipe, preset: str | None, config: Any) -> bool:
    """Whether the recipe has sizes to choose from, and neither preset, model nor training settings were chosen."""
    default = recipes.get_preset(module, recipes.default_preset(module))
    machine = {name: getattr(config.train, name) for name in MACHINE_FIELDS}
    train = dataclasses.replace(default.train, **machine)
    if preset is not None or not isinstance(module, SupportsSizes):
        return False
    return (config.model, config.train) == (default.model, train)


# --- weights and directories ---


def init_weights(source: Model | None, path: str | Path | None) -> InitWeights | None:
    """Return the weights of the model to start from, with the path by which the user named it."""
    if source is None or path is None:
        return None
    return InitWeights(source.module, Path(path).resolve(), checkpoints.hash_weights(source.path))


def check_same_model(run: RunDirectory, old: Any, new: Any) -> None:
    """Raise InputError if anything but training settings differs between two configs."""
    was, now = dict(flatten(old)), dict(flatten(new))
    for name, value in now.items():
        if not name.startswith("train.") and was[name] != value:
            change = f"{run.path} was begun with {name} {was[name]}, not {value}"
            raise InputError(f"{change}: a run cannot change it, start a new one")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of nested dataclasses by its dotted name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def choose_run(name: str, config: Any) -> RunDirectory:
    """Return runs/RECIPE-DATA-1, or the next number that is free."""
    stem = f"{name}-{Path(config.data).name.split('.')[0] or 'data'}"
    paths = (Path("runs") / f"{stem}-{i}" for i in range(1, 1 << 30))
    return RunDirectory(next(path for path in paths if not path.exists()))
