"""What a recipe tells the lens of one request: its nodes, and how its scores are read (`recipe.SupportsLens`)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class LensNodes:
    """The nodes of a stack, as what they are."""

    labels: Sequence[str]
    kinds: Sequence[str]
    """"token", "patch", "slice", "state" ..."""
    picture: Any = None
    """The image or spectrogram that nodes are parts of: uint8 (H, W) or (H, W, 3)."""
    series: Sequence[float] = ()
    """The readings that nodes are parts of."""
    boxes: Sequence[tuple[float, float, float, float] | None] = ()
    """x, y, width and height of each node in the picture; in readings x and width. None: it is in neither."""


@dataclasses.dataclass(frozen=True)
class LensView:
    """One request as the lens shows it."""

    stacks: Mapping[str, LensNodes]
    """By the name of each Transformer in the model, in the order in which they run; the head reads the last one."""
    forward: Callable[[], Any]
    """Answers the request, as a row of 1 in the batch: scores (rows, outputs)."""
    rows: Sequence[tuple[str, int | None]]
    """What each row of the scores is of, and the node of the last stack that it is read from; None: from all."""
    name_output: Callable[[int], str]
    is_logits: bool = True
    """The softmax of a row are probabilities; else its outputs are numbers."""
    answer: int = -1
    """The row that is the answer."""
    notes: Sequence[str] = ()
    """What a person should know: "the first 12 tokens are cropped"."""
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that the request of another input must have, to be compared with this one."""
    repeat: "Callable[[], LensView] | None" = None
    """Makes the view of random nodes that repeat, of the same stacks: which heads find what followed before."""
