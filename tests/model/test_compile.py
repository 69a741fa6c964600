"""torch.compile traces every model: `backend="eager"` runs the traced graph without compiling it.

Shapes: B batch, T nodes, C channels.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer.model import Block, Edges, Transformer, TransformerConfig, causal, same, window, within
from anyformer.model.kernels.dense import DenseMask
from anyformer.model.kernels.flex import Flex
from anyformer.model.kernels.select import AttentionSpec
from anyformer.model.position_bias import RelativeBias
from rules import RULES, near_by_head

B, T, C, H = 3, 140, 16, 4  # long enough for blocks of 32
POSITIONS = ["none", "rotary", "relative", "alibi"]


@pytest.fixture(autouse=True)
def reset_compiler():
    torch._dynamo.reset()


def check(module: nn.Module, *inputs: object) -> None:
    """One graph without breaks gives the same output and gradients."""
    results = []
    for call in (module, torch.compile(module, backend="eager", fullgraph=True)):
        module.zero_grad()
        torch.manual_seed(0)
        y = call(*inputs)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        results.append([y.detach(), *(weight.grad for weight in module.parameters())])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


class ManyRules(nn.Module):
    """A stack that is called under one rule after another: traced once, which takes less time than a graph for each."""

    def __init__(self, position: str):
        super().__init__()
        self.body = Transformer(TransformerConfig(dim=C, n_layer=1, n_head=H, n_kv_head=2, position=position))

    def forward(self, x: Tensor, rules: list[Edges]) -> Tensor:
        return torch.stack([self.body(x, edges) for edges in rules])


@pytest.mark.slow
@pytest.mark.parametrize(("position", "start"), list(zip(POSITIONS, range(4))))
def test_every_rule_and_position_is_one_graph(position: str, start: int):
    rules = [RULES[name](B, T) for name in list(RULES)[start::4]]
    check(ManyRules(position), torch.randn(B, T, C), [causal & window(8), near_by_head, *rules])


@pytest.mark.slow
def test_a_rule_for_each_layer_is_one_graph():
    model = Transformer(TransformerConfig(dim=C, n_layer=3, n_head=H, position="rotary"))
    check(model, torch.randn(B, T, C), [causal & window(8), causal, causal & window(8)])


@pytest.mark.slow
@pytest.mark.parametrize("position", ["none", "relative"])
def test_dropout_is_one_graph(position: str):
    model = Transformer(TransformerConfig(dim=C, n_layer=1, dropout=0.5, position=position))
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), torch.randn(B, 12, C)
    assert not torch.equal(compiled(x, causal), compiled(x, causal)) and compiled(x, causal).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_cross_attention_is_one_graph(norm_place):
    config = TransformerConfig(dim=C, n_layer=2, n_head=H, activation="swiglu", norm_place=norm_place, qk_norm=True)
    memory, memory_edges = torch.randn(B, 5, C), within(torch.tensor([5, 1, 3]))
    check(Transformer(config, cross=True), torch.randn(B, 12, C), causal, memory, memory_edges)
    check(Block(config), torch.randn(B, 12, C), causal)


@pytest.mark.slow
def test_rules_made_of_new_tensors_do_not_compile_again():
    """As in packed documents, whose borders differ in every batch."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Transformer(TransformerConfig(dim=C, n_layer=2, n_head=H))

        def forward(self, x: Tensor, document: Tensor) -> Tensor:
            return self.body(x, causal & same(document))

    model, x = Packed(), torch.randn(B, 12, C)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for width in (2, 3, 5):
        document = (torch.arange(12) // width).expand(B, -1)
        torch.testing.assert_close(compiled(x, document), model(x, document))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore:Dynamo detected a call to a `functools")
@pytest.mark.parametrize("bias", [None, RelativeBias])
@torch.no_grad()
def test_flex_attention_is_one_graph(bias: Callable | None):
    """On a GPU it is compiled with the rule; its backward has no CPU version."""
    spec = AttentionSpec(B, H, T, T, 0, torch.device("cpu"))
    q, k, v = (torch.randn(B, groups, T, 32) for groups in (H, 2, 2))
    bias = None if bias is None else bias(H)
    for edges in (RULES["same by row"](B, T) & causal, RULES["between by a table"](B, T), Edges(near_by_head)):
        compiled = torch.compile(Flex(edges, bias, spec, compiled=False), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(q, k, v), DenseMask(edges, bias, spec)(q, k, v))
