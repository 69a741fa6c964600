"""The training loop. It knows no domain and reads from top to bottom."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..data.text.batches import IGNORE_INDEX
from ..errors import TrainingError
from ..recipe import Recipe, StreamState, SupportsLossTerms, SupportsLossWeight
from .config import TrainConfig
from .device import autocast, resolve_device, resolve_dtype
from .optimizers import Optimizer, get_lr


@dataclass
class TrainState:
    """Everything that training changes; a checkpoint holds exactly this."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    """Scales the loss in float16 (1710.03740); disabled for other dtypes."""
    step: int = 0
    """Number of updates so far."""
    stream_state: StreamState | None = None
    """Position of the stream of training batches."""
    best: dict[str, Any] = field(default_factory=dict)
    """The step with the lowest validation loss so far: {"step": ..., "val_loss": ...}."""


def init_state(recipe: Recipe, config: Any, initialize: Callable[[nn.Module], Any] | None = None) -> TrainState:
    """Build a model and its optimizer, the same for the same seed.

    Args:
        recipe: The recipe.
        config: Its config.
        initialize: Called with the new model before the optimizer is built: loads weights, adds adapters.
    """
    device = resolve_device(config.train.device)
    torch.manual_seed(config.train.seed)
    model = recipe.build(config)
    if initialize is not None:
        initialize(model)
    model = model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=resolve_dtype(config.train.dtype, device) == torch.float16)
    return TrainState(model, Optimizer(model, config.train), scaler)


def train(recipe: Recipe, config: Any, state: TrainState | None = None) -> Iterator[dict[str, Any]]:
    """Train until `config.train.steps` or until `patience` runs out, and yield a record after each update.

    The caller prints, saves or stops. `state` is changed in place; pass it again to continue.

    Yields:
        {"step", "loss", "lr", "grad_norm", "tokens"}, with the validation metrics ("val_loss", ...) on steps that
        validate. If float16 gradients overflow, the weights stay as they are: grad_norm is None, "skipped_update" is
        True, and "loss_scale" is the reduced scale of the next step.

    Raises:
        TrainingError: If the loss or the gradient is not finite; the weights have not been changed then.
    """
    c: TrainConfig = config.train
    state = state or init_state(recipe, config)
    state.model.train()
    loss_function = select_loss(recipe, c)
    stream = recipe.batches(config, "train", state.stream_state)
    while not is_finished(state, c):
        torch.manual_seed(c.seed * 1_000_003 + state.step)  # the randomness of a step depends on (seed, step) alone
        lr = get_lr(state.step, c)
        batches = []
        for _ in range(c.accumulate):
            batch, state.stream_state = next(stream)
            batches.append(batch)
        loss = backward(recipe, loss_function, state, batches, c.dtype)
        loss, grad_norm = clip_gradients(state, loss, c.clip, lr)
        if grad_norm is not None:
            state.optimizer.step(lr)
        state.optimizer.zero_grad()
        state.scaler.update()
        state.step += 1

        record = {"step": state.step, "loss": loss, "lr": lr, "grad_norm": grad_norm}
        record["tokens"] = (state.stream_state or {}).get("tokens", 0)
        if grad_norm is None:
            record |= {"skipped_update": True, "loss_scale": state.scaler.get_scale()}
        if state.step % c.eval_every == 0 or state.step == c.steps:
            record |= validate(recipe, config, state)
        yield record


def select_loss(recipe: Recipe, config: TrainConfig) -> Callable[[nn.Module, dict[str, Any]], Tensor]:
    """Return the function whose result is differentiated, compiled if the config says so.

    The loss is compiled, not the model: this includes the cross-entropy in the graph, and works for recipes whose loss
    does not call the model's `forward`.
    """
    has_terms = config.accumulate > 1 and isinstance(recipe, SupportsLossTerms)
    function = recipe.loss_terms if has_terms else recipe.loss
    return torch.compile(function) if config.compile else function


def backward(
    recipe: Recipe, loss_function: Callable[..., Tensor], state: TrainState, batches: Sequence[dict], dtype: str
) -> Tensor:
    """Add the gradient of the mean loss over all predictions in several batches.

    Each batch contributes in proportion to its number of predictions, so that the gradient equals that of one large
    batch. Returns the mean loss, detached.
    """
    device = next(state.model.parameters()).device
    mean = torch.zeros((), device=device)
    for batch, share in zip(batches, compute_shares(recipe, batches)):
        if share is not None and not share.any():
            continue  # it predicts nothing, and its mean is undefined
        with autocast(device, resolve_dtype(dtype, device)):
            loss = loss_function(state.model, move_batch(batch, device))
            if share is not None:
                loss = (loss * move_batch({"share": share}, device)["share"]).sum()
        state.scaler.scale(loss).backward()
        mean += loss.detach()
    return mean


def compute_shares(recipe: Recipe, batches: Sequence[dict]) -> list[Tensor | None]:
    """Return the weight of each batch in the mean over all of them: (), or (k,) for a loss of k terms.

    None stands for 1: a single batch needs no weight.
    """
    if len(batches) == 1:
        return [None]
    weights = torch.stack([count_predictions(recipe, batch) for batch in batches]).double()
    return list((weights / weights.sum(0).clamp(min=1)).float())


def count_predictions(recipe: Recipe, batch: dict[str, Any]) -> Tensor:
    """Return how many predictions the loss of a batch is the mean of."""
    if isinstance(recipe, SupportsLossWeight):
        return torch.as_tensor(recipe.loss_weight(batch))
    labels = [value for name, value in batch.items() if name.split("/")[0] == "labels"]
    if not labels:
        return torch.tensor(len(next(iter(batch.values()))))
    return torch.stack([(value != IGNORE_INDEX).sum() for value in labels]).sum()


def clip_gradients(state: TrainState, loss: Tensor, max_norm: float, lr: float) -> tuple[float, float | None]:
    """Clip the gradient, and check it together with the loss in a single transfer from the device.

    Returns:
        The loss and the gradient's norm before clipping; None if gradients overflowed because of the loss scale.

    Raises:
        TrainingError: If the loss or the gradient is not finite for any other reason.
    """
    for optimizer in state.optimizer.optimizers:
        state.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_norm or math.inf)
    loss_value, norm_value = torch.stack([loss, norm.to(loss.device)]).tolist()
    if math.isfinite(loss_value) and math.isfinite(norm_value):
        return loss_value, norm_value
    if math.isfinite(loss_value) and state.scaler.get_scale() > 1:
        return loss_value, None
    raise TrainingError(
        f"the loss is {loss_value:g} and the gradient's norm {norm_value:g} at step {state.step + 1} with learning "
        f"rate {lr:.3g}: try --train.lr {lr / 3:.1g}, a longer --train.warmup, or --dtype float32"
    )


def is_finished(state: TrainState, config: TrainConfig) -> bool:
    """Return whether all steps are done, or the last validations brought no improvement (`patience`)."""
    stale_steps = state.step - state.best.get("step", state.step)
    return state.step >= config.steps or (config.patience > 0 and stale_steps >= config.patience * config.eval_every)


def validate(recipe: Recipe, config: Any, state: TrainState) -> dict[str, float]:
    """Evaluate the first validation batches, always the same ones, and record the best step.

    Returns the metrics as "val_loss" and so on.
    """
    batches = (batch for batch, _ in recipe.batches(config, "val", None))
    metrics = evaluate(recipe, state.model, islice(batches, config.train.eval_batches), config.train.dtype)
    if metrics["loss"] < state.best.get("val_loss", math.inf):
        state.best = {"step": state.step, "val_loss": metrics["loss"]}
    return {f"val_{name}": value for name, value in metrics.items() if name != "tokens"}


def evaluate(recipe: Recipe, model: nn.Module, batches: Iterator[dict], dtype: str = "float32") -> dict[str, float]:
    """Compute the recipe's metrics in inference mode on the model's device; the model's mode is restored."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, resolve_dtype(dtype, device)):
            return recipe.evaluate(model, (move_batch(batch, device) for batch in batches))
    finally:
        model.train(was_training)


def move_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch to a device; from CPU to CUDA asynchronously, through pinned memory."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in batch.items()}
    pinned = {name: value.pin_memory() if value.device.type == "cpu" else value for name, value in batch.items()}
    return {name: value.to(device, non_blocking=True) for name, value in pinned.items()}
