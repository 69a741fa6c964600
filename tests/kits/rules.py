"""Material that tests share: rules of every kind, their random compositions, a covering choice of settings."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from anyformer.model.edges import Edges, between, causal, every, full, neighbours, prefix, same, window, within

READY: dict[str, Callable[[int, int], Edges]] = {
    "full": lambda B, T: full,
    "causal": lambda B, T: causal,
    "window": lambda B, T: window(3),
    "causal & window": lambda B, T: causal & window(3),
    "every": lambda B, T: every(3),
    "neighbours": lambda B, T: neighbours(3, 4, 1),
    "within": lambda B, T: within(lengths(B, T)),
    "prefix": lambda B, T: prefix(lengths(B, T)),
    "causal | prefix": lambda B, T: causal | prefix(lengths(B, T)),
    "same, one for all": lambda B, T: same(torch.arange(T) // 3),
    "same, one a row": lambda B, T: same(kinds(B, T)),
    "between": lambda B, T: between(kinds(B, T)),
    "between, as told": lambda B, T: between(kinds(1, T)[0], torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]).bool()),
    "nobody": lambda B, T: ~full,
    "by head": lambda B, T: Edges(lambda b, h, q, k: (q - k).abs() <= h, "by head", 8, 8, batched=False),
    "by row and head": lambda B, T: Edges(lambda b, h, q, k: (b + h + q + k) % 3 > 0),
}
"""Rules by name, made for B rows of T nodes."""


def lengths(B: int, T: int) -> torch.Tensor:
    """Ragged, with a row of nothing at all where there are three or more."""
    return torch.tensor([T // 2, T, 0, 1, T - 1])[torch.arange(B) % 5]


def kinds(B: int, T: int) -> torch.Tensor:
    return (torch.arange(B)[:, None] + torch.arange(T)) * 7 // 4 % 3


def composed(B: int, T: int) -> st.SearchStrategy[Edges]:
    """Rules put together with &, | and ~."""
    leaf = st.sampled_from(sorted(READY)).map(lambda name: READY[name](B, T))
    leaf |= st.integers(1, T).map(window) | st.integers(1, T).map(every)

    def grow(inner: st.SearchStrategy[Edges]) -> st.SearchStrategy[Edges]:
        pair = st.tuples(inner, inner)
        return pair.map(lambda ab: ab[0] & ab[1]) | pair.map(lambda ab: ab[0] | ab[1]) | inner.map(lambda a: ~a)

    return st.recursive(leaf, grow, max_leaves=4)


def pairwise(factors: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Settings such that any two values of any two factors meet in one of them: far fewer than the full product."""
    rng = random.Random(seed)
    names = list(factors)
    left = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    chosen = []
    while left:
        a, i, b, j = min(left)
        best: set = set()
        for _ in range(30):
            at = {name: rng.randrange(len(factors[name])) for name in names} | {a: i, b: j}
            met = left & {(x, at[x], y, at[y]) for x, y in itertools.combinations(names, 2)}
            if len(met) > len(best):
                best, pick = met, at
        left -= best
        chosen.append({name: factors[name][pick[name]] for name in names})
    return chosen


def caption(setting: Mapping[str, Any]) -> str:
    return "-".join(str(value) for value in setting.values())
