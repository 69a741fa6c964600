"""Maps that are joined for answering say what they said apart.

Shapes: B batch, T nodes, C channels.
"""

import pytest
import torch
from torch import Tensor, nn

from anyformer.model.transformer import Transformer
from anyformer.model.cache import KVCache
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import causal, within
from anyformer.model.quantization.fusion import FusedAttention, FusedMLP, fuse_linears
from anyformer.model.transformer import attention_weights
from anyformer.training import lora
from anyformer.training.config import LoRAConfig
from rules import caption, pairwise

SETTINGS = pairwise(
    {
        "n_kv_head": [None, 2, 1],
        "head_dim": [None, 6],
        "bias": [True, False],
        "activation": ["gelu", "swiglu", "geglu"],
        "position": ["none", "rotary", "alibi"],
        "qk_norm": [False, True],
        "norm_place": ["pre", "post"],
        "cross": [False, True],
        "dropout": [0.0, 0.5],
    }
)
B, T, C = 2, 7, 16


def stack(setting: dict) -> Transformer:
    torch.manual_seed(0)
    setting = dict(setting)
    cross = setting.pop("cross", False)
    made = Transformer(TransformerConfig(dim=C, n_layer=2, n_head=4, context=T, **setting), cross).double().eval()
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.4)
    return made


def said(model: Transformer) -> Tensor:
    """At once, and node by node after those in a cache: (2 B, T, C)"""
    torch.manual_seed(1)
    x, memory = torch.randn(B, T, C).double(), torch.randn(B, 5, C).double() if model.cross else None
    seen, cache = within(torch.tensor([5, 2])), KVCache(model.config, B)
    steps = [model(x[:, t : t + 1], causal, memory, seen, cache) for t in range(T)]
    return torch.cat([model(x, causal, memory, seen), torch.cat(steps, dim=1)])


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("setting", SETTINGS, ids=caption)
@torch.inference_mode()
def test_joined_maps_say_what_they_said_apart(setting):
    model = stack(setting)
    before, looked = said(model), None if model.cross else looks(model)
    fuse_linears(model)
    close(said(model), before)
    assert looked is None or torch.allclose(looks(model), looked)
    gated = setting["activation"] != "gelu"
    assert all(isinstance(block.attn, FusedAttention) for block in model.blocks)
    assert all(isinstance(block.mlp, FusedMLP) == gated for block in model.blocks)


def looks(model: Transformer) -> Tensor:
    x = torch.linspace(-1, 1, T * C).view(1, T, C).double()
    return attention_weights(model, lambda: model(x, causal))


@torch.inference_mode()
def test_one_of_three_may_have_a_bias():
    """As in Whisper, whose keys have none."""
    model = stack({})
    for block in model.blocks:
        block.attn.key.bias = None
    before = said(model)
    fuse_linears(model)
    close(said(model), before)


@pytest.mark.parametrize("merged", [True, False])
def test_adapters_are_folded_in_or_left_on(merged):
    model = lora.add_lora(stack({"activation": "swiglu"}), LoRAConfig(rank=2, where="all")).double()
    with torch.inference_mode():
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.4)
        before = said(model)
        model = lora.merge_lora(model) if merged else model
        fuse_linears(model)
        close(said(model), before)
        assert isinstance(model.blocks[0].attn, FusedAttention) == merged == isinstance(model.blocks[0].mlp, FusedMLP)
