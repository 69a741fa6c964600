"""The training loop. It reads from top to bottom and knows no domain."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from ..recipe import StreamState, Recipe
from .config import TrainConfig
from .device import resolve_device, resolve_dtype, autocast
from .optimizers import Optimizer, get_lr


@dataclass
class TrainState:
    """All that training changes: save it and nothing is lost."""

    model: nn.Module
    optimizer: Optimizer
    step: int = 0
    """Updates done."""
    stream_state: StreamState | None = None
    """Where the stream of training batches stands."""
    best: dict[str, Any] = field(default_factory=dict)
    """The step with the lowest validation loss so far: {"step": ..., "val_loss": ...}."""


def init_state(recipe: Recipe, config: Any, prepare: Callable[[nn.Module], Any] = lambda model: None) -> TrainState:
    """A new model and its optimiser, the same for the same seed. `prepare` may change the model before it learns."""
    where = resolve_device(config.train.device)
    torch.manual_seed(config.train.seed)
    model = recipe.build(config)
    prepare(model)
    model = model.to(where)
    return TrainState(model, Optimizer(model, config.train))


def train(recipe: Recipe, config: Any, state: TrainState | None = None) -> Iterator[dict[str, Any]]:
    """Train until `config.train.steps`, or until `patience` ends; yields a record after each update, and the caller
    prints, saves or stops.

    A record has step, loss, lr, grad_norm and tokens, and where the step validates what the recipe evaluates, as
    val_loss and so on. `state` is changed in place; give one back to go on. Raises TrainingError where the loss is not
    finite, before the weights are touched.
    """
    c: TrainConfig = config.train
    state = state or init_state(recipe, config)
    model = state.model.train()
    if c.compile:
        model.compile()
    where = next(model.parameters()).device
    stream = recipe.batches(config, "train", state.stream_state)
    while not is_finished(state, c):
        torch.manual_seed(c.seed * 1_000_003 + state.step)  # what is random in a step depends on (seed, step) alone
        lr = get_lr(state.step, c)
        mean = torch.zeros((), device=where)
        for _ in range(c.accumulate):
            batch, state.stream_state = next(stream)
            with autocast(where, resolve_dtype(c.dtype, where)):
                loss = recipe.loss(model, move_batch(batch, where)) / c.accumulate
            loss.backward()
            mean += loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), c.clip or math.inf)
        check_finite(mean.item(), norm.item(), state.step + 1, lr)
        state.optimizer.step(lr)
        state.step += 1

        record = {"step": state.step, "loss": mean.item(), "lr": lr, "grad_norm": norm.item()}
        record["tokens"] = (state.stream_state or {}).get("tokens", 0)
        if state.step % c.eval_every == 0 or state.step == c.steps:
            record |= validate(recipe, config, state)
        yield record


def is_finished(state: TrainState, c: TrainConfig) -> bool:
    """All steps are done, or the last validations were no better than one before (`patience`)."""
    waited = state.step - state.best.get("step", state.step)
    return state.step >= c.steps or (c.patience > 0 and waited >= c.patience * c.eval_every)


def validate(recipe: Recipe, config: Any, state: TrainState) -> dict[str, float]:
    """The same few validation batches each time, as val_loss and so on; remembers the best step."""
    batches = (batch for batch, _ in recipe.batches(config, "val", None))
    found = evaluate(recipe, state.model, islice(batches, config.train.eval_batches), config.train.dtype)
    if found["loss"] < state.best.get("val_loss", math.inf):
        state.best = {"step": state.step, "val_loss": found["loss"]}
    return {f"val_{name}": value for name, value in found.items() if name != "tokens"}


def evaluate(recipe: Recipe, model: nn.Module, batches: Iterator[dict], number: str = "float32") -> dict[str, float]:
    """What the recipe evaluates, on the model's device, without a trace on the model."""
    where, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(where, resolve_dtype(number, where)):
            return recipe.evaluate(model, (move_batch(batch, where) for batch in batches))
    finally:
        model.train(training)


def move_batch(batch: dict, where: torch.device) -> dict:
    return {name: value.to(where, non_blocking=True) for name, value in batch.items()}


def check_finite(loss: float, norm: float, step: int, lr: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"the loss is {loss:g} and the gradient's length {norm:g} at step {step} with learning rate {lr:.3g}: "
            f"try --train.lr {lr / 3:.1g}, a longer --train.warmup, or --dtype float32"
        )
