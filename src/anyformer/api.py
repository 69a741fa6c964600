"""anyformer from Python: train, load, and a model to ask.

model = anyformer.train("language", data="my.txt", minutes=1)
print(model.generate("Once upon a time")["samples"][0]["text"])
model = anyformer.load("runs/language-my-1")
"""

import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .checkpoints import exports
from .conversion import export_checkpoint, import_checkpoint
from .data.io.checks import read_json
from .detection import detect_recipe, names_data
from .errors import Stopped
from .model.config import find_stacks
from .parsing import check_arguments, check_path
from .processes import is_first
from .recipe import SupportsBaselines, SupportsFigures, SupportsFinish, SupportsMixtures
from .recipe_loading import load_recipe, recipe_name
from .report.curves import is_lower_better
from .resolve_job import expand_short_names, resolve_job
from .trained_model import Model, from_training, load, select_eval_data
from .training import checkpoints, distributed
from .training.job import CheckpointCallback, RecordCallback, StartCallback, TrainingJob, ignore, run_job
from .training.loop import TrainState
from .training.run_directory import atomic_write
from .training.trackers import TrackedRun, Trackers

MAX_EPOCHS = 16  # of a source of a mixture: more hardly help (2305.16264)
Scores = dict[str, dict[str, float]]  # metric -> name of a model -> its value

__all__ = [
    "Model", "Stopped", "export_checkpoint", "import_checkpoint", "load", "resolve_job", "select_eval_data", "train",
    "train_job",
]  # fmt: skip


@check_arguments
def train(
    recipe: Any,
    preset: str | None = None,
    *,
    minutes: float | None = None,
    yes: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    lora: dict[str, Any] | None = None,
    track: str | Sequence[str] = (),
    compare: bool = False,
    progress: bool | None = None,
    on_start: StartCallback = ignore,
    on_record: RecordCallback = ignore,
    on_checkpoint: CheckpointCallback = ignore,
    **overrides: Any,
) -> Model:
    """Train a recipe and return its best model.

    Args:
        recipe: A name ("language"), a file, a Python path or a module; or data ("my.csv"), which say the recipe.
        preset: Where the defaults of the config come from.
        minutes: Train for this time, everything included; with `resume`, for so many more minutes. Without a preset
            and fields of model or train, recipes with `sizes` choose the model size with the lowest predicted loss.
        yes: Start even if the minutes are too few to learn anything.
        out: The run directory (default: a new one below runs/); `resume` continues the run in it, if there is one.
        init: A run or public checkpoint to start from (fine-tuning).
        lora: Train adapters on the model of `init` only: {"rank": 8}.
        track: Trackers that get the records too: "tensorboard", "wandb", "mlflow", "trackio", or several of them.
        compare: Train the recipe's other kind of model beside, on the same split: result.json says which was better.
        progress: Show a progress bar on stderr. Default: on a terminal and in Jupyter.
        on_start, on_record: Called once with the job and the training state; with the record of every step.
        on_checkpoint: Called with the folder of every checkpoint after it was written.
        overrides: Fields of the config: data="a.txt", train={"lr": 1e-3}, or alone lr=1e-3. `data` may be rows too
            (texts or dicts, a `datasets.Dataset`), or several sources with weights: ["a.jsonl:3", (rows, 1)].

    Raises:
        InputError: If something does not exist or does not make sense.
        TrainingError: If training cannot continue.
        Stopped: After Ctrl-C; everything is saved.
    """
    module, chosen, overrides = choose_recipe(recipe, preset, overrides)
    overrides, command = expand_short_names(module, overrides), f"anyformer.train({recipe_name(module)!r}, ...)"
    where: dict[str, Any] = {"out": out, "resume": resume, "init": init, "yes": yes, "compare": compare}
    where |= {"track": (track,) if isinstance(track, str) else track, "lora": lora, "is_preset_free": preset is None}
    job = resolve_job(module, chosen, overrides, minutes=minutes, command=command, **where)
    with show_training(is_interactive() if progress is None else progress, on_start, on_record) as (start, update, _):
        return train_job(job, start, update, on_checkpoint) or load(job.run.path, job.config.train.device)


def choose_recipe(recipe: Any, preset: str | None, overrides: dict[str, Any]) -> tuple[Any, str | None, dict[str, Any]]:
    """Return the recipe, its preset and config fields; those for the data, where `recipe` names data."""
    if isinstance(recipe, str | Path):
        check_path(recipe, "recipe")
        if names_data(str(recipe)):
            detection = detect_recipe(recipe, target=str(overrides.get("target", "")))
            recipe, preset, overrides = detection.recipe, preset or detection.preset, detection.fields | overrides
    return load_recipe(recipe), preset, overrides


def train_job(
    job: TrainingJob,
    on_start: StartCallback = ignore,
    on_record: RecordCallback = ignore,
    on_checkpoint: CheckpointCallback = ignore,
) -> Model | None:
    """Run a job, evaluate its best checkpoint over the validation split, and write the report, however it ends. Of
    several processes the first does so and returns the model, and the others wait for it."""
    from .report.html import write_report  # here, to load models faster

    started_at = time.monotonic()
    has_started, trackers, validations = False, Trackers(), []

    def start(job: TrainingJob, state: TrainState) -> None:
        nonlocal has_started
        trackers.start(job.trackers, TrackedRun(job.run.path, job.run.read_config(), state.step))
        has_started = True
        on_start(job, state)

    def update(record: dict[str, Any]) -> None:
        trackers.log(record)
        validations.extend([record["val_loss"]] if "val_loss" in record else [])
        on_record(record)

    try:
        job, state = run_job(job, start, update, on_checkpoint)
        if not is_first():
            distributed.wait_for_end()
            return None
        with job.run.report_removal():
            model = write_result(job, state, started_at, validations[-1] if validations else None)
            trackers.finish(read_json(job.run.path / "result.json"))
            write_report(job.run.path)
        distributed.announce_end()
    except BaseException:
        trackers.finish()
        if has_started and job.run.exists:
            with suppress(OSError):
                write_report(job.run.path)
        raise
    return model


def write_result(job: TrainingJob, state: TrainState, started_at: float, last_val_loss: float | None) -> Model:
    """Write result.json and the figures of a finished training, whose last validation gave `last_val_loss`. Returns its
    best model."""
    model = from_training(job, state)
    if isinstance(job.recipe, SupportsFinish) and not job.lora.rank:  # adapters are merged here
        job.recipe.finish_model(model.module, model.config)
        checkpoints.rewrite_model(model.path, model.module)
    metrics = model.evaluate(every=model.config.train.final_every)
    result: dict[str, Any] = {"step": state.step, "best_step": model.step}
    result |= {f"val_{name}": value for name, value in metrics.items()}
    if last_val_loss is not None and "val_loss" in state.best:
        result["validations"] = {"best": state.best["val_loss"], "last": last_val_loss}
    if skipped := model.stream_state.get("skipped"):
        result["skipped"] = skipped
    if isinstance(job.recipe, SupportsMixtures):
        n_batches = state.step * job.config.train.accumulate
        result |= {"sources": sources} if (sources := job.recipe.describe_sources(job.config, n_batches)) else {}
    if isinstance(job.recipe, SupportsBaselines):
        result["baselines"] = job.recipe.baselines(job.config) if job.baselines is None else job.baselines
    if job.peers:
        result["baselines"] = merge_peers(result.get("baselines") or {}, job.peers)
        result["comparison"] = judge_peers(result, job.peers)
    if isinstance(job.recipe, SupportsFigures):
        figures = job.recipe.figures(model.module, model.config)
        atomic_write(job.run.path / "figures.json", json.dumps(figures, ensure_ascii=False))
    if job.budget is None:
        result["seconds"] = round(time.monotonic() - started_at, 2)
    else:
        result["seconds"] = round(job.budget.clock() - job.budget.started_at, 2)
        result["minutes"] = job.budget.minutes  # what was asked for
    atomic_write(job.run.path / "result.json", json.dumps(result, indent=2) + "\n")
    return model


def merge_peers(baselines: Scores, peers: Scores) -> Scores:
    """Return the scores of baselines and of peers together."""
    metrics = dict.fromkeys([*baselines, *peers])
    return {metric: baselines.get(metric, {}) | peers.get(metric, {}) for metric in metrics}


def judge_peers(result: dict[str, Any], peers: Scores) -> dict[str, Any]:
    """Return which model was better by the first metric: {"metric", "value", "peer", "peer_value", "winner"}, where the
    winner is "this model", the name of the best peer, or "neither"."""
    metric, scores = next(iter(peers.items()))
    value, sign = result[f"val_{metric}"], -1 if is_lower_better(metric) else 1
    peer = max(scores, key=lambda name: sign * scores[name])
    lead = sign * (value - scores[peer])
    winner = "this model" if lead > 0 else peer if lead < 0 else "neither"
    return {"metric": metric, "value": value, "peer": peer, "peer_value": scores[peer], "winner": winner}


# --- what a person sees of a training ---


def is_interactive() -> bool:
    """Whether a person looks on: stderr is a terminal, or this is Jupyter."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def show_training(
    enabled: bool = True, on_start: StartCallback = ignore, on_record: RecordCallback = ignore
) -> Generator[tuple[StartCallback, RecordCallback, dict[str, Any]]]:
    """Show a training on stderr: what it is, and a progress bar.

    Yields the callbacks for `train_job`, which also call `on_start` and `on_record`, and the values that the bar shows.
    """
    from .report.progress import Progress

    progress = Progress(None, enabled=enabled)
    with ExitStack() as stack:

        def start(job: TrainingJob, state: TrainState) -> None:
            if enabled:
                progress.note("\n".join(describe_start(job, state)))
            progress.total = job.config.train.steps if state.timer is None else None
            stack.enter_context(progress)
            on_start(job, state)

        def update(record: dict[str, Any]) -> None:
            progress.update(record)
            on_record(record)

        yield start, update, progress.record


def describe_start(job: TrainingJob, state: TrainState) -> list[str]:
    """Describe a training that starts, in lines for a person."""
    parameters = list(state.model.parameters())
    train, device = job.config.train, parameters[0].device
    size = sum(parameter.numel() for parameter in parameters)
    step = f" from step {state.step}" if state.step else ""
    lines = [f"{job.recipe_name} · {job.preset} · {size:,} parameters on {device} · {job.run.path}{step}"]
    if job.timer is not None and not job.plan:
        lines.append(describe_time(job, state))
    if job.timer is None and train.warmup > train.steps > 1:
        lines.append(f"--train.warmup {train.warmup:,} lasts longer than the training: --train.lr is never reached")
    if not step:
        lines += [describe_plan(job.plan, job.config)] if job.plan else []
        lines.append(describe_exports(job))
    _, stream_state = next(job.recipe.batches(job.config, "train", None))
    counts = {"skipped": "left out because they cannot be used", "cut": "cut to the context"}
    if rows := stream_state.get("rows"):
        lines.append(f"{rows[0]:,} rows to train on, {rows[1]:,} to validate on")
    lines += [f"{stream_state[name]:,} of the data {text}" for name, text in counts.items() if stream_state.get(name)]
    return [*lines, *describe_repeats(job)]


def describe_repeats(job: TrainingJob) -> list[str]:
    """Name the sources of a mixture that are so small that the training repeats them more than is worth it."""
    if not isinstance(job.recipe, SupportsMixtures):
        return []
    train = job.config.train
    sources = job.recipe.describe_sources(job.config, train.steps * train.accumulate)
    return [
        f"source '{name}' has {source['tokens']:,} tokens to train on, seen about {source['epochs']:,.0f} "
        f"times: a lower weight than {source['weight']:g}, or more of it, may do better"
        for name, source in sources.items()
        if source["epochs"] > MAX_EPOCHS
    ]


def describe_time(job: TrainingJob, state: TrainState) -> str:
    """Describe a training that ends at a time."""
    train, timer = job.config.train, state.timer
    seconds = 0.0 if timer is None else max(0.0, timer.seconds_left)
    steps = f"about {max(0, train.steps - state.step):,} {'more ' if state.step else ''}steps of {train.batch} rows"
    return f"{seconds:.0f} s left to train here: {steps}, validated every {train.eval_every:,}"


def describe_plan(plan: dict[str, Any], config: Any) -> str:
    """Describe the model size that was chosen for a time, and the loss to expect."""
    train = config.train
    stacks = [
        f"{plural(stack.n_layer, 'layer')} of {stack.dim} channels, context {stack.context}"
        for stack in find_stacks(config).values()
    ]
    shape = "".join(f"{stack}, " for stack in dict.fromkeys(stacks))
    size = f"{plan['minutes']:g} minutes here: {shape}about {train.steps:,} steps of {train.batch} rows"
    size += f" ({plural(len(plan['sizes']), 'size')} tried)"
    if "expects" not in plan:
        return size
    low, high = plan["expects"]
    return f"{size}; expect a validation loss from {low:.2f} to {high:.2f}"


def plural(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def describe_exports(job: TrainingJob, explain: bool = False) -> str:
    """Say to which public formats the trained model can be exported; `explain`: and why not to the others."""
    formats = exports(job.recipe, job.config)
    good = [name for name, reason in formats.items() if reason is None]
    text = f"can be exported to {', '.join(good)}" if good else "cannot be exported"
    bad = [f"{name} ({reason})" if explain else name for name, reason in formats.items() if reason is not None]
    return f"{text}; not to {', '.join(bad)}" + ("" if explain else " (--dry-run says why)") if bad else text
