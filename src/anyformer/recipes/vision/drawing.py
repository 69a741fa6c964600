"""What one would rather look at than read: what was taken for what, mistakes, and where the model looks.

Shapes: N images, rows and columns of patches.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.images.cache import Album
from ...data.images.decode import beside_heat, png
from ...errors import InputError
from ...inference.classification import unique
from ...model.weights import attention_weights
from ...recipe import Figure

MOST = 2000  # images that are looked at
BATCH = 100
MISTAKES = 12
LOOKS = 6
MOST_CLASSES = 64  # of a confusion matrix


def drawn(model: Any, found: Album, labels: np.ndarray) -> list[Figure]:
    """The figures of a classifier of images, on the validation part (evenly chosen images, where they are many).
    labels: of all images of the album, as numbers of the model's classes. Without Pillow, those without images."""
    val = found.split("val")
    chosen = val[np.linspace(0, len(val) - 1, min(MOST, len(val))).round().astype(int)]
    answers, shares = answered(model, found.pixels, chosen)
    truths, names = labels[chosen], unique(model.classes)
    made = [confusion(truths, answers, names)] if len(names) <= MOST_CLASSES else []
    try:
        return (
            made + mistakes(found.pixels, chosen, truths, answers, shares, names) + looks(model, found.pixels, chosen)
        )
    except InputError:  # no Pillow
        return made


@torch.inference_mode()
def answered(model: Any, pixels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest class of each of these images and its probability, (N,) each."""
    answers, shares = [], []
    for start in range(0, len(chosen), BATCH):
        share, answer = model(tensor(pixels[chosen[start : start + BATCH]], model)).float().softmax(-1).max(-1)
        answers.append(answer.cpu().numpy())
        shares.append(share.cpu().numpy())
    return np.concatenate(answers), np.concatenate(shares)


def tensor(images: np.ndarray, model: Any) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(model.mean.device)


def confusion(truths: np.ndarray, answers: np.ndarray, names: Sequence[str]) -> Figure:
    n = len(names)
    table = np.bincount(truths * n + answers, minlength=n * n).reshape(n, n)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    right = f"{int(table.trace()):,} of {len(truths):,} images of the validation part are right"
    note = f"{right}; a row for each class, a column for each answer, darker for a larger share of the row"
    about = {"kind": "matrix", "title": "What was taken for what", "note": note, "top": 1.0}
    return about | {"values": shares.round(4).tolist(), "rows": list(names), "columns": list(names)}


def mistakes(
    pixels: np.ndarray,
    chosen: np.ndarray,
    truths: np.ndarray,
    answers: np.ndarray,
    shares: np.ndarray,
    names: Sequence[str],
) -> list[Figure]:
    """The wrong answers that the model was surest of."""
    wrong = np.flatnonzero(truths != answers)
    worst = wrong[np.argsort(-shares[wrong], kind="stable")[:MISTAKES]]
    images = [
        {"png": png(pixels[chosen[i]]), "caption": f"{names[truths[i]]}, said {names[answers[i]]} {shares[i]:.2f}"}
        for i in worst
    ]
    note = f"{len(wrong):,} of {len(truths):,} are wrong; these it was surest of: what it is, what was said, how surely"
    return [{"kind": "images", "title": "Mistakes", "note": note, "images": images}] if images else []


def looks(model: Any, pixels: np.ndarray, chosen: np.ndarray) -> list[Figure]:
    """Of a few images: which patches the answer was read from, in the last layer.

    Where there is no class node every patch is as near to the answer as any other; what can be said then is how much
    all of them together read of each."""
    some = chosen[np.linspace(0, len(chosen) - 1, min(LOOKS, len(chosen))).round().astype(int)]
    images, heats = pixels[some], heat(model, pixels[some])
    answers, shares = answered(model, pixels, some)
    names, first = unique(model.classes), model.nodes.first is not None
    shown = [
        {"png": png(beside_heat(image, seen)), "caption": f"said {names[answer]} {share:.2f}"}
        for image, seen, answer, share in zip(images, heats, answers, shares, strict=True)
    ]
    title = "Where the class node looks" if first else "Which patches are read"
    whose = "by the class node" if first else "by all patches together (there is no class node)"
    note = f"how much is read of each patch {whose} in the last layer, mean of the heads: redder for more"
    return [{"kind": "images", "title": title, "note": note, "images": shown}]


@torch.inference_mode()
def heat(model: Any, images: np.ndarray) -> np.ndarray:
    """What is read of each patch in the last layer: (N, rows, columns)."""
    here = model if model.mean.device.type == "cpu" else deepcopy(model).cpu()  # its paths take heads of any width
    weights = attention_weights(here.body, lambda: here(tensor(images, here)))[-1].float().mean(1)  # (N, T, T)
    read = weights[:, 0, 1:] if here.nodes.first is not None else weights.mean(1)
    patch = here.nodes.project.kernel_size[0]
    return read.unflatten(1, (images.shape[1] // patch, images.shape[2] // patch)).numpy()
