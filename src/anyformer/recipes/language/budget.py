"""Sizes of a language model, from small to large, and what each reaches after how many tokens.

How hard a text is, is measured: n-grams, counted in a million tokens of it, say how much of it they leave open. How far
a Transformer gets below that follows the law of Hoffmann et al. (2203.15556), whose numbers `bench/training/budget_law.py` fits; a
text that is read again teaches less each time (Muennighoff et al., 2305.16264).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ...data.text.ngrams import BITS, count
from ...data.text.prepare import Corpus
from ...model.config import TransformerConfig
from ...recipe import SizeOption
from .config import MINUTE, MODERN, Config, sized
from .words import corpus

SIZES = (  # dim, n_layer, context, batch, lr
    (64, 2, 64, 32, 6e-3),
    (96, 3, 128, 16, 5e-3),
    (128, 4, 256, 8, 4e-3),
    (192, 6, 256, 8, 3e-3),
    (256, 8, 256, 16, 2.5e-3),
    (384, 8, 512, 16, 2e-3),
    (512, 12, 512, 32, 1.5e-3),
    (768, 12, 1024, 32, 1e-3),
)
COUNTED, PIECE = 1_000_000, 10_000  # tokens of n-grams, in pieces from all over the text
ASKED, ROW = 32_000, 250  # tokens that they are tried on
AGAIN = 6.0  # how often a text can be read before the next time is worth 1 / e of the first
LAW = (0.7, 8.486, 0.3147, 191.8, 0.4712, 0.02654)  # E, A, a, B, b, v
BAND = 0.08  # how far off it may be


def grown(config: Config, dim: int, n_layer: int, context: int, batch: int, lr: float) -> Config:
    """The config in this size; what says where and from what it learns stays."""
    train = {name: getattr(config.train, name) for name in ("seed", "device", "dtype", "compile")}
    model = sized(dim, n_layer, dim // 32, context, **MODERN)
    return replace(config, model=model, train=replace(MINUTE, batch=batch, lr=lr, **train))


def difficulty(text: Corpus) -> float:
    """Nats a token that n-grams of the training part leave open in the validation part."""
    vocab, known = text.tokenizer.vocab_size, pieces(text.split("train"), COUNTED, PIECE).ravel()
    longest = min(6, int(BITS / math.log2(max(2, vocab))) - 1, len(known) - 1)
    counts, nats = count(known, longest, vocab), []
    for row in pieces(text.split("val"), ASKED, ROW + 1):  # one by one: each token brings a whole vocabulary
        said = counts.probabilities(row[None, :-1])[0]
        nats.append(-np.log(np.maximum(said[np.arange(len(row) - 1), row[1:]], 1e-9)).mean())
    return float(np.mean(nats))


def pieces(tokens: np.ndarray, many: int, length: int) -> np.ndarray:
    """So many tokens at most, as pieces spread over all of them: (pieces, length); at least one."""
    length = min(length, len(tokens))
    starts = np.linspace(0, len(tokens) - length, max(1, min(many, len(tokens)) // length)).astype(np.int64)
    return np.asarray(tokens[starts[:, None] + np.arange(length)], np.int64)


def inner(model: TransformerConfig) -> int:
    """Weights of the blocks: those of attention and of the MLP."""
    return 12 * model.n_layer * model.dim**2


@dataclass(frozen=True)
class Text:
    """What the law asks of a text: nats a token that n-grams leave open, tokens to learn from, and how many differ."""

    hard: float
    unique: int
    vocab: int


def law(
    text: Text, parameters: float, tokens: float, E: float, A: float, a: float, B: float, b: float, v: float
) -> float:
    """The loss to expect, at most that of who guesses evenly. Tokens that come again are worth less; the more different
    tokens there are, the further are n-grams from what can be known."""
    again = max(0.0, tokens / text.unique - 1)
    worth = min(tokens, text.unique) + text.unique * AGAIN * (1 - math.exp(-again / AGAIN))
    share = (E + A / parameters**a + B / worth**b) / max(1.0, text.vocab / 64) ** v
    return min(math.log(text.vocab), text.hard * share)


def expected(text: Text, parameters: int, tokens: float) -> tuple[float, float]:
    """Between which losses so many tokens of training end."""
    loss = law(text, parameters, tokens, *LAW)
    return loss * (1 - BAND), loss * (1 + BAND)


def sizes(config: Config) -> Iterator[SizeOption]:
    """The sizes in rising order, as far as the text fills their context, each with what to expect of it."""
    tokens = corpus(config)
    text = Text(difficulty(tokens), len(tokens.split("train")), tokens.tokenizer.vocab_size)
    for size in SIZES:
        choice = grown(config, *size)
        if choice.model.context >= text.unique and size is not SIZES[0]:
            break
        yield SizeOption(choice, partial(expected, text, inner(choice.model)))
