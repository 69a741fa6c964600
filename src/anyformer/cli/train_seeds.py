"""anyformer train RECIPE --seeds N: one config with several seeds, and what the final metrics are on average."""

import dataclasses
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import recipe as recipes
from ..parsing import to_json
from ..training.run_directory import RunDirectory
from .terminal import format_columns, print_status
from .train import Options, TrainCommand, confirm_schema, shift_budget, train_to_end

if TYPE_CHECKING:
    from ..training.job import TrainingJob


def train_seeds(
    command: TrainCommand, options: Options, overrides: dict[str, Any], settings: dict[str, Any], started_at: float
) -> int:
    """Train every seed that has not been trained yet, and print a summary. Returns the exit code.

    A time budget is planned once, for the first seed: the others train its config.
    """
    count = options.seeds or 0
    stem = options.out or choose_stem(command, overrides, settings)
    runs = [RunDirectory(stem.with_name(f"{stem.name}-seed-{seed}")) for seed in range(1, count + 1)]
    for run in runs:
        if not (options.resume and run.exists):
            run.require_unused()  # before any of them is trained
    go_on = f"{command.prog} --out {shlex.quote(str(stem))} --seeds {count} --resume"
    config: dict[str, Any] = {}
    for seed, run in enumerate(runs, 1):
        job = resolve_seed(command, overrides, settings, seed, run)
        if config and not job.is_resumed:
            job = replace_config(job, config, seed)
        if not config and not job.is_resumed:
            job = shift_budget(job, started_at + confirm_schema(job, options.yes))
        print_status(f"seed {seed} of {count}" + (": finished already" if is_finished(job) else ""))
        if not is_finished(job) and train_to_end(job, go_on) is None:
            return 1
        config = config or run.read_config()["config"]
    print_summary(runs, time.monotonic() - started_at, options.json)
    return 0


def choose_stem(command: TrainCommand, overrides: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Return a path below runs/ that is free, as the stem of the run directories."""
    from ..resolve_job import choose_run

    job = command.resolve(overrides, settings)
    return choose_run(job.recipe_name, job.config, "-seed-1").path


def resolve_seed(
    command: TrainCommand, overrides: dict[str, Any], settings: dict[str, Any], seed: int, run: RunDirectory
) -> "TrainingJob":
    """Resolve the job of one seed; only a new run of the first has a time budget."""
    from ..resolve_job import merge_overrides

    minutes = settings["minutes"] if seed == 1 and not run.exists else None
    changes = {"out": run.path, "minutes": minutes}
    return command.resolve(merge_overrides({"train": {}} | overrides, {"train": {"seed": seed}}), settings | changes)


def replace_config(job: "TrainingJob", config: dict[str, Any], seed: int) -> "TrainingJob":
    """Let a job train the config of the first seed, with a seed of its own."""
    values = config | {"train": config["train"] | {"seed": seed}}
    return dataclasses.replace(job, config=recipes.parse_config(job.recipe, values, "config"))


def is_finished(job: "TrainingJob") -> bool:
    """Whether the run was trained to the end, with the training settings that are asked for now."""
    from ..report.runs import summarize_run

    if not job.is_resumed or summarize_run(job.run).state != "finished":
        return False
    return job.run.read_config()["config"].get("train") == to_json(job.config)["train"]


def print_summary(runs: Sequence[RunDirectory], seconds: float, as_json: bool) -> None:
    """Print the final metrics: of each seed, their mean and their standard deviation."""
    from ..report.compare import compare_runs, summarize_values

    facts = compare_runs(runs)
    metrics, scores = facts["metrics"], [row["scores"] for row in facts["runs"]]
    samples = {name: summarize_values([values[name] for values in scores if name in values]) for name in metrics}
    if as_json:
        values = {name: dataclasses.asdict(sample) for name, sample in samples.items()}
        print(json.dumps({"runs": [str(run.path) for run in runs], "seconds": round(seconds, 2), "metrics": values}))
        return
    rows = [["seed", *(name.replace("_", " ") for name in metrics), "run"]]
    for seed, (values, run) in enumerate(zip(scores, runs, strict=True), 1):
        rows.append([str(seed), *(f"{values[name]:.4f}" if name in values else "" for name in metrics), str(run.path)])
    rows.append(["mean", *(f"{samples[name].mean:.4f}" for name in metrics), ""])
    deviations = [samples[name].std for name in metrics]
    rows.append(["std", *("" if std is None else f"{std:.4f}" for std in deviations), ""])
    print(format_columns(rows))
    names = " ".join(shlex.quote(str(run.path)) for run in runs)
    print_status(f"trained in {seconds:.0f} s\ncompare  anyformer compare {names} --out compare.html")
