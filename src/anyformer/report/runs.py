"""The runs below a folder: what each is, how good, how large, and whether a process trains it now.

Imports no torch, so that a table of runs shows at once. Nothing in a run is trusted: what is missing or malformed is
left out.
"""

import datetime
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ..data.io.checks import read_json
from ..data.io.regular_file import open_regular
from ..errors import InputError, suggest
from ..training.run_directory import LockHolder, RunDirectory
from .curves import is_lower_better, is_number

MAX_DEPTH = 3  # folders between the folder that is listed and a run
TAIL_BYTES = 1 << 16  # of a log, to find its last record


@dataclass(frozen=True)
class RunSummary:
    """A run in one line."""

    name: str
    """Its path below the folder that is listed."""
    path: Path
    recipe: str
    preset: str
    data: str
    step: int
    steps: int | None
    """How many it was to train."""
    metric: str
    score: float | None
    """The final validation of the best checkpoint; of an unfinished run the lowest validation loss so far."""
    baseline: tuple[str, float] | None
    """The best trivial baseline of this metric: its name and value."""
    minutes: float
    size: int
    """Bytes on disk."""
    state: Literal["running", "interrupted", "finished", "imported"]
    holder: LockHolder | None
    """The process that trains it now."""
    changed_at: str
    """When it was last written to, in UTC: 2026-11-26T18:50:00+00:00."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"path": str(self.path)}
        values["baseline"] = self.baseline and {"name": self.baseline[0], "value": self.baseline[1]}
        return values


def find_runs(folder: Path, depth: int = MAX_DEPTH) -> Iterator[RunDirectory]:
    """Yield the run directories in a folder and the folders in it; none is looked for inside a run."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return
    for path in paths:
        run = RunDirectory(path)
        if is_run(run):
            yield run
        elif depth > 1 and not path.is_symlink():
            yield from find_runs(path, depth - 1)


def is_run(run: RunDirectory) -> bool:
    """Whether this is the directory of a run: checkpoints of its own and public ones have a config.json too."""
    if (run.path / "state.json").is_file():
        return False
    try:
        return isinstance(run.read_config()["config"], dict)
    except InputError:
        return False


def find_run(name: str, folder: Path) -> RunDirectory:
    """Return a run by its name below the folder, or by its path. Raises InputError."""
    for path in (folder / name, Path(name)):
        if is_run(RunDirectory(path)):
            return RunDirectory(path)
    names = [name_run(run.path, folder) for run in find_runs(folder)]
    hint = suggest(name, names) if names else f"there is none below {folder}"
    raise InputError(f"there is no run '{name}': {hint}")


def name_run(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def summarize_run(run: RunDirectory, folder: Path = Path(".")) -> RunSummary:
    """Read a run. Raises InputError if its config.json is not that of a run."""
    setup, log = run.read_config(), run.path / "metrics.jsonl"
    config, holder, result = setup["config"], run.find_holder(), read_result(run.path)
    train = config["train"] if isinstance(config.get("train"), dict) else {}
    step, steps = read_last_step(log), train.get("steps")
    metric, score, baseline = choose_score(result)
    if score is None and not result:
        metric, score = "loss", read_best_loss(run.checkpoints)
    is_imported = not result and not log.exists() and (run.checkpoints / "step-0").is_dir()
    state = "running" if holder else "finished" if result else "imported" if is_imported else "interrupted"
    size, changed_at = measure_folder(run.path)
    return RunSummary(
        name=name_run(run.path, folder),
        path=run.path,
        recipe=str(setup["recipe"]),
        preset=str(setup["preset"]),
        data=str(config.get("data", "")),
        step=step,
        steps=steps if isinstance(steps, int) and not is_imported else None,
        metric=metric,
        score=score,
        baseline=baseline,
        minutes=round(max(read_seconds(run.path / "timings.jsonl"), read_number(result, "seconds")) / 60, 2),
        size=size,
        state=state,
        holder=holder,
        changed_at=datetime.datetime.fromtimestamp(changed_at, datetime.UTC).isoformat(timespec="seconds"),
    )


def list_runs(folder: Path) -> list[RunSummary]:
    """Return the runs below a folder, the one that was changed last first."""
    summaries = [summarize_run(run, folder) for run in find_runs(folder)]
    return sorted(summaries, key=lambda summary: (summary.changed_at, summary.name), reverse=True)


# --- files of a run ---


def measure_folder(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files below a folder, and when the last was written; a file may vanish meanwhile."""
    size, changed_at = 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(parent, name))
                size, changed_at = size + status.st_size, max(changed_at, status.st_mtime)
    return size, changed_at


def read_result(run: Path) -> dict[str, Any]:
    """Return the content of result.json; {} if there is none, or the run was continued since it was written."""
    try:
        result = read_json(run / "result.json")
    except InputError:
        return {}
    return result if result.get("step") == read_last_step(run / "metrics.jsonl") else {}


def read_last_step(log: Path) -> int:
    """Return the step of the last complete record of a log, 0 if there is none."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except (OSError, InputError):
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # cut off by a kill
    return 0


def read_best_loss(checkpoints: Path) -> float | None:
    """Return the lowest validation loss that a checkpoint knows of."""
    losses = []
    for path in checkpoints.glob("step-*/state.json"):
        try:
            best = read_json(path).get("best")
        except InputError:
            continue
        losses += [best["val_loss"]] if isinstance(best, dict) and is_number(best.get("val_loss")) else []
    return min(losses, default=None)


def read_seconds(log: Path) -> float:
    """Return the seconds of training that timings.jsonl records; its clock restarts when a run is continued."""
    try:
        with io.TextIOWrapper(open_regular(log), "utf-8", "replace") as file:
            seconds = [float(match[1]) for line in file if (match := re.search(r'"seconds": (\d+(?:\.\d+)?)', line))]
    except (OSError, InputError):
        return 0.0
    return sum(before for before, after in pairwise(seconds) if after < before) + sum(seconds[-1:])


def read_number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    return float(value) if is_number(value) else 0.0


def choose_score(result: Mapping[str, Any]) -> tuple[str, float | None, tuple[str, float] | None]:
    """Return (metric, its value, its best baseline) that tell most about a result: of the metrics that have baselines
    the first that is not the loss, otherwise the loss."""
    baselines = result.get("baselines")
    baselines = baselines if isinstance(baselines, dict) else {}
    names = [name for name in baselines if name != "loss" and is_number(result.get(f"val_{name}"))]
    metric = names[0] if names else "loss"
    score, options = result.get(f"val_{metric}"), baselines.get(metric)
    options = options if isinstance(options, dict) else {}
    pairs = [(str(name), value) for name, value in options.items() if is_number(value)]
    best = (min if is_lower_better(metric) else max)(pairs, key=lambda pair: pair[1], default=None)
    return metric, score if is_number(score) else None, best
