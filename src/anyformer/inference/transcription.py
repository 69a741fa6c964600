"""What a decoder writes of a source that is read already, and how wrong that is.

Shapes: B rows, L tokens, S nodes of the source.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from .decode import Decoder, generate
from .sampling import Rules
from .translation import sharpest

MOMENTS = 48  # columns of a picture
TICKS = 6  # of them with a time


def greedy(given: Decoder, rows: int, prompt: Sequence[int], end: int | None) -> list[list[int]]:
    """The likeliest token, again and again, until `end` or the end of the context: what each row says between them."""
    said: list[list[int]] = [[] for _ in range(rows)]
    most = given.body.config.context - len(prompt) + 1  # the last one need not be read
    stream = generate(
        given,
        [prompt] * rows,
        tokens=most,
        rules=Rules(temperature=0),
        seeds=[0] * rows,
        stop=lambda row, token: token == end,
    )
    for step in stream:
        for row, token in zip(said, step):
            if token is not None and token != end:
                row.append(token)
    return said


def error_rates(said: list[str], heard: list[str]) -> dict[str, float]:
    """Wrong, missing and additional words (wer) and characters (cer) for each that was said; nothing where jiwer is not
    installed."""
    if find_spec("jiwer") is None:
        return {}
    import jiwer

    real = [i for i, text in enumerate(said) if text.strip()]
    pair = [said[i] for i in real], [heard[i] for i in real]
    return {"wer": float(jiwer.wer(*pair)), "cer": float(jiwer.cer(*pair))} if real else {}


def looks(weights: Tensor, seconds: float) -> dict[str, Any]:
    """Where each token listens: cross-attention (layers, heads, L, S), nodes of `seconds`, in at most MOMENTS
    columns -> {"values" [L][moments], "columns"}. Of several layers, the most decided one."""
    mean = sharpest(weights.float().cpu())  # (L, S)
    wide = -(-mean.shape[1] // MOMENTS)
    pieces = mean.split(wide, dim=1)
    step = max(1, len(pieces) // TICKS)
    columns = [f"{i * wide * seconds:.1f}" if i % step == 0 else "" for i in range(len(pieces))]
    values = [[round(piece[row].sum().item(), 4) for piece in pieces] for row in range(len(mean))]
    return {"values": values, "columns": columns}
