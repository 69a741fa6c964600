"""The gradient of one update: accumulated over several batches, scaled in float16, compiled, clipped."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.text.batches import IGNORE_INDEX
from ..errors import InputError, TrainingError
from ..recipe import Recipe, SupportsLossTerms, SupportsLossWeight
from .config import TrainConfig
from .device import autocast, move_batch, resolve_dtype
from .hardware import first_line
from .optimizers import Optimizer

LossFunction = Callable[[nn.Module, dict[str, Any]], Tensor]


def select_loss(recipe: Recipe, config: TrainConfig) -> LossFunction:
    """Return the function whose result is differentiated, compiled if the config says so.

    The loss is compiled, not the model: this includes the cross-entropy in the graph, and works for recipes whose loss
    does not call the model's `forward`.
    """
    has_terms = config.accumulate > 1 and isinstance(recipe, SupportsLossTerms)
    function = recipe.loss_terms if has_terms else recipe.loss
    return compile_loss(function) if config.compile else function


def compile_loss(function: LossFunction) -> LossFunction:
    """Compile a loss. Calling the result raises InputError if the machine cannot compile."""
    compiled = torch.compile(function)

    def compute_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        try:
            return compiled(model, batch)
        except RuntimeError as error:
            cause = getattr(error, "inner_exception", None)  # of dynamo's BackendCompilerFailed
            if cause is None:
                raise
            raise InputError(f"--compile fails on this machine: leave it out ({first_line(cause)})") from error

    return compute_loss


def compute_gradient(
    recipe: Recipe,
    loss_function: LossFunction,
    model: nn.Module,
    scaler: torch.amp.GradScaler,
    batches: Sequence[dict[str, Any]],
    dtype: str,
) -> tuple[Tensor, Tensor | None]:
    """Add the gradient of the mean loss over all predictions in several batches to the model's parameters.

    Each batch counts by its number of predictions, so that the gradient equals that of one large batch.

    Returns:
        The mean loss, detached; and the last loss with its graph. A caller that holds the latter until the next update
        keeps the allocator from returning the memory of the activations to the system in between.
    """
    device = next(model.parameters()).device
    mean, loss = torch.zeros((), device=device), None
    for batch, share in zip(batches, compute_shares(recipe, batches)):
        if share is not None and not share.any():
            continue  # it predicts nothing, and its mean is undefined
        with autocast(device, resolve_dtype(dtype, device)):
            loss = loss_function(model, move_batch(batch, device))
            if share is not None:
                loss = (loss * move_batch({"share": share}, device)["share"]).sum()
        scaler.scale(loss).backward()
        mean += loss.detach()
    return mean, loss


def compute_shares(recipe: Recipe, batches: Sequence[dict[str, Any]]) -> list[Tensor | None]:
    """Return the weight of each batch in the mean over all of them: (), or (k,) for a loss of k terms; None is 1."""
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


def clip_gradient(
    model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, max_norm: float
) -> tuple[float, float]:
    """Undo the loss scale, and clip the gradient's norm; 0 does not clip. Returns the loss and the norm before that,
    read in a single transfer from the device."""
    for part in optimizer.optimizers:
        scaler.unscale_(part)
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    loss_value, norm_value = torch.stack([loss, norm.to(loss.device)]).tolist()
    return loss_value, norm_value


def check_finite(scaler: torch.amp.GradScaler, loss: float, grad_norm: float, step: int, lr: float) -> bool:
    """Return whether the update can be made; not if float16 gradients overflowed because of the loss scale.

    Raises TrainingError if the loss or the gradient is not finite for any other reason.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return True
    if math.isfinite(loss) and scaler.get_scale() > 1:
        return False
    raise TrainingError(
        f"the loss is {loss:g} and the gradient's norm {grad_norm:g} at step {step + 1} with learning rate {lr:.3g}: "
        f"try --train.lr {lr / 3:.1g}, a longer --train.warmup, or --dtype float32"
    )


def find_not_finite(model: nn.Module) -> str | None:
    """Return the name of a parameter or buffer that holds nan or inf; None if there is none. Waits for the device."""
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point() and tensor.numel()}
    if math.isfinite(nn.utils.get_total_norm(tensors.values())):
        return None
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)  # a norm can overflow


def check_weights(model: nn.Module, step: int, lr: float) -> None:
    """Raise TrainingError if the update of a step has made the weights nan or inf. Called before they are used for
    anything but the next loss, which shows it too."""
    if name := find_not_finite(model):
        raise TrainingError(
            f"{name} holds nan or inf after step {step} with learning rate {lr:.3g}: try --train.lr {lr / 3:.1g} or a "
            "longer --train.warmup"
        )


def check_val_loss(loss: float, step: int) -> None:
    """Raise TrainingError if a validation loss is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(f"the validation loss is {loss:g} at step {step}: try a lower --train.lr")
