"""Figures of a classifier of images: the confusion matrix, mistakes, and attention to patches.

Shapes: N images, rows and columns of patches.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.images.cache import ImageDataset
from ...data.images.read import encode_png, overlay_heatmap
from ...errors import InputError
from ...inference.classification import unique_names
from ...metrics import confusion_matrix
from ...model.inspection import attention_weights
from ...recipe import Figure
from .._shared.figures import draw_confusion

MAX_IMAGES = 2000  # of the validation split
BATCH_SIZE = 100
MAX_MISTAKES = 12
ATTENTION_IMAGES = 6


def draw_figures(model: Any, dataset: ImageDataset, labels: np.ndarray) -> list[Figure]:
    """Draw the figures of a model on the validation split, or an even sample of it.

    Args:
        model: The model.
        dataset: Its images.
        labels: Of all images of the dataset, as indices of the model's classes.

    Returns:
        The figures; without Pillow, those without images.
    """
    val = dataset.split("val")
    indices = val[np.linspace(0, len(val) - 1, min(MAX_IMAGES, len(val))).round().astype(int)]
    predictions, confidences = predict_classes(model, dataset.pixels, indices)
    truths, names = labels[indices], unique_names(model.classes)
    confusion = confusion_matrix(torch.from_numpy(truths), torch.from_numpy(predictions), len(names))
    matrix = draw_confusion(confusion, names, "images")
    try:
        mistakes = draw_mistakes(dataset.pixels, indices, truths, predictions, confidences, names)
        return [*matrix, *mistakes, *draw_attention(model, dataset.pixels, indices)]
    except InputError:  # no Pillow
        return matrix


@torch.inference_mode()
def predict_classes(model: Any, pixels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeliest class of each of these images and its probability, (N,) each."""
    classes, probabilities = [], []
    for start in range(0, len(indices), BATCH_SIZE):
        images = to_tensor(pixels[indices[start : start + BATCH_SIZE]], model)
        best = model(images).float().softmax(-1).max(-1)
        classes.append(best.indices.cpu().numpy())
        probabilities.append(best.values.cpu().numpy())
    return np.concatenate(classes), np.concatenate(probabilities)


def to_tensor(images: np.ndarray, model: Any) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(model.mean.device)


def draw_mistakes(
    pixels: np.ndarray,
    indices: np.ndarray,
    truths: np.ndarray,
    predictions: np.ndarray,
    confidences: np.ndarray,
    names: Sequence[str],
) -> list[Figure]:
    """Draw the wrong predictions of the highest probability."""
    wrong = np.flatnonzero(truths != predictions)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")[:MAX_MISTAKES]]
    images = [
        {
            "png": encode_png(pixels[indices[i]]),
            "caption": f"{names[truths[i]]}, predicted {names[predictions[i]]} {confidences[i]:.2f}",
        }
        for i in worst
    ]
    note = f"{len(wrong):,} of {len(truths):,} are wrong; the most confident: class, prediction, probability"
    return [{"kind": "images", "title": "Mistakes", "note": note, "images": images}] if images else []


def draw_attention(model: Any, pixels: np.ndarray, indices: np.ndarray) -> list[Figure]:
    """Draw, for a few images, how much is read of each patch in the last layer."""
    indices = indices[np.linspace(0, len(indices) - 1, min(ATTENTION_IMAGES, len(indices))).round().astype(int)]
    images, heats = pixels[indices], attention_heat(model, pixels[indices])
    predictions, confidences = predict_classes(model, pixels, indices)
    names, has_class_node = unique_names(model.classes), model.nodes.cls_token is not None
    pictures = [
        {
            "png": encode_png(overlay_heatmap(image, heat)),
            "caption": f"predicted {names[prediction]} {confidence:.2f}",
        }
        for image, heat, prediction, confidence in zip(images, heats, predictions, confidences, strict=True)
    ]
    title = "Attention of the class node" if has_class_node else "Attention to patches"
    reader = "by the class node" if has_class_node else "by all patches together (there is no class node)"
    note = f"how much is read of each patch {reader} in the last layer, mean of the heads: redder for more"
    return [{"kind": "images", "title": title, "note": note, "images": pictures}]


@torch.inference_mode()
def attention_heat(model: Any, images: np.ndarray) -> np.ndarray:
    """Return how much is read of each patch in the last layer, by the class node or else by all patches together:
    (N, rows, columns)"""
    on_cpu = model if model.mean.device.type == "cpu" else deepcopy(model).cpu()  # its kernels take heads of any width
    weights = attention_weights(on_cpu.body, lambda: on_cpu(to_tensor(images, on_cpu)))[-1].float().mean(1)  # (N, T, T)
    heat = weights[:, 0, 1:] if on_cpu.nodes.cls_token is not None else weights.mean(1)
    patch = on_cpu.nodes.project.kernel_size[0]
    return heat.unflatten(1, (images.shape[1] // patch, images.shape[2] // patch)).numpy()
