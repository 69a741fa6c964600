"""Transcription: greedy decoding of a source that is already encoded, and a picture of its attention over time.

Shapes: B rows, L tokens, S nodes of the source.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .decode import Decoder, generate
from .sampling import SamplingParams
from .translation import select_sharpest_layer

MAX_COLUMNS = 48  # of a picture of attention
MAX_LABELS = 6  # columns with a label


def decode_greedily(decoder: Decoder, rows: int, prompt: Sequence[int], end: int | None) -> list[list[int]]:
    """Take the likeliest token again and again, until `end` or the end of the context.

    Returns the new tokens of each row, without `end`.
    """
    texts: list[list[int]] = [[] for _ in range(rows)]
    steps = generate(
        decoder,
        [prompt] * rows,
        tokens=decoder.body.config.context - len(prompt) + 1,  # the last token need not be read
        sampling=SamplingParams(temperature=0),
        seeds=[0] * rows,
        stop=lambda row, token: token == end,
    )
    for new_tokens in steps:
        for text, token in zip(texts, new_tokens):
            if token is not None and token != end:
                text.append(token)
    return texts


def bin_attention_by_time(weights: Tensor, seconds: float) -> dict[str, Any]:
    """Sum cross-attention weights in at most MAX_COLUMNS bins of time, in the layer with the sharpest attention.

    Args:
        weights: (layers, heads, L, S)
        seconds: duration of a node of the source.

    Returns:
        {"values" [L][bins], "columns"}: the labels of the bins are their start in seconds, empty for most of them.
    """
    mean = select_sharpest_layer(weights.float().cpu())  # (L, S)
    width = -(-mean.shape[1] // MAX_COLUMNS)
    bins = mean.split(width, dim=1)
    label_every = max(1, len(bins) // MAX_LABELS)
    columns = [f"{i * width * seconds:.1f}" if i % label_every == 0 else "" for i in range(len(bins))]
    values = [[round(part[row].sum().item(), 4) for part in bins] for row in range(len(mean))]
    return {"values": values, "columns": columns}
