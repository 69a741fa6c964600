"""What presets of several recipes have in common: shapes of Transformers and ways of training."""

from dataclasses import replace
from typing import Any

from ...model.config import TransformerConfig
from ...training.config import TrainConfig

MODERN: dict[str, Any] = dict(position="rotary", norm="rmsnorm", activation="relu2", qk_norm=True, bias=False)
"""Improvements since GPT-2; TransformerConfig names the paper of each."""
BERT: dict[str, Any] = dict(norm_place="post", norm_eps=1e-12)
"""1810.04805"""
T5: dict[str, Any] = dict(position="relative", norm="rmsnorm", norm_eps=1e-6, scale=1.0, head_dim=64, bias=False)
"""1910.10683"""
MUON: dict[str, Any] = {"optimizer": "muon", "schedule": "trapezoid", "min_lr": 0.0}
"""Muon with a trapezoid schedule that ends at zero."""


def make_model_config(
    dim: int = 128, n_layer: int = 4, n_head: int = 4, context: int = 128, **fields: Any
) -> TransformerConfig:
    return TransformerConfig(dim=dim, n_layer=n_layer, n_head=n_head, context=context, **fields)


def make_modern_config(dim: int, n_layer: int, n_head: int, context: int, **fields: Any) -> TransformerConfig:
    """Build a TransformerConfig of this size with the fields of MODERN, which `fields` may override."""
    return make_model_config(dim, n_layer, n_head, context, **MODERN | fields)


def make_stacks(
    dim: int, n_layer: int | tuple[int, int], n_head: int, context: int | tuple[int, int], **fields: Any
) -> dict[str, Any]:
    """Build the configs of an encoder and a decoder of the same width; depth and context may be given for each."""
    depths, contexts = (size if isinstance(size, tuple) else (size, size) for size in (n_layer, context))
    stacks = zip(("encoder", "decoder"), depths, contexts)
    return {name: make_model_config(dim, depth, n_head, length, **fields) for name, depth, length in stacks}


# nanoGPT's half a million tokens an update, 600,000 times
GPT2_TRAIN = TrainConfig(
    batch=12,
    accumulate=40,
    lr=6e-4,
    warmup=2000,
    steps=600_000,
    eval_every=1000,
    eval_batches=200,
    save_every=5000,
)
TINY_TRAIN = TrainConfig(steps=20, batch=8, warmup=2, eval_every=10, eval_batches=4, save_every=10)
"""Seconds: for tests."""
TINY_PAIRS_TRAIN = replace(TINY_TRAIN, batch=4)
MINUTE_TRAIN = TrainConfig(
    steps=450,
    batch=16,
    lr=4e-3,
    warmup=20,
    weight_decay=0.01,
    clip=0.0,
    eval_every=150,
    eval_batches=10,
    save_every=150,
    **MUON,
)
"""A minute on two cores for a model of the default size."""

MAX_SIZE = 1 << 20
"""Of a dimension or a context: larger ones are mistakes that would exhaust memory."""
