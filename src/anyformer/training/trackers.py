"""Trackers: where the records of a training go besides the run directory (TensorBoard, Weights & Biases, MLflow,
trackio). Each is an optional dependency, imported where it is opened.

A tracker is anything with `log` and `finish`. One that fails while a model is trained is left out with a warning: the
run directory has everything anyway.
"""

import importlib.util
import json
import math
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..data.io.checks import read_json
from ..data.io.files import import_optional
from ..errors import InputError, suggest
from ..parsing import flatten_values
from .run_directory import TRACKER_IDS, atomic_write

PROJECT = "anyformer"  # of runs, unless the tracker's own variable names another
MAX_PARAMETER_CHARS = 500  # of a value in MLflow
MLFLOW_BATCH = 1000  # metrics of one request, the most that MLflow takes


class Tracker(Protocol):
    """Where the records of a training go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, all of them finite."""

    def finish(self, summary: Mapping[str, float], is_complete: bool) -> None:
        """Take the final metrics, and write everything out. An interrupted training has none."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know of a run when it is opened."""

    path: Path
    config: Mapping[str, Any]
    """The content of config.json."""
    step: int
    """Steps that were trained before; what a tracker has of later ones is replaced."""

    def get_id(self, tracker: str, make: Callable[[], str]) -> tuple[str, bool]:
        """Return the id of the run at a tracker, and whether it had one: a run that is resumed continues there."""
        ids = read_ids(self.path)
        is_new = tracker not in ids
        if is_new:
            ids[tracker] = make()
            atomic_write(self.path / TRACKER_IDS, json.dumps(ids, indent=2) + "\n")
        return ids[tracker], not is_new


def read_ids(run: Path) -> dict[str, str]:
    """Return the ids of a run at its trackers, by the name of the tracker."""
    try:
        ids = read_json(run / TRACKER_IDS)
    except InputError:
        return {}
    return {name: value for name, value in ids.items() if isinstance(value, str)}


# --- the trackers ---


class TensorBoardTracker:
    """Event files in RUN/tensorboard: tensorboard --logdir runs."""

    def __init__(self, run: TrackedRun) -> None:
        tensorboard = import_tracker("tensorboard", "torch.utils.tensorboard")
        self.writer = tensorboard.SummaryWriter(str(run.path / "tensorboard"), purge_step=run.step + 1)
        self.writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```")
        self.step = run.step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, summary: Mapping[str, float], is_complete: bool) -> None:
        for name, value in summary.items():
            self.writer.add_scalar(f"final/{name}", value, self.step)
        self.writer.close()


class WandbTracker:
    """Weights & Biases, in the mode of $WANDB_MODE; its files are in RUN/wandb."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = import_tracker("wandb")
        run_id, is_continued = run.get_id("wandb", lambda: uuid.uuid4().hex)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.path),
            id=run_id,
            name=run.path.name,
            config=dict(run.config),
            resume="allow" if is_continued else None,
            reinit="create_new",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], is_complete: bool) -> None:
        self.run.summary.update({f"final/{name}": value for name, value in summary.items()})
        self.run.finish(exit_code=0 if is_complete else 1)


class MlflowTracker:
    """MLflow, at $MLFLOW_TRACKING_URI, in the experiment $MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: TrackedRun) -> None:
        self.mlflow = import_tracker("mlflow")
        self.client = self.mlflow.MlflowClient()
        self.run_id, is_continued = run.get_id("mlflow", lambda: self.create_run(run))
        self.metrics: list[Any] = []  # not sent yet
        if is_continued:
            self.client.update_run(self.run_id, status="RUNNING")

    def create_run(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        run_id = self.client.create_run(experiment_id, run_name=run.path.name).info.run_id
        parameters = [
            self.mlflow.entities.Param(name, str(value)[:MAX_PARAMETER_CHARS])
            for name, value in flatten_values(run.config)
        ]
        for i in range(0, len(parameters), 100):
            self.client.log_batch(run_id, params=parameters[i : i + 100])
        return run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self.metrics += [self.mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        if len(self.metrics) > MLFLOW_BATCH // 2 or any(name.startswith("val_") for name in values):
            self.send()

    def send(self) -> None:
        for i in range(0, len(self.metrics), MLFLOW_BATCH):
            self.client.log_batch(self.run_id, metrics=self.metrics[i : i + MLFLOW_BATCH])
        self.metrics = []

    def finish(self, summary: Mapping[str, float], is_complete: bool) -> None:
        self.send()
        for name, value in summary.items():
            self.client.log_metric(self.run_id, f"final_{name}", value)
        self.client.set_terminated(self.run_id, "FINISHED" if is_complete else "KILLED")


class TrackioTracker:
    """trackio, on this machine ($TRACKIO_DIR) or as its own variables say: trackio show --project anyformer."""

    def __init__(self, run: TrackedRun) -> None:
        self.trackio = import_tracker("trackio")
        name, _ = run.get_id("trackio", lambda: f"{run.path.name}-{uuid.uuid4().hex[:6]}")
        self.run = self.trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=dict(flatten_values(run.config)),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], is_complete: bool) -> None:
        if summary:
            self.run.log({f"final/{name}": value for name, value in summary.items()})
        self.trackio.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
"""Name of a tracker, which is also that of its package and of the extra that installs it -> how it is opened."""


def import_tracker(name: str, module: str | None = None) -> Any:
    return import_optional(module or name, describe_missing(name))


def describe_missing(name: str) -> str:
    return f"--track {name} needs the package {name}: pip install 'anyformer[{name}]'"


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once. Raises InputError if one is unknown, or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track {name}: there is no tracker '{name}': {suggest(name, TRACKERS)}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name, such as ./wandb, is no package
            raise InputError(describe_missing(name))
    return tuple(dict.fromkeys(names))


# --- all trackers of a run ---


class Trackers:
    """The trackers of one training. One that fails is left out from then on, with a warning."""

    def __init__(self) -> None:
        self.open: dict[str, Tracker] = {}

    def start(self, names: Sequence[str], run: TrackedRun) -> None:
        """Open trackers. Raises InputError if one cannot be opened."""
        for name in names:
            try:
                with redirect_stdout(sys.stderr):  # stdout is for answers
                    self.open[name] = TRACKERS[name](run)
            except InputError:
                raise
            except Exception as error:  # of a service, of any kind
                raise InputError(f"--track {name} cannot be opened: {type(error).__name__}: {error}") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the record of a step."""
        values = select_numbers(record)
        self._for_each(lambda tracker: tracker.log(record["step"], values))

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Close all trackers, with the content of result.json if the training was finished."""
        summary = {name: value for name, value in select_numbers(result or {}).items() if name.startswith("val_")}
        self._for_each(lambda tracker: tracker.finish(summary, result is not None))
        self.open = {}

    def _for_each(self, use: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                with redirect_stdout(sys.stderr):
                    use(tracker)
            except Exception as error:  # a service that cannot be reached must not end a training of hours
                del self.open[name]
                warnings.warn(f"tracking with {name} has ended: {type(error).__name__}: {error}", stacklevel=2)
                with suppress(Exception):
                    tracker.finish({}, False)


def select_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record but its step; counts of a validation split are no metrics."""
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if name != "step" and not (name.startswith("val_") and isinstance(value, int))
    }
