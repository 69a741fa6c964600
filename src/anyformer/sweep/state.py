"""What a sweep stores in its folder, `sweep.json`: written as a whole after every trial, so that it can be killed."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..data.io.checks import read_json
from ..parsing import parse_dataclass
from ..training.run_directory import atomic_write, report_write_errors

FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a trial reached in a rung."""

    amount: float
    """Seconds or steps of training in this rung."""
    step: int
    """Steps of the run at its end."""
    loss: float
    """On the part of the data that chooses."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A config, and what it reached. Number 0 is the default config."""

    number: int
    values: dict[str, Any]
    """By the names of the search space."""
    results: tuple[Result, ...] = ()
    """One for each rung."""
    error: str = ""
    """Why it cannot be trained."""

    @property
    def loss(self) -> float:
        return self.results[-1].loss if self.results and not self.error else math.inf

    @property
    def name(self) -> str:
        return f"trial-{self.number:03d}"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Trials that are trained for equally long."""

    amount: float
    trials: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SweepState:
    """Everything that decides a sweep, and what it did so far."""

    recipe: str
    preset: str
    config: dict[str, Any]
    """The default config."""
    unit: Literal["seconds", "steps"]
    total: float
    """Of everything: the trials and the training of the best config."""
    n_trials: int
    """0: not decided yet."""
    sampler: Literal["random", "tpe"]
    fixed: tuple[str, ...]
    """Names of the fields that the user has set."""
    vary_size: bool
    command: str = ""
    seconds: float = 0.0
    """That it took so far."""
    rungs: tuple[Rung, ...] = ()
    trials: tuple[Trial, ...] = ()
    final: dict[str, Any] = field(default_factory=dict)
    """"chosen": the best trial, "winner": that one or the default config, if it is as good on data that did not choose;
    "amount" of its training, "held_out": metrics by the name of a run, "commands"."""

    @property
    def is_default_best(self) -> bool:
        """Whether the default config, trained for the total, was as good as what the sweep found."""
        losses = {name: metrics["loss"] for name, metrics in self.final["held_out"].items()}
        return "default" in losses and losses["default"] <= losses["best"]

    def replace_trial(self, trial: Trial) -> "SweepState":
        """Return the state with another version of a trial, or with one more trial."""
        return replace(self, trials=(*self.trials[: trial.number], trial, *self.trials[trial.number + 1 :]))

    def rank(self, rung: int) -> list[int]:
        """Return the numbers of the trials of a rung that can be trained, the best first."""
        trials = [self.trials[number] for number in self.rungs[rung].trials]
        usable = [trial for trial in trials if len(trial.results) > rung and not trial.error]
        return [trial.number for trial in sorted(usable, key=lambda trial: (trial.results[rung].loss, trial.number))]


def read_state(folder: Path) -> SweepState:
    """Return the state of the sweep in a folder. Raises InputError."""
    return parse_dataclass(SweepState, read_json(folder / FILE), str(folder / FILE))


def write_state(folder: Path, state: SweepState) -> None:
    with report_write_errors(str(folder / FILE)):
        atomic_write(folder / FILE, json.dumps(asdict(state), indent=2, ensure_ascii=False) + "\n")
