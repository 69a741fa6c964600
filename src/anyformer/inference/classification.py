"""Name the classes that a model predicts."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def describe_classes(probabilities: Tensor, names: Sequence[str], top: int | None = None) -> dict[str, Any]:
    """Name the likeliest classes: {"label", "probability", "probabilities": {class: probability}}."""
    order = probabilities.argsort(descending=True, stable=True)[:top].tolist()
    values = probabilities.tolist()
    ranked = {names[i]: values[i] for i in order}
    return {"label": names[order[0]], "probability": values[order[0]], "probabilities": ranked}


def unique_names(classes: Sequence[str]) -> list[str]:
    """Tell apart classes of the same name by their number (ImageNet has two kinds of crane)."""
    return [name if classes.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(classes)]
