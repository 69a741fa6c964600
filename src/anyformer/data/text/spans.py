"""Span corruption: some runs of tokens leave a text, a sentinel stands where each was, and they are asked for (T5,
1910.10683, section 3.1.4). Pure functions: what step s corrupts depends on (seed, s) alone.

    text      Thank you for inviting me to your party last week
    source    Thank you <0> me to your party <1> week
    target    <0> for inviting <1> last

Shapes: B rows, T tokens of a window, S of a source, N of a target.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spans:
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
            gone, kept = parts(count, runs, drawn), parts(x.shape[1] - count, runs, drawn)
            at, source, target = 0, [], []
            for sentinel, stays, leaves in zip(sentinels, kept, gone, strict=True):  # a text begins with what stays
                source += [*ids[at : at + stays], sentinel]
                target += [sentinel, *ids[at + stays : at + stays + leaves]]
                at += stays + leaves
            sources.append(source)
            targets.append(target)
        return np.array(sources, np.int64), np.array(targets, np.int64)


def parts(total: int, n: int, drawn: np.random.Generator) -> np.ndarray:
    """`total` in n parts of at least one, every way as likely: (n,)"""
    cuts = np.sort(drawn.choice(total - 1, n - 1, replace=False)) + 1 if n > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
