"""What a decoder writes of a source that is read already, and how wrong that is.

Shapes: B rows, L tokens, S nodes of the source.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .decode import Decoder, generate
from .sampling import SamplingParams
from .translation import select_sharpest_layer

MOMENTS = 48  # columns of a picture
TICKS = 6  # of them with a time


def decode_greedily(given: Decoder, rows: int, prompt: Sequence[int], end: int | None) -> list[list[int]]:
    """The likeliest token, again and again, until `end` or the end of the context: what each row says between them."""
    said: list[list[int]] = [[] for _ in range(rows)]
    most = given.body.config.context - len(prompt) + 1  # the last one need not be read
    stream = generate(
        given,
        [prompt] * rows,
        tokens=most,
        sampling=SamplingParams(temperature=0),
        seeds=[0] * rows,
        stop=lambda row, token: token == end,
    )
    for step in stream:
        for row, token in zip(said, step):
            if token is not None and token != end:
                row.append(token)
    return said


def bin_attention_by_time(weights: Tensor, seconds: float) -> dict[str, Any]:
    """Where each token listens: cross-attention (layers, heads, L, S), nodes of `seconds`, in at most MOMENTS
    columns -> {"values" [L][moments], "columns"}. Of several layers, the most decided one."""
    mean = select_sharpest_layer(weights.float().cpu())  # (L, S)
    wide = -(-mean.shape[1] // MOMENTS)
    pieces = mean.split(wide, dim=1)
    step = max(1, len(pieces) // TICKS)
    columns = [f"{i * wide * seconds:.1f}" if i % step == 0 else "" for i in range(len(pieces))]
    values = [[round(piece[row].sum().item(), 4) for piece in pieces] for row in range(len(mean))]
    return {"values": values, "columns": columns}
