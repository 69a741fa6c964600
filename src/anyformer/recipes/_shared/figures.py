"""Figures that several recipes draw."""

from collections.abc import Sequence

from torch import Tensor

from ...recipe import Figure

MAX_CLASSES = 64


def draw_confusion(confusion: Tensor, names: Sequence[str], what: str, title: str = "Confusion matrix") -> list[Figure]:
    """Draw a confusion matrix (K, K) of counts [label, prediction]; no figure if there are too many classes. `what` is
    the plural of a row of the data, for the note."""
    if len(names) > MAX_CLASSES:
        return []
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    right = f"{int(confusion.trace()):,} of {int(confusion.sum()):,} {what} of the validation split are right"
    note = f"{right}; a row for each class, a column for each prediction, darker for a larger share of the row"
    values = [[round(share, 4) for share in row] for row in shares.tolist()]
    figure = {"kind": "matrix", "title": title, "note": note, "top": 1.0, "values": values}
    return [figure | {"rows": list(names), "columns": list(names)}]
