"""Hide some tokens of a text, for a model to find (BERT, 1810.04805, section 3.1), or whole words.

Of each row a share is chosen (BERT: 15 %; more teaches more a step, 2202.08005); of these 80 % become the mask, 10 %
some other token, 10 % stay as they are. What is chosen depends on (seed, step), so that every step hides something
else (RoBERTa, 1907.11692).

Shapes: B batch, T tokens, N chosen tokens of all rows, V entries of the vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import tokenizers

from ..tokenizers.build import Subwords, Tokenizer

MASK_FRACTION, RANDOM_FRACTION = 0.8, 0.1


@dataclass(frozen=True)
class MaskingPolicy:
    """mask: the id that hides. vocab_size: random tokens are below. glue (V, 2): with it, words are hidden whole.
    share: how much of a row is chosen."""

    mask: int
    vocab_size: int
    word_pieces: np.ndarray | None = None
    share: float = 0.15

    def __call__(
        self, ids: np.ndarray, free: np.ndarray, seed: int, step: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (B, T), of which those that are `free` (B, T) may be chosen -> ids with some hidden, which ones were
        chosen (N,) as positions in the flat array, and what stood there (N,)."""
        T = ids.shape[1]
        order, fate, other = uniform(seed, step, (3, *ids.shape))
        rows = [i * T + self.choose(ids[i], free[i], order[i]) for i in range(len(ids))]
        where = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        hidden, target = ids.copy().reshape(-1), ids.reshape(-1)[where]
        fate, other = fate.reshape(-1)[where], other.reshape(-1)[where]
        new = np.where(fate < MASK_FRACTION, self.mask, (other * self.vocab_size).astype(np.int64))
        hidden[where] = np.where(fate < MASK_FRACTION + RANDOM_FRACTION, new, target)
        return hidden.reshape(ids.shape), where, target

    def choose(self, ids: np.ndarray, free: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Which positions of a row: its share of the free ones, at least one. order: (T,) random numbers."""
        quota = max(1, round(self.share * free.sum()))
        if self.word_pieces is None:
            return np.sort(np.argsort(np.where(free, order, 2.0), kind="stable")[: min(quota, free.sum())])
        word = word_indices(ids, free, self.word_pieces)
        first = np.flatnonzero(np.diff(word, prepend=-1) & free)  # where each word begins
        chosen: list[np.ndarray] = []
        for at in first[np.argsort(order[first], kind="stable")]:
            whole = np.flatnonzero(word == word[at])
            if len(whole) <= quota or not chosen:  # a word longer than all that may be hidden is better than nothing
                chosen.append(whole)
                quota -= len(whole)
            if quota <= 0:
                break
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def uniform(seed: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers in [0, 1): raw words of a counter-based generator, the same in every version of numpy."""
    words = np.random.Philox(key=seed, counter=(0, 0, step, 1)).random_raw(int(np.prod(shape)))
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)


def word_pieces(tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens belong to a word with the one before, and with the one after, if that one agrees: (V, 2) bool.
    WordPiece marks what goes on with ##; elsewhere letters and digits side by side are a word."""
    if isinstance(tokenizer, Subwords) and tokenizer.kind == "wordpiece":
        goes_on = np.zeros(tokenizer.vocab_size, bool)
        for token, i in tokenizers.Tokenizer.from_str(tokenizer.to_json()).get_vocab().items():
            goes_on[i] = token.startswith("##")
        return np.stack([goes_on, np.ones_like(goes_on)], axis=1)
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    return np.array([[_inside(text[:1]), _inside(text[-1:])] for text in texts], bool)


def _inside(character: str) -> bool:
    return character.isalnum() or character in ("'", "\ufffd")  # half a character of UTF-8 is in a word, most likely


def word_indices(ids: np.ndarray, free: np.ndarray, glue: np.ndarray) -> np.ndarray:
    """The number of the word that each token belongs to. (T,) -> (T,)"""
    known = np.minimum(ids, len(glue) - 1)
    joined = glue[known[1:], 0] & glue[known[:-1], 1] & free[1:] & free[:-1]
    return np.concatenate([[0], np.cumsum(~joined)])


@dataclass(frozen=True)
class SpanCorruption:
    """How much of a window is hidden, in runs of which mean length; sentinels count down from `first`."""

    rate: float
    length: float
    first: int

    def hidden(self, tokens: int) -> tuple[int, int]:
        """How many tokens of a window are hidden, and in how many runs."""
        count = min(max(1, round(tokens * self.rate)), tokens - 1)
        return count, max(1, min(round(count / self.length), count, tokens - count))

    def sizes(self, tokens: int) -> tuple[int, int]:
        """(S, N) of a window, without the token that ends each."""
        count, runs = self.hidden(tokens)
        return tokens - count + runs, count + runs

    def window(self, source: int, target: int, most: int) -> int:
        """The longest window whose two sides fit into so many tokens, at most `most`; 0 if none does."""
        fits = (n for n in range(most, 1, -1) if self.sizes(n)[0] <= source and self.sizes(n)[1] <= target)
        return next(fits, 0)

    def __call__(self, x: np.ndarray, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows (B, T) -> sources (B, S) and targets (B, N)."""
        count, runs = self.hidden(x.shape[1])
        sentinels = self.first - np.arange(runs)
        sources, targets = [], []
        for row, ids in enumerate(x):
            drawn = np.random.Generator(np.random.Philox(key=seed, counter=(0, row, step, 1)))
            gone, kept = random_partition(count, runs, drawn), random_partition(x.shape[1] - count, runs, drawn)
            at, source, target = 0, [], []
            for sentinel, stays, leaves in zip(sentinels, kept, gone, strict=True):  # a text begins with what stays
                source += [*ids[at : at + stays], sentinel]
                target += [sentinel, *ids[at + stays : at + stays + leaves]]
                at += stays + leaves
            sources.append(source)
            targets.append(target)
        return np.array(sources, np.int64), np.array(targets, np.int64)


def random_partition(total: int, n: int, drawn: np.random.Generator) -> np.ndarray:
    """`total` in n parts of at least one, every way as likely: (n,)"""
    cuts = np.sort(drawn.choice(total - 1, n - 1, replace=False)) + 1 if n > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
