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

MASKED, OTHER = 0.8, 0.1


@dataclass(frozen=True)
class Hiding:
    """mask: the id that hides. vocab_size: random tokens are below. glue (V, 2): with it, words are hidden whole.
    share: how much of a row is chosen."""

    mask: int
    vocab_size: int
    glue: np.ndarray | None = None
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
        new = np.where(fate < MASKED, self.mask, (other * self.vocab_size).astype(np.int64))
        hidden[where] = np.where(fate < MASKED + OTHER, new, target)
        return hidden.reshape(ids.shape), where, target

    def choose(self, ids: np.ndarray, free: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Which positions of a row: its share of the free ones, at least one. order: (T,) random numbers."""
        quota = max(1, round(self.share * free.sum()))
        if self.glue is None:
            return np.sort(np.argsort(np.where(free, order, 2.0), kind="stable")[: min(quota, free.sum())])
        word = words(ids, free, self.glue)
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


def glue(tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens belong to a word with the one before, and with the one after, if that one agrees: (V, 2) bool.
    WordPiece marks what goes on with ##; elsewhere letters and digits side by side are a word."""
    if isinstance(tokenizer, Subwords) and tokenizer.kind == "wordpiece":
        goes_on = np.zeros(tokenizer.vocab_size, bool)
        for token, i in tokenizers.Tokenizer.from_str(tokenizer.json()).get_vocab().items():
            goes_on[i] = token.startswith("##")
        return np.stack([goes_on, np.ones_like(goes_on)], axis=1)
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    return np.array([[_inside(text[:1]), _inside(text[-1:])] for text in texts], bool)


def _inside(character: str) -> bool:
    return character.isalnum() or character in ("'", "\ufffd")  # half a character of UTF-8 is in a word, most likely


def words(ids: np.ndarray, free: np.ndarray, glue: np.ndarray) -> np.ndarray:
    """The number of the word that each token belongs to. (T,) -> (T,)"""
    known = np.minimum(ids, len(glue) - 1)
    joined = glue[known[1:], 0] & glue[known[:-1], 1] & free[1:] & free[:-1]
    return np.concatenate([[0], np.cumsum(~joined)])
