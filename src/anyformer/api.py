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
from functools import partial
from pathlib import Path
from typing import Any

from . import recipe as recipes
from .checkpoints.hf_folder import TUNING
from .errors import InputError, TrainingError
from .loading import Model, anchored, begin_from, bring_in, config_of, load, prepare
from .report.html import write_report
from .training import budget as plan
from .training import checkpoints as checkpoint
from .training import loop
from .training.config import LoRA
from .training.device import device as find_device
from .training.run_directory import Run, Stopped, average, begin, describe, fit, write

__all__ = ["Model", "bring_in", "load", "run_config", "starting_point", "train"]
Listener = Callable[[dict[str, Any]], None]
Starter = Callable[[Run, Any, loop.State], None]


def nobody(*_: Any) -> None:
    """Nobody listens."""


def train(
    recipe: str,
    preset: str | None = None,
    *,
    minutes: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    lora: dict[str, Any] | None = None,
    on_start: Starter = nobody,
    on_record: Listener = nobody,
    **overrides: Any,
) -> Model:
    """Train a recipe and give back its best model.

    overrides: fields of the preset's config, nested ones as dicts: train("language", data="a.txt", train={"lr": 1e-3}).
    minutes: instead of steps, as many as fit, and where neither a preset nor a field of model or train is given, of the
    size that promises most (recipes with `sizes`). out: the run directory (a new one below runs/). resume: go on with
    it. init: a run or public checkpoint to begin from (fine-tuning). lora: {"rank": 8} and so on, to train adapters
    alone.
    on_start(run, config, state) hears once, on_record(record) every step. Raises InputError, TrainingError, and Stopped
    after Ctrl-C (everything is saved).
    """
    module = recipes.load(recipe)
    run = Run(Path(out)) if out is not None else None
    source = None if init is None else Path(init)
    began, asked = time.monotonic(), preset
    preset, config = starting_point(module, recipe, preset, run if resume else None, source)
    values = merged(recipes.to_json(config), overrides)
    config = config_of(module, values, "overrides")
    return run_config(
        recipe,
        preset,
        config,
        run=run,
        resume=resume,
        init=source,
        lora=adapters(lora or {}),
        budget=budget_of(minutes, began, source is None and undecided(module, asked, config)),
        on_start=on_start,
        on_record=on_record,
        command=f"anyformer.train({recipe!r}, ...)",
    )


def budget_of(minutes: float | None, began: float, sizes: bool) -> plan.Budget | None:
    return None if minutes is None else plan.Budget(minutes=minutes, began=began, sizes=sizes)


def adapters(values: dict[str, Any]) -> LoRA:
    return recipes.from_json(LoRA, values, "lora")


def starting_point(
    module: recipes.Recipe, name: str, preset: str | None, run: Run | None, init: Path | None = None
) -> tuple[str, Any]:
    """The preset and the config that overrides apply to: the stored ones of a run that goes on, else the preset's, with
    the shape of the model it begins from."""
    if run is None or not run.exists:
        chosen = preset or recipes.default_preset(module)
        config = recipes.preset(module, chosen)
        return chosen, config if init is None else tuned(module, config, load(init, "cpu"), preset is None)
    stored = run.config()
    if stored.get("recipe") != name:
        raise InputError(f"{run.path} is a run of recipe '{stored.get('recipe')}', not '{name}'")
    if preset not in (None, stored.get("preset")):
        raise InputError(f"{run.path} began with preset '{stored.get('preset')}', not '{preset}': leave --preset out")
    return stored["preset"], config_of(module, stored["config"], str(run.path / "config.json"))


def tuned(module: recipes.Recipe, config: Any, source: Model, gently: bool) -> Any:
    """The config with the shape and the vocabulary of the model that it begins from, and unless a preset was asked for
    by name, with the gentle training that a trained model wants."""
    given, values = recipes.to_json(source.config), recipes.to_json(config)
    same = {field: given[field] for field in values if field in given and field not in ("data", "labels", "train")}
    data = {"data": given["data"]} if source.recipe is module and given["data"] else {}
    train = {"train": TUNING | {"seed": values["train"]["seed"]}} if gently else {}
    return config_of(module, values | same | data | train, f"{source.path}")


def undecided(module: recipes.Recipe, preset: str | None, config: Any) -> bool:
    """Whether nobody has said how large the model is and how it learns, and the recipe knows of sizes."""
    default = recipes.preset(module, recipes.default_preset(module))
    free = ("seed", "device", "dtype", "compile")
    train = dataclasses.replace(default.train, **{name: getattr(config.train, name) for name in free})
    return preset is None and hasattr(module, "sizes") and (config.model, config.train) == (default.model, train)


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
    init: Path | None = None,
    lora: LoRA = LoRA(),  # noqa: B008 (frozen)
    budget: plan.Budget | None = None,
    on_start: Starter = nobody,
    on_record: Listener = nobody,
    command: str = "",
) -> Model:
    """Train this config in a run directory, as large and as long as a budget has it, or else exactly: what `train` and
    the command line share."""
    began = time.monotonic() if budget is None else budget.began
    module, config = recipes.load(name), anchored(config)
    run = run or Run(next_run(name, config))
    goes_on = resume and run.exists
    if goes_on:
        if budget is not None:
            raise InputError(f"--minutes plans a new run; {run.path} has {config.train.steps} steps: change --steps")
        same_model(run, config_of(module, run.config()["config"], str(run.path / "config.json")), config)
    else:
        run.refuse_others()
    usable(module, config, run)
    found: dict[str, Any] = {}
    if budget is not None:
        config, found = planned(module, config, budget)
    described = describe(name, preset, config, command) | beginnings(init, lora) | found
    if not goes_on:
        run.create(described)
    with leaving_no_stub(run, goes_on):
        state = begin(run, module, config, partial(prepare, described=run.config()))
        if goes_on:
            run.describe(run.config() | {"config": described["config"]})
        on_start(run, config, state)
        with reported(run):
            for record in fit(run, module, config, state):
                on_record(record)
            average(run, module, config, state)
    model = load(run.path, config.train.device)
    write(run.path / "result.json", json.dumps(result(model, state, began), indent=2) + "\n")
    if (figures := getattr(module, "figures", None)) is not None:
        write(run.path / "figures.json", json.dumps(figures(model.module, model.config), ensure_ascii=False))
    write_report(run.path)
    return model


def planned(module: recipes.Recipe, config: Any, budget: plan.Budget) -> tuple[Any, dict[str, Any]]:
    """The config that fits into the time, and what a run's config.json says of how it was found."""
    if not budget.sizes:
        return plan.within(module, config, budget.left), {}
    config, found = plan.chosen(module, config, budget.left)
    return config, {"plan": {"minutes": budget.minutes} | found}


def beginnings(init: Path | None, lora: LoRA) -> dict[str, Any]:
    """What a run's config.json says of where it begins."""
    if init is None and lora.rank:
        raise InputError("--lora.rank trains adapters on a model that is there: say which with --init RUN")
    found = {} if init is None else {"init": begin_from(init)}
    return found | ({"lora": recipes.to_json(lora)} if lora.rank else {})


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
    found = {f"val_{name}": value for name, value in model.evaluate(every=model.config.train.final_every).items()}
    found |= {"skipped": skipped} if (skipped := model.place.get("skipped")) else {}
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


def next_run(name: str, config: Any) -> Path:
    """runs/RECIPE-DATA-1, or the next number that is free."""
    stem = f"{name}-{Path(config.data).name.split('.')[0] or 'data'}"
    return next(path for i in range(1, 1 << 30) if not (path := Path("runs") / f"{stem}-{i}").exists())
