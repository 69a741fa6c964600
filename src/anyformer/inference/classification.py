"""Images in, names out: the classes of a model with their probabilities, likeliest first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, nearest

BATCH = 32  # images looked at together


@dataclass(frozen=True)
class Question:
    """What is on these images? `paths` None: on any. The `top` likeliest classes; None: all."""

    paths: list[str] | None = None
    top: int | None = None

    @classmethod
    def of(cls, request: dict[str, Any]) -> "Question":
        """{"input": path or [path, ...], "top": 3}. Raises InputError."""
        if strange := [name for name in request if name not in ("input", "top")]:
            raise InputError(f"a request has no '{strange[0]}': {nearest(strange[0], ('input', 'top'))}")
        top, given = request.get("top"), request.get("input")
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
            raise InputError(f"top is {top!r}; it must be a whole number, at least 1")
        paths = [given] if isinstance(given, str) else given
        if paths is not None and not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
            raise InputError(f"input is {given!r}; it must be the path of an image, or a list of such")
        return cls(paths, top)


def judge(
    model: Callable[[Tensor], Tensor], images: Iterable[np.ndarray], classes: tuple[str, ...], top: int
) -> list[dict[str, Any]]:
    """images (H, W, C) uint8, decoded as they are asked for -> {"label", "probability", "probabilities": {class: p}}
    of each, the `top` likeliest classes. model: (B, C, H, W) -> logits (B, classes)."""
    names = unique(classes)
    found = []
    stream = iter(images)
    while some := list(islice(stream, BATCH)):
        pixels = torch.from_numpy(np.stack(some).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            shares = model(pixels).float().softmax(-1).cpu()
        for row in shares:
            best = [(names[i], row[i].item()) for i in row.argsort(descending=True, stable=True)[:top].tolist()]
            found.append({"label": best[0][0], "probability": best[0][1], "probabilities": dict(best)})
    return found


def unique(classes: tuple[str, ...]) -> list[str]:
    """Two classes of one name are told apart by their number (ImageNet has two kinds of crane)."""
    return [name if classes.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(classes)]
