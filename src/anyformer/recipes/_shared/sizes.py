"""Sizes that `--minutes` chooses from: the model of a preset, and narrower and shallower ones."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ...model.config import TransformerConfig, find_stacks
from ...recipe import SizeOption
from ...training.config import TrainConfig


class Size(NamedTuple):
    """A smaller model."""

    dim: int
    n_layer: int
    """Of each stack, at most."""
    batch: int
    """At most."""
    steps: int
    """Updates that it needs to be better than a smaller size."""


def offer_sizes(config: Any, smaller: tuple[Size, ...], steps: int) -> Iterator[SizeOption]:
    """Yield the sizes that are smaller than the config's, from small to large, and then the config itself.

    Args:
        steps: updates that the config itself needs to be better than the sizes before.
    """
    width, depth = (max(getattr(stack, name) for stack in find_stacks(config).values()) for name in ("dim", "n_layer"))
    for size in smaller:
        if size.dim <= width and size.n_layer <= depth and (size.dim, size.n_layer) != (width, depth):
            yield SizeOption(shrink(config, size), steps=size.steps)
    yield SizeOption(config, steps=steps)


def shrink(config: Any, size: Size) -> Any:
    """Return the config with smaller stacks and batches. The learning rate rises with the inverse root of the width, as
    it does among the sizes of `language`."""
    stacks = find_stacks(config)
    train = shrink_train(config.train, max(stack.dim for stack in stacks.values()) / size.dim, size.batch)
    return replace(config, train=train, **{name: shrink_stack(stack, size) for name, stack in stacks.items()})


def shrink_train(train: TrainConfig, ratio: float, batch: int) -> TrainConfig:
    """Return the settings for a model whose width is so many times smaller."""
    return replace(train, batch=min(batch, train.batch), lr=train.lr * ratio**0.5, accumulate=1)


def shrink_stack(stack: TransformerConfig, size: Size) -> TransformerConfig:
    """Return the stack with fewer layers and channels; heads stay about as wide as they are."""
    ratio = size.dim / stack.dim
    n_head = largest_divisor(size.dim, round(stack.n_head * ratio))
    n_kv_head = stack.n_kv_head and largest_divisor(n_head, stack.n_kv_head)
    mlp_dim = stack.mlp_dim and max(1, round(stack.mlp_dim * ratio))
    shape = {"dim": size.dim, "n_head": n_head, "n_kv_head": n_kv_head, "mlp_dim": mlp_dim}
    return replace(stack, n_layer=min(size.n_layer, stack.n_layer), **shape)


def largest_divisor(number: int, at_most: int) -> int:
    return max(n for n in range(1, max(1, at_most) + 1) if number % n == 0)
