"""The gradient of one update: accumulated over several batches, scaled in float16, compiled, clipped."""

import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError, TrainingError
from ..recipe import Recipe, SupportsLossTerms
from .config import TrainConfig
from .device import autocast, move_batch, resolve_dtype, seed_generators
from .distributed import gather, get_full, get_local, get_size, is_sharded, name_process, sync_gradients, total
from .hardware import first_line
from .optimizers import Optimizer
from .updates import Update

if TYPE_CHECKING:
    from .loop import TrainState

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


def compute_gradient(state: "TrainState", update: Update, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Add the gradient of the mean loss over all predictions in the batches of an update to the model's parameters, of
    several processes in the batches of all.

    Each batch counts by its number of predictions, so that the gradient equals that of one large batch.

    Returns:
        This process's part of the mean loss, detached; and the last loss with its graph. A caller that holds the latter
        until the next update keeps the allocator from returning the memory of the activations to the system in between.
    """
    device = next(state.model.parameters()).device
    mean, loss = torch.zeros((), device=device), None
    for i, (batch, share) in enumerate(zip(update.batches, update.shares)):
        if share is not None and not share.any() and get_size() == 1:
            continue  # it predicts nothing, and its mean is undefined
        if update.seeds:
            seed_generators(update.seeds[i], device)
        with sync_gradients(state.wrapped, is_last=i == len(update.batches) - 1) as factor:
            with autocast(device, resolve_dtype(dtype, device)):
                loss = state.wrapped(move_batch(batch, device))
                if share is not None:
                    loss = (loss * move_batch({"share": share}, device)["share"]).sum()
            state.scaler.scale(loss * factor).backward()
            state.clock.end_backward()
        mean += loss.detach()
    return mean, loss


def clip_gradient(
    model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, max_norm: float
) -> Tensor:
    """Undo the loss scale, and clip the gradient's norm; 0 does not clip. Returns the loss, summed over the processes,
    and the norm before that, (2,), on the device."""
    for part in optimizer.optimizers:
        scaler.unscale_(part)
    norm = get_full(nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf))
    return torch.stack([total(loss), norm.to(loss.device)])


def check_finite(
    scaler: torch.amp.GradScaler, own_loss: Tensor, loss: float, grad_norm: float, step: int, lr: float
) -> bool:
    """Return whether the update can be made; not if float16 gradients overflowed because of the loss scale.

    Raises TrainingError if the loss or the gradient is not finite for any other reason; of several processes it names
    the first whose `own_loss` is not.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return True
    if math.isfinite(loss) and scaler.get_scale() > 1:
        return False
    losses = gather((own_loss.item(), socket.gethostname()))
    names = [name_process(rank, host) for rank, (own, host) in enumerate(losses) if not math.isfinite(own)]
    where = f" (first on {names[0]})" if names and get_size() > 1 else ""
    raise TrainingError(
        f"the loss is {loss:g}{where} and the gradient's norm {grad_norm:g} at step {step + 1} with learning rate "
        f"{lr:.3g}: try --train.lr {lr / 3:.1g}, a longer --train.warmup, or --dtype float32"
    )


def find_not_finite(model: nn.Module) -> str | None:
    """Return the name of a parameter or buffer that holds nan or inf; None if there is none. Waits for the device. Of a
    model that is shared, all processes must call this."""
    named = (*model.named_parameters(), *model.named_buffers())
    is_shared = any(is_sharded(parameter) for parameter in model.parameters())
    tensors = {name: get_local(tensor.detach()) for name, tensor in named if tensor.is_floating_point()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    name = None
    if tensors and not math.isfinite(nn.utils.get_total_norm(tensors.values())):  # which can overflow by itself
        name = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    return next(filter(None, gather(name)), None) if is_shared else name


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
