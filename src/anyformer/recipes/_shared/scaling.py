"""Sizes of a language model, from small to large, and the loss each is predicted to reach after so many tokens.

The difficulty of a text is measured: the loss of n-grams counted in a million of its tokens. How far below that a
Transformer gets follows the law of Hoffmann et al. (2203.15556), whose constants `bench/training/budget_law.py` fits;
tokens that are repeated are worth less each time (Muennighoff et al., 2305.16264).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from ...data.text.mixtures import Mixture
from ...data.text.ngrams import MAX_CODE_BITS, count_ngrams
from ...data.text.shards import Tokens
from ...model.config import TransformerConfig
from ...recipe import SizeOption
from .language import LanguageConfig
from .presets import MINUTE_TRAIN, make_modern_config
from .text import load_mixture

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
COUNT_TOKENS, COUNT_PIECE = 1_000_000, 10_000  # tokens whose n-grams are counted, in pieces spread over the text
TEST_TOKENS, TEST_PIECE = 32_000, 250  # tokens that the n-grams predict
MAX_REPEATS = 6.0  # repetitions of a text after which one more is worth 1 / e of the first (R* of 2305.16264)
LAW = (0.7, 8.486, 0.3147, 191.8, 0.4712, 0.02654)  # E, A, alpha, B, beta, gamma
RELATIVE_ERROR = 0.08  # of a predicted loss


MIXTURE_POWER = 14.0  # fitted to a minute of plays and of novels: 1.52 and 1.57 make 1.46, 1.21 and 1.26 make 1.18
MAX_COUNTS_LOSS = 1.05  # of counts, relative to that of the Transformer, for them to lower it

Config = TypeVar("Config", bound=LanguageConfig)


@dataclass(frozen=True)
class TextStatistics:
    """What the law needs to know about a text."""

    difficulty: float
    """Nats per token of n-grams."""
    unique_tokens: int
    """Tokens of the training split."""
    vocab_size: int


def sizes(config: LanguageConfig) -> Iterator[SizeOption]:
    """Yield the sizes in rising order, as far as the text fills their context, with the predicted loss of each."""
    text = measure_text(config)
    for option in resize_all(config, text):
        weights = count_block_weights(option.model)
        yield SizeOption(
            option, partial(predict_loss_range, text, weights), advise=partial(advise_counts, text, weights)
        )


def mixture_sizes(config: LanguageConfig) -> Iterator[SizeOption]:
    """Yield the sizes of a model that n-gram counts are mixed into."""
    text = measure_text(config)
    for option in resize_all(config, text):
        yield SizeOption(option, partial(predict_mixture_range, text, count_block_weights(option.model)))


def measure_text(config: LanguageConfig) -> TextStatistics:
    text = load_mixture(config)
    return TextStatistics(measure_difficulty(text), count_unique_tokens(text), text.tokenizer.vocab_size)


def count_unique_tokens(text: Mixture) -> int:
    """Return the size of a single text whose tokens would be repeated as often as those of the sources on average."""
    repeats = (share**2 / len(source.corpus.split("train")) for share, source in zip(text.shares, text.sources))
    return round(1 / sum(repeats))


def resize_all(config: Config, text: TextStatistics) -> Iterator[Config]:
    for size in SIZES:
        option = resize(config, *size)
        if option.model.context >= text.unique_tokens and size is not SIZES[0]:
            break
        yield option


def resize(config: Config, dim: int, n_layer: int, context: int, batch: int, lr: float) -> Config:
    """Return the config in another size; data, seed, device and dtype stay."""
    fields = {name: getattr(config.train, name) for name in ("seed", "device", "dtype", "compile")}
    model = make_modern_config(dim, n_layer, dim // 32, context)
    return replace(config, model=model, train=replace(MINUTE_TRAIN, batch=batch, lr=lr, **fields))


def measure_difficulty(text: Mixture) -> float:
    """Return the nats per token on the validation split of n-grams counted in the training split."""
    vocab_size = text.tokenizer.vocab_size
    tokens = np.concatenate(list(sample_rows(text, "train", COUNT_TOKENS, COUNT_PIECE)))
    max_order = min(6, int(MAX_CODE_BITS / math.log2(max(2, vocab_size))) - 1, len(tokens) - 1)
    counts, nats = count_ngrams(tokens, max_order, vocab_size), []
    for row in sample_rows(text, "val", TEST_TOKENS, TEST_PIECE + 1):  # row by row: (T, vocab_size) is large
        probabilities = counts.probabilities(row[None, :-1])[0]
        nats.append(-np.log(np.maximum(probabilities[np.arange(len(row) - 1), row[1:]], 1e-9)).mean())
    return float(np.mean(nats))


def sample_rows(text: Mixture, split: str, count: int, length: int) -> Iterator[np.ndarray]:
    """Yield pieces of a split, of all sources by their weights."""
    for share, source in zip(text.shares, text.sources):
        yield from sample_pieces(source.corpus.split(split), round(share * count), length)


def sample_pieces(tokens: Tokens, count: int, length: int) -> np.ndarray:
    """Return about `count` tokens in pieces at even distances: (pieces, length), at least one piece. Of tokens in
    shards only the first ones are read."""
    tokens = np.asarray(tokens if isinstance(tokens, np.ndarray) else tokens[: 4 * count])
    length = min(length, len(tokens))
    starts = np.linspace(0, len(tokens) - length, max(1, min(count, len(tokens)) // length)).astype(np.int64)
    return np.asarray(tokens[starts[:, None] + np.arange(length)], np.int64)


def count_block_weights(model: TransformerConfig) -> int:
    return 12 * model.n_layer * model.dim**2


def predict_loss(
    text: TextStatistics,
    parameters: float,
    tokens: float,
    E: float,
    A: float,
    alpha: float,
    B: float,
    beta: float,
    gamma: float,
) -> float:
    """Return the predicted loss, at most that of a uniform guess.

    Repeated tokens count less. The larger the vocabulary, the further n-grams are from the entropy of the text.
    """
    repeats = max(0.0, tokens / text.unique_tokens - 1)
    repeated = text.unique_tokens * MAX_REPEATS * (1 - math.exp(-repeats / MAX_REPEATS))
    effective = min(tokens, text.unique_tokens) + repeated
    share = (E + A / parameters**alpha + B / effective**beta) / max(1.0, text.vocab_size / 64) ** gamma
    return min(math.log(text.vocab_size), text.difficulty * share)


def predict_loss_range(text: TextStatistics, parameters: int, tokens: float) -> tuple[float, float]:
    """Return the predicted (low, high) validation loss after this many training tokens."""
    loss = predict_loss(text, parameters, tokens, *LAW)
    return loss * (1 - RELATIVE_ERROR), loss * (1 + RELATIVE_ERROR)


def predict_mixture_range(text: TextStatistics, parameters: int, tokens: float) -> tuple[float, float]:
    """Return the predicted (low, high) validation loss of a model with n-gram counts of the text."""
    loss = predict_loss(text, parameters, tokens, *LAW)
    loss *= (1 + (loss / max(text.difficulty, 1e-9)) ** MIXTURE_POWER) ** (-1 / MIXTURE_POWER)
    return loss * (1 - RELATIVE_ERROR), loss * (1 + RELATIVE_ERROR)


def advise_counts(text: TextStatistics, parameters: int, tokens: float) -> str | None:
    """Say that n-gram counts would pay, where they would. They are not mixed in here: no public format has them."""
    if text.difficulty > MAX_COUNTS_LOSS * predict_loss(text, parameters, tokens, *LAW):
        return None
    low, high = predict_mixture_range(text, parameters, tokens)
    return (
        f"n-gram counts alone reach a loss of about {text.difficulty:.2f} on this text; `anyformer train recall` mixes "
        f"them in (expect {low:.2f} to {high:.2f}), but its models cannot be exported"
    )
