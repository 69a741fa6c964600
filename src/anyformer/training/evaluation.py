"""Metrics of a model over batches."""

from collections.abc import Iterator

import torch
from torch import nn

from ..recipe import Recipe
from .device import evaluation_autocast, move_batch


def evaluate(recipe: Recipe, model: nn.Module, batches: Iterator[dict], dtype: str = "float32") -> dict[str, float]:
    """Compute the recipe's metrics in inference mode on the model's device; the model's mode is restored."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode(), evaluation_autocast(model, dtype):
            return recipe.evaluate(model, (move_batch(batch, device) for batch in batches))
    finally:
        model.train(was_training)
