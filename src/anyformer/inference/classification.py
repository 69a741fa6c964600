"""Classify images with a model: the likeliest classes and their probabilities."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

BATCH_SIZE = 32  # images in one forward


@dataclass(frozen=True)
class ImageRequest:
    """Images to classify."""

    input: str | list[str] | None = None
    """The path of an image, or several; None: examples kept with the model."""
    top: int | None = None
    """How many classes to name, likeliest first; None: all."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise InputError(f"top is {self.top}; it must be a whole number, at least 1")

    @property
    def paths(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input or []


@torch.inference_mode()
def classify_images(
    model: Callable[[Tensor], Tensor], images: Iterable[np.ndarray], classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    """Classify a stream of images, a batch at a time.

    Args:
        model: Maps pixels (B, C, H, W) uint8 to logits (B, classes).
        images: (H, W, C) uint8 each.
        classes: Their names.
        top: How many classes to name, likeliest first.

    Returns:
        {"label", "probability", "probabilities": {class: probability}} of each image.
    """
    names = unique_names(classes)
    results = []
    stream = iter(images)
    while batch := list(islice(stream, BATCH_SIZE)):
        pixels = torch.from_numpy(np.stack(batch).transpose(0, 3, 1, 2).copy())
        for row in model(pixels).float().softmax(-1).cpu():
            results.append(describe_classes(row, names, top))
    return results


def describe_classes(
    probabilities: Tensor, names: list[str] | tuple[str, ...], top: int | None = None
) -> dict[str, Any]:
    """Name the likeliest classes: {"label", "probability", "probabilities": {class: probability}}."""
    order = probabilities.argsort(descending=True, stable=True)[:top].tolist()
    ranked = {names[i]: probabilities[i].item() for i in order}
    return {"label": names[order[0]], "probability": probabilities[order[0]].item(), "probabilities": ranked}


def unique_names(classes: tuple[str, ...]) -> list[str]:
    """Tell apart classes of the same name by their number (ImageNet has two kinds of crane)."""
    return [name if classes.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(classes)]
