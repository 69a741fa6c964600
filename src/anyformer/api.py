"""anyformer from Python: train, load, and a model to ask.

model = anyformer.train("language", data="my.txt", minutes=1)
print(model.generate("Once upon a time")["samples"][0]["text"])
model = anyformer.load("runs/language-my-1")
"""

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from . import recipe as recipes
from .errors import InputError, TrainingError
from .training import checkpoint, loop
from .training.device import device as find_device
from .training.run import Run, Stopped, begin, describe, fit, write
from .view.report import write_report

Listener = Callable[[dict[str, Any]], None]
Starter = Callable[[Run, Any, loop.State], None]


def nobody(*_: Any) -> None:
    """Nobody listens."""


class Model:
    """A trained model with the recipe that knows what to ask of it."""

    def __init__(self, recipe: recipes.Recipe, config: Any, module: torch.nn.Module, state: dict[str, Any], path: Path):
        self.recipe, self.config, self.module, self.path = recipe, config, module.eval(), path
        self.step: int = state["step"]
        self.place: recipes.Place = state.get("place") or {}

    def predict(self, request: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Plain values in and out; what a request may hold is the recipe's to say."""
        return self.recipe.predict(self.module, (request or {}) | more)

    def generate(self, prompt: str | list[str] | None = None, **more: Any) -> dict[str, Any]:
        """Continue a prompt (a new line, if there is none), or several at once:
        {"samples": [{"prompt", "text", "tokens", "finish_reason"}, ...]}.
        More: tokens, samples, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed, keep."""
        return self.predict(more if prompt is None else {"prompt": prompt} | more)

    def evaluate(self, data: str | None = None) -> dict[str, float]:
        """A fixed pass over the whole validation split. Other data than the training's is taken whole."""
        config = self.config if data is None else anchored(dataclasses.replace(self.config, data=data))
        batches = self.recipe.batches(config, "val", None)
        first = next(batches)
        if self.place.get("data") not in (None, first[1].get("data")):
            if data is None:
                raise InputError(
                    f"the data '{config.data}' has changed since this run began: bring it back, or name data"
                )
            batches = self.recipe.batches(config, "all", None)
            first = next(batches)
        every = (batch for batch, _ in chain([first], batches))
        return loop.evaluate(self.recipe, self.module, every, self.config.train.dtype)


def load(path: str | Path, device: str = "auto") -> Model:
    """The best checkpoint of a run directory, or the very checkpoint that is named. Raises InputError."""
    folder = find_checkpoint(Path(path))
    described = checkpoint.read_json(folder / "config.json")
    for name in ("recipe", "config"):
        if name not in described:
            raise InputError(f"{folder / 'config.json'} names no {name}: it is not a checkpoint of anyformer")
    recipe = recipes.load(described["recipe"])
    config = recipes.at_home(config_of(recipe, described["config"], f"{folder / 'config.json'}"), folder)
    model = recipe.build(config).to(find_device(device))
    checkpoint.load_model(folder, model)
    return Model(recipe, config, model, checkpoint.read_state(folder), folder)


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


def train(
    recipe: str,
    preset: str | None = None,
    *,
    minutes: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_start: Starter = nobody,
    on_record: Listener = nobody,
    **overrides: Any,
) -> Model:
    """Train a recipe and give back its best model.

    overrides: fields of the preset's config, nested ones as dicts: train("language", data="a.txt", train={"lr": 1e-3}).
    minutes: instead of steps, as many as fit. out: the run directory (a new one below runs/). resume: go on with it.
    on_start(run, config, state) hears once, on_record(record) every step. Raises InputError, TrainingError, and Stopped
    after Ctrl-C (everything is saved).
    """
    module = recipes.load(recipe)
    run = Run(Path(out)) if out is not None else None
    preset, config = starting_point(module, recipe, preset, run if resume else None)
    values = merged(recipes.to_json(config), overrides)
    config = config_of(module, values, "overrides")
    return run_config(
        recipe,
        preset,
        config,
        run=run,
        resume=resume,
        minutes=minutes,
        on_start=on_start,
        on_record=on_record,
        command=f"anyformer.train({recipe!r}, ...)",
    )


def starting_point(module: recipes.Recipe, name: str, preset: str | None, run: Run | None) -> tuple[str, Any]:
    """The preset and the config that overrides apply to: the stored ones of a run that goes on, else the preset's."""
    if run is None or not run.exists:
        preset = preset or recipes.default_preset(module)
        return preset, recipes.preset(module, preset)
    stored = run.config()
    if stored.get("recipe") != name:
        raise InputError(f"{run.path} is a run of recipe '{stored.get('recipe')}', not '{name}'")
    if preset not in (None, stored.get("preset")):
        raise InputError(f"{run.path} began with preset '{stored.get('preset')}', not '{preset}': leave --preset out")
    return stored["preset"], config_of(module, stored["config"], str(run.path / "config.json"))


def merged(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    inner = {
        k: merged(values[k], v) for k, v in overrides.items() if isinstance(v, dict) and isinstance(values.get(k), dict)
    }
    return values | overrides | inner


def run_config(
    name: str,
    preset: str,
    config: Any,
    *,
    run: Run | None = None,
    resume: bool = False,
    minutes: float | None = None,
    on_start: Starter = nobody,
    on_record: Listener = nobody,
    command: str = "",
) -> Model:
    """Train exactly this config in a run directory: what `train` and the command line share."""
    began, module, config = time.monotonic(), recipes.load(name), anchored(config)
    run = run or Run(next_run(name, config))
    goes_on = resume and run.exists
    if goes_on:
        if minutes is not None:
            raise InputError(f"--minutes plans a new run; {run.path} has {config.train.steps} steps: change --steps")
        same_model(run, config_of(module, run.config()["config"], str(run.path / "config.json")), config)
    else:
        run.refuse_others()
    usable(module, config, run)
    if minutes is not None and not goes_on:
        config = loop.within(module, config, minutes * 60)
    described = describe(name, preset, config, command)
    if not goes_on:
        run.create(described)
    with leaving_no_stub(run, goes_on):
        state = begin(run, module, config)
        if goes_on:
            run.describe(run.config() | {"config": described["config"]})
        on_start(run, config, state)
        with reported(run):
            for record in fit(run, module, config, state):
                on_record(record)
    model = load(run.path, config.train.device)
    write(run.path / "result.json", json.dumps(result(model, state, began), indent=2) + "\n")
    write_report(run.path)
    return model


def usable(module: recipes.Recipe, config: Any, run: Run) -> None:
    """What is wrong with the device or the data is said before anything is written."""
    find_device(config.train.device)
    last = checkpoint.latest(run.checkpoints)
    place = None if last is None else checkpoint.read_state(last)["place"]
    for split, at in (("train", place), ("val", None)):
        next(module.batches(config, split, at))


@contextmanager
def leaving_no_stub(run: Run, goes_on: bool) -> Generator[None]:
    """A run that fails before its first checkpoint leaves nothing, unless the numbers it ended with tell why."""
    try:
        yield
    except BaseException as error:  # Ctrl-C while the model is being made, too
        tells = goes_on or isinstance(error, TrainingError | Stopped)
        if not tells and checkpoint.latest(run.checkpoints) is None:
            run.remove()
        raise


@contextmanager
def reported(run: Run) -> Generator[None]:
    """Whatever ends a run, its report is written, if the disk lets us."""
    try:
        yield
    finally:
        with suppress(OSError):
            write_report(run.path)


def result(model: Model, state: loop.State, began: float) -> dict[str, Any]:
    """How it ended: of the best checkpoint, over the whole validation split."""
    found = {f"val_{name}": value for name, value in model.evaluate().items()}
    return {"step": state.step, "best_step": model.step} | found | {"seconds": round(time.monotonic() - began, 2)}


def same_model(run: Run, stored: Any, config: Any) -> None:
    """A run may go on with other training settings, not with another model or other data."""
    was, now = dict(flat(stored)), dict(flat(config))
    for name in now:
        if not name.startswith("train.") and was[name] != now[name]:
            begun = f"{run.path} was begun with {name} {was[name]}, not {now[name]}"
            raise InputError(f"{begun}: a run cannot change it, start a new one")


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by its dotted name, with its value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def anchored(config: Any) -> Any:
    """Files are meant from here, wherever the run is continued from."""
    paths = {"data": config.data} if Path(config.data).exists() else {}
    if str(getattr(config, "tokenizer", "")).endswith(".json"):
        paths["tokenizer"] = config.tokenizer
    return dataclasses.replace(config, **{name: str(Path(path).resolve()) for name, path in paths.items()})


def next_run(name: str, config: Any) -> Path:
    """runs/RECIPE-DATA-1, or the next number that is free."""
    stem = f"{name}-{Path(config.data).name.split('.')[0] or 'data'}"
    return next(path for i in range(1, 1 << 30) if not (path := Path("runs") / f"{stem}-{i}").exists())
