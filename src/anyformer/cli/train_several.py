"""anyformer train RECIPE --seeds N or --folds K: one config trained several times, and its final metrics on average."""

import dataclasses
import json
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import recipe as recipes
from .. import recipe_loading
from ..errors import InputError
from ..parsing import to_json
from ..training.run_directory import RunDirectory, atomic_write
from .terminal import format_columns, print_status
from .train import Options, TrainCommand, confirm_schema, shift_budget, train_to_end

if TYPE_CHECKING:
    from ..report.compare import SampleSummary
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
    if minutes := settings["minutes"]:
        total = f"about {minutes * count:g} minutes for all {count}"
        print_status(f"--minutes {minutes:g} is the time of each {name}: {total}")
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
        names = recipe_loading.recipes_with(recipes.SupportsFolds)
        raise InputError(f"--folds is for the recipes {names}, not for '{recipe_loading.recipe_name(recipe)}'")
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
        job, config=recipe_loading.parse_config(job.recipe, merge_overrides(config, overrides), "config")
    )


def is_finished(job: "TrainingJob") -> bool:
    """Whether the run was trained to the end, with the training settings that are asked for now."""
    from ..report.runs import summarize_run

    if not job.is_resumed or summarize_run(job.run).state != "finished":
        return False
    return job.run.read_config()["config"].get("train") == to_json(job.config)["train"]


def summarize(variation: Variation, stem: Path, runs: Sequence[RunDirectory], seconds: float, as_json: bool) -> None:
    """Print the final metrics of each run, their mean and their standard deviation; of folds, they are also stored in
    STEM/result.json, with how the baselines and the model of --compare did."""
    from ..report.compare import compare_runs, summarize_scores
    from ..report.html import describe_baselines

    facts = compare_runs(runs)
    scores = [row["scores"] for row in facts["runs"]]
    samples = summarize_scores(scores, facts["metrics"])
    values = {name: dataclasses.asdict(sample) for name, sample in samples.items()}
    result: dict[str, Any] = {"runs": [str(run.path) for run in runs], "seconds": round(seconds, 2), "metrics": values}
    verdicts: list[str] = []
    if variation.name == "fold":
        result |= compare_folds(runs, [row["baselines"] for row in facts["runs"]])
        means = {f"val_{name}": sample.mean for name, sample in samples.items()}
        verdicts = [f"In the mean: {text}" for text in describe_baselines(means | {"baselines": result["baselines"]})]
        verdicts += describe_fold_comparison(result.get("comparison"))
        stem.mkdir(parents=True, exist_ok=True)
        atomic_write(stem / "result.json", json.dumps({"folds": len(runs)} | result, indent=2) + "\n")
    if as_json:
        print(json.dumps(result))
        return
    print(format_columns(build_table(variation.name, runs, scores, samples, result.get("baselines", {}))))
    names = " ".join(shlex.quote(str(run.path)) for run in runs)
    lines = [*verdicts, f"trained in {seconds:.0f} s", f"compare  anyformer compare {names} --out compare.html"]
    print_status("\n".join(lines))


def build_table(
    name: str,
    runs: Sequence[RunDirectory],
    scores: Sequence[dict[str, float]],
    samples: "dict[str, SampleSummary]",
    baselines: dict[str, dict[str, float]],
) -> list[list[str]]:
    """Return rows of cells: a heading, each run, the mean and deviation, and the means of others."""
    rows = [[name, *(metric.replace("_", " ") for metric in samples), "run"]]
    for number, (values, run) in enumerate(zip(scores, runs, strict=True), 1):
        cells = [f"{values[metric]:.4f}" if metric in values else "" for metric in samples]
        rows.append([str(number), *cells, str(run.path)])
    rows.append(["mean", *(f"{sample.mean:.4f}" for sample in samples.values()), ""])
    rows.append(["std", *("" if s.std is None else f"{s.std:.4f}" for s in samples.values()), ""])
    for other in dict.fromkeys(other for values in baselines.values() for other in values):
        cells = [f"{baselines[metric][other]:.4f}" if other in baselines.get(metric, {}) else "" for metric in samples]
        rows.append([other, *cells, "(mean)"])
    return rows


# --- other models on the same folds ---


def compare_folds(runs: Sequence[RunDirectory], baselines: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return {"baselines"}, their means, and where all runs were compared with another model also {"comparison"}: its
    metric, the means of both, and how many folds each has won."""
    from ..report.run_files import as_mapping
    from ..report.runs import read_result

    facts: dict[str, Any] = {"baselines": average_baselines(baselines)}
    comparisons = [as_mapping(read_result(run.path).get("comparison")) for run in runs]
    if all(comparisons):
        winners = Counter(fold["winner"] for fold in comparisons)
        n_wins, n_equal = winners["this model"], winners["neither"]
        facts["comparison"] = {name: comparisons[0][name] for name in ("metric", "peer")} | {
            "value": statistics.fmean(fold["value"] for fold in comparisons),
            "peer_value": statistics.fmean(fold["peer_value"] for fold in comparisons),
            "folds": {"this model": n_wins, "neither": n_equal, "peer": len(runs) - n_wins - n_equal},
        }
    return facts


def describe_fold_comparison(facts: dict[str, Any] | None) -> list[str]:
    """Say on how many folds this model was better than that of --compare, and the means of both."""
    if facts is None:
        return []
    peer, folds = facts["peer"], facts["folds"]
    counts = f"this model was better on {folds['this model']}, {peer} on {folds['peer']}"
    counts += f", equal on {folds['neither']}" if folds["neither"] else ""
    means = f"{facts['value']:.4g} of this model, {facts['peer_value']:.4g} of {peer}"
    return [f"Of {sum(folds.values())} folds {counts} (mean {facts['metric'].replace('_', ' ')} {means})"]


def average_baselines(folds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the mean of what each baseline, or model of --compare, reached on the folds, by metric and name."""
    return {
        metric: {name: statistics.fmean(fold[metric][name] for fold in folds) for name in values}
        for metric, values in folds[0].items()
        if all(values.keys() <= fold.get(metric, {}).keys() for fold in folds)
    }
