"""A cache of which local layers keep their window only: whatever is read, it answers as if all had been kept.

Shapes: B batch, T nodes, C channels.
"""

import random

import pytest
import torch
from test_decoding import greedy, model, naive
from torch import Tensor

from anyformer.inference.decode import generate, new_cache
from anyformer.inference.sampling import SamplingParams
from anyformer.model.transformer import Transformer
from anyformer.model.cache import KVCache
from anyformer.model.config import TransformerConfig
from anyformer.model.edges import Edges, causal, every, window
from anyformer.model.kernels import select as paths

B, T, C, SIZE = 3, 40, 16, 12

LAYERS: dict[str, list[Edges]] = {
    "local": [causal & window(4), causal & window(4)],
    "of several widths": [causal & window(1), causal & window(7)],
    "strided": [causal & window(6) & every(2), causal & window(3)],
    "as wide as the cache": [causal & window(SIZE - 1), causal & window(5)],
}
EDGES = pytest.mark.parametrize("edges", LAYERS.values(), ids=list(LAYERS))
POSITIONS = pytest.mark.parametrize("position", ["none", "rotary", "relative", "alibi"])


@pytest.fixture(autouse=True, params=[0, paths.READ], ids=["by products", "by the kernel"])
def whoever_reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A single query goes by products where there is much to read: here always, and as little as there is here."""
    monkeypatch.setattr(paths, "READ", request.param)


class Local:
    """A stack of local layers, and nodes for it to read."""

    def __init__(self, edges: list[Edges], position: str = "rotary", **more):
        torch.manual_seed(0)
        shape = {"dim": C, "n_layer": len(edges), "n_head": 4, "n_kv_head": 2, "context": SIZE, "mlp_dim": 24}
        self.config, self.edges = TransformerConfig(**shape, position=position, **more), edges
        self.body = Transformer(self.config).eval()
        for weight in self.body.parameters():
            torch.nn.init.normal_(weight, std=0.4)
        self.body.double()
        self.x = torch.randn(B, T, C).double()

    def cache(self, batch: int = B) -> KVCache:
        return KVCache(self.config, batch)

    def read(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.body(x, self.edges, cache=cache)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5)  # rotary turns are float32


def rooms(cache: KVCache) -> list[int]:
    return [pair[0].shape[2] for pair in cache.layers if pair is not None]


@EDGES
@POSITIONS
@pytest.mark.parametrize("begin", [1, 3, 11, 30])
@torch.inference_mode()
def test_far_past_its_size_it_answers_as_if_all_had_been_kept(edges, position, begin):
    """After a prompt of any length: longer than a window, and than the cache."""
    local = Local(edges, position)
    cache = local.cache()
    parts = [local.read(local.x[:, :begin], cache)]
    parts += [local.read(local.x[:, t : t + 1], cache) for t in range(begin, T)]
    close(torch.cat(parts, dim=1), local.read(local.x))
    assert rooms(cache) == [int(rule.left_span) + 1 for rule in edges] and cache.unbounded


@EDGES
@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_it_is_read_in_pieces_of_any_length(edges, seed):
    local, draw = Local(edges), random.Random(seed)
    cache, parts, at = local.cache(), [], 0
    while at < T:
        new = draw.choice([1, 1, 2, 3, 5, 9])
        parts.append(local.read(local.x[:, at : at + new], cache))
        at += new
    close(torch.cat(parts, dim=1), local.read(local.x))


def ragged(local: Local, lengths: Tensor) -> KVCache:
    """Rows of these lengths read side by side, padded on the right."""
    cache, x = local.cache(len(lengths)), local.x[: len(lengths), : int(lengths.max())].clone()
    x[torch.arange(x.shape[1]) >= lengths[:, None]] = 7.0
    cache.prefill_lengths = lengths
    local.read(x, cache)
    cache.trim(lengths)
    return cache


@EDGES
@POSITIONS
@pytest.mark.parametrize("lengths", [[20, 1, 6], [2, 1, 3], [9, 9, 9], [12, 13, 2]], ids=str)
@pytest.mark.parametrize("rows", [None, [2, 0, 0]], ids=["as they are", "picked"])
@torch.inference_mode()
def test_rows_of_unequal_length_are_each_row_alone(edges, position, lengths, rows):
    """Step by step and in pieces; and after a beam has dropped one row and doubled another."""
    local, start = Local(edges, position), torch.tensor(lengths)
    cache, rows = ragged(local, start), rows or list(range(B))
    answers = []
    for new in (1, 1, 3, 1, 9, 1):
        at = start[:, None] + torch.arange(new)
        answers.append(local.read(local.x.gather(1, at[..., None].expand(-1, -1, C)), cache))
        start = start + new
        if len(answers) == 2:
            cache.reorder(torch.tensor(rows))
            start, local.x = start[rows], local.x[rows]
            answers = [answer[rows] for answer in answers]
    for row, said in enumerate(torch.cat(answers, dim=1)):
        first = lengths[rows[row]]
        close(said, local.read(local.x[row : row + 1, : first + len(said)])[0, first:])


@torch.inference_mode()
def test_layers_keep_what_each_of_them_needs():
    local = Local([causal & window(3), causal, causal & window(SIZE), causal & window(5)])
    cache = local.cache()
    parts = [local.read(local.x[:, :7], cache), *(local.read(local.x[:, t : t + 1], cache) for t in range(7, SIZE))]
    close(torch.cat(parts, dim=1), local.read(local.x[:, :SIZE]))
    assert rooms(cache) == [3, SIZE, SIZE, 5] and not cache.unbounded
    with pytest.raises(ValueError, match=f"holds {SIZE} nodes and would need {SIZE + 1}"):
        local.read(local.x[:, SIZE : SIZE + 1], cache)


@torch.inference_mode()
def test_what_was_let_go_of_does_not_come_back():
    local = Local(LAYERS["local"])
    cache = local.cache()
    local.read(local.x[:, :4], cache)
    cache.trim(torch.tensor([2, 2, 2]))  # nothing has been let go of yet
    close(local.read(local.x[:, 2:9], cache), local.read(local.x)[:, 2:9])
    cache.trim(torch.tensor([9, 9, 9]))
    for told in (None, torch.tensor([9, 9, 8])):
        cache.prefill_lengths = told
        with pytest.raises(ValueError, match="cannot go back"):
            cache.trim(torch.tensor([9, 7, 9]))


@torch.inference_mode()
def test_a_rule_may_not_reach_further_than_it_did():
    local = Local(LAYERS["local"])
    cache = local.cache()
    local.read(local.x[:, :4], cache)
    local.edges = [causal & window(6), causal & window(6)]
    with pytest.raises(ValueError, match="keeps 4 nodes, and its rule now reads 6"):
        local.read(local.x[:, 4:5], cache)


# --- decoding ---


@POSITIONS
@torch.inference_mode()
def test_local_layers_write_on_for_ever(position):
    """Nothing is cropped: each token is the likeliest after the whole text."""
    made = model(position, window=5, global_every=99)
    said, text = greedy(made, [[3, 1, 4]], 60)[0], [3, 1, 4]
    for token in said:
        assert token == int(made(torch.tensor([text]))[0, -1].argmax())
        text.append(token)
    assert len(text) > 3 * made.body.config.context


@torch.inference_mode()
def test_a_batch_that_writes_on_for_ever_is_each_prompt_alone():
    made = model("rotary", window=4, global_every=99)
    prompts = [[1], [2, 3, 4, 5, 6], list(range(20)), [7, 8]]
    assert greedy(made, prompts, 40) == [greedy(made, [prompt], 40)[0] for prompt in prompts]


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
@torch.inference_mode()
def test_where_nodes_carry_their_position_the_text_is_cropped(position):
    made = model(position, window=5, global_every=99)
    assert greedy(made, [[3, 1, 4]], 50) == [naive(made, [3, 1, 4], 50)]


@torch.inference_mode()
def test_memory_is_taken_once(monkeypatch: pytest.MonkeyPatch):
    made, taken = model("rotary", window=5, global_every=99), []
    real = KVCache.take
    monkeypatch.setattr(KVCache, "take", lambda *given: taken.append(real(*given)) or taken[-1])
    for _ in generate(made, [[1, 2]], tokens=100, sampling=SamplingParams(), seeds=[0]):
        pass
    assert [keys.shape[2] for keys, _ in taken] == [5] * 3
    assert new_cache(made, 1).size == 16
