"""The Transformer equals message passing by hand; Attention and Block also work by themselves.

Shapes: B batch, T nodes, C channels, H heads, M nodes of a memory.
"""

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.model import (
    MLP,
    Attention,
    Block,
    Edges,
    EncoderDecoder,
    KVCache,
    LMHead,
    TokenEmbedding,
    Transformer,
    TransformerConfig,
    as_edges,
    attention_weights,
    causal,
    from_mask,
    full,
    initialize,
    prefix,
    window,
    within,
)
from anyformer.model.transformer import prepare_edges
from reference import SlowTransformer
from rules import RULES, caption, pairwise

B, T, C, H = 2, 5, 8, 4
POSITIONS = ["none", "learned", "sinusoidal", "rotary", "relative", "alibi"]

SETTINGS = pairwise(
    {
        "position": ["none", "rotary", "relative", "alibi", "mixed"],
        "n_kv_head": [None, 2, 1],
        "norm": ["layernorm", "rmsnorm", "rmsnorm_1p"],
        "norm_place": ["pre", "post", "output", "sandwich"],
        "activation": ["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu", "geglu_exact"],
        "qk_norm": [False, True],
        "qk_norm_joint": [False, True],
        "softcap": [None, 2.0],
        "rotary_cycle": [(), (0, 30.0)],
        "bias": [True, False],
        "head_dim": [4, 6],  # with two channels, a rotation would not depend on its base
        "rotary_base": [10_000.0, 10.0],
        "norm_eps": [1e-5, 0.1],
        "cross": [False, True],
        "edges": ["causal", "layers", "rows"],
    }
)


def config(**changes) -> TransformerConfig:
    return TransformerConfig(**{"dim": C, "n_layer": 2, "n_head": H, "mlp_dim": 6} | changes)


def randomize(module: nn.Module) -> nn.Module:
    """Set every weight, those of norms too: a forgotten one must show."""
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.5)
    return module.double().eval()


def random_nodes(batch: int = B, nodes: int = T) -> Tensor:
    return torch.randn(batch, nodes, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def first_is_read(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (k == 0) | (q >= k)


# --- the stack ---


@pytest.mark.parametrize("setting", SETTINGS, ids=caption)
def test_a_transformer_is_message_passing(setting):
    setting = dict(setting)
    cross, name, cycle = setting.pop("cross"), setting.pop("edges"), setting.pop("rotary_cycle")
    setting |= {"rotary_cycle": cycle} if setting["position"] == "rotary" else {}
    model = randomize(Transformer(config(**setting), cross))
    x, memory = random_nodes(), random_nodes(B, 3) if cross else None
    lengths, memory_lengths = torch.tensor([3, 5]), torch.tensor([3, 1])

    def edges_of(rows: slice) -> list[Edges]:
        by_row = causal | prefix(lengths[rows])
        return {"causal": [causal, causal], "layers": [causal & window(2), full], "rows": [by_row, by_row]}[name]

    edges = edges_of(slice(None))
    result = model(x, edges if name == "layers" else edges[0], memory, within(memory_lengths))
    for row in range(B):
        memory_row = None if memory is None else memory[row]
        memory_edges = within(memory_lengths[row : row + 1])
        expected = SlowTransformer(model)(x[row], edges_of(slice(row, row + 1)), memory_row, memory_edges)
        torch.testing.assert_close(result[row], expected, rtol=1e-4, atol=1e-5)  # rotations are float32


def test_layers_with_the_same_rule_share_a_context():
    model = Transformer(config(n_layer=3, position="rotary"))
    local = causal & window(3)
    contexts = prepare_edges(model, torch.randn(B, T, C), [local, causal, local], None, None)
    assert contexts[0] is contexts[2] and contexts[0].cos_sin is contexts[1].cos_sin
    assert contexts[0].kernel is not contexts[1].kernel


@pytest.mark.parametrize("edges", [causal, full, full & window(3)], ids=str)
@pytest.mark.parametrize("lengths", [4, torch.tensor([4, 2])], ids=["equal", "ragged"])
def test_layers_share_a_context_with_a_cache(edges, lengths):
    model = Transformer(config(position="alibi"))
    cache = KVCache(model.config, B)
    cache.lengths = lengths
    contexts = prepare_edges(model, torch.randn(B, T, C), [edges] * 2, None, cache)
    assert contexts[0] is contexts[1]


# --- a bare function as edges ---


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_a_bare_function_serves_as_edges(position):
    model, x = randomize(Transformer(config(position=position))), random_nodes()
    expected = model(x, Edges(first_is_read))
    torch.testing.assert_close(model(x, first_is_read), expected)
    torch.testing.assert_close(model(x, [first_is_read, lambda b, h, q, k: first_is_read(b, h, q, k)]), expected)
    torch.testing.assert_close(model(x, causal | first_is_read), expected)
    cache = KVCache(model.config, B)
    parts = [model(x[:, :2], first_is_read, cache=cache), model(x[:, 2:], first_is_read, cache=cache)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_memory_is_read_along_a_bare_function():
    model, x, memory = randomize(Transformer(config(), cross=True)), random_nodes(), random_nodes(B, 3)
    expected = model(x, causal, memory, causal)
    torch.testing.assert_close(model(x, causal, memory, lambda b, h, q, k: q >= k), expected)


# --- Attention and Block by themselves ---


@pytest.mark.parametrize("position", ["none", "rotary", "alibi"])
@pytest.mark.parametrize("edges", [full, causal, causal & window(2), first_is_read], ids=lambda e: str(as_edges(e)))
@torch.no_grad()
def test_blocks_in_a_row_are_a_transformer(position, edges):
    for norm_place in ("pre", "post"):
        model, x = randomize(Transformer(config(position=position, norm_place=norm_place))), random_nodes()
        y = x
        for block in model.blocks:
            y = block(y, edges)
        torch.testing.assert_close(model.norm(y), model(x, edges))


@torch.no_grad()
def test_a_layer_alone_reads_a_memory_and_a_cache():
    shape = config(position="rotary", n_layer=1)
    block, x, memory = randomize(Block(shape, cross=True)), random_nodes(), random_nodes(B, 3)
    memory_edges, cache = within(torch.tensor([3, 1])), KVCache(shape, B)
    expected, parts = block(x, edges=causal, memory=memory, memory_edges=memory_edges), []
    for t in range(T):
        parts.append(block(x[:, t : t + 1], causal, memory, memory_edges, cache))
        cache.advance(1)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5)


def test_attention_alone_equals_torchs():
    attention, x = randomize(Attention(config(position="none"))), random_nodes()
    theirs = nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64)
    maps = [attention.query, attention.key, attention.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in maps]))
        theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in maps]))
    theirs.out_proj = attention.output
    is_masked = torch.ones(T, T).triu(1).bool()
    y, weights = attention(x, edges=causal, need_weights=True)
    expected = theirs(x, x, x, attn_mask=is_masked, average_attn_weights=False)
    torch.testing.assert_close((y, weights), expected)
    torch.testing.assert_close(attention(x, from_mask(~is_masked)), y)
    weights.square().sum().backward()
    assert attention.query.weight.grad.abs().sum() > 0


def test_relative_positions_need_the_stack_that_owns_them():
    for layer in (Attention(config(position="relative")), Block(config(position="relative"))):
        with pytest.raises(ValueError, match=r"relative positions are weights .* call a Transformer"):
            layer(torch.randn(B, T, C))


# --- weights and hooks ---

WEIGHTS = pairwise({"rule": list(RULES), "position": POSITIONS, "n_kv_head": [None, 2], "nodes": [12, 140]})


@pytest.mark.parametrize("setting", WEIGHTS, ids=caption)
@torch.no_grad()
def test_attention_weights_are_those_of_the_output(setting):
    """By every kernel: they are 0 where there is no edge, sum to 1, and weigh the values."""
    nodes, B = setting["nodes"], 3
    edges = RULES[setting["rule"]](B, nodes)
    model = randomize(Transformer(config(position=setting["position"], n_kv_head=setting["n_kv_head"])))
    x, inputs = random_nodes(B, nodes), []
    model.blocks[1].attn.register_forward_hook(lambda _, args, y: inputs.append((args[0], y)))
    weights = attention_weights(model, lambda: model(x, edges))
    mask = edges.build_mask(B, nodes, nodes, H).expand(B, H, nodes, nodes)
    assert weights.shape == (2, B, H, nodes, nodes) and not weights[:, ~mask].any()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).double().expand(2, -1, -1, -1))
    (normed, y), attn = inputs[0], model.blocks[1].attn
    values = attn.split_heads(attn.value(normed)).repeat_interleave(H // model.config.kv_heads, dim=1)
    torch.testing.assert_close(attn.output((weights[1] @ values).transpose(1, 2).flatten(2)), y)


@torch.no_grad()
def test_weights_of_cross_attention_are_the_alignment():
    model = EncoderDecoder(nn.Identity(), config(), TokenEmbedding(11, config()), config(), LMHead(C, 11))
    x, ids, lengths = random_nodes(B, 4).float(), torch.randint(11, (B, 3)), torch.tensor([4, 2])
    weights = initialize(model, config()).alignment(x, ids, within(lengths))
    assert weights.shape == (2, H, B, 3, 4) and not weights[:, :, 1, :, 2:].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, H, B, 3))
    memory, attention = model.encode(x, within(lengths)), model.decoder.blocks[0].cross
    _, expected = attention(random_nodes(B, 3).float(), within(lengths), memory, need_weights=True)
    assert expected.shape == weights[0].transpose(0, 1).shape


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_forward_hooks_see_every_sublayer_with_its_nodes(norm_place):
    model, seen = Transformer(config(norm_place=norm_place), cross=True), []
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("attn", "cross", "mlp"):
            module.register_forward_hook(lambda _, args, y, name=name: seen.append((name, args[0].shape, y.shape)))
    model(torch.randn(B, T, C), causal, torch.randn(B, 3, C))
    shape = (B, T, C)
    names = [f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "cross", "mlp")]
    assert seen == [(name, shape, shape) for name in names]


# --- pickling ---


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu"])
@torch.no_grad()
def test_a_model_can_be_pickled_with_its_edges(position, activation):
    model, x = Transformer(config(position=position, activation=activation, qk_norm=True)), torch.randn(B, T, C)
    edges = [causal & window(3), causal | prefix(torch.tensor([1, 2]))]
    copy, edges_copy, config_copy = pickle.loads(pickle.dumps((model, edges, model.config)))
    assert torch.equal(copy(x, edges_copy), model(x, edges)) and config_copy == model.config
    assert torch.equal(deepcopy(model)(x, deepcopy(edges)), model(x, edges))


@torch.no_grad()
def test_an_encoder_decoder_can_be_pickled():
    model = EncoderDecoder(nn.Identity(), config(), TokenEmbedding(11, config()), config(), LMHead(C, 11)).eval()
    x, ids, lengths = torch.randn(B, 4, C), torch.randint(11, (B, 3)), within(torch.tensor([4, 2]))
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy(x, ids, lengths), model(x, ids, lengths))


# --- errors ---


@pytest.mark.parametrize("module", [Transformer, Block, Attention])
@pytest.mark.parametrize("shape", [(B, T, 7), (T, C), (B, 1, T, C)], ids=str)
def test_nodes_of_another_shape_are_rejected_in_one_line(module, shape):
    with pytest.raises(ValueError, match=rf"^x has shape \({', '.join(map(str, shape))}\); .* dim = {C}$"):
        module(config())(torch.randn(shape), edges=causal)


def test_a_memory_of_another_width_is_rejected():
    for module in (Transformer(config(), cross=True), Block(config(), cross=True)):
        with pytest.raises(ValueError, match=rf"^memory has shape \(2, 3, 7\); .* dim = {C}$"):
            module(torch.randn(B, T, C), causal, torch.randn(B, 3, 7))


@pytest.mark.parametrize("module", [Transformer, Block, Attention])
def test_a_mask_as_edges_is_rejected_in_one_line(module):
    with pytest.raises(TypeError, match=r"^edges is a tensor of shape \(5, 5\); edges are rules: from_mask\(tensor\)"):
        module(config())(torch.randn(B, T, C), torch.ones(T, T).bool())


@pytest.mark.parametrize("module", [Transformer, Block])
@pytest.mark.parametrize("cross", [False, True])
def test_a_memory_is_given_exactly_to_stacks_that_read_one(module, cross):
    with pytest.raises(ValueError, match="cross=True reads a memory"):
        module(config(), cross=cross)(torch.randn(B, T, C), causal, None if cross else torch.randn(B, T, C))


@pytest.mark.parametrize("count", [1, 3])
def test_there_is_one_rule_for_each_layer_or_one_for_all(count):
    with pytest.raises(ValueError, match=f"{count} rules of edges for 2 layers"):
        Transformer(config())(torch.randn(B, T, C), [causal] * count)


def test_the_public_names_are_all_there():
    import anyformer.model

    assert MLP(config())(torch.randn(B, T, C)).shape == (B, T, C)
    assert all(hasattr(anyformer.model, name) for name in anyformer.model.__all__)


@pytest.mark.parametrize("module", [Attention, Block])
def test_a_width_in_place_of_a_config_is_refused(module: Any):
    with pytest.raises(TypeError, match="config is 64; it must be a TransformerConfig"):
        module(64)
