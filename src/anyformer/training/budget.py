"""Time budgets: how many steps fit into a time on this machine, and for recipes with several sizes, of which model.

Measured on a few steps of models that are discarded. The result is an ordinary config, so that the run is as
reproducible as any other.
"""

import math
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch

from ..errors import InputError
from ..events import report_progress
from ..recipe import Recipe, SizeOption, SupportsSizes
from .config import TrainConfig
from .loop import TrainState, init_state, train, validate

LATE_STEP = 100_000  # a step index past the end of any curriculum: speech starts with short clips
TRIAL_SECONDS = 5.0  # of steps, enough to measure their speed
FINAL_EVAL_FRACTION = 0.1  # of the time, at most, for the final validation
EVALS_PER_RUN = 10  # validations during a training whose size was chosen


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run may take in all. Raises InputError if that is not a positive, finite time."""

    minutes: float
    started_at: float
    """When the time started, by time.monotonic."""
    choose_size: bool = False
    """Whether the size of the model may be chosen too."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise InputError(f"--minutes is {self.minutes:g}; it must be above 0, and finite")

    @property
    def remaining_seconds(self) -> float:
        """What preparation has left for training, but never less than a quarter of the budget."""
        return max(self.minutes * 60 - (time.monotonic() - self.started_at), self.minutes * 15)


@dataclass(frozen=True)
class StepSpeed:
    """How fast a model trains on this machine."""

    seconds: float
    """Of an update."""
    tokens: int
    """Of an update."""
    state: TrainState
    """Of the model that was measured, to be discarded."""


@dataclass(frozen=True)
class EvalCost:
    """Seconds that validation takes."""

    validation: float
    """A validation during training, with its sample."""
    batch: float
    """One batch of a validation."""


def fit_steps(recipe: Recipe, config: Any, seconds: float) -> Any:
    """Return the config with as many steps as fit into the time, with the schedule and the final validation adapted."""
    started_at = time.monotonic()
    speed = measure_speed(recipe, config, min(TRIAL_SECONDS, seconds / 10))
    cost = measure_eval(recipe, config, speed.state)
    remaining, settings = plan_final_eval(recipe, config, cost, seconds - (time.monotonic() - started_at))
    steps = max(2, int(remaining / (speed.seconds + cost.validation / settings.eval_every)))
    return replace(config, train=replace(settings, steps=steps, warmup=min(settings.warmup, steps // 10)))


def choose_size(recipe: Recipe, config: Any, seconds: float) -> tuple[Any, dict[str, Any]]:
    """Choose the size with the lowest predicted loss after this time, and its number of steps.

    Sizes are tried from small to large until a larger one is predicted to be worse: it learns more per token, but sees
    too few tokens.

    Returns:
        The config, and the reasons: {"sizes": measurement and prediction of each, "expects": predicted [low, high] of
        the validation loss}.
    """
    started_at, sizes, best = time.monotonic(), [], None
    options = list(cast(SupportsSizes, recipe).sizes(config))
    for tried, option in enumerate(options):
        report_progress("trying sizes", tried, len(options))
        try:
            speed = measure_speed(recipe, option.config, min(TRIAL_SECONDS / 2, seconds / 40))
        except torch.OutOfMemoryError:
            if best is None:
                raise
            break
        band = option.expected_loss(speed.tokens * seconds / speed.seconds)
        sizes.append(describe_size(option, speed, band))
        if best is not None and sum(band) >= sum(best[2]):
            break
        best = option, speed, band  # the state of earlier ones is freed
    assert best is not None  # a recipe with sizes has at least one
    option, speed, _ = best
    cost = measure_eval(recipe, option.config, speed.state)
    remaining, settings = plan_final_eval(recipe, option.config, cost, seconds - (time.monotonic() - started_at))
    n_evals = max(1, min(EVALS_PER_RUN, int(remaining / 10 / cost.validation)))
    steps = max(2, int((remaining - n_evals * cost.validation) / speed.seconds))
    every = {"eval_every": -(-steps // n_evals), "save_every": -(-steps // n_evals)}
    settings = replace(settings, steps=steps, warmup=min(settings.warmup, steps // 10), **every)
    reasons = {"expects": round_band(option.expected_loss(speed.tokens * steps)), "sizes": sizes}
    return replace(option.config, train=settings), reasons


def measure_speed(recipe: Recipe, config: Any, seconds: float) -> StepSpeed:
    """Train a new model for about this many seconds."""
    trial = replace(config, train=replace(config.train, steps=1 << 30, eval_every=1 << 30))
    state, times = init_state(recipe, trial), []
    state.stream_state = next(recipe.batches(trial, "train"))[1] | {"step": LATE_STEP}
    first_tokens = state.stream_state.get("tokens", 0)
    for _ in train(recipe, trial, state):
        times.append(time.monotonic())
        if len(times) > 200 or (len(times) > 2 and times[-1] - times[0] > seconds):
            break
    tokens = ((state.stream_state or {}).get("tokens", 0) - first_tokens) // len(times)
    return StepSpeed((times[-1] - times[0]) / (len(times) - 1), tokens, state)


def measure_eval(recipe: Recipe, config: Any, state: TrainState) -> EvalCost:
    """Time one validation, with its sample."""
    started_at = time.monotonic()
    validate(recipe, config, state)
    seconds = time.monotonic() - started_at
    n_batches = sum(1 for _ in islice(recipe.batches(config, "val"), config.train.eval_batches))
    with torch.no_grad():
        recipe.predict(state.model.eval(), {})
    return EvalCost(time.monotonic() - started_at, seconds / max(1, n_batches))


def plan_final_eval(recipe: Recipe, config: Any, cost: EvalCost, seconds: float) -> tuple[float, TrainConfig]:
    """Decide how much of the validation split the final validation covers.

    Returns the seconds that remain for training, and the settings with `final_every`.
    """
    started_at, n_batches, seconds = time.monotonic(), 0, max(seconds, 1e-3)
    for _ in recipe.batches(config, "val"):
        n_batches += 1
        if time.monotonic() - started_at > seconds * FINAL_EVAL_FRACTION / 2:  # reading the data alone takes long
            break
    eval_seconds = cost.batch * n_batches
    every = max(1, -int(-eval_seconds // (seconds * FINAL_EVAL_FRACTION)))
    remaining = seconds - eval_seconds / every - (time.monotonic() - started_at)
    return remaining, replace(config.train, final_every=every)


def round_band(band: tuple[float, float]) -> list[float]:
    return [round(loss, 4) for loss in band]


def describe_size(option: SizeOption, speed: StepSpeed, band: tuple[float, float]) -> dict[str, Any]:
    """Describe a size that was measured, as plain values."""
    model = option.config.model
    shape = {"dim": model.dim, "n_layer": model.n_layer, "context": model.context, "batch": option.config.train.batch}
    return shape | {"tokens_per_second": round(speed.tokens / speed.seconds), "expects": round_band(band)}
