"""anyformer train RECIPE --seeds N or --folds K: one config trained several times, and its final metrics on average."""

import dataclasses
import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import recipe as recipes
from ..errors import InputError
from ..parsing import to_json
from ..training.run_directory import RunDirectory, atomic_write
from .terminal import format_columns, print_status
from .train import Options, TrainCommand, confirm_schema, shift_budget, train_to_end

if TYPE_CHECKING:
    from ..training.job import TrainingJob


@dataclass(frozen=True)
class Variation:
    """What differs between trainings that are otherwise the same."""

    name: str
    """"seed" or "fold": the trainings are numbered from 1."""
    count: int
    make_overrides: Callable[[int], dict[str, Any]]
    """Returns the config fields of one training, nested."""


def train_several(
    command: TrainCommand, options: Options, overrides: dict[str, Any], settings: dict[str, Any], started_at: float
) -> int:
    """Train everything that has not been trained yet, and print a summary. Returns the exit code.

    A time budget is planned once, for the first: the others train its config.
    """
    variation = choose_variation(command, options, overrides, settings)
    name, count = variation.name, variation.count
    stem = options.out or choose_stem(command, overrides, settings, name)
    runs = [RunDirectory(stem.with_name(f"{stem.name}-{name}-{number}")) for number in range(1, count + 1)]
    for run in runs if name == "seed" else [RunDirectory(stem), *runs]:
        if not options.resume or not (run.exists or run.path == stem):
            run.require_unused()  # before any of them is trained
    go_on = f"{command.prog} --out {shlex.quote(str(stem))} --{name}s {count} --resume"
    config: dict[str, Any] = {}
    for number, run in enumerate(runs, 1):
        job = resolve_one(command, overrides, settings, variation, number, run)
        if config and not job.is_resumed:
            job = replace_config(job, config, variation.make_overrides(number))
        if not config and not job.is_resumed:
            job = shift_budget(job, started_at + confirm_schema(job, options.yes))
        print_status(f"{name} {number} of {count}" + (": finished already" if is_finished(job) else ""))
        if not is_finished(job) and train_to_end(job, go_on) is None:
            return 1
        config = config or run.read_config()["config"]
    summarize(variation, stem, runs, time.monotonic() - started_at, options.json)
    return 0


def choose_variation(
    command: TrainCommand, options: Options, overrides: dict[str, Any], settings: dict[str, Any]
) -> Variation:
    """Return what the trainings differ in. Raises InputError if the recipe or its data have no folds."""
    if options.folds is None:
        return Variation("seed", options.seeds or 0, lambda number: {"train": {"seed": number}})
    recipe, folds = command.recipe, options.folds
    if not isinstance(recipe, recipes.SupportsFolds):
        names = recipes.recipes_with(recipes.SupportsFolds)
        raise InputError(f"--folds is for the recipes {names}, not for '{recipes.recipe_name(recipe)}'")
    config = command.resolve(overrides, settings | {"out": None, "resume": False, "minutes": None}).config
    recipe.fold_overrides(config, 1, folds)  # before anything is trained
    return Variation("fold", folds, lambda number: recipe.fold_overrides(config, number, folds))


def choose_stem(command: TrainCommand, overrides: dict[str, Any], settings: dict[str, Any], name: str) -> Path:
    """Return a path below runs/ that is free, as the stem of the run directories."""
    from ..resolve_job import choose_run

    job = command.resolve(overrides, settings)
    return choose_run(job.recipe_name, job.config, f"-{name}-1").path


def resolve_one(
    command: TrainCommand,
    overrides: dict[str, Any],
    settings: dict[str, Any],
    variation: Variation,
    number: int,
    run: RunDirectory,
) -> "TrainingJob":
    """Resolve one of the jobs; only a new run of the first has a time budget."""
    from ..resolve_job import merge_overrides

    minutes = settings["minutes"] if number == 1 and not run.exists else None
    changes = {"out": run.path, "minutes": minutes}
    return command.resolve(
        merge_overrides({"train": {}} | overrides, variation.make_overrides(number)), settings | changes
    )


def replace_config(job: "TrainingJob", config: dict[str, Any], overrides: dict[str, Any]) -> "TrainingJob":
    """Let a job train the config of the first one, with its own seed or fold."""
    from ..resolve_job import merge_overrides

    return dataclasses.replace(
        job, config=recipes.parse_config(job.recipe, merge_overrides(config, overrides), "config")
    )


def is_finished(job: "TrainingJob") -> bool:
    """Whether the run was trained to the end, with the training settings that are asked for now."""
    from ..report.runs import summarize_run

    if not job.is_resumed or summarize_run(job.run).state != "finished":
        return False
    return job.run.read_config()["config"].get("train") == to_json(job.config)["train"]


def summarize(variation: Variation, stem: Path, runs: Sequence[RunDirectory], seconds: float, as_json: bool) -> None:
    """Print the final metrics of each run, their mean and their standard deviation; of folds, they are also stored in
    STEM/result.json."""
    from ..report.compare import compare_runs, summarize_values

    facts = compare_runs(runs)
    metrics, scores = facts["metrics"], [row["scores"] for row in facts["runs"]]
    samples = {name: summarize_values([values[name] for values in scores if name in values]) for name in metrics}
    values = {name: dataclasses.asdict(sample) for name, sample in samples.items()}
    result: dict[str, Any] = {"runs": [str(run.path) for run in runs], "seconds": round(seconds, 2), "metrics": values}
    others: dict[str, dict[str, float]] = {}
    if variation.name == "fold":
        others = average_baselines([row["baselines"] for row in facts["runs"]])
        result["baselines"] = others
        stem.mkdir(parents=True, exist_ok=True)
        atomic_write(stem / "result.json", json.dumps({"folds": len(runs)} | result, indent=2) + "\n")
    if as_json:
        print(json.dumps(result))
        return
    rows = [[variation.name, *(name.replace("_", " ") for name in metrics), "run"]]
    for number, (values, run) in enumerate(zip(scores, runs, strict=True), 1):
        cells = [f"{values[name]:.4f}" if name in values else "" for name in metrics]
        rows.append([str(number), *cells, str(run.path)])
    rows.append(["mean", *(f"{samples[name].mean:.4f}" for name in metrics), ""])
    deviations = [samples[name].std for name in metrics]
    rows.append(["std", *("" if std is None else f"{std:.4f}" for std in deviations), ""])
    for name in dict.fromkeys(name for values in others.values() for name in values):
        cells = [f"{others[metric][name]:.4f}" if name in others.get(metric, {}) else "" for metric in metrics]
        rows.append([name, *cells, "(mean)"])
    print(format_columns(rows))
    names = " ".join(shlex.quote(str(run.path)) for run in runs)
    print_status(f"trained in {seconds:.0f} s\ncompare  anyformer compare {names} --out compare.html")


def average_baselines(folds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the mean of what each baseline, or model of --compare, reached on the folds, by metric and name."""
    return {
        metric: {name: statistics.fmean(fold[metric][name] for fold in folds) for name in values}
        for metric, values in folds[0].items()
        if all(values.keys() <= fold.get(metric, {}).keys() for fold in folds)
    }
