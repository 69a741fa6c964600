"""Training by the clock: which share of the time has been used, and when training must end.

The schedule of the learning rate follows the share. The end leaves enough time for what comes after the last step. That
is known as a multiple of a step's time: on a machine that becomes slower or faster, both change together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..parsing import check_range, check_types

Clock = Callable[[], float]
"""Returns a time in seconds, as time.monotonic does."""

TOLERANCE = 0.02  # of the time: by so much the end may be late, rather than evaluate half as much
SMOOTHING = 0.1  # weight of the latest step in the moving average of a step's time


@dataclass(frozen=True, kw_only=True)
class TimerState:
    """What a checkpoint stores of a timer. Raises ValueError for a value that makes no sense."""

    seconds_left: float
    """Until the end of the run, with everything that follows training. May be negative."""
    step_seconds: float
    """Of a step, as expected next."""
    share: float = 0.0
    """Of the training time, used so far; 1 once training is over."""
    validation_steps: float = 0.0
    """Time of a validation, in steps."""
    final_validations: float = 0.0
    """Time of the final evaluation and its figures, in validations."""
    other_steps: float = 0.0
    """Time of everything else after the last step, in steps: the sample, the average of checkpoints."""
    n_batches: int = 1
    """Batches of the validation split, as far as they were counted."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "step_seconds", "validation_steps", "final_validations", "other_steps", at_least=0)
        check_range(self, "n_batches", at_least=1)
        check_range(self, "share", at_least=0, at_most=1)


class Timer:
    """Measures a training, step by step."""

    def __init__(self, state: TimerState, clock: Clock):
        self.clock = clock
        self.seconds = max(0.0, state.seconds_left)
        self.deadline = clock() + state.seconds_left
        self.share, self.step_seconds = state.share, state.step_seconds
        self.validation_steps, self.other_steps = state.validation_steps, state.other_steps
        self.final_validations, self.n_batches = state.final_validations, state.n_batches
        self.is_over = state.share >= 1
        self.updated_at = self.step_started_at = self.step_ended_at = clock()

    def start_step(self) -> float:
        """Return the share of the time used so far; 1 if there is time for this step only."""
        now = self.clock()
        elapsed, left = now - self.updated_at, self.training_seconds_left(now)
        self.updated_at = self.step_started_at = now
        if left < 1.5 * self.step_seconds:
            self.share = 1.0
        elif elapsed > 0:  # from here to 1, in proportion to the time that is left now
            self.share += (1 - self.share) * elapsed / (elapsed + left)
        return self.share

    def end_step(self) -> None:
        """Measure the step; decide whether it was the last."""
        now = self.clock()
        self.step_seconds += SMOOTHING * (now - self.step_started_at - self.step_seconds)
        self.step_ended_at = now
        self.is_over = self.share >= 1 or self.training_seconds_left(now) < self.step_seconds / 2

    def end_validation(self) -> None:
        """Measure the validation that followed a step."""
        self.validation_steps = (self.clock() - self.step_ended_at) / max(self.step_seconds, 1e-9)

    def training_seconds_left(self, now: float) -> float:
        """Return the time until the last step must end."""
        reserved_steps = self.validation_steps * (1 + self.final_validations) + self.other_steps
        return self.deadline - now - reserved_steps * self.step_seconds

    def fit_final_every(self, every: int) -> int:
        """Return of how many batches the final evaluation takes one (`every` as planned), so that it fits into the time
        that is left."""
        left = self.seconds_left - self.other_steps * self.step_seconds + TOLERANCE * self.seconds
        planned = every * self.final_validations * self.validation_steps * self.step_seconds
        if not planned:
            return every
        return math.ceil(planned / left) if planned < left * self.n_batches else self.n_batches

    @property
    def seconds_left(self) -> float:
        """The time until the end of the run; negative once it is over."""
        return self.deadline - self.clock()

    def get_state(self) -> TimerState:
        """Return the state to store."""
        return TimerState(
            seconds_left=self.seconds_left,
            step_seconds=self.step_seconds,
            share=1.0 if self.is_over else self.share,
            validation_steps=self.validation_steps,
            final_validations=self.final_validations,
            other_steps=self.other_steps,
            n_batches=self.n_batches,
        )


def get_position(timer: Timer | None, step: int, steps: int) -> float:
    """Return the position in a schedule of so many steps: the step, or by the clock the share of the time."""
    return step if timer is None else timer.start_step() * steps


def is_over(timer: Timer | None, step: int, steps: int) -> bool:
    """Return whether no step is left, or no time."""
    return step >= steps if timer is None else timer.is_over
