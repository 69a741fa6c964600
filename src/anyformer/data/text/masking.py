"""Denoising: masks on tokens of a text (BERT, 1810.04805), and gaps in place of spans of tokens (T5, 1910.10683).

What is masked depends on the seed and the step alone, and differs from step to step (RoBERTa, 1907.11692).

Shapes: B batch, T tokens, N selected tokens of all rows, V entries of the vocabulary, S source, M target.
"""

from dataclasses import dataclass

import numpy as np
import tokenizers

from ..tokenizers.base import Tokenizer
from ..tokenizers.subwords import Subwords
from .batches import IGNORE_INDEX

MASK_FRACTION, RANDOM_FRACTION = 0.8, 0.1


@dataclass(frozen=True)
class MaskingPolicy:
    """Selects a fraction of each row to predict (BERT, section 3.1).

    Of the selected tokens 80 % become the mask, 10 % a random token, and 10 % stay as they are.

    Attributes:
        vocab_size: random tokens are drawn below this.
        word_pieces: (V, 2) from `word_pieces`: select whole words.
        rate: the fraction of a row that is selected; more predictions a step train faster (2202.08005).
    """

    mask_id: int
    vocab_size: int
    word_pieces: np.ndarray | None = None
    rate: float = 0.15

    def __call__(
        self, ids: np.ndarray, maskable: np.ndarray, seed: int, step: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask ids (B, T), of which those that are maskable (B, T) may be selected.

        Returns:
            Masked ids (B, T), the selected positions (N,) in the flat array, and their labels (N,).
        """
        T = ids.shape[1]
        order, action, replacement = uniform(seed, step, (3, *ids.shape))
        positions = np.concatenate([i * T + self.select(ids[i], maskable[i], order[i]) for i in range(len(ids))])
        masked, labels = ids.copy().reshape(-1), ids.reshape(-1)[positions]
        action, replacement = action.reshape(-1)[positions], replacement.reshape(-1)[positions]
        new = np.where(action < MASK_FRACTION, self.mask_id, (replacement * self.vocab_size).astype(np.int64))
        masked[positions] = np.where(action < MASK_FRACTION + RANDOM_FRACTION, new, labels)
        return masked.reshape(ids.shape), positions, labels

    def select(self, ids: np.ndarray, maskable: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Select positions of a row, at least one. order: (T,) random numbers, which rank the positions."""
        quota = max(1, round(self.rate * maskable.sum()))
        if self.word_pieces is None:
            ranked = np.argsort(np.where(maskable, order, 2.0), kind="stable")
            return np.sort(ranked[: min(quota, maskable.sum())])
        word = word_indices(ids, maskable, self.word_pieces)
        first = np.flatnonzero(np.diff(word, prepend=-1) & maskable)  # where each word starts
        selected: list[np.ndarray] = []
        for start in first[np.argsort(order[first], kind="stable")]:
            tokens = np.flatnonzero(word == word[start])
            if len(tokens) <= quota or not selected:  # a word that is longer than the quota, rather than nothing
                selected.append(tokens)
                quota -= len(tokens)
            if quota <= 0:
                break
        return np.sort(np.concatenate(selected)) if selected else np.zeros(0, np.int64)


def uniform(seed: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw numbers in [0, 1) from raw words of a counter-based generator, the same in every version of numpy."""
    words = np.random.Philox(key=seed, counter=(0, 0, step, 1)).random_raw(int(np.prod(shape)))
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)


def word_pieces(tokenizer: Tokenizer) -> np.ndarray:
    """Return which tokens can continue the word before them, and which can be continued: (V, 2) bool.

    Two neighbors are in the same word if both are true. WordPiece marks a continuation with ##; in other vocabularies,
    adjacent letters and digits form a word.
    """
    if isinstance(tokenizer, Subwords) and tokenizer.kind == "wordpiece":
        continues = np.zeros(tokenizer.vocab_size, bool)
        for token, i in tokenizers.Tokenizer.from_str(tokenizer.to_json()).get_vocab().items():
            continues[i] = token.startswith("##")
        return np.stack([continues, np.ones_like(continues)], axis=1)
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    return np.array([[_is_in_word(text[:1]), _is_in_word(text[-1:])] for text in texts], bool)


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character in ("'", "\ufffd")  # part of a UTF-8 character: most likely of a letter


def word_indices(ids: np.ndarray, maskable: np.ndarray, pieces: np.ndarray) -> np.ndarray:
    """Return the index of each token's word: (T,) -> (T,)"""
    rows = np.minimum(ids, len(pieces) - 1)
    is_joined = pieces[rows[1:], 0] & pieces[rows[:-1], 1] & maskable[1:] & maskable[:-1]
    return np.concatenate([[0], np.cumsum(~is_joined)])


@dataclass(frozen=True)
class SpanCorruption:
    """Replaces spans of a text by sentinels, and asks for them (T5, section 3.1.4).

    text      Thank you for inviting me to your party last week
    source    Thank you <0> me to your party <1> week
    target    <0> for inviting <1> last

    Attributes:
        rate: the fraction of a window that is removed.
        mean_length: of the spans.
        first_sentinel: the id of the first sentinel; the next ones count down.
    """

    rate: float
    mean_length: float
    first_sentinel: int

    def count_removed(self, tokens: int) -> tuple[int, int]:
        """Return how many tokens of a window are removed, and in how many spans."""
        count = min(max(1, round(tokens * self.rate)), tokens - 1)
        return count, max(1, min(round(count / self.mean_length), count, tokens - count))

    def side_lengths(self, tokens: int) -> tuple[int, int]:
        """Return (S, M) for a window, without the token that ends each."""
        count, n_spans = self.count_removed(tokens)
        return tokens - count + n_spans, count + n_spans

    def longest_window(self, source: int, target: int, limit: int) -> int:
        """Return the longest window, at most `limit`, whose sides fit into so many tokens; 0 if there is none."""
        for tokens in range(limit, 1, -1):
            lengths = self.side_lengths(tokens)
            if lengths[0] <= source and lengths[1] <= target:
                return tokens
        return 0

    def __call__(self, windows: np.ndarray, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Corrupt windows (B, T): sources (B, S) and targets (B, M)."""
        count, n_spans = self.count_removed(windows.shape[1])
        sentinels = (self.first_sentinel - np.arange(n_spans)).tolist()
        sources, targets = [], []
        for row, ids in enumerate(windows.tolist()):
            rng = np.random.Generator(np.random.Philox(key=seed, counter=(0, row, step, 1)))
            removed = random_partition(count, n_spans, rng).tolist()
            kept = random_partition(windows.shape[1] - count, n_spans, rng).tolist()
            start, source, target = 0, [], []
            for sentinel, n_kept, n_removed in zip(sentinels, kept, removed, strict=True):  # starts with kept tokens
                source += [*ids[start : start + n_kept], sentinel]
                target += [sentinel, *ids[start + n_kept : start + n_kept + n_removed]]
                start += n_kept + n_removed
            sources.append(source)
            targets.append(target)
        return np.array(sources, np.int64), np.array(targets, np.int64)


def random_partition(total: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Partition `total` into n parts of at least one, uniformly: (n,)"""
    cuts = np.zeros(n + 1, np.int64)
    cuts[-1] = total
    if n > 1:
        cuts[1:-1] = np.sort(rng.choice(total - 1, n - 1, replace=False)) + 1
    return cuts[1:] - cuts[:-1]


def hide_shares(
    ids: np.ndarray, sizes: np.ndarray, mask_id: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hide a share of each row, (B, T), of which the first `sizes` (B,) ids are text.

    The shares of a batch are spread evenly over (0, 1), which varies less than drawing each by itself (2107.00630).

    Returns:
        The ids with some hidden and their labels, (B, T) each, IGNORE_INDEX where nothing is; and one over the share
        that is hidden, (B,).
    """
    B, T = ids.shape
    draws = uniform(seed, step, (B, T + 2))
    shares = (draws[0, T] + np.argsort(draws[:, T + 1]) / B) % 1.0
    n_hidden = np.clip(np.ceil(shares * sizes), 1, sizes).astype(np.int64)
    is_text = np.arange(T) < sizes[:, None]
    ranks = np.argsort(np.argsort(np.where(is_text, draws[:, :T], 2.0), axis=1), axis=1)
    is_hidden = ranks < n_hidden[:, None]
    weight = (sizes / n_hidden).astype(np.float32)
    return np.where(is_hidden, mask_id, ids), np.where(is_hidden, ids, IGNORE_INDEX), weight
