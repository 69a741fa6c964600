"""Metrics of a model over batches."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from ..recipe import Recipe
from .device import evaluation_autocast, move_batch
from .distributed import Step, agree, is_sharded


def evaluate(
    recipe: Recipe, model: nn.Module, batches: Iterator[dict], dtype: str = "float32", step: nn.Module | None = None
) -> dict[str, float]:
    """Compute the recipe's metrics in inference mode on the model's device; the model's mode is restored. Of several
    processes all do so, and the first one's count; `step` is what wraps a model that they share."""
    device, was_training = next(model.parameters()).device, model.training
    is_shared = isinstance(step, Step) and any(is_sharded(parameter) for parameter in model.parameters())
    function = step.evaluate if is_shared else partial(recipe.evaluate, model)
    model.eval()
    try:
        # parameters that are gathered for the forward pass cannot be tensors of inference mode
        with torch.no_grad() if is_shared else torch.inference_mode(), evaluation_autocast(model, dtype):
            return agree(function(move_batch(batch, device) for batch in batches))
    finally:
        model.train(was_training)
