"""A cache in which local layers keep only their window gives the same output as one that keeps everything.

Shapes: B batch, T nodes, C channels.
"""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.inference.decode import generate, new_cache
from anyformer.inference.sampling import SamplingParams
from anyformer.model import (
    Edges,
    KVCache,
    LMHead,
    TokenEmbedding,
    Transformer,
    TransformerConfig,
    causal,
    every,
    first,
    window,
)
from anyformer.model.kernels import sdpa
from anyformer.model.positions import apply_rotary, rotary_cos_sin
from anyformer.model.rope_scaling import rotary_frequencies
from rules import caption, pairwise

QUICK = {
    "test_local_layers_generate_without_end": {"matmul-rotary", "kernel-relative"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


B, T, C, SIZE, VOCAB = 3, 40, 16, 12, 23

LAYERS: dict[str, list[Edges]] = {
    "local": [causal & window(4), causal & window(4)],
    "several widths": [causal & window(1), causal & window(7)],
    "strided": [causal & window(6) & every(2), causal & window(3)],
    "as wide as the cache": [causal & window(SIZE - 1), causal & window(5)],
    "sinks": [causal & (window(4) | first(2)), causal & (window(3) | first(1))],
    "more sinks than window": [causal & (window(2) | first(7)), causal & first(3)],
}
POSITIONS = ["none", "rotary", "relative", "alibi"]


@pytest.fixture(autouse=True, params=[0, sdpa.MIN_KEY_NUMBERS], ids=["matmul", "kernel"])
def choose_backend_of_single_queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single query over many keys is computed by batched products: here over any number of keys, or never."""
    monkeypatch.setattr(sdpa, "MIN_KEY_NUMBERS", request.param)


class LocalStack:
    """A stack of local layers, and nodes for it to read."""

    def __init__(self, edges: list[Edges], position: str = "rotary"):
        torch.manual_seed(0)
        shape = {"dim": C, "n_layer": len(edges), "n_head": 4, "n_kv_head": 2, "context": SIZE, "mlp_dim": 24}
        self.config, self.edges = TransformerConfig(**shape, position=position), edges
        self.body = Transformer(self.config).eval()
        for weight in self.body.parameters():
            nn.init.normal_(weight, std=0.4)
        self.body.double()
        self.x = torch.randn(B, T, C).double()

    def new_cache(self, batch: int = B) -> KVCache:
        return KVCache(self.config, batch)

    def __call__(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.body(x, self.edges, cache=cache)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)  # rotations are float32


def capacities(cache: KVCache) -> list[int]:
    return [kv[0].shape[2] for kv in cache.layers if kv is not None]


PAST = pairwise({"layers": list(LAYERS), "position": POSITIONS, "prompt": [1, 3, 11, 30]})


@pytest.mark.parametrize("setting", PAST, ids=caption)
@torch.inference_mode()
def test_far_past_its_size_cached_is_uncached(setting):
    """After a prompt of any length: longer than a window, and than the cache."""
    edges, prompt = LAYERS[setting["layers"]], setting["prompt"]
    stack = LocalStack(edges, setting["position"])
    cache = stack.new_cache()
    parts = [stack(stack.x[:, :prompt], cache), *(stack(stack.x[:, t : t + 1], cache) for t in range(prompt, T))]
    assert_close(torch.cat(parts, dim=1), stack(stack.x))
    assert capacities(cache) == [int(rule.left_span) + 1 + rule.pinned for rule in edges] and cache.is_unbounded


@pytest.mark.parametrize("layers", LAYERS)
@torch.inference_mode()
def test_nodes_are_read_in_chunks_of_any_length(layers):
    for seed in range(3):
        stack, rng = LocalStack(LAYERS[layers]), random.Random(seed)
        cache, parts, start = stack.new_cache(), [], 0
        while start < T:
            new = rng.choice([1, 1, 2, 3, 5, 9])
            parts.append(stack(stack.x[:, start : start + new], cache))
            start += new
        assert_close(torch.cat(parts, dim=1), stack(stack.x))


def prefill(stack: LocalStack, lengths: Tensor) -> KVCache:
    """Read rows of these lengths as one batch, padded on the right."""
    cache, x = stack.new_cache(len(lengths)), stack.x[: len(lengths), : int(lengths.max())].clone()
    x[torch.arange(x.shape[1]) >= lengths[:, None]] = 7.0
    cache.reset(lengths)
    stack(x, cache)
    cache.trim(lengths)
    return cache


RAGGED = pairwise(
    {
        "layers": list(LAYERS),
        "position": POSITIONS,
        "lengths": [(20, 1, 6), (2, 1, 3), (9, 9, 9), (12, 13, 2)],
        "rows": [(0, 1, 2), (2, 0, 0)],
    }
)


@pytest.mark.parametrize("setting", RAGGED, ids=caption)
@torch.inference_mode()
def test_rows_of_unequal_length_are_each_row_alone(setting):
    """By steps and chunks; and after a beam has dropped one row and doubled another."""
    lengths, rows = list(setting["lengths"]), list(setting["rows"])
    stack, start = LocalStack(LAYERS[setting["layers"]], setting["position"]), torch.tensor(lengths)
    cache, outputs = prefill(stack, start), []
    for new in (1, 1, 3, 1, 9, 1):
        positions = start[:, None] + torch.arange(new)
        outputs.append(stack(stack.x.gather(1, positions[..., None].expand(-1, -1, C)), cache))
        start = start + new
        if len(outputs) == 2:
            cache.reorder(torch.tensor(rows))
            start, stack.x = start[rows], stack.x[rows]
            outputs = [output[rows] for output in outputs]
    for row, output in enumerate(torch.cat(outputs, dim=1)):
        first = lengths[rows[row]]
        assert_close(output, stack(stack.x[row : row + 1, : first + len(output)])[0, first:])


@torch.inference_mode()
def test_each_layer_keeps_what_its_rule_needs():
    stack = LocalStack([causal & window(3), causal, causal & window(SIZE), causal & window(5)])
    cache = stack.new_cache()
    parts = [stack(stack.x[:, :7], cache), *(stack(stack.x[:, t : t + 1], cache) for t in range(7, SIZE))]
    assert_close(torch.cat(parts, dim=1), stack(stack.x[:, :SIZE]))
    assert capacities(cache) == [3, SIZE, SIZE, 5] and not cache.is_unbounded
    with pytest.raises(ValueError, match=f"holds {SIZE} nodes and would need {SIZE + 1}"):
        stack(stack.x[:, SIZE : SIZE + 1], cache)


@torch.inference_mode()
def test_what_is_overwritten_cannot_come_back():
    stack = LocalStack(LAYERS["local"])
    cache = stack.new_cache()
    stack(stack.x[:, :4], cache)
    cache.trim(torch.tensor([2, 2, 2]))  # nothing has been overwritten yet
    assert_close(stack(stack.x[:, 2:9], cache), stack(stack.x)[:, 2:9])
    cache.trim(torch.tensor([9, 9, 9]))
    for prefill_lengths in (None, torch.tensor([9, 9, 8])):
        cache.prefill_lengths = prefill_lengths
        with pytest.raises(ValueError, match="cannot go back"):
            cache.trim(torch.tensor([9, 7, 9]))


@torch.inference_mode()
def test_the_span_of_a_layer_may_not_change():
    stack = LocalStack(LAYERS["local"])
    cache = stack.new_cache()
    stack(stack.x[:, :4], cache)
    stack.edges = [causal & window(6), causal & window(6)]
    with pytest.raises(ValueError, match="layer 0 keeps 4 nodes, but its rule now reads 6"):
        stack(stack.x[:, 4:5], cache)


# --- streams ---


@pytest.mark.parametrize("layers", ["local", "several widths", "sinks"])
@torch.inference_mode()
def test_node_a_million_of_a_stream_is_read_as_node_a_thousand_is(layers):
    """In float32, after the same nodes: angles keep their digits, and sinks seem no further than in the training."""
    outputs = []
    for start in (1_000, 999_999, 10_000_007):
        stack = LocalStack(LAYERS[layers])
        stack.body.float()
        x, cache = stack.x.float(), stack.new_cache()
        stack(x[:, :3], cache)  # the sinks
        cache.lengths = start
        parts = [stack(x[:, t : t + new], cache) for t, new in ((3, 1), (4, 9), (13, 1), (14, 5), (19, 1))]
        outputs.append(torch.cat(parts, dim=1)[:, 10:])  # nodes that read nothing from before the jump but sinks
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_sink_of_a_stream_is_no_further_away_than_the_context_is_long():
    """Written a second time: past the context, the query of a pinned key is turned as the last one of the context."""
    rule = causal & (window(3) | first(2))
    stack = LocalStack([rule])
    attention, positions = stack.body.blocks[0].attn, torch.arange(T)
    frequency = rotary_frequencies(stack.config, T, torch.device("cpu"))[0]
    q, k, v = attention.qkv(stack.x, None)
    k = apply_rotary(k, rotary_cos_sin(positions, frequency)).repeat_interleave(2, dim=1)
    last = positions.clamp(max=SIZE - 1)
    far, near = (apply_rotary(q, rotary_cos_sin(p, frequency)) @ k.mT for p in (positions, last))
    scores = torch.where(positions < 2, near, far) / attention.head_channels**0.5
    weights = scores.masked_fill(~rule.build_mask(1, T, T), -torch.inf).softmax(-1)
    expected = attention.output((weights @ v.repeat_interleave(2, dim=1)).transpose(1, 2).flatten(2))
    assert_close(attention(stack.x, rule), expected)


# --- decoding ---


class LocalLM(nn.Module):
    """A language model of local layers, for `generate`."""

    def __init__(self, position: str):
        super().__init__()
        torch.manual_seed(0)
        config = TransformerConfig(dim=C, n_layer=2, n_head=4, context=SIZE, position=position)
        self.nodes, self.body, self.head = TokenEmbedding(VOCAB, config), Transformer(config), LMHead(C, VOCAB)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.4)
        self.double().eval()

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        positions = None if cache is None else cache.positions(ids.shape[1])
        return self.body(self.nodes(ids, positions), causal & window(4), cache=cache)

    def greedy(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0)
        steps = generate(self, prompts, tokens=tokens, sampling=params, seeds=[0] * len(prompts))
        return [list(row) for row in zip(*steps)]


@pytest.mark.parametrize("position", POSITIONS)
@torch.inference_mode()
def test_local_layers_generate_without_end(position):
    """Nothing is cropped: each token is the likeliest after all before it; and a batch is each prompt alone."""
    model, text = LocalLM(position), [3, 1, 4]
    tokens = model.greedy([[3, 1, 4]], 4 * SIZE)[0]
    for token in tokens:
        assert token == int(model.head(model.hidden(torch.tensor([text])))[0, -1].argmax())
        text.append(token)
    prompts = [[1], [2, 3, 4, 5, 6], list(range(SIZE)), [3, 1, 4]]
    assert model.greedy(prompts, 4 * SIZE) == [model.greedy([prompt], 4 * SIZE)[0] for prompt in prompts]


@torch.inference_mode()
def test_the_memory_of_an_unbounded_cache_does_not_grow():
    model = LocalLM("rotary")
    cache = new_cache(model, 1)
    for token in [1, 2] * 5 * SIZE:
        model.hidden(torch.tensor([[token]]), cache)
    assert cache.size == SIZE and capacities(cache) == [4, 4] and cache.lengths == 10 * SIZE


def test_counting_nodes_reads_nothing_from_the_device():
    """A GPU would be waited for at every token."""

    class NoTransfers(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    cache = KVCache(TransformerConfig(dim=C, n_layer=1, n_head=2), 2, SIZE)
    cache.lengths = torch.tensor([3, 1])
    with NoTransfers():
        cache.advance(2)
    assert (cache.max_length, cache.lengths.tolist()) == (5, [5, 3])
