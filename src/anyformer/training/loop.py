"""The training loop. It knows no domain and reads from top to bottom."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..recipe import Recipe, StreamState
from .activation_checkpointing import checkpoint_activations
from .config import TrainConfig
from .device import resolve_device, resolve_dtype, seed_generators
from .distributed import Step, distribute
from .evaluation import evaluate
from .gradients import check_finite, check_val_loss, check_weights, clip_gradient, compute_gradient, select_loss
from .optimizers import Optimizer, get_lr
from .step_clock import StepClock
from .timer import Timer, get_position, is_over
from .updates import read_updates


@dataclass
class TrainState:
    """Everything that training changes; a checkpoint holds exactly this."""

    model: nn.Module
    wrapped: nn.Module
    """Maps a batch to its loss by this model, alone or together with other processes."""
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss in float16 (1710.03740); disabled for other dtypes."""
    clock: StepClock
    """Measures where the time of each step goes."""
    step: int = 0
    """Number of updates so far."""
    stream_state: StreamState | None = None
    """Position of the stream of training batches."""
    best: dict[str, Any] = field(default_factory=dict)
    """The step with the lowest validation loss so far: {"step": ..., "val_loss": ...}."""
    is_stopping: bool = False
    """One of several processes was asked to stop."""
    timer: Timer | None = None
    """Measures a training that ends at a time (`--minutes`), not after a number of steps."""


def init_state(recipe: Recipe, config: Any, initialize: Callable[[nn.Module], Any] = lambda model: None) -> TrainState:
    """Build a model and its optimizer, the same for the same seed. `initialize` is called with the new model before the
    optimizer is built: it loads weights or adds adapters."""
    device = resolve_device(config.train.device)
    seed_generators(config.train.seed, device)
    model = recipe.build(config)
    initialize(model)
    model = checkpoint_activations(model.to(device), config.train)
    wrapped = distribute(Step(recipe, model, select_loss(recipe, config.train)), config.train.shard, device)
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_dtype(config.train.dtype, device) == torch.float16)
    return TrainState(model, wrapped, Optimizer(model, config.train), scaler, StepClock(device))


def train(
    recipe: Recipe, config: Any, state: TrainState | None = None, must_stop: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, Any]]:
    """Train until `config.train.steps`, the time of `state.timer` or `patience` is used up; yield a record per update.

    The caller prints, saves or stops. `state` is changed in place; pass it again to continue.

    Yields:
        {"step", "loss", "lr", "grad_norm", "tokens"}, with the validation metrics ("val_loss", ...) on steps that
        validate. If float16 gradients overflow, the weights stay as they are: grad_norm is None, "skipped_update" is
        True, and "loss_scale" is the reduced scale of the next step.

    Raises:
        TrainingError: If the loss or the gradient is not finite (the weights of a GPU are then lost: go on from a
            checkpoint), or the weights before they are validated.
    """
    c: TrainConfig = config.train
    state = state or init_state(recipe, config)
    state.model.train()
    updates = read_updates(recipe, config, state, must_stop)
    while not is_finished(state, c):
        lr = get_lr(get_position(state.timer, state.step, c.steps), c)
        update = next(updates)
        state.stream_state, state.is_stopping = update.stream_state, update.is_stopping
        # _graph is held until the next step: freed earlier, the allocator returns its memory and faults it in again.
        mean, _graph = compute_gradient(state, update, c.dtype)
        figures = clip_gradient(state.model, state.optimizer, state.scaler, mean, c.clip)
        # A GPU has the update to compute while the loss is read; one that may be left out has to wait for that.
        is_early = state.clock.device.type == "cuda" and not state.scaler.is_enabled()
        if is_early:
            state.optimizer.step(lr)
        loss, grad_norm = figures.tolist()
        has_update = check_finite(state.scaler, mean, loss, grad_norm, state.step, lr)
        if has_update and not is_early:
            state.optimizer.step(lr)
        state.optimizer.zero_grad()
        state.scaler.update()
        state.step += 1
        if state.timer is not None:
            state.timer.end_step()

        record = {"step": state.step, "loss": loss, "lr": lr, "grad_norm": grad_norm if has_update else None}
        record |= {"tokens": (state.stream_state or {}).get("tokens", 0)} | update.figures
        if not has_update:
            record |= {"skipped_update": True, "loss_scale": state.scaler.get_scale()}
        if state.step % c.eval_every == 0 or is_over(state.timer, state.step, c.steps):
            check_weights(state.model, state.step, lr)
            record |= validate(recipe, config, state)
        yield record


def is_finished(state: TrainState, config: TrainConfig) -> bool:
    """Return whether all steps are done, the time is used up, or the last validations were no better (`patience`)."""
    stale_steps = state.step - state.best.get("step", state.step)
    is_stale = config.patience > 0 and stale_steps >= config.patience * config.eval_every
    return is_stale or is_over(state.timer, state.step, config.steps)


def validate(recipe: Recipe, config: Any, state: TrainState) -> dict[str, float]:
    """Evaluate the first validation batches, always the same ones, and record the best step. Returns "val_loss" ..."""
    batches = islice((batch for batch, _ in recipe.batches(config, "val", None)), config.train.eval_batches)
    metrics = evaluate(recipe, state.model, batches, config.train.dtype, state.wrapped)
    if state.timer is not None:
        state.timer.end_validation()
    check_val_loss(metrics["loss"], state.step)
    if metrics["loss"] < state.best.get("val_loss", math.inf):
        state.best = {"step": state.step, "val_loss": metrics["loss"]}
    return {f"val_{name}": value for name, value in metrics.items() if name != "tokens"}
