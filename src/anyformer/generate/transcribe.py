"""What a decoder writes of a source that is read already, and how wrong that is.

Shapes: B rows.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from .decode import Decoder, generate
from .sampling import Rules


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
