"""When each word of a transcript was said, from the cross-attention of a speech model.

Some heads read, for each token, the nodes of the sound where it is said. The monotonic path through their weights that
has the largest sum (dynamic time warping, Sakoe and Chiba 1978) gives each token a stretch of the sound, as Whisper's
authors do it (2212.04356).

Shapes: H heads, T tokens, S nodes of the sound.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..model.config import TransformerConfig
from .subtitles import Word

PAIR = re.compile(r"\d{1,5}:\d{1,5}")
MEDIAN_WIDTH = 7  # nodes of the filter that smooths weights over time
SPACELESS = ("ja", "km", "lo", "my", "th", "yue", "zh")  # languages that put no spaces between words: codes of ISO 639
REPLACEMENT = "\ufffd"  # what bytes that are not UTF-8 decode to


def read_alignment_heads(text: str, decoder: TransformerConfig) -> list[tuple[int, int]]:
    """Return the layer and the head of each of "3:1 4:2"; without any, all heads of the upper half of the layers.

    Raises:
        InputError: the text is of another form, or the decoder has no such head.
    """
    if not text:
        return [(i, head) for i in range(decoder.n_layer // 2, decoder.n_layer) for head in range(decoder.n_head)]
    if not all(PAIR.fullmatch(word) for word in text.split()):
        raise InputError(f'alignment_heads is {text!r}; expected layers and heads, as "3:1 4:2"')
    heads = [(int(layer), int(head)) for layer, _, head in (word.partition(":") for word in text.split())]
    for layer, head in heads:
        if layer >= decoder.n_layer or head >= decoder.n_head:
            sizes = f"{decoder.n_layer} layers of {decoder.n_head} heads"
            raise InputError(f"alignment_heads has {layer}:{head}, but the decoder has {sizes}")
    return heads


def find_first_nodes(weights: Tensor) -> np.ndarray:
    """Return the node of the sound at which each token begins: weights (H, T, S) -> (T,), not decreasing."""
    std, mean = torch.std_mean(weights.float(), dim=-2, keepdim=True, correction=0)  # over the tokens
    scores = smooth(((weights - mean) / std).nan_to_num(0.0, 0.0, 0.0)).mean(0)
    tokens, nodes = warp_time(-scores.cpu().double().numpy())
    return nodes[np.diff(tokens, prepend=-1) > 0]


def smooth(scores: Tensor) -> Tensor:
    """Replace each score by the median of its neighbors over the nodes, mirrored at both ends: (H, T, S)."""
    half = MEDIAN_WIDTH // 2
    if scores.shape[-1] <= half:
        return scores
    padded = torch.nn.functional.pad(scores, (half, half), mode="reflect")
    return padded.unfold(-1, MEDIAN_WIDTH, 1).median(-1).values


def warp_time(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the cheapest path from the first token and node to the last ones, (T, S) -> the token and the node of each
    of its steps. Each step goes to the next token, the next node, or both.

    Antidiagonals are computed as a whole: none of their entries depends on another one.
    """
    T, S = costs.shape
    total = np.full((T + 1, S + 1), np.inf, np.float32)
    came_from = np.zeros((T + 1, S + 1), np.int8)  # 0: both, 1: the token before, 2: the node before
    total[0, 0] = 0
    for diagonal in range(2, T + S + 1):
        i = np.arange(max(1, diagonal - S), min(T, diagonal - 1) + 1)
        j = diagonal - i
        both, token, node = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        step = np.where((both < token) & (both < node), 0, np.where((token < both) & (token < node), 1, 2))
        total[i, j] = costs[i - 1, j - 1] + np.choose(step, (both, token, node))
        came_from[i, j] = step
    path = [(T, S)]
    while path[-1] != (1, 1):
        i, j = path[-1]
        step = came_from[i, j]
        path.append((i - (step != 2), j - (step != 1)))
    tokens, nodes = np.array(path[::-1]).T - 1
    return tokens, nodes


def find_words(
    ids: Sequence[int], times: Sequence[float], decode: Callable[[list[int]], str], language: str | None
) -> Iterator[Word]:
    """Yield the words of a transcript.

    Args:
        times: when each token begins, and when the last one ends, in seconds: one more than there are ids.
        decode: ids -> text.
        language: its code; in some languages each character is a word.
    """
    text, start, end, is_closed = "", 0.0, 0.0, False
    for piece, first, last in split_characters(ids, decode):
        is_word = any(character.isalnum() for character in piece)
        begins = piece[:1].isspace() or (language in SPACELESS and is_word and any(c.isalnum() for c in text))
        if begins and text.strip():
            yield Word(text.strip(), start, end)
        if begins or not text:
            text, start, is_closed = "", times[first], False
        text += piece
        if is_word or not is_closed:  # punctuation behind a word is written in the pause after it
            end, is_closed = times[last], is_word
    if text.strip():
        yield Word(text.strip(), start, end)


def split_characters(ids: Sequence[int], decode: Callable[[list[int]], str]) -> Iterator[tuple[str, int, int]]:
    """Yield the shortest runs of tokens that are whole characters: their text, and the range of their indices."""
    start = 0
    for stop in range(1, len(ids) + 1):
        piece = decode(list(ids[start:stop]))
        if REPLACEMENT not in piece or stop == len(ids) or stop - start == 4:  # a character has at most 4 bytes
            yield piece, start, stop
            start = stop
