"""Metrics of a model over batches."""

from collections.abc import Iterator

import torch
from torch import nn

from ..recipe import Recipe
from .device import evaluation_autocast, move_batch
from .distributed import agree, gather_parameters, is_shared


def evaluate(
    recipe: Recipe, model: nn.Module, batches: Iterator[dict], dtype: str = "float32", step: nn.Module | None = None
) -> dict[str, float]:
    """Compute the recipe's metrics in inference mode on the model's device; the model's mode is restored. Of several
    processes all do so, and the first one's count; `step` is what wraps a model that they share."""
    device, was_training = next(model.parameters()).device, model.training
    # parameters that are gathered for a forward pass cannot be tensors of inference mode
    mode = torch.no_grad() if is_shared(model) else torch.inference_mode()
    model.eval()
    try:
        with gather_parameters(recipe, model, step) as evaluator, mode, evaluation_autocast(model, dtype):
            return agree(evaluator.evaluate(model, (move_batch(batch, device) for batch in batches)))
    finally:
        model.train(was_training)
