"""A whole Transformer equals message passing by hand: projections, heads, norms, residual sums, in their order.

Shapes: B batch, T nodes, C channels, M nodes of a memory.
"""

import pytest
import torch

from anyformer.model.transformer import Transformer
from anyformer.model.cache import KVCache
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import causal, full, prefix, window, within
from reference import SlowTransformer
from rules import caption, pairwise

SETTINGS = pairwise(
    {
        "position": ["none", "rotary", "relative", "alibi"],
        "n_kv_head": [None, 2, 1],
        "norm": ["layernorm", "rmsnorm"],
        "norm_place": ["pre", "post"],
        "activation": ["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu"],
        "qk_norm": [False, True],
        "bias": [True, False],
        "head_dim": [4, 6],  # of two channels, a turn would not depend on its base
        "rotary_base": [10_000.0, 10.0],
        "norm_eps": [1e-5, 0.1],
        "cross": [False, True],
        "edges": ["causal", "layers", "rows"],
    }
)


@pytest.mark.parametrize("setting", SETTINGS, ids=caption)
def test_a_transformer_is_message_passing(setting):
    torch.manual_seed(0)
    setting = dict(setting)
    cross, edges = setting.pop("cross"), setting.pop("edges")
    config = TransformerConfig(dim=8, n_layer=2, n_head=4, mlp_dim=6, **setting)
    model = Transformer(config, cross).double()
    for weight in model.parameters():  # norms too: a forgotten one must show
        torch.nn.init.normal_(weight, std=0.5)
    x, memory = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 8).double() if cross else None
    lengths = torch.tensor([3, 5])
    whole = {"causal": [causal, causal], "layers": [causal & window(2), full], "rows": [causal | prefix(lengths)] * 2}
    seen = within(torch.tensor([3, 1]))
    got = model(x, whole[edges] if edges == "layers" else whole[edges][0], memory, seen)
    for row in range(2):
        alone = [causal, causal | prefix(lengths[row : row + 1])][edges == "rows"]
        layers = whole[edges] if edges == "layers" else [alone, alone]
        reads = within(torch.tensor([3, 1])[row : row + 1])
        want = SlowTransformer(model)(x[row], layers, None if memory is None else memory[row], reads)
        torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-5)  # rotary turns are float32


def test_a_stack_that_reads_a_memory_needs_one_and_the_others_take_none():
    config, x = TransformerConfig(dim=8), torch.randn(2, 5, 8)
    for cross, memory in ((True, None), (False, x)):
        with pytest.raises(ValueError, match="memory"):
            Transformer(config, cross)(x, causal, memory)


@pytest.mark.parametrize("count", [1, 3])
def test_there_is_one_rule_for_each_layer_or_one_for_all(count):
    with pytest.raises(ValueError, match=r"argument|layer"):
        Transformer(TransformerConfig(dim=8, n_layer=2))(torch.randn(2, 5, 8), [causal] * count)


@pytest.mark.parametrize("edges", [causal, full, full & window(3)], ids=str)
@pytest.mark.parametrize("lengths", [None, 4, torch.tensor([4, 2])], ids=["no cache", "together", "ragged"])
def test_layers_that_share_a_rule_share_their_wires(edges, lengths):
    config = TransformerConfig(dim=8, n_layer=3, position="alibi")
    cache = None if lengths is None else KVCache(config, 2)
    if cache is not None:
        cache.lengths = lengths
    wires = Transformer(config).prepare(torch.randn(2, 5, 8), edges, cache)
    assert len(wires) == 3 and len({id(wire) for wire in wires}) == 1
