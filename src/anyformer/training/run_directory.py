"""A run directory: all of one training, readable by a person, safe to kill at any moment.

config.json              recipe, preset, resolved config, versions, seed, command
metrics.jsonl            one line a step: the same for the same seed, data and machine
timings.jsonl            seconds and tokens a second: never the same
samples.txt              what the model says at each validation
checkpoints/step-N/      the best and the last
result.json              the final evaluation
figures.json             what the recipe draws of the model, in plain values
report.html              the picture of it all
"""

import json
import os
import platform
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from .. import recipe as recipes
from ..errors import InputError
from . import checkpoints as checkpoint
from .loop import TrainState, is_finished, evaluate, init_state, train

LOG_FILES = ("metrics.jsonl", "timings.jsonl", "samples.txt")


class Stopped(Exception):  # noqa: N818 (not an error)
    """Someone asked the run to stop, and it has saved itself."""


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        return (self.path / "config.json").is_file()

    def read_config(self) -> dict[str, Any]:
        """What config.json holds. Raises InputError where it is not a run's."""
        found = checkpoint.read_json(self.path / "config.json")
        for name in ("recipe", "preset", "config"):
            if name not in found:
                raise InputError(f"{self.path / 'config.json'} names no {name}: it is not the config of a run")
        return found

    def require_unused(self) -> None:
        """Raises InputError where something lives already: nothing is ever overwritten."""
        if self.exists:
            raise InputError(f"{self.path} holds a run already: go on with --resume, or choose another --out")
        if self.path.is_dir() and any(path for path in self.path.iterdir() if not path.name.startswith(".")):
            raise InputError(f"{self.path} is not empty and holds no run: choose another --out")

    def create(self, described: dict[str, Any]) -> None:
        """Make the directory and its config.json. Raises InputError where something else lives there."""
        try:
            self.require_unused()
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_config(described)
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()  # made a moment ago: one that holds anything stays
            raise InputError(f"cannot write a run to {self.path}: {error.strerror or error}") from None

    def write_config(self, described: dict[str, Any]) -> None:
        atomic_write(self.path / "config.json", json.dumps(described, indent=2) + "\n")

    def remove(self) -> None:
        """Take away what is ours, and the directory if nothing else is in it."""
        for name in (*LOG_FILES, "config.json", "result.json", "figures.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        with suppress(OSError):
            self.path.rmdir()

    def rewind(self, step: int) -> None:
        """Forget what was logged after the checkpoint that training goes on from, and the figures of the end."""
        (self.path / "figures.json").unlink(missing_ok=True)
        for name in ("metrics.jsonl", "timings.jsonl"):
            rewrite_file(self.path / name, (line for at, line in read_records(self.path / name) if at <= step))
        said = read_samples(self.path / "samples.txt")
        rewrite_file(self.path / "samples.txt", (f"{head}\n{text}" for at, head, text in said if at <= step))


def read_lines(path: Path) -> Iterator[str]:
    """The whole lines of a log: one cut off by a kill is left out."""
    if path.exists():
        with open(path, encoding="utf-8") as file:
            yield from (line for line in file if line.endswith("\n"))


def read_records(path: Path) -> Iterator[tuple[int, str]]:
    """(step, line) of each record in a log. Raises InputError for a line that is none."""
    for number, line in enumerate(read_lines(path), 1):
        try:
            yield int(json.loads(line)["step"]), line
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: {line[:40].strip()!r} is no record of a step: remove it"
            ) from None


def read_samples(path: Path) -> Iterator[tuple[int, str, str]]:
    """(step, headline, text) of each sample."""
    head, body = "", []
    for line in [*read_lines(path), "--- step -1 ---\n"]:
        if re.fullmatch(r"--- step -?\d+ ---\n", line):
            if head:
                yield int(head.split()[2]), head, "".join(body)
            head, body = line.rstrip(), []
        else:
            body.append(line)


def rewrite_file(path: Path, kept: Iterator[str]) -> None:
    if path.exists():
        atomic_write(path, "".join(list(kept)))


def atomic_write(path: Path, content: str | bytes) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def describe_run(name: str, preset: str, config: Any, command: str) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "recipe": name,
        "preset": preset,
        "config": recipes.to_json(config),
        "seed": config.train.seed,
        "versions": {"python": platform.python_version()} | {n: _version(n) for n in ("anyformer", "torch", "numpy")},
        "command": command,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def restore_or_init(run: RunDirectory, recipe: recipes.Recipe, config: Any, prepare: Callable[[nn.Module], Any]) -> TrainState:
    """A fresh state, or the one of the run's last checkpoint; the logs are rewound to it. `prepare`: see `start`."""
    checkpoint.prune_checkpoints(run.checkpoints, config.train.average)
    last = checkpoint.find_latest(run.checkpoints)
    state = init_state(recipe, config if last is None else recipes.bind_checkpoint_files(config, last), prepare)
    if last is not None:
        checkpoint.load_checkpoint(last, state)
    run.rewind(state.step)
    return state


def run_training(run: RunDirectory, recipe: recipes.Recipe, config: Any, state: TrainState) -> Iterator[dict[str, Any]]:
    """Train in a run directory: log, sample and save as it goes; yields each record with its speed.

    Raises Stopped after Ctrl-C or SIGTERM, when all is saved.
    """
    described, saved, seen = run.read_config(), state.step, (state.stream_state or {}).get("tokens", 0)
    began = last = time.monotonic()
    with catch_stop_signals() as stop, RunLogs(run.path) as log:
        for record in train(recipe, config, state):
            now = time.monotonic()
            seconds, speed = now - began, (record["tokens"] - seen) / max(now - last, 1e-9)
            seen = record["tokens"]
            log.metrics(record)
            if "val_loss" in record:
                log.sample(record["step"], recipe.predict(state.model.eval(), {}))
                state.model.train()
            else:  # a step that validates says nothing about the speed of training
                log.timings({"step": record["step"], "seconds": round(seconds, 3), "tokens_per_second": round(speed)})
            due = state.step % config.train.save_every == 0 or is_finished(state, config.train)
            if due or stop.is_set() or state.best.get("step") == state.step:
                log.flush()
                checkpoint.save_checkpoint(run.checkpoints, state, described)
                checkpoint.prune_checkpoints(run.checkpoints, config.train.average)
                saved = state.step
            last = time.monotonic()  # what the caller does with a record, and saving, is not the model's speed
            yield record | {"seconds": seconds, "tokens_per_second": speed, "saved": saved}
            if stop.is_set():
                raise Stopped(f"stopped at step {state.step} of {config.train.steps}; everything is saved")


def average_checkpoints(run: RunDirectory, recipe: recipes.Recipe, config: Any, state: TrainState) -> None:
    """Beside the checkpoints of a run that has ended, the mean of the last ones, with its validation loss: `best` takes
    it where that is the lowest. The model in `state` becomes it."""
    last = checkpoint.list_checkpoints(run.checkpoints)[-config.train.average :]
    if len(last) < 2:
        return
    checkpoint.load_average(last, state.model)
    batches = (batch for batch, _ in islice(recipe.batches(config, "val", None), config.train.eval_batches))
    loss = evaluate(recipe, state.model, batches, config.train.dtype)["loss"]
    rest = {"step": state.step, "place": state.stream_state, "best": {"step": state.step, "val_loss": loss}}
    with checkpoint.atomic_directory(run.checkpoints / checkpoint.AVERAGE_DIR) as folder:
        checkpoint.write_model(folder, state.model, run.read_config(), rest)


class RunLogs:
    """The growing files of a run."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "RunLogs":
        try:
            self.files = {
                n: open(self.path / n, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
                for n in LOG_FILES
            }
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            with suppress(OSError):  # a full disk: that was said where it happened
                file.close()

    def metrics(self, record: dict[str, Any]) -> None:
        self._put("metrics.jsonl", json.dumps(record) + "\n")

    def timings(self, record: dict[str, Any]) -> None:
        self._put("timings.jsonl", json.dumps(record) + "\n")

    def sample(self, step: int, answer: dict[str, Any]) -> None:
        """What the recipe's show-piece says."""
        for text in recipes.format_prediction(answer):
            self._put("samples.txt", f"--- step {step} ---\n{text}\n")

    def flush(self) -> None:
        for name in self.files:
            self._put(name, "", flush=True)

    def _put(self, name: str, text: str, flush: bool = False) -> None:
        try:
            self.files[name].write(text)
            if flush:
                self.files[name].flush()
        except OSError as error:
            raise InputError(
                f"cannot write {self.path / name}: {error.strerror or error}; free some space and go on with --resume"
            ) from None


@contextmanager
def catch_stop_signals() -> Generator[threading.Event]:
    """Ctrl-C and SIGTERM ask for a stop between two steps; a second Ctrl-C does not wait."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
