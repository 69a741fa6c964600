"""Time budgets (`--minutes`): what a run does with its time, and for recipes with several sizes, with which model.

Measured on a few steps of models that are discarded. The plan says how often and how much is validated, and about how
many steps there will be; training itself follows the clock (`timer.Timer`).
"""

import math
import time
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, NamedTuple, cast

import torch

from ..errors import InputError
from ..events import report_notice, report_progress
from ..examples import find_examples, predict_examples
from ..model.config import find_stacks
from ..parsing import check_range
from ..recipe import Recipe, SizeOption, SupportsFigures, SupportsSizes
from .config import MAX_MINUTES, TrainConfig
from .device import resolve_device
from .loop import TrainState, init_state, train, validate
from .timer import Clock, TimerState

LATE_STEP = 100_000  # a step index past the end of any curriculum: speech starts with short clips
FEW = 1 << 20  # a `final_every` that leaves one batch
TRIAL_SECONDS = 5.0  # of steps, enough to measure their speed
EVAL_FRACTION = 0.1  # of the time, at most, for validations during training
FINAL_EVAL_FRACTION = 0.1  # of the time, at most, for the final evaluation and figures that cover the split
FINISH_SECONDS, FINISH_FRACTION = 2.0, 0.03  # for the report and the end of the process; of the time, at most
TRAINING_FRACTION = 0.75  # of the time, for steps, where a size is chosen by their number
MIN_EVALS, MAX_EVALS = 5, 10  # validations of a run, if they are affordable; MAX_EVALS if its size was chosen
MIN_STEPS = 100  # a model that is updated less often than this has learned next to nothing


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run may take in all. Raises InputError if that is not a positive, finite time."""

    minutes: float
    started_at: float
    """When the time started, by `clock`."""
    choose_size: bool = False
    """Whether the size of the model may be chosen too."""
    is_forced: bool = False
    """Train even if the time is too short to learn anything."""
    clock: Clock = time.monotonic

    def __post_init__(self) -> None:
        check_range(self, "minutes", above=0, at_most=MAX_MINUTES)

    @property
    def remaining_seconds(self) -> float:
        """What is left of the time, without that for the end of the process; negative once it is over."""
        seconds = self.minutes * 60
        return self.started_at + seconds - min(FINISH_SECONDS, FINISH_FRACTION * seconds) - self.clock()


class StepSpeed(NamedTuple):
    """Seconds and tokens of an update on this machine, and the state that was measured."""

    seconds: float
    tokens: int
    state: TrainState


class EvalCost(NamedTuple):
    """Seconds of the parts of an evaluation."""

    batch: float
    """One batch of the validation split."""
    sample: float
    """The example prediction after each validation."""
    figures: float
    """The figures at the end, as far as they do not depend on the size of the split."""


class Plan(NamedTuple):
    """What a run does with its time."""

    config: Any
    """With the number of steps to expect, and how often and how much to validate."""
    timer: TimerState


def plan_steps(recipe: Recipe, config: Any, budget: Budget, step: int = 0) -> Plan:
    """Plan a run from here to the end of its time, after `step` steps of earlier runs."""
    seconds = min(TRIAL_SECONDS, max(0.0, budget.remaining_seconds) / 10)
    return make_plan(recipe, config, budget, measure_speed(recipe, config, seconds, budget.clock), step)


def choose_size(recipe: Recipe, config: Any, budget: Budget) -> tuple[Plan, dict[str, Any]]:
    """Choose the size that is best after this time, and plan its run.

    Sizes are tried from small to large until a larger one is worse: it learns more per token, but sees too few tokens.

    Returns the plan, and the reasons: {"sizes": measurements of each, "expects": predicted [low, high] of the
    validation loss, where the recipe predicts it}.
    """
    trial_seconds, sizes, best = min(TRIAL_SECONDS / 2, max(1.0, budget.remaining_seconds) / 40), [], None
    options = list(cast(SupportsSizes, recipe).sizes(config))
    for tried, option in enumerate(options):
        if best is not None and option.expected_loss is None and best.steps < option.steps:
            break  # a larger one is no faster
        report_progress("trying sizes", tried, len(options))
        try:
            speed = measure_speed(recipe, option.config, trial_seconds, budget.clock)
        except torch.OutOfMemoryError:
            if best is None:
                raise
            break
        trial = Trial(option, speed, max(1.0, budget.remaining_seconds))  # building the first one may take long
        sizes.append(describe_size(trial))
        if best is not None and not trial.is_better_than(best):
            break
        best = trial  # the state of earlier ones is freed
    assert best is not None  # a recipe with sizes has at least one
    option = best.option
    plan = make_plan(
        recipe, replace(option.config, train=replace(option.config.train, eval_every=1)), budget, best.speed
    )
    config = replace(plan.config, train=replace(plan.config.train, save_every=plan.config.train.eval_every))
    reasons: dict[str, Any] = {"sizes": sizes}
    if option.expected_loss is not None:
        reasons["expects"] = round_range(option.expected_loss(best.speed.tokens * config.train.steps))
    if advice := option.advise(best.speed.tokens * config.train.steps):
        report_notice(advice)
    return plan._replace(config=config), reasons


class Trial(NamedTuple):
    """A size that was measured, and the seconds that there are."""

    option: SizeOption
    speed: StepSpeed
    seconds: float

    @property
    def loss_range(self) -> tuple[float, float] | None:
        predict = self.option.expected_loss
        return None if predict is None else predict(self.speed.tokens * self.seconds / self.speed.seconds)

    @property
    def steps(self) -> int:
        return int(TRAINING_FRACTION * self.seconds / self.speed.seconds)

    def is_better_than(self, smaller: "Trial") -> bool:
        """Whether the loss is lower or, where none is predicted, there are enough steps for this size."""
        loss, other = self.loss_range, smaller.loss_range
        return self.steps >= self.option.steps if loss is None or other is None else sum(loss) < sum(other)


def describe_size(trial: Trial) -> dict[str, Any]:
    """Describe a size that was measured, as plain values."""
    config, speed, expected = trial.option.config, trial.speed, trial.loss_range
    size: dict[str, Any] = {}
    for shape in find_stacks(config).values():  # of several, the last
        size = {"dim": shape.dim, "n_layer": shape.n_layer, "context": shape.context}
    size |= {"batch": config.train.batch, "tokens_per_second": round(speed.tokens / speed.seconds)}
    return size | ({"steps": trial.steps} if expected is None else {"expects": round_range(expected)})


def round_range(values: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in values]


# --- measuring ---


def measure_speed(recipe: Recipe, config: Any, seconds: float, clock: Clock = time.monotonic) -> StepSpeed:
    """Train a new model for about this many seconds."""
    trial = replace(config, train=replace(config.train, steps=1 << 30, eval_every=1 << 30))
    state, times, started_at = init_state(recipe, trial), [], clock()
    state.stream_state = next(recipe.batches(trial, "train"))[1] | {"step": LATE_STEP}
    first_tokens = state.stream_state.get("tokens", 0)
    for _ in train(recipe, trial, state):
        times.append(clock())
        is_slow = len(times) > 1 and times[-1] - started_at > 3 * seconds
        if is_slow or len(times) > 200 or (len(times) > 2 and times[-1] - times[0] > seconds):
            break
    tokens = ((state.stream_state or {}).get("tokens", 0) - first_tokens) // len(times)
    return StepSpeed(max(times[-1] - times[0], 1e-9) / (len(times) - 1), tokens, state)


def measure_eval(recipe: Recipe, config: Any, state: TrainState, clock: Clock = time.monotonic) -> EvalCost:
    """Time a validation of few batches, a sample, and the figures of a split of one batch."""
    examples = find_examples(recipe, config)
    n_batches = sum(1 for _ in islice(recipe.batches(config, "val"), min(4, config.train.eval_batches)))
    few = replace(config, train=replace(config.train, eval_batches=n_batches, final_every=FEW))
    times = [clock()]
    validate(recipe, few, state)
    times.append(clock())
    with torch.no_grad():
        predict_examples(recipe, state.model.eval(), examples)
    times.append(clock())
    if isinstance(recipe, SupportsFigures):
        recipe.figures(state.model, few)
    times.append(clock())
    validation, sample, figures = (end - start for start, end in pairwise(times))
    return EvalCost(validation / max(1, n_batches), sample, figures)


def count_batches(recipe: Recipe, config: Any, seconds: float, clock: Clock = time.monotonic) -> int:
    """Count the batches of the validation split, as far as they can be read in this time."""
    started_at, n_batches = clock(), 0
    for _ in recipe.batches(config, "val"):
        n_batches += 1
        if clock() - started_at > seconds:
            break
    return max(1, n_batches)


# --- planning ---


def make_plan(recipe: Recipe, config: Any, budget: Budget, speed: StepSpeed, step: int = 0) -> Plan:
    """Divide the time that is left between steps, validations and the end. Raises InputError if it is too short."""
    cost = measure_eval(recipe, config, speed.state, budget.clock)
    n_passes = 2 if isinstance(recipe, SupportsFigures) else 1  # most figures cover the split, as the evaluation does
    limit = max(budget.remaining_seconds, 1e-3) * FINAL_EVAL_FRACTION
    n_batches = count_batches(recipe, config, limit / 2, budget.clock)
    left = max(budget.remaining_seconds, 1e-3)
    final_every = min(n_batches, max(1, math.ceil(n_passes * cost.batch * n_batches / limit)))
    affordable = (EVAL_FRACTION * left / 2 - cost.sample) / max(cost.batch, 1e-9)  # two validations, at least
    eval_batches = max(1, min(config.train.eval_batches, n_batches, int(affordable)))
    validation = cost.batch * eval_batches
    final = n_passes * cost.batch * math.ceil(n_batches / final_every)
    n_last = 2 if config.train.average > 1 else 1  # validations after the last step
    other = cost.sample + cost.figures + (n_last - 1) * validation
    training = left - validation - final - other
    settings = replace(config.train, eval_batches=min(config.train.eval_batches, eval_batches), final_every=final_every)
    settings, n_steps = spread_evals(settings, training, speed.seconds, validation + cost.sample)
    timer = TimerState(
        seconds_left=left,
        share=step / (step + n_steps),
        step_seconds=speed.seconds,
        validation_steps=validation / speed.seconds,
        final_validations=final / max(validation, 1e-9),
        other_steps=other / speed.seconds,
        n_batches=n_batches,
    )
    if not budget.is_forced:
        check_steps(recipe, config, budget, step + training / speed.seconds, speed.seconds, left - training)
    settings = replace(settings, steps=step + n_steps, warmup=min(settings.warmup, (step + n_steps) // 10))
    return Plan(replace(config, train=settings), timer)


def spread_evals(settings: TrainConfig, seconds: float, step: float, validation: float) -> tuple[TrainConfig, int]:
    """Fit the number of validations into this time of training: rarer or more frequent than in the settings, if needed.

    Returns the settings with `eval_every`, and the number of steps.
    """
    affordable = max(1, int(EVAL_FRACTION * seconds / max(validation, 1e-9)))
    n_evals = seconds / (step * settings.eval_every + validation)
    n_evals = min(max(n_evals, MIN_EVALS), MAX_EVALS if settings.eval_every == 1 else math.inf, affordable)
    n_steps = max(2, int((seconds - (n_evals - 1) * validation) / step))
    return replace(settings, eval_every=max(1, math.ceil(n_steps / n_evals))), n_steps


def check_steps(recipe: Recipe, config: Any, budget: Budget, steps: float, step: float, other: float) -> None:
    """Raise InputError if a model would be updated too rarely to learn anything, with a time that would be enough.

    Args:
        steps: Updates that fit into the budget.
        step: Seconds of one.
        other: Seconds of everything after the last one.
    """
    needed = max(MIN_STEPS, config.train.warmup)
    if steps >= needed:
        return
    used = budget.clock() - budget.started_at
    minutes = (used + 1.2 * needed * step + other) / (1 - EVAL_FRACTION) / 60
    minutes = math.ceil(minutes * 10) / 10 if minutes < 3 else math.ceil(minutes)
    advice = [f"give at least {minutes:g} minutes (--minutes {minutes:g})"]
    if not budget.choose_size:  # otherwise this is the smallest already
        has_sizes, has_presets = isinstance(recipe, SupportsSizes), len(recipe.PRESETS) > 1
        advice += ["a smaller model (without --preset and flags of the model, the size is chosen)"] * has_sizes
        advice += ["a smaller --preset"] * (has_presets and not has_sizes)
    advice += ["a GPU"] if resolve_device(config.train.device).type == "cpu" else []
    text = f"{', '.join(advice[:-1])} or {advice[-1]}" if len(advice) > 1 else advice[0]
    raise InputError(
        f"{budget.minutes:g} minutes are too few: {max(0, int(steps))} steps will learn nothing; "
        f"{text}; start anyway with --yes"
    )
