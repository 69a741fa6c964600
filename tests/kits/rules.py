"""Rules of edges of every kind, their random compositions, and covering choices of settings, for tests."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyformer.model.edges import (
    Edges,
    between,
    causal,
    every,
    first,
    from_mask,
    full,
    neighbors,
    prefix,
    same,
    window,
    within,
)

if TYPE_CHECKING:
    from hypothesis import strategies as st


def near_by_head(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q - k).abs() <= h


def mix_all(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (b + h + q + k) % 3 > 0


RULES: dict[str, Callable[[int, int], Edges]] = {
    "full": lambda B, T: full,
    "causal": lambda B, T: causal,
    "window": lambda B, T: window(3),
    "causal & window": lambda B, T: causal & window(3),
    "first": lambda B, T: first(2),
    "causal & (window | first)": lambda B, T: causal & (window(3) | first(2)),
    "every": lambda B, T: every(3),
    "neighbors": lambda B, T: neighbors(3, 4, 1),
    "within": lambda B, T: within(lengths(B, T)),
    "prefix": lambda B, T: prefix(lengths(B, T)),
    "causal | prefix": lambda B, T: causal | prefix(lengths(B, T)),
    "same for all rows": lambda B, T: same(torch.arange(T) // 3),
    "same by row": lambda B, T: same(kinds(B, T)),
    "between": lambda B, T: between(kinds(B, T)),
    "between by a table": lambda B, T: between(kinds(1, T)[0], torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]).bool()),
    "from_mask": lambda B, T: from_mask(torch.arange(T)[:, None] * 5 % 7 >= torch.arange(T) % 7),
    "no edges": lambda B, T: ~full,
    "by head": lambda B, T: Edges(near_by_head, "by head", 8, 8, uses_batch=False),
    "by row and head": lambda B, T: Edges(mix_all),
}
"""Rules by name, for B rows of T nodes."""


def lengths(B: int, T: int) -> Tensor:
    """Ragged, with an empty row where there are three or more."""
    return torch.tensor([T // 2, T, 0, 1, T - 1])[torch.arange(B) % 5]


def kinds(B: int, T: int) -> Tensor:
    return (torch.arange(B)[:, None] + torch.arange(T)) * 7 // 4 % 3


def compositions(B: int, T: int) -> "st.SearchStrategy[Edges]":
    """Rules combined by &, | and ~."""
    from hypothesis import strategies as st  # not on every machine that measures a GPU

    leaf = st.sampled_from(sorted(RULES)).map(lambda name: RULES[name](B, T))
    leaf |= st.integers(1, T).map(window) | st.integers(1, T).map(every) | st.integers(1, T).map(first)

    def grow(inner: "st.SearchStrategy[Edges]") -> "st.SearchStrategy[Edges]":
        pair = st.tuples(inner, inner)
        return pair.map(lambda ab: ab[0] & ab[1]) | pair.map(lambda ab: ab[0] | ab[1]) | inner.map(lambda a: ~a)

    return st.recursive(leaf, grow, max_leaves=4)


def pairwise(factors: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Settings such that any two values of any two factors meet in one of them: far fewer than the full product."""
    rng = random.Random(seed)
    names = list(factors)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    settings = []
    while missing:
        a, i, b, j = min(missing)
        most_covered: set = set()
        for _ in range(30):
            indices = {name: rng.randrange(len(factors[name])) for name in names} | {a: i, b: j}
            covered = missing & {(x, indices[x], y, indices[y]) for x, y in itertools.combinations(names, 2)}
            if len(covered) > len(most_covered):
                most_covered, best = covered, indices
        missing -= most_covered
        settings.append({name: factors[name][best[name]] for name in names})
    return settings


def caption(setting: Mapping[str, Any]) -> str:
    return "-".join(str(value) for value in setting.values())
