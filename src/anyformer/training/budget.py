"""What fits into a time on this machine: how many steps, and where the recipe offers sizes, of which model.

Measured on a few steps of models that are thrown away. What comes out is an ordinary config: the run that follows is as
reproducible as any.
"""

import math
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from ..errors import InputError
from ..events import report_progress
from ..recipe import SizeOption, Recipe
from .config import TrainConfig
from .loop import TrainState, init_state, train, validate

LATE_STEP = 100_000  # a step whose batch is as large as they become: some recipes begin with easy ones
TRIAL_SECONDS = 5.0  # seconds of steps that are enough to know their speed
FINAL_EVAL_FRACTION = 0.1  # of the time, at most, for the validation at the end
EVALS_PER_RUN = 10  # validations during a training whose size was chosen


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long all of a run may take. Raises InputError where that is no time, or no end of it."""

    minutes: float
    started_at: float
    """Since when they count, by time.monotonic."""
    choose_size: bool = False
    """Whether the size of the model may be chosen for them."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise InputError(f"--minutes is {self.minutes:g}; it must be above 0, and have an end")

    @property
    def remaining_seconds(self) -> float:
        """Seconds from now on. What was done before leaves less to training, but never less than a quarter."""
        return max(self.minutes * 60 - (time.monotonic() - self.started_at), self.minutes * 15)


@dataclass(frozen=True)
class StepSpeed:
    """How quickly a model trains here."""

    step: float
    """Seconds of an update."""
    tokens: int
    """Nodes of an update."""
    state: TrainState
    """Of a model that is thrown away."""


@dataclass(frozen=True)
class EvalCost:
    """Seconds of what is not training."""

    validation: float
    """One during training, and the sample beside it."""
    batch: float
    """A batch of a validation."""


def fit_steps(recipe: Recipe, config: Any, seconds: float) -> Any:
    """The config with as many steps as fit into the time, the validation at the end included; a schedule fitted to
    them. Where all of the validation split would take too long at the end, every second or tenth batch of it."""
    began = time.monotonic()
    known = measure_speed(recipe, config, min(TRIAL_SECONDS, seconds / 10))
    looks = measure_eval(recipe, config, known.state)
    left, train = plan_final_eval(recipe, config, looks, seconds - (time.monotonic() - began))
    steps = max(2, int(left / (known.step + looks.validation / train.eval_every)))
    return replace(config, train=replace(train, steps=steps, warmup=min(train.warmup, steps // 10)))


def choose_size(recipe: Recipe, config: Any, seconds: float) -> tuple[Any, dict[str, Any]]:
    """The best of the recipe's sizes for this time with its steps, and why: {"sizes": what was measured and expected of
    each, "expects": [low, high] of the validation loss}. They are tried from small to large until a larger one promises
    less: what it learns from each token no longer makes up for the tokens it does not get to see."""
    began, tried, best = time.monotonic(), [], None
    choices = list(recipe.sizes(config))  # ty: ignore[missing-attribute] (an optional name)
    for done, choice in enumerate(choices):
        report_progress("trying sizes", done, len(choices))
        try:
            known = measure_speed(recipe, choice.config, min(TRIAL_SECONDS / 2, seconds / 40))
        except torch.OutOfMemoryError:
            if best is None:
                raise
            break
        band = choice.expected_loss(known.tokens * seconds / known.step)
        tried.append(describe_size(choice, known, band))
        if best is not None and sum(band) >= sum(best[2]):
            break
        best = choice, known, band  # of the others nothing is kept: a state is a model and more
    assert best is not None  # a recipe with sizes has one
    choice, known, _ = best
    looks = measure_eval(recipe, choice.config, known.state)
    left, settings = plan_final_eval(recipe, choice.config, looks, seconds - (time.monotonic() - began))
    times = max(1, min(EVALS_PER_RUN, int(left / 10 / looks.validation)))
    steps = max(2, int((left - times * looks.validation) / known.step))
    every = {"eval_every": -(-steps // times), "save_every": -(-steps // times)}
    settings = replace(settings, steps=steps, warmup=min(settings.warmup, steps // 10), **every)
    found = {"expects": round_band(choice.expected_loss(known.tokens * steps)), "sizes": tried}
    return replace(choice.config, train=settings), found


def measure_speed(recipe: Recipe, config: Any, seconds: float) -> StepSpeed:
    """Measured for about so long."""
    trial = replace(config, train=replace(config.train, steps=1 << 30, eval_every=1 << 30))
    state, times = init_state(recipe, trial), []
    state.stream_state = next(recipe.batches(trial, "train"))[1] | {"step": LATE_STEP}
    seen = state.stream_state.get("tokens", 0)
    for _ in train(recipe, trial, state):
        times.append(time.monotonic())
        if len(times) > 200 or (len(times) > 2 and times[-1] - times[0] > seconds):
            break
    tokens = ((state.stream_state or {}).get("tokens", 0) - seen) // len(times)
    return StepSpeed((times[-1] - times[0]) / (len(times) - 1), tokens, state)


def measure_eval(recipe: Recipe, config: Any, state: TrainState) -> EvalCost:
    began = time.monotonic()
    validate(recipe, config, state)
    evaluated = time.monotonic() - began
    batches = sum(1 for _ in islice(recipe.batches(config, "val"), config.train.eval_batches))
    recipe.predict(state.model.eval(), {})
    return EvalCost(time.monotonic() - began, evaluated / max(1, batches))


def plan_final_eval(recipe: Recipe, config: Any, looks: EvalCost, remaining_seconds: float) -> tuple[float, TrainConfig]:
    """The seconds that the validation at the end leaves of these, and the settings with how much of the split it
    takes."""
    began, batches, remaining_seconds = time.monotonic(), 0, max(remaining_seconds, 1e-3)
    for batches, _ in enumerate(recipe.batches(config, "val"), 1):  # noqa: B007 (how many there are)
        if time.monotonic() - began > remaining_seconds * FINAL_EVAL_FRACTION / 2:  # the data alone take long: what is left is not known
            break
    cost = looks.batch * batches
    every = max(1, -int(-cost // (remaining_seconds * FINAL_EVAL_FRACTION)))
    return remaining_seconds - cost / every - (time.monotonic() - began), replace(config.train, final_every=every)


def round_band(band: tuple[float, float]) -> list[float]:
    return [round(loss, 4) for loss in band]


def describe_size(choice: SizeOption, known: StepSpeed, expected_loss: tuple[float, float]) -> dict[str, Any]:
    """A size that was tried, in plain values."""
    model = choice.config.model
    about = {"dim": model.dim, "n_layer": model.n_layer, "context": model.context, "batch": choice.config.train.batch}
    return about | {"tokens_per_second": round(known.tokens / known.step), "expects": round_band(expected_loss)}
