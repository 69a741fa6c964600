"""Run a sweep: `Sweep.run`, exactly resumable where it is measured in steps.

FOLDER/sweep.json        the default config, the trials and their results (`state.SweepState`)
FOLDER/trial-000 ...     a run directory for each trial; 000 is the default config
FOLDER/best              the best config, trained anew for what is left of the total; the default one if none beats it
                         on data that did not choose
FOLDER/default           with `check`: the default config, trained for the total
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from .. import api
from ..data.io.checks import read_json
from ..errors import InputError, TrainingError
from ..events import report_notice
from ..recipe_loading import parse_config
from ..search_space import SearchSpace
from ..trained_model import Model, load
from ..training import checkpoints
from ..training.budget import MIN_STEPS, Budget, measure_speed
from ..training.job import RecordCallback, TrainingJob
from ..training.run_directory import RunDirectory
from .held_out import EvalPart, divide
from .sampler import import_optuna, suggest_values
from .schedule import (
    GOOD_FIRST,
    MIN_FIRST,
    SEARCH_SHARE,
    check_total,
    choose_trials,
    count_survivors,
    count_trainings,
    count_units,
    grow,
)  # fmt: skip
from .space import apply_values, build_space, draw_values, read_values
from .state import Result, Rung, SweepState, Trial, write_state

PROBE_SECONDS = 0.5  # of steps, to measure their speed
N_EVALS = 5  # validations of a rung in steps, at least
END_SHARE = 0.01  # of the total time, for the end of the process
BEST, DEFAULT = "best", "default"


class Show(Protocol):
    """What a person sees of a sweep."""

    def start_trial(self, trial: Trial, rung: int, run: Path) -> RecordCallback:
        """A trial is about to be trained. Returns what is called with its records."""
        ...

    def end_trial(self, trial: Trial, rung: int) -> None: ...

    def start_final(self, trial: Trial, name: str, amount: float) -> RecordCallback:
        """The best config or the default one is about to be trained."""
        ...


@dataclass
class Sweep:
    """A sweep in its folder, which this process has locked."""

    job: TrainingJob
    """Of the default config, without a budget."""
    folder: Path
    state: SweepState
    show: Show
    describe_command: Callable[[Any, float, Path], str]
    """The command line that trains a config for an amount into a folder."""
    check: bool = False
    """Whether the default config is trained for the total too."""
    started_at: float = 0.0
    """When this process began, by time.monotonic()."""

    def __post_init__(self) -> None:
        self.seconds_before = self.state.seconds
        self.overruns: list[float] = []  # seconds that a trial takes besides its training

    @property
    def is_timed(self) -> bool:
        return self.state.unit == "seconds"

    @cached_property
    def config(self) -> Any:
        return parse_config(self.job.recipe, self.state.config, "sweep.json")

    @cached_property
    def space(self) -> SearchSpace:
        """What costs more a step is tried only where the time is measured."""
        options = {"vary_size": self.is_timed and self.state.vary_size, "vary_batch": self.is_timed}
        return build_space(self.job.recipe, self.config, set(self.state.fixed), **options)

    @cached_property
    def parts(self) -> tuple[EvalPart, EvalPart]:
        return divide(self.job.recipe, self.config)

    @property
    def usage(self) -> float:
        """Seconds, or steps of all trials, so far."""
        if self.is_timed:
            return self.seconds_before + time.monotonic() - self.started_at
        return sum(result.amount for trial in self.state.trials for result in trial.results)

    def run(self) -> None:
        """Run what is left of it. Raises Stopped after Ctrl-C; everything is saved."""
        if self.state.sampler == "tpe":
            import_optuna()
        self.prepare()
        if not self.state.trials:
            first = Trial(number=0, values=read_values(self.config, self.space))
            drawn = draw_values(self.space, self.state.n_trials - 1, self.config.train.seed)
            others = drawn if self.state.sampler == "random" else []
            self.save(trials=(first, *(Trial(number=i, values=values) for i, values in enumerate(others, 1))))
        for rung in range(len(count_survivors(self.state.n_trials))):
            if not self.run_rung(rung):
                break
        if not self.state.rank(0):
            raise TrainingError(f"no trial could be trained: {self.state.trials[0].error}")
        self.run_final()

    def prepare(self) -> None:
        """Read the data before a trial is charged for it, and choose the number of trials."""
        least, step, is_new = GOOD_FIRST[self.state.unit], 0.0, not self.state.rungs
        part = self.parts[0]
        if is_new and self.is_timed:
            measure_speed(self.job.recipe, self.config, 0.0)  # the first steps of a process are slow
            speed, started_at = measure_speed(self.job.recipe, self.config, PROBE_SECONDS), time.monotonic()
            part.evaluate(self.job.recipe, speed.state.model)
            self.overruns, step = [time.monotonic() - started_at], speed.seconds
        if is_new and not self.state.n_trials:
            self.state = replace(self.state, n_trials=choose_trials(self.state.total, max(least, MIN_STEPS * step)))
        check_total(self.state.total, self.state.unit, self.state.n_trials)
        if step:
            warn_of_few_steps(self.state, step)

    def save(self, **changes: Any) -> None:
        seconds = self.seconds_before + time.monotonic() - self.started_at
        self.state = replace(self.state, **changes, seconds=round(seconds, 3))
        write_state(self.folder, self.state)

    # --- the rungs ---

    def run_rung(self, rung: int) -> bool:
        """Train the trials of a rung that were not trained yet. Returns False if no time is left for it, or for more
        than the default config."""
        if rung == len(self.state.rungs):
            numbers = self.select_trials(rung)
            amount = self.divide_search(rung)
            if amount <= 0 or not numbers:
                return False
            self.save(rungs=(*self.state.rungs, Rung(amount=amount, trials=tuple(numbers))))
        for number in self.state.rungs[rung].trials:
            if rung == 0 and self.is_late(number):
                self.drop_trials(number)
                break
            self.add_trial(number)
            if len(self.state.trials[number].results) <= rung and not self.state.trials[number].error:
                self.train_trial(number, rung)
        return len(self.state.rungs[rung].trials) > 1

    def is_late(self, number: int) -> bool:
        """Whether the share of the search has no time left for a trial that was not trained yet."""
        is_trained = number < len(self.state.trials) and (self.state.trials[number].results or number == 0)
        if is_trained or not self.is_timed or not self.overruns:
            return False
        overrun = sum(self.overruns) / len(self.overruns)
        return self.usage + overrun + self.state.rungs[0].amount > self.state.total * SEARCH_SHARE

    def drop_trials(self, count: int) -> None:
        """Go on with the first trials only."""
        planned = len(self.state.rungs[0].trials)
        rung = replace(self.state.rungs[0], trials=tuple(range(count)))
        report_notice(f"the time allows {count} of {planned} trials: a trial takes longer than planned")
        self.save(rungs=(rung,), trials=self.state.trials[:count])

    def select_trials(self, rung: int) -> list[int]:
        """Return the trials of a rung: all of them, then the best of the rung before and the default config."""
        if rung == 0:
            return list(range(self.state.n_trials))
        ranked = self.state.rank(rung - 1)
        chosen = ranked[: max(1, count_survivors(self.state.n_trials)[rung] - 1)]
        chosen += [0] if 0 in ranked and 0 not in chosen else ranked[len(chosen) : len(chosen) + 1]
        return sorted(chosen)

    def divide_search(self, rung: int) -> float:
        """Return for how long each trial of a rung is trained, so that this and the later ones fit into what is left
        for the search."""
        left = self.state.total * SEARCH_SHARE - self.usage
        if self.is_timed and self.overruns:
            left -= count_trainings(self.state.n_trials, rung) * sum(self.overruns) / len(self.overruns)
        amount = grow(rung) * left / count_units(self.state.n_trials, rung)
        if rung == 0:  # some trials, even if reading the data took all the time
            amount = max(amount, MIN_FIRST[self.state.unit])
        return amount if self.is_timed else math.floor(amount)

    def add_trial(self, number: int) -> None:
        """Choose the values of a trial from the results of those before it."""
        if number == len(self.state.trials):
            trials, config = self.state.trials, self.config
            values = suggest_values(self.space, trials, self.state.n_trials, config.train.seed)
            self.save(trials=(*trials, Trial(number=number, values=values)))

    def train_trial(self, number: int, rung: int) -> None:
        """Train a trial and store what it reached, or why it cannot be trained."""
        trial, amount, started_at = self.state.trials[number], self.state.rungs[rung].amount, time.monotonic()
        try:
            job = self.resolve_trial(trial, rung)
            model = api.train_job(job, on_record=self.show.start_trial(trial, rung, job.run.path))
            loss = self.parts[0].evaluate(self.job.recipe, cast(Model, model).module)["loss"]
            last = read_json(job.run.path / "result.json")["step"]
            trial = replace(trial, results=(*trial.results, Result(amount=amount, step=last, loss=loss)))
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss}")
        except (InputError, TrainingError, torch.OutOfMemoryError) as error:
            if isinstance(error, InputError) and number == 0:
                raise  # whatever is wrong is wrong with the data or the flags
            results = trial.results[:rung]
            trial = replace(trial, results=results, error=" ".join(str(error).split()) or type(error).__name__)
        self.save(trials=self.state.replace_trial(trial).trials)
        self.overruns.append(time.monotonic() - started_at - amount)
        self.show.end_trial(trial, rung)

    def resolve_trial(self, trial: Trial, rung: int) -> TrainingJob:
        """Return the job that trains a trial to the end of a rung; what it was trained before is continued."""
        config = apply_values(self.job.recipe, self.config, trial.values)
        job = self.prepare_job(config, self.folder / trial.name)
        if not self.is_timed:
            steps = sum(int(earlier.amount) for earlier in self.state.rungs[: rung + 1])
            return replace(job, config=fit_steps(config, steps))
        return self.add_budget(job, self.state.rungs[rung].amount, trial.results[-1].step if trial.results else 0)

    # --- one job ---

    def prepare_job(self, config: Any, path: Path) -> TrainingJob:
        run = RunDirectory(path)
        baselines = next(filter(None, map(read_baselines, sorted(self.folder.glob("trial-*/result.json")))), None)
        changes = {"is_resumed": run.exists, "baselines": baselines, "command": self.state.command}
        return replace(self.job, config=config, run=run, **changes)

    def add_budget(self, job: TrainingJob, seconds: float, first_step: int) -> TrainingJob:
        """Let a job train for so many seconds from `first_step` on. One that was interrupted in between continues with
        the time that it had left."""
        latest = checkpoints.find_latest(job.run.checkpoints)
        if latest is not None and checkpoints.read_state(latest)["step"] > first_step:
            config = parse_config(job.recipe, job.run.read_config()["config"], str(job.run.path / "config.json"))
            return replace(job, config=config, timer=checkpoints.read_timer(latest))
        budget = Budget(minutes=seconds / 60, started_at=time.monotonic(), is_forced=True)
        return replace(job, budget=budget)

    # --- the end ---

    def run_final(self) -> None:
        """Compare the best trial with the default config, and train the better one anew for what is left."""
        rung = len(self.state.rungs) - 1
        while not self.state.rank(rung):
            rung -= 1
        trials, chosen = self.state.trials, self.state.rank(rung)[0]
        final = self.state.final or {"chosen": chosen, "winner": chosen, "rung": rung, "held_out": {}}
        for number in dict.fromkeys((chosen, 0)):
            if trials[number].results[rung:]:
                self.measure(final, trials[number].name, self.folder / trials[number].name)
        if "amount" not in final:
            losses = {name: metrics["loss"] for name, metrics in final["held_out"].items()}
            if trials[0].name in losses and losses[trials[0].name] <= losses[trials[chosen].name]:
                final["winner"] = 0
            final["amount"] = self.divide_rest(final)
            self.save(final=final)
        self.train_final(final, trials[final["winner"]], BEST, final["amount"])
        if self.check:
            self.train_final(final, self.state.trials[0], DEFAULT, self.state.total)

    def divide_rest(self, final: dict[str, Any]) -> float:
        """Return what is left of the total for the best config."""
        if not self.is_timed:
            return int(self.state.total - self.usage)
        reserved = END_SHARE * self.state.total + final.get("seconds_of_comparison", 0.0)
        return max(1.0, self.state.total - self.usage - reserved)

    def measure(self, final: dict[str, Any], name: str, run: Path, model: Model | None = None) -> None:
        """Evaluate the best model of a run on the data that did not choose, once."""
        if name not in final["held_out"]:
            started_at = time.monotonic()
            model = model or load(run, self.config.train.device, recipe=self.job.recipe)
            final["held_out"][name] = self.parts[1].evaluate(self.job.recipe, model.module)
            final["seconds_of_comparison"] = round(time.monotonic() - started_at, 3)
            self.save(final=final)

    def train_final(self, final: dict[str, Any], trial: Trial, name: str, amount: float) -> None:
        """Train the config of a trial for an amount from the start, as an ordinary run, and evaluate it."""
        run = self.folder / name
        if name in final["held_out"]:
            return
        config = apply_values(self.job.recipe, self.config, trial.values)
        config = config if self.is_timed else fit_steps(config, int(amount))
        command = self.describe_command(config, amount, self.folder / f"{name}-again")
        job = replace(self.prepare_job(config, run), command=command)
        final["commands"] = final.get("commands", {}) | {name: command}
        job = self.add_budget(job, amount, 0) if self.is_timed else job
        model = api.train_job(job, on_record=self.show.start_final(trial, name, amount))
        self.measure(final, name, run, model)


def warn_of_few_steps(state: SweepState, step: float) -> None:
    """Say that the trials will be too short to tell configs apart; `step` is the seconds of one."""
    units = count_units(state.n_trials) / SEARCH_SHARE
    steps = state.total / units / step
    if steps < MIN_STEPS:
        minutes = math.ceil(MIN_STEPS * step * units / 60)
        text = f"the {state.n_trials} trials start with about {int(steps)} steps each, too few to tell configs apart"
        report_notice(f"{text}: --minutes {minutes} would be enough")


def fit_steps(config: Any, steps: int) -> Any:
    """Return the config with so many steps, and a warm-up and validations that fit into them."""
    train = config.train
    every = min(train.eval_every, max(1, steps // N_EVALS))
    settings = replace(train, steps=steps, warmup=min(train.warmup, steps // 10), eval_every=every)
    return replace(config, train=settings)


def read_baselines(path: Path) -> dict[str, dict[str, float]] | None:
    """Return the baselines of a finished run: they are the same for every trial."""
    return read_json(path).get("baselines")
