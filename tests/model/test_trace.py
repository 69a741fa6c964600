"""Recording, ablating and patching: exact, by name, and gone when the block ends."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.model import (
    Attention,
    EncoderDecoder,
    KVCache,
    LMHead,
    TokenEmbedding,
    Trace,
    Transformer,
    TransformerConfig,
    ablate,
    causal,
    full,
    patch,
    record,
    window,
    within,
)
from anyformer.model.quantization.fusion import fuse_linears
from anyformer.model.trace import read_weights
from reference import evaluate_rule, weigh_slowly
from rules import RULES, caption, pairwise

B, T, C, H, LAYERS = 2, 12, 8, 4, 2
SETTINGS = pairwise(
    {
        "rule": list(RULES),
        "n_kv_head": [None, 2],
        "position": ["none", "rotary"],
        "norm_place": ["pre", "post"],
        "qk_norm": [False, True],
    }
)


def build(cross: bool = False, **fields: Any) -> Transformer:
    config = TransformerConfig(dim=C, n_layer=LAYERS, n_head=H, context=32, **fields)
    stack = Transformer(config, cross).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in stack.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return stack


def nodes(seed: int = 1, count: int = T) -> Tensor:
    return torch.randn(B, count, C, generator=torch.Generator().manual_seed(seed))


def run(stack: Transformer, x: Tensor, edges: Any = causal) -> tuple[Tensor, Trace]:
    with torch.no_grad(), record(stack) as trace:
        y = stack(x, edges)
    return y, trace


def count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# --- recording ---


@pytest.mark.parametrize("setting", SETTINGS, ids=caption)
def test_weights_equal_those_of_the_oracle(setting: dict):
    """In every layer, from the recorded queries and keys."""
    setting = dict(setting)
    edges, stack = RULES[setting.pop("rule")](B, T), build(**setting)
    _, trace = run(stack, nodes(), edges)
    for layer in range(LAYERS):
        call = trace[f"blocks.{layer}.attn"]
        expected = weigh_slowly(call.queries, call.keys, edges)
        torch.testing.assert_close(call.weights.double(), expected, atol=1e-6, rtol=1e-4)
        narrow = read_weights(call.queries, call.keys, call.kernel, stack.config.scale, call.values.shape[-1])
        torch.testing.assert_close(narrow, call.weights, atol=1e-6, rtol=1e-4)  # as on a GPU
        values = call.values.repeat_interleave(H // call.values.shape[1], 1)
        torch.testing.assert_close(call.weights @ values, call.head_outputs, atol=1e-5, rtol=1e-4)


def test_every_sublayer_is_recorded_by_name_and_shape():
    stack = build(cross=True, n_kv_head=2)
    memory = nodes(3, 5)
    with torch.no_grad(), record(stack) as trace:
        y = stack(nodes(), causal, memory, within(torch.tensor([5, 3])))
    names = {f"blocks.{i}{part}" for i in range(LAYERS) for part in ("", ".attn", ".cross", ".mlp")}
    assert set(trace) == names | {""}
    cross = trace["blocks.1.cross"]
    assert cross.shapes() == {
        "input": (B, T, C), "output": (B, T, C), "memory": (B, 5, C), "queries": (B, H, T, 2), "keys": (B, 2, 5, 2),
        "values": (B, 2, 5, 2), "head_outputs": (B, H, T, 2),
    }  # fmt: skip
    assert cross.memory is memory and not cross.weights[1, :, :, 3:].any() and trace[""].memory is memory
    assert torch.equal(trace[""].output, y) and trace[""].edges == (causal, causal)
    stream = trace["blocks.0"].input
    for name in ("attn", "cross", "mlp"):
        stream = stream + trace[f"blocks.0.{name}"].output
    assert torch.equal(stream, trace["blocks.0"].output) and torch.equal(stream, trace["blocks.1"].input)
    with pytest.raises(ValueError, match="only attention has weights"):
        _ = trace["blocks.0.mlp"].weights


def test_recording_changes_nothing_and_leaves_nothing_behind():
    stack = build()
    plain = stack(nodes(), causal)
    recorded, _ = run(stack, nodes())
    assert torch.equal(recorded, plain) and count_hooks(stack) == 0
    with pytest.raises(RuntimeError), record(stack), ablate(stack, "blocks.0"), patch(stack, Trace()):
        raise RuntimeError
    assert count_hooks(stack) == 0
    with pytest.raises(ValueError, match="holds no Transformer"), record(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("edges", [causal, causal & window(3)], ids=str)
def test_a_cache_is_recorded_step_by_step(edges: Any):
    """Also of a ring buffer, whose memory later steps overwrite; and with fused maps."""
    stack, x = build(position="rotary"), nodes()
    _, whole_trace = run(stack, x, edges)
    fuse_linears(stack)
    cache = KVCache(stack.config, B)
    with torch.no_grad(), record(stack, max_calls=None) as trace:
        for t in range(T):
            stack(x[:, t : t + 1], edges, cache=cache)
    calls = trace.calls["blocks.1.attn"]
    assert len(calls) == T and len(run(stack, x)[1].calls["blocks.1.attn"]) == 1
    expected = whole_trace["blocks.1.attn"].weights
    for t, call in enumerate(calls):
        ours, theirs = call.weights[:, :, 0], expected[:, :, t]
        torch.testing.assert_close(ours.sort(-1).values[..., -1:], theirs.sort(-1).values[..., -1:])
        torch.testing.assert_close((ours**2).sum(-1), (theirs**2).sum(-1))


def test_attention_alone_is_recorded_and_asked_for_weights():
    attention = build().blocks[0].attn
    with torch.no_grad(), record(attention) as trace:
        y, weights = attention(nodes(), edges=window(2), need_weights=True)
    assert torch.equal(trace[""].weights, weights) and torch.equal(trace[""].output, y)
    assert torch.equal(weights > 0, evaluate_rule(window(2), B, H, T, T))


# --- ablation ---


def test_a_head_left_out_is_its_slice_of_the_output_map_set_to_zero():
    stack, x = build(bias=True), nodes()
    with torch.no_grad():
        with ablate(stack, "blocks.1.attn", heads=[1, 3]):
            y = stack(x, causal)
        weight = stack.blocks[1].attn.output.weight
        weight[:, 2:4] = 0  # two channels a head
        weight[:, 6:8] = 0
        torch.testing.assert_close(y, stack(x, causal))


def test_a_sublayer_or_a_block_left_out_adds_nothing():
    stack, x = build(), nodes()
    with torch.no_grad():
        with ablate(stack, "blocks.0.attn", "blocks.0.mlp"):
            without = stack(x, causal)
        with ablate(stack, "blocks.0"), record(stack) as trace:
            assert torch.equal(stack(x, causal), without)
        assert torch.equal(trace["blocks.1"].input, x) and torch.equal(trace["blocks.0"].output, x)
        with ablate(stack, "blocks.0.attn"), record(stack) as trace:  # a trace holds what the ablation leaves
            _, weights = stack.blocks[0].attn(x, causal, need_weights=True)
        assert not trace["blocks.0.attn"].output.any() and weights.any()


@pytest.mark.parametrize("edges", [causal, full, [causal, window(4)]], ids=str)
def test_edges_removed_are_a_narrower_rule(edges: Any):
    stack, x, far = build(position="alibi"), nodes(), ~window(2)
    rules = edges if isinstance(edges, list) else [edges] * LAYERS
    with torch.no_grad():
        with ablate(stack, "", edges=far):
            assert torch.equal(stack(x, edges), stack(x, [rule & ~far for rule in rules]))
        with ablate(stack, "blocks.1.attn", edges=far):
            assert torch.equal(stack(x, edges), stack(x, [rules[0], rules[1] & ~far]))


def test_edges_to_a_memory_are_removed():
    stack, x, memory = build(cross=True), nodes(), nodes(2, 5)
    with torch.no_grad():
        with ablate(stack, "", memory_edges=~within(torch.tensor([2, 4]))):
            y = stack(x, causal, memory)
        assert torch.equal(y, stack(x, causal, memory, within(torch.tensor([2, 4]))))


# --- patching ---


def test_patching_everything_gives_the_other_run_and_nothing_the_same():
    stack, x, other = build(), nodes(1), nodes(2)
    y, _ = run(stack, x)
    expected, trace = run(stack, other)
    with torch.no_grad():
        with patch(stack, trace):
            assert torch.equal(stack(x, causal), expected)
        for name, side in (("blocks.0", "input"), ("blocks.0", "output"), ("blocks.1", "output"), ("", "input")):
            with patch(stack, trace, name, side=side):
                assert torch.equal(stack(x, causal), expected), (name, side)
        for nothing in (patch(stack, trace, nodes=[]), patch(stack, trace, "blocks.1.attn", heads=[])):
            with nothing:
                assert torch.equal(stack(x, causal), y)
        with patch(stack, run(stack, x)[1]):
            assert torch.equal(stack(x, causal), y)


def test_nodes_and_heads_are_patched_alone():
    stack, x, other = build(), nodes(1), nodes(2)
    _, trace = run(stack, other)
    with torch.no_grad():
        with patch(stack, trace, "blocks.0", nodes=[3, 7]), record(stack) as mixed:
            stack(x, causal)
        stream, own = mixed["blocks.0"].output, run(stack, x)[1]["blocks.0"].output
        assert torch.equal(stream[:, [3, 7]], trace["blocks.0"].output[:, [3, 7]])
        others = [i for i in range(T) if i not in (3, 7)]
        assert torch.equal(stream[:, others], own[:, others])
        with patch(stack, trace, "blocks.1.attn", heads=[2], nodes=[5]), record(stack) as mixed:
            stack(x, causal)
        heads, own = mixed["blocks.1.attn"].head_outputs, run(stack, x)[1]["blocks.1.attn"].head_outputs
        is_changed = (heads != own).any(-1)
        assert torch.equal(heads[:, 2, 5], trace["blocks.1.attn"].head_outputs[:, 2, 5])
        assert is_changed[:, 2, 5].all() and is_changed.sum() == B


def test_two_stacks_are_patched_by_name():
    config = TransformerConfig(dim=C, n_layer=LAYERS, n_head=H, context=32)
    torch.manual_seed(0)
    source, target = TokenEmbedding(11, config), TokenEmbedding(11, config)
    model = EncoderDecoder(source, config, target, config, LMHead(C, 11)).eval()
    ids, text, other = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]]), torch.tensor([[6, 7, 8]])
    with torch.no_grad(), record(model) as trace:
        expected = model(other, text)
    with torch.no_grad(), patch(model, trace, "encoder"):
        assert torch.equal(model(ids, text), expected)
    assert trace["decoder"].memory is trace["encoder"].output


# --- what is refused ---


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda stack, trace: ablate(stack, "blocks.3.attn"), "did you mean 'blocks.[01].attn'"),
        (lambda stack, trace: ablate(stack, "blocks.0.mlp", heads=[0]), "is no attention"),
        (lambda stack, trace: ablate(stack, "blocks.0.attn", heads=[4]), "has heads 0 to 3"),
        (lambda stack, trace: ablate(stack, ""), "is a stack"),
        (lambda stack, trace: ablate(stack, "blocks.0.mlp", edges=causal), "edges are removed from a stack"),
        (lambda stack, trace: patch(stack, trace, "blocks.9"), "was not recorded"),
        (lambda stack, trace: patch(stack, trace, "blocks.0"), "inputs of equal length"),
        (lambda stack, trace: patch(stack, trace, "blocks.0", nodes=[7]), "nodes 0 to 4"),
    ],
)
def test_what_is_refused(action: Any, message: str):
    stack = build()
    _, trace = run(stack, nodes(1, 5))
    with pytest.raises(ValueError, match=message), action(stack, trace):
        stack(nodes(), causal)
    assert count_hooks(stack) == 0


def test_a_module_with_hooks_computes_its_own_kernel():
    """Attention that gets a rule, not what a stack prepared."""
    attention = Attention(TransformerConfig(dim=C, n_head=H)).eval()
    with torch.no_grad(), ablate(attention, "", heads=[0, 1, 2, 3]):
        assert torch.equal(attention(nodes(), causal), attention.output(torch.zeros(B, T, C)))
