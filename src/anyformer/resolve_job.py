"""From what a person asks for to one `TrainingJob`: recipe, preset, overrides, paths, budget and start weights."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import recipe_loading
from .checkpoints.hf_folder import FINETUNING_DEFAULTS
from .data.io.remote import fetch_data
from .data.io.sources import shorten_names, split_sources
from .errors import InputError, suggest
from .events import report_notice
from .model.config import find_stacks
from .parsing import RENAMED_FIELDS, parse_dataclass, to_json
from .processes import get_world_size, is_restarted
from .recipe import (
    DataDefaults,
    Recipe,
    SupportsDataDefaults,
    SupportsFrozenReference,
    SupportsPeers,
    SupportsRollouts,
    SupportsSizes,
)
from .recipe_loading import parse_config, resolve_paths
from .rewards import admit_reward
from .trained_model import load_source
from .training import checkpoints
from .training.budget import Budget
from .training.config import LoRAConfig
from .training.job import InitWeights, TrainingJob
from .training.run_directory import RunDirectory
from .training.trackers import check_trackers

MAX_NAMES = 3  # of sources in the name of a run
READING_FIELDS = ("columns", "empty", "duplicates", "too_long")  # how a recipe reads its own kind of data


def resolve_job(
    recipe: Any,
    preset: str | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    minutes: float | None = None,
    yes: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    lora: dict[str, Any] | None = None,
    track: Sequence[str] = (),
    compare: bool = False,
    command: str = "",
    is_preset_free: bool = False,
) -> TrainingJob:
    """Resolve everything that decides a training, once; nothing is written. Raises InputError.

    The arguments are those of `api.train`, with nested `overrides`, {"data": "my.txt", "train": {"lr": 1e-3}}, the
    command line or call for config.json, and whether the preset was chosen for the data, not by the user.
    """
    started_at, module = time.monotonic(), recipe_loading.load_recipe(recipe)
    overrides, settings = fetch_overrides(module, overrides), parse_dataclass(LoRAConfig, lora or {}, "lora")
    budget = None if minutes is None else Budget(minutes=minutes, started_at=started_at, is_forced=yes)
    extras: dict[str, Any] = {"trackers": check_trackers(track), "compare": check_comparison(module, compare)}
    run = None if out is None else RunDirectory(Path(out))
    if run is not None and (resume or is_restarted()) and run.exists:
        job = resume_job(module, preset, overrides, run, command)
        return dataclasses.replace(job, budget=budget, **extras)
    source = None if init is None else load_source(Path(init), module)
    defaults = suggest_defaults(module, overrides) if preset is None and source is None else None
    if defaults is not None:
        preset, is_preset_free = defaults.preset, True
    suggested = {} if defaults is None else defaults.overrides
    config = build_config(module, preset, merge_overrides(suggested, overrides), source)
    is_free = source is None and (is_preset_free or preset is None)
    if budget is not None and is_free and can_choose_size(module, preset, suggested, config):
        budget = dataclasses.replace(budget, choose_size=True)
    return TrainingJob(
        recipe=module,
        preset=preset or recipe_loading.default_preset(module),
        config=check_init(config, source, settings),
        run=run or choose_run(recipe_loading.recipe_name(module), config),
        init=source,
        lora=settings,
        budget=budget,
        command=command,
        **extras,
    )


def check_comparison(module: Recipe, compare: bool) -> bool:
    """Raise InputError if a comparison is wanted and the recipe has none."""
    if compare and not isinstance(module, SupportsPeers):
        names = recipe_loading.recipes_with(SupportsPeers)
        raise InputError(f"--compare is for the recipes {names}, not for '{recipe_loading.recipe_name(module)}'")
    return compare


def resume_job(
    module: Recipe, preset: str | None, overrides: dict[str, Any], run: RunDirectory, command: str
) -> TrainingJob:
    """Continue a run: its stored config, with other training settings at most."""
    stored, name, where = run.read_config(), recipe_loading.recipe_name(module), str(run.path / "config.json")
    if stored["recipe"] != name:
        raise InputError(f"{run.path} is a run of recipe '{stored['recipe']}', not '{name}'")
    if preset not in (None, stored["preset"]):
        raise InputError(f"{run.path} began with preset '{stored['preset']}', not '{preset}': leave --preset out")
    old = parse_config(module, stored["config"], where)
    config = resolve_paths(parse_config(module, merge_overrides(to_json(old), overrides), ""))
    check_same_model(run, resolve_paths(old), config)
    settings, init = parse_dataclass(LoRAConfig, stored.get("lora") or {}, where), stored.get("init")
    latest = checkpoints.find_latest(run.checkpoints)
    has_reference = isinstance(module, SupportsFrozenReference) and module.needs_reference(config)
    needs_source = settings.rank or latest is None or has_reference
    has_steps = "steps" in merge_overrides({}, overrides).get("train", {})
    return TrainingJob(
        recipe=module,
        preset=stored["preset"],
        config=config,
        run=run,
        is_resumed=True,
        init=load_source(Path(init["path"]), module, init["sha256"]) if init and needs_source else None,
        lora=settings,
        keeps_timer=not has_steps,
        command=command,
    )


def check_init(config: Any, source: InitWeights | None, lora: LoRAConfig) -> Any:
    """Return the config. Raises InputError if a model to start from is missing, or frozen and also adapted."""
    is_frozen = getattr(config, "frozen", False)
    if source is None and lora.rank:
        raise InputError("--lora.rank trains adapters on an existing model: name it with --init RUN")
    if source is None and is_frozen:
        raise InputError("frozen trains a head on an encoder that was trained before: name it with --init RUN")
    if is_frozen and lora.rank:
        raise InputError("frozen trains the head alone, and --lora.rank adapters in the encoder: leave one of them out")
    return config


# --- the config ---

OWN_FIELDS = ("data", "labels", "tasks", "train", "frozen")  # of a run, not of the model that it starts from


def fetch_overrides(module: Recipe, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """Return the overrides with data that are elsewhere (a URL, the hub, rows in memory) as local files, and a
    reward that the user names by its name. Raises InputError for several sources that the recipe cannot mix."""
    overrides = dict(overrides or {})
    if overrides.get("data") is not None:
        overrides["data"] = fetch_data(overrides["data"])
        recipe_loading.check_mixture(module, overrides["data"])
    if overrides.get("reward") is not None and isinstance(module, SupportsRollouts):
        overrides["reward"] = admit_reward(overrides["reward"])
    return overrides


def build_config(module: Recipe, preset: str | None, overrides: dict[str, Any], source: InitWeights | None) -> Any:
    """Merge the preset, the shape of the model to start from and the overrides into a config. Raises InputError."""
    values = to_json(recipe_loading.get_preset(module, preset))
    if source is not None:
        stored = to_json(source.config)
        excluded = (*OWN_FIELDS, *(() if source.recipe is module else READING_FIELDS))
        values |= {name: stored[name] for name in values if name in stored and name not in excluded}
        if source.recipe is module and stored["data"]:
            values["data"] = stored["data"]
        if preset is None:
            values["train"] = FINETUNING_DEFAULTS | {"seed": values["train"]["seed"]}
    return resolve_paths(parse_config(module, merge_overrides(values, overrides), ""))


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
    config = recipe_loading.get_preset(recipe)
    names, paths = [field.name for field in dataclasses.fields(config)], [path for path, _ in flatten(config)]
    expanded: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in names and f"train.{name}" in paths:
            value, name = {name: value}, "train"
        elif name not in names and RENAMED_FIELDS.get(name) not in names:
            if path := next((path for path in paths if path.endswith(f".{name}")), None):
                raise InputError(
                    f"unknown field '{name}': write {path.removesuffix(f'.{name}')}={{'{name}': {value!r}}}"
                )
            valid = dict.fromkeys([*names, *(path.removeprefix("train.") for path in paths)])
            raise InputError(f"unknown field '{name}': {suggest(name, valid)}")
        expanded = merge_overrides(expanded, {name: value})
    return expanded


def suggest_defaults(module: Recipe, overrides: dict[str, Any]) -> DataDefaults | None:
    """Return what the user's data suggest, and say it; None where the recipe's own defaults apply."""
    if not overrides.get("data") or not isinstance(module, SupportsDataDefaults):
        return None
    defaults = module.data_defaults(overrides)
    if defaults is not None:
        report_notice(defaults.reason)
    return defaults


def can_choose_size(module: Recipe, preset: str | None, suggested: dict[str, Any], config: Any) -> bool:
    """Whether the recipe has sizes to choose from, and the user chose neither model nor training settings."""
    if not isinstance(module, SupportsSizes):
        return False
    default = parse_config(module, merge_overrides(to_json(recipe_loading.get_preset(module, preset)), suggested), "")
    machine = {name: getattr(config.train, name) for name in ("seed", "device", "dtype", "compile")}
    train = dataclasses.replace(default.train, **machine)
    shapes = [{name: vars(c).get(name) for name in ("model", *find_stacks(c))} for c in (config, default)]
    return shapes[0] == shapes[1] and config.train == train


def check_same_model(run: RunDirectory, old: Any, new: Any) -> None:
    """Raise InputError if anything but training settings differs between two configs."""
    was = dict(flatten(old))
    for name, now in flatten(new):
        if not name.startswith("train.") and was[name] != now:
            change = f"{run.path} was begun with {name} {was[name]}, not {now}"
            raise InputError(f"{change}: a run cannot change it, start a new one")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of nested dataclasses by its dotted name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def choose_run(name: str, config: Any, suffix: str = "") -> RunDirectory:
    """Return runs/RECIPE-DATA-1, or the next number that is free, also with the suffix."""
    if get_world_size() > 1:
        raise InputError("several processes need a run directory that all know: --out DIR")
    names, sources = [Path(config.data).name.split(".")[0] or "data"], split_sources(config.data)
    stem = "-".join([name, *(names if len(sources) == 1 else shorten_names(sources)[:MAX_NAMES])])
    paths = (Path("runs") / f"{stem}-{i}" for i in range(1, 1 << 30))
    free = (path for path in paths if not path.exists() and not path.with_name(path.name + suffix).exists())
    return RunDirectory(next(free))
