"""Exactness: cached = uncached, batched = single, packed = separate, the future stays out, save -> load = the same.

Shapes: B batch, T nodes, C channels, M nodes of a memory. Weights are float64, rotations float32.
"""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer.model import (
    Classifier,
    Edges,
    KVCache,
    LMHead,
    TokenEmbedding,
    Transformer,
    TransformerConfig,
    causal,
    every,
    full,
    leak,
    prefix,
    reach,
    same,
    window,
    within,
)
from anyformer.model.kernels import sdpa
from rules import caption, pairwise

B, T, VOCAB, LAYERS = 3, 12, 17, 2
PREFIX = torch.tensor([2, 1, 2])
MEMORY = torch.tensor([4, 1, 3])  # ragged

EDGES: dict[str, Callable[[list[int]], Edges | list[Edges]]] = {
    "causal": lambda rows: causal,
    "local": lambda rows: causal & window(4),
    "interleaved": lambda rows: [causal & window(3), causal],
    "strided": lambda rows: causal & every(3),
    "prefix": lambda rows: causal | prefix(PREFIX[rows]),
}
"""Rules under which a row can be decoded, for some rows of the batch."""

FACTORS = {
    "position": ["none", "learned", "sinusoidal", "rotary", "relative", "alibi", "mixed"],
    "edges": list(EDGES),
    "norm": ["layernorm", "rmsnorm", "rmsnorm_1p"],
    "norm_place": ["pre", "post", "output", "sandwich"],
    "softcap": [None, 2.0],
    "n_kv_head": [None, 2, 1],
    "qk_norm": [False, True],
    "qk_norm_joint": [False, True],
    "activation": ["gelu", "relu2", "swiglu", "geglu"],
    "cross": [False, True],
    "single_query": ["matmul", "kernel"],
}
over_settings = pytest.mark.parametrize("setting", pairwise(FACTORS), ids=caption)


class TinyModel(nn.Module):
    """Tokens in, logits out; with a memory for stacks that read one."""

    def __init__(self, setting: dict):
        super().__init__()
        setting = {"position": "learned", "cross": False, "edges": "causal", "single_query": "kernel"} | setting
        setting.pop("single_query")
        self.rules, self.cross = EDGES[setting.pop("edges")], setting.pop("cross")
        torch.manual_seed(0)
        self.config = TransformerConfig(dim=16, n_layer=LAYERS, n_head=4, mlp_dim=24, context=T, **setting)
        self.nodes = TokenEmbedding(VOCAB, self.config)
        self.body = Transformer(self.config, self.cross)
        self.head = LMHead(16, VOCAB)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.4)
        self.double().eval()
        self.ids = torch.randint(VOCAB, (B, T))
        self.memory = torch.randn(B, 4, 16).double()

    def forward(self, ids: Tensor, rows: list[int], cache: KVCache | None = None, edges=None) -> Tensor:
        positions = None if cache is None else cache.positions(ids.shape[1])
        memory = (self.memory[rows], within(MEMORY[rows])) if self.cross else (None, full)
        return self.head(self.body(self.nodes(ids, positions), edges or self.rules(rows), *memory, cache))

    def new_cache(self, batch: int = B) -> KVCache:
        return KVCache(self.config, batch)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


ALL = list(range(B))


@pytest.fixture(autouse=True)
def choose_backend_of_single_queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single query over many keys is computed by batched products: here over any number of keys, or never."""
    setting = request.node.callspec.params.get("setting", {}) if hasattr(request.node, "callspec") else {}
    if setting.get("single_query", "matmul") == "matmul":
        monkeypatch.setattr(sdpa, "MIN_KEY_NUMBERS", 0)


# --- cached = uncached ---


@over_settings
@torch.no_grad()
def test_cached_is_uncached(setting):
    model = TinyModel(setting)
    expected, cache, parts = model(model.ids, ALL), model.new_cache(), []
    cuts = sorted(random.Random(caption(setting)).sample(range(5, T - 2), 2))
    for start, end in zip([0, *cuts, *range(T - 2, T)], [*cuts, *range(T - 2, T), T]):  # chunks, then steps
        parts.append(model(model.ids[:, start:end], ALL, cache))
        assert cache.max_length == end
    assert_close(torch.cat(parts, dim=1), expected)


@over_settings
@torch.no_grad()
def test_prompts_of_unequal_length_share_a_cache(setting):
    model, lengths, steps = TinyModel(setting), torch.tensor([6, 2, 4]), 5
    cache = model.new_cache()
    prompt = model.ids[:, :6].clone()
    prompt[torch.arange(6) >= lengths[:, None]] = 0  # padding on the right
    cache.reset(lengths)
    outputs = [model(prompt, ALL, cache)[torch.arange(B), lengths - 1]]
    cache.trim(lengths)
    positions = lengths[:, None] + torch.arange(steps)
    for step in range(steps):
        outputs.append(model(model.ids.gather(1, positions[:, step : step + 1]), ALL, cache)[:, 0])
    for row, length in enumerate(lengths.tolist()):
        alone = model(model.ids[row : row + 1, : length + steps], [row])[0, length - 1 :]
        assert_close(torch.stack(outputs, dim=1)[row], alone)


@torch.no_grad()
@pytest.mark.parametrize("position", FACTORS["position"])
def test_rows_of_a_ragged_cache_do_not_read_empty_slots(position):
    """Even where a rule lets a node read ahead of itself, slots after the end of a shorter row are empty."""
    for chunk in (1, 3):
        model, lengths = TinyModel({"position": position}), torch.tensor([6, 2, 4])
        cache = model.new_cache()
        model(model.ids[:, :6], ALL, cache)
        cache.trim(lengths)
        together = model(model.ids[:, -chunk:], ALL, cache, [causal, full])
        for row in ALL:
            alone = model.new_cache(1)
            model(model.ids[row : row + 1, : lengths[row]], [row], alone)
            assert_close(together[row], model(model.ids[row : row + 1, -chunk:], [row], alone, [causal, full])[0])


@torch.no_grad()
def test_a_cache_can_go_back():
    model = TinyModel({})
    cache = model.new_cache()
    model(model.ids[:, :8], ALL, cache)
    cache.trim(torch.tensor([5, 5, 5]))
    assert_close(model(model.ids[:, 5:], ALL, cache), model(model.ids, ALL)[:, 5:])


def test_a_cache_that_is_too_small_says_so():
    model = TinyModel({})
    cache = KVCache(model.config, B, size=6)
    model(model.ids[:, :4], ALL, cache)
    with pytest.raises(ValueError, match="holds 6 nodes and would need 7"):
        model(model.ids[:, 4:7], ALL, cache)


@torch.no_grad()
def test_keys_and_values_of_a_memory_are_computed_once():
    model, calls = TinyModel({"cross": True}), []
    for block in model.body.blocks:
        block.cross.key.register_forward_hook(lambda *_: calls.append("key"))
        block.cross.value.register_forward_hook(lambda *_: calls.append("value"))
    cache = model.new_cache()
    for t in range(T):
        model(model.ids[:, t : t + 1], ALL, cache)
    assert sorted(calls) == ["key"] * LAYERS + ["value"] * LAYERS


@torch.no_grad()
@pytest.mark.parametrize("memory_edges", [causal, window(2), ~causal, same(torch.arange(T) // 4)], ids=str)
def test_a_memory_is_read_from_the_absolute_position(memory_edges):
    """The newest node of a decoder reads the memory from its own position, not from 0."""
    model = TinyModel({"cross": True})
    x, memory = model.nodes(model.ids), torch.randn(B, T, 16).double()
    expected, cache = model.body(x, causal, memory, memory_edges), model.new_cache()
    parts = [model.body(x[:, t : t + 1], causal, memory, memory_edges, cache) for t in range(T)]
    assert_close(torch.cat(parts, dim=1), expected)
    starts = torch.tensor([7, 2, 4])  # rows of unequal length
    cache.trim(starts)
    step = model.body(x[torch.arange(B), starts][:, None], causal, memory, memory_edges, cache)
    assert_close(step[:, 0], expected[torch.arange(B), starts])


# --- batched = single ---


@over_settings
@torch.no_grad()
def test_padding_changes_nothing(setting):
    model, lengths = TinyModel(setting), torch.tensor([7, 0, 12])
    together = model(model.ids, ALL, edges=within(lengths))
    assert together.isfinite().all()
    for row in (0, 2):
        length = int(lengths[row])
        assert_close(together[row, :length], model(model.ids[row : row + 1, :length], [row], edges=full)[0])


def test_an_empty_row_has_finite_gradients():
    model, lengths = TinyModel({"norm_place": "post"}), torch.tensor([7, 0, 12])
    logits = Classifier(16, 2).double()(model.body(model.nodes(model.ids), within(lengths)), lengths)
    logits.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.body.parameters())


# --- packed = separate ---


@over_settings
def test_packed_documents_are_separate_documents(setting):
    """In the output, and in the gradient of every weight."""
    model = TinyModel(setting | {"cross": False, "edges": "causal"})
    sizes = [5, 3, 4]
    document = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    positions = torch.cat([torch.arange(size) for size in sizes])
    packed = model.head(model.body(model.nodes(model.ids, positions), causal & same(document)))
    alone = torch.cat([model(ids, ALL) for ids in model.ids.split(sizes, dim=1)], dim=1)
    assert_close(packed, alone)
    weights = [weight for weight in model.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), weights, materialize_grads=True) for y in (packed, alone)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


# --- what flows where ---

FLOWS = {
    "causal": [causal, causal],
    "windows": [causal & window(3), causal & window(3)],
    "interleaved": [causal & window(2), causal],
    "strided": [causal & window(2), causal & every(3)],
    "prefix": [causal | prefix(torch.tensor([3]))] * 2,
    "packed": [causal & same(torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]))] * 2,
    "one layer looks ahead": [causal, window(2)],
    "no edges": [~full, ~full],
}


@pytest.mark.parametrize(
    "setting",
    pairwise({"layers": list(FLOWS), "position": ["learned", "relative"], "norm_place": ["pre", "post"]}),
    ids=caption,
)
def test_information_flows_exactly_along_the_edges(setting):
    """Node q changes with node k if and only if a message can get there, through all layers. The output is projected on
    a random vector: after a norm, the gradient of a plain sum is zero and would show nothing."""
    setting = dict(setting)
    layers = FLOWS[setting.pop("layers")]
    model = TinyModel(setting)
    x = model.nodes(model.ids[:1]).detach().requires_grad_()
    y = model.body(x, layers) @ torch.randn(16).double()  # (1, T)
    flows = torch.stack([torch.autograd.grad(y[0, q], x, retain_graph=True)[0][0].ne(0).any(-1) for q in range(T)])
    assert torch.equal(flows, reach(layers, T))
    assert bool(flows.triu(1).any()) == bool(len(leak(layers, T)))


@over_settings
def test_the_past_reaches_the_future_and_not_the_reverse(setting):
    """A changed token changes no output before it, and the newest one."""
    model, cut = TinyModel(setting), 6  # past every prefix; 11 - 6 is within two windows, or a stride and a window
    other = model.ids.clone()
    other[:, cut] = (other[:, cut] + 1) % VOCAB
    with torch.no_grad():
        change = (model(model.ids, ALL) - model(other, ALL)).abs().amax(-1)  # (B, T)
    assert not (change[:, :cut] > 1e-9).any()
    assert (change[:, [cut, cut + 3]] > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("norm_place", ["pre", "post"])
@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
def test_a_set_ignores_order(n_kv_head, norm_place):
    model = TinyModel({"position": "none", "n_kv_head": n_kv_head, "norm_place": norm_place})
    order = torch.randperm(T)
    assert_close(model(model.ids[:, order], ALL, edges=full), model(model.ids, ALL, edges=full)[:, order])


@torch.no_grad()
@pytest.mark.parametrize("position", FACTORS["position"][1:])
def test_a_position_breaks_the_symmetry(position):
    model = TinyModel({"position": position})
    same_token = torch.zeros(1, T, dtype=torch.long)
    first, second = model(same_token, [0], edges=full)[0, 0], model(same_token, [0], edges=full)[0, 1]
    swapped = model.ids[:, [*range(T - 2), T - 1, T - 2]]
    assert not torch.allclose(model(swapped, ALL, edges=full)[:, 0], model(model.ids, ALL, edges=full)[:, 0], atol=1e-4)
    assert position in ("rotary", "relative", "alibi") or not torch.allclose(first, second, atol=1e-4)


# --- save -> load, twice the same ---


@over_settings
@torch.no_grad()
def test_a_loaded_model_gives_the_same_output_to_the_bit(setting):
    model, other = TinyModel(setting), TinyModel(setting)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(model.ids, ALL), model(model.ids, ALL))


@torch.no_grad()
def test_dropout_acts_in_training_only():
    model = TinyModel({"dropout": 0.5})
    assert torch.equal(model(model.ids, ALL), model(model.ids, ALL))
    model.train()
    assert not torch.equal(model(model.ids, ALL), model(model.ids, ALL))
