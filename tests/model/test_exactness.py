"""Exactness: cached = uncached, batched = single, packed = separate, the future stays out, save -> load = the same.

Shapes: B batch, T nodes, C channels, M nodes of a memory. Weights are float64 except inside rotary turns.
"""

import random
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anyformer.model.transformer import Transformer
from anyformer.model.cache import KVCache
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import Edges, causal, every, full, leak, prefix, reach, same, window, within
from anyformer.model.embeddings import TokenEmbedding
from anyformer.model.heads import Classifier, LMHead
from anyformer.model.kernels import select as paths
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
"""Rules under which a row can be decoded, made for some rows of the batch."""

FACTORS = {
    "position": ["none", "learned", "sinusoidal", "rotary", "relative", "alibi"],
    "edges": list(EDGES),
    "norm": ["layernorm", "rmsnorm"],
    "norm_place": ["pre", "post"],
    "n_kv_head": [None, 2, 1],
    "qk_norm": [False, True],
    "activation": ["gelu", "relu2", "swiglu", "geglu"],
    "cross": [False, True],
}
SETTINGS = pairwise(FACTORS)
over_settings = pytest.mark.parametrize("setting", SETTINGS, ids=caption)


class Small(nn.Module):
    """Tokens in, logits out; a memory for those that read one."""

    def __init__(self, setting: dict):
        super().__init__()
        setting = {"position": "learned", "cross": False, "edges": "causal"} | setting
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
        at = None if cache is None else cache.positions(ids.shape[1])
        told = (self.memory[rows], within(MEMORY[rows])) if self.cross else (None, full)
        return self.head(self.body(self.nodes(ids, at), edges or self.rules(rows), *told, cache))

    def cache(self, batch: int = B) -> KVCache:
        return KVCache(self.config, batch)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


ALL = list(range(B))


@pytest.fixture(autouse=True, params=[0, paths.READ], ids=["by products", "by the kernel"])
def whoever_reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A single query goes by products where there is much to read: here always, and as little as there is here."""
    monkeypatch.setattr(paths, "READ", request.param)


# --- cached = uncached ---


@over_settings
@torch.no_grad()
def test_cached_is_uncached(setting):
    model = Small(setting)
    whole, cache, parts = model(model.ids, ALL), model.cache(), []
    cuts = sorted(random.Random(caption(setting)).sample(range(5, T - 2), 2))
    for start, end in zip([0, *cuts, *range(T - 2, T)], [*cuts, *range(T - 2, T), T]):  # chunks, then steps
        parts.append(model(model.ids[:, start:end], ALL, cache))
        assert cache.max_length == end
    close(torch.cat(parts, dim=1), whole)


@over_settings
@torch.no_grad()
def test_prompts_of_unequal_length_share_a_cache(setting):
    model, lengths, steps = Small(setting), torch.tensor([6, 2, 4]), 5
    cache = model.cache()
    prompt = model.ids[:, :6].clone()
    prompt[torch.arange(6) >= lengths[:, None]] = 0  # padding on the right
    cache.prefill_lengths = lengths
    answers = [model(prompt, ALL, cache)[torch.arange(B), lengths - 1]]
    cache.trim(lengths)
    at = lengths[:, None] + torch.arange(steps)
    for step in range(steps):
        answers.append(model(model.ids.gather(1, at[:, step : step + 1]), ALL, cache)[:, 0])
    for row in range(B):
        n = int(lengths[row])
        alone = model(model.ids[row : row + 1, : n + steps], [row])[0, n - 1 :]
        close(torch.stack(answers, dim=1)[row], alone)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("position", FACTORS["position"])
def test_rows_of_a_ragged_cache_do_not_read_empty_slots(position, chunk):
    """Where a rule lets a node read ahead of itself, what lies past the end of a shorter row is still nothing."""
    model, lengths = Small({"position": position}), torch.tensor([6, 2, 4])
    cache = model.cache()
    model(model.ids[:, :6], ALL, cache)
    cache.trim(lengths)
    together = model(model.ids[:, -chunk:], ALL, cache, [causal, full])
    for row in ALL:
        alone = model.cache(1)
        model(model.ids[row : row + 1, : lengths[row]], [row], alone)
        close(together[row], model(model.ids[row : row + 1, -chunk:], [row], alone, [causal, full])[0])


@torch.no_grad()
def test_trimming_all_rows_alike_goes_back_in_time():
    model = Small({})
    cache = model.cache()
    model(model.ids[:, :8], ALL, cache)
    cache.trim(torch.tensor([5, 5, 5]))
    close(model(model.ids[:, 5:], ALL, cache), model(model.ids, ALL)[:, 5:])


def test_a_cache_that_is_too_small_says_so():
    model = Small({})
    cache = KVCache(model.config, B, size=6)
    model(model.ids[:, :4], ALL, cache)
    with pytest.raises(ValueError, match="holds 6 nodes and would need 7"):
        model(model.ids[:, 4:7], ALL, cache)


@torch.no_grad()
def test_keys_and_values_of_a_memory_are_computed_once():
    model, calls = Small({"cross": True}), []
    for block in model.body.blocks:
        block.cross.key.register_forward_hook(lambda *_: calls.append("key"))
        block.cross.value.register_forward_hook(lambda *_: calls.append("value"))
    cache = model.cache()
    for at in range(T):
        model(model.ids[:, at : at + 1], ALL, cache)
    assert sorted(calls) == ["key"] * LAYERS + ["value"] * LAYERS


@torch.no_grad()
@pytest.mark.parametrize("reads", [causal, window(2), ~causal, same(torch.arange(T) // 4)], ids=str)
def test_a_memory_is_read_by_absolute_position(reads):
    """The newest node of a decoder reads the memory from where it stands, not from place 0."""
    model = Small({"cross": True})
    x, memory = model.nodes(model.ids), torch.randn(B, T, 16).double()
    whole, cache = model.body(x, causal, memory, reads), model.cache()
    parts = [model.body(x[:, at : at + 1], causal, memory, reads, cache) for at in range(T)]
    close(torch.cat(parts, dim=1), whole)
    starts = torch.tensor([7, 2, 4])  # rows of unequal length stand at unequal places
    cache.trim(starts)
    step = model.body(x[torch.arange(B), starts][:, None], causal, memory, reads, cache)
    close(step[:, 0], whole[torch.arange(B), starts])


# --- batched = single ---


@over_settings
@torch.no_grad()
def test_padding_changes_nothing(setting):
    model, lengths = Small(setting), torch.tensor([7, 0, 12])
    together = model(model.ids, ALL, edges=within(lengths))
    assert together.isfinite().all()
    for row in (0, 2):
        n = int(lengths[row])
        close(together[row, :n], model(model.ids[row : row + 1, :n], [row], edges=full)[0])


def test_a_row_of_nothing_but_padding_has_finite_gradients():
    model, lengths = Small({"norm_place": "post"}), torch.tensor([7, 0, 12])
    logits = Classifier(16, 2).double()(model.body(model.nodes(model.ids), within(lengths)), lengths)
    logits.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.body.parameters())


# --- packed = separate ---


@over_settings
@torch.no_grad()
def test_packed_documents_are_separate_documents(setting):
    model = Small(setting | {"cross": False, "edges": "causal"})
    sizes = [5, 3, 4]
    segment = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    positions = torch.cat([torch.arange(size) for size in sizes])
    packed = model.head(model.body(model.nodes(model.ids, positions), causal & same(segment)))
    alone = [model(ids, ALL) for ids in model.ids.split(sizes, dim=1)]
    close(packed, torch.cat(alone, dim=1))


# --- what flows where ---

FLOWS = {
    "causal": [causal, causal],
    "windows": [causal & window(3), causal & window(3)],
    "interleaved": [causal & window(2), causal],
    "strided": [causal & window(2), causal & every(3)],
    "prefix": [causal | prefix(torch.tensor([3]))] * 2,
    "packed": [causal & same(torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]))] * 2,
    "one layer looks ahead": [causal, window(2)],
    "nobody": [~full, ~full],
}


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("position", ["learned", "relative"])
@pytest.mark.parametrize("layers", FLOWS)
def test_what_flows_is_what_the_edges_say(layers, position, place):
    """Node q changes with node k if and only if a message can get there, through all layers. The answer is projected on
    a random vector: after a norm, the gradient of a plain sum is zero and would show nothing."""
    model, layers = Small({"norm_place": place, "position": position}), FLOWS[layers]
    x = model.nodes(model.ids[:1]).detach().requires_grad_()
    y = model.body(x, layers) @ torch.randn(16).double()  # (1, T)
    flows = torch.stack([torch.autograd.grad(y[0, q], x, retain_graph=True)[0][0].ne(0).any(-1) for q in range(T)])
    assert torch.equal(flows, reach(layers, T))
    assert bool(flows.triu(1).any()) == bool(len(leak(layers, T)))


@over_settings
def test_the_past_reaches_the_future_and_not_the_other_way(setting):
    """By changing a token: whatever comes before answers the same, and the newest node answers something else."""
    model, cut = Small(setting), 6  # past every prefix; 11 - 6 is within two windows, or a stride and a window
    other = model.ids.clone()
    other[:, cut] = (other[:, cut] + 1) % VOCAB
    with torch.no_grad():
        moved = (model(model.ids, ALL) - model(other, ALL)).abs().amax(-1)  # (B, T)
    assert not (moved[:, :cut] > 1e-9).any()
    assert (moved[:, [cut, cut + 3]] > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("kv", [None, 2, 1])
def test_a_set_ignores_order(kv, place):
    model, order = Small({"position": "none", "n_kv_head": kv, "norm_place": place}), torch.randperm(T)
    close(model(model.ids[:, order], ALL, edges=full), model(model.ids, ALL, edges=full)[:, order])


@torch.no_grad()
@pytest.mark.parametrize("position", FACTORS["position"][1:])
def test_a_position_breaks_the_symmetry(position):
    model = Small({"position": position})
    same_token = torch.zeros(1, T, dtype=torch.long)
    first, second = model(same_token, [0], edges=full)[0, 0], model(same_token, [0], edges=full)[0, 1]
    moved = model.ids[:, [*range(T - 2), T - 1, T - 2]]
    assert not torch.allclose(model(moved, ALL, edges=full)[:, 0], model(model.ids, ALL, edges=full)[:, 0], atol=1e-4)
    assert position in ("rotary", "relative", "alibi") or not torch.allclose(first, second, atol=1e-4)


# --- save -> load, twice the same ---


@over_settings
@torch.no_grad()
def test_a_saved_model_answers_the_same_to_the_bit(setting, tmp_path):
    model, other = Small(setting), Small(setting)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(model.ids, ALL), model(model.ids, ALL))


@torch.no_grad()
def test_dropout_is_silent_in_evaluation():
    model = Small({"dropout": 0.5})
    assert torch.equal(model(model.ids, ALL), model(model.ids, ALL))
    model.train()
    assert not torch.equal(model(model.ids, ALL), model(model.ids, ALL))
