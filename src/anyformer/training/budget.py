"""Time budgets: how many steps fit into a time on this machine, and for recipes with several sizes, of which model.

Measured on a few steps of models that are discarded. The result is an ordinary config, so that the run is as
reproducible as any other.
"""

import math
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, cast

import torch

from ..errors import InputError
from ..events import report_progress
from ..recipe import Recipe, SupportsSizes
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


class StepSpeed(NamedTuple):
    """Seconds and tokens of an update on this machine, and the state that was measured."""

    seconds: float
    tokens: int
    state: TrainState


class EvalCost(NamedTuple):
    """Seconds of a validation during training, with its sample; and of one batch of a validation."""

    validation: float
    batch: float


def fit_steps(recipe: Recipe, config: Any, seconds: float) -> Any:
    """Return the config with as many steps as fit into the time, with the schedule and the final validation adapted."""
    deadline = time.monotonic() + seconds
    speed = measure_speed(recipe, config, min(TRIAL_SECONDS, seconds / 10))
    remaining, eval_seconds, settings = plan_evals(recipe, config, speed.state, deadline)
    return set_steps(config, settings, remaining / (speed.seconds + eval_seconds / settings.eval_every))


def choose_size(recipe: Recipe, config: Any, seconds: float) -> tuple[Any, dict[str, Any]]:
    """Choose the size with the lowest predicted loss after this time, and its number of steps.

    Sizes are tried from small to large until a larger one is predicted to be worse: it learns more per token, but sees
    too few tokens.

    Returns the config, and the reasons: {"sizes": measurement and prediction of each, "expects": predicted [low, high]
    of the validation loss}.
    """
    deadline, sizes, best = time.monotonic() + seconds, [], None
    options = list(cast(SupportsSizes, recipe).sizes(config))
    for tried, option in enumerate(options):
        report_progress("trying sizes", tried, len(options))
        try:
            speed = measure_speed(recipe, option.config, min(TRIAL_SECONDS / 2, seconds / 40))
        except torch.OutOfMemoryError:
            if best is None:
                raise
            break
        expected = option.expected_loss(speed.tokens * seconds / speed.seconds)
        sizes.append(describe_size(option.config, speed, expected))
        if best is not None and sum(expected) >= sum(best[2]):
            break
        best = option, speed, expected  # the state of earlier ones is freed
    assert best is not None  # a recipe with sizes has at least one
    option, speed, _ = best
    remaining, eval_seconds, settings = plan_evals(recipe, option.config, speed.state, deadline)
    n_evals = max(1, min(EVALS_PER_RUN, int(remaining / 10 / eval_seconds)))
    config = set_steps(option.config, settings, (remaining - n_evals * eval_seconds) / speed.seconds)
    every = -(-config.train.steps // n_evals)
    config = replace(config, train=replace(config.train, eval_every=every, save_every=every))
    expected = [round(loss, 4) for loss in option.expected_loss(speed.tokens * config.train.steps)]
    return config, {"expects": expected, "sizes": sizes}


def set_steps(config: Any, settings: TrainConfig, steps: float) -> Any:
    """Return the config with these settings and at least 2 steps; a tenth of them warm up, at most."""
    steps = max(2, int(steps))
    return replace(config, train=replace(settings, steps=steps, warmup=min(settings.warmup, steps // 10)))


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


def plan_evals(recipe: Recipe, config: Any, state: TrainState, deadline: float) -> tuple[float, float, TrainConfig]:
    """Decide how much of the validation split the final validation covers. Returns the seconds that remain to train,
    the seconds of a validation during training, and the settings with `final_every`."""
    cost = measure_eval(recipe, config, state)
    started_at, n_batches = time.monotonic(), 0
    limit = max(deadline - started_at, 1e-3) * FINAL_EVAL_FRACTION
    for _ in recipe.batches(config, "val"):
        n_batches += 1
        if time.monotonic() - started_at > limit / 2:  # reading the data alone takes long
            break
    every = max(1, math.ceil(cost.batch * n_batches / limit))
    remaining = deadline - time.monotonic() - cost.batch * n_batches / every
    return remaining, cost.validation, replace(config.train, final_every=every)


def describe_size(config: Any, speed: StepSpeed, expected: tuple[float, float]) -> dict[str, Any]:
    """Describe a size that was measured, as plain values."""
    size = {name: getattr(config.model, name) for name in ("dim", "n_layer", "context")}
    size |= {"batch": config.train.batch, "tokens_per_second": round(speed.tokens / speed.seconds)}
    return size | {"expects": [round(loss, 4) for loss in expected]}
