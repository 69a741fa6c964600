"""Every path of messages equals the slow oracle, in values and in gradients, under every rule of edges.

Shapes: B batch, H heads, G heads of keys and values, Q queries, K keys, T nodes, D channels of a head.
"""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyformer.model.edges import Edges, causal, every, full, neighbors, window, within
from anyformer.model.kernels import select as paths
from anyformer.model.kernels.select import AttentionSpec, BlockLocal, DenseMask, AttentionKernel, SDPA, select_kernel, build_flex
from anyformer.model.positions import Alibi, RelativeBias
from reference import Head, Node, attend_slowly, gradients_slowly
from rules import READY, composed

CPU = torch.device("cpu")
B, H, T, D = 3, 4, 12, 4
unfused = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def messages(heads: int = H, groups: int = H, queries: int = T, keys: int = T, batch: int = B, channels: int = D):
    """Random q, k, v in float64, with gradients."""
    torch.manual_seed(queries * 100 + keys)
    shapes = (batch, heads, queries, channels), (batch, groups, keys, channels), (batch, groups, keys, channels)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def asked(q: Tensor, k: Tensor, start: int | Tensor = 0) -> AttentionSpec:
    return AttentionSpec(q.shape[0], q.shape[1], q.shape[2], k.shape[2], start, q.device)


def bias_table(bias, q: Tensor, k: Tensor, edges: Edges, start: int | Tensor = 0) -> Tensor | None:
    """The number on each edge, (B or 1, H, Q, K)."""
    if bias is None:
        return None
    at = torch.arange(q.shape[2]).view(1, 1, -1, 1) + torch.as_tensor(start).view(-1, 1, 1, 1)
    return bias(torch.arange(q.shape[1]).view(1, -1, 1, 1), at, torch.arange(k.shape[2]), edges.right_span > 0)


def check(path: AttentionKernel, edges: Edges, q: Tensor, k: Tensor, v: Tensor, bias=None, start: int | Tensor = 0) -> None:
    """The path equals the oracle in y and in the gradients of q, k, v and of what the bias has learned."""
    learned = [bias.weight] if isinstance(bias, RelativeBias) else []
    table = bias_table(bias, q, k, edges, start)
    y = path(q, k, v)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y, attend_slowly(q, k, v, edges, table, start))
    if not y.requires_grad:  # no message has been sent at all
        return
    got = torch.autograd.grad(y, [q, k, v, *learned], dy, allow_unused=True, materialize_grads=True)
    *want, dbias = gradients_slowly(dy, q, k, v, edges, table, start)
    if learned:
        want += torch.autograd.grad(table, learned, dbias.sum(0, keepdim=True) if len(table) == 1 else dbias)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def without_gradient(path: AttentionKernel, edges: Edges, q: Tensor, k: Tensor, v: Tensor, bias=None) -> None:
    """FlexAttention has no backward on CPU."""
    with torch.no_grad():
        table = bias_table(bias, q, k, edges)
        torch.testing.assert_close(path(q.detach(), k.detach(), v.detach()), attend_slowly(q, k, v, edges, table))


# --- the oracle itself ---


def test_the_order_in_which_messages_are_read_changes_nothing():
    torch.manual_seed(0)
    maps = [torch.randn(D, D, dtype=torch.float64) for _ in range(3)]
    head = Head(*[lambda node, m=m: (m @ torch.tensor(node.data, dtype=torch.float64)).tolist() for m in maps])
    nodes = [Node(torch.randn(D).tolist()) for _ in range(6)]
    incoming = [(node, 0.0) for node in nodes[1:]]
    shuffled = random.Random(0).sample(incoming, len(incoming))
    assert nodes[0].hear(head, incoming) == pytest.approx(nodes[0].hear(head, shuffled))


def test_a_node_without_edges_hears_nothing():
    q, k, v = messages()
    assert not attend_slowly(q, k, v, ~full).any()


def test_the_oracle_agrees_with_a_softmax_written_in_one_line():
    q, k, v = messages()
    dense = (q @ k.mT / math.sqrt(D)).softmax(-1) @ v
    torch.testing.assert_close(attend_slowly(q, k, v, full), dense)
    dy = torch.randn_like(dense)
    for one, other in zip(gradients_slowly(dy, q, k, v, full), torch.autograd.grad(dense, [q, k, v], dy), strict=False):
        torch.testing.assert_close(one, other)


# --- attention: each path, each rule ---


@pytest.fixture(params=["torch's kernel", "products"])
def kernel(request, monkeypatch):
    """The sums of a path by torch's kernel, and spelled out, a few heads at a time."""
    monkeypatch.setattr(paths, "is_matmul_faster", lambda q, k, drop=0.0: request.param == "products")
    monkeypatch.setattr(paths, "PIECE", 5 * T * T)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("path", "edges"), [(SDPA(), full), (SDPA(triangle=True), causal)], ids=["all", "triangle"])
def test_plain(path, edges, groups, kernel):
    check(path, edges, *messages(groups=groups))


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("name", READY)
def test_dense(name, groups, kernel):
    edges = READY[name](B, T)
    q, k, v = messages(groups=groups)
    check(DenseMask.of(edges, None, asked(q, k)), edges, q, k, v)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("nodes", [70, 64])  # blocks of 32: the last one ragged or whole
def test_blocked(name, groups, nodes, kernel):
    edges = window(4) & READY[name](2, nodes)
    q, k, v = messages(groups=groups, queries=nodes, keys=nodes, batch=2, channels=2)
    check(BlockLocal.of(edges, None, asked(q, k)), edges, q, k, v)


@pytest.mark.parametrize(
    "edges", [causal & window(41), ~causal & window(41), window(35), neighbors(9, 11, 2)], ids=str
)
def test_blocked_with_spans_longer_than_a_block(edges):
    q, k, v = messages(heads=2, groups=1, queries=101, keys=101, batch=1, channels=2)
    check(BlockLocal.of(edges, None, asked(q, k)), edges, q, k, v)


@unfused
@pytest.mark.parametrize("name", READY)
def test_flex(name):
    edges = READY[name](B, T)
    q, k, v = messages(groups=2)
    without_gradient(build_flex(edges, None, asked(q, k), compiled=False), edges, q, k, v)


@unfused
@pytest.mark.parametrize("make", [RelativeBias, Alibi])
@pytest.mark.parametrize("name", ["full", "causal", "causal & window", "within", "by row and head", "nobody"])
def test_biases_on_edges(name, make, kernel):
    torch.manual_seed(0)
    edges, bias = READY[name](B, T), make(H).double()
    q, k, v = messages(groups=2)
    check(DenseMask.of(edges, bias, asked(q, k)), edges, q, k, v, bias)
    without_gradient(build_flex(edges, bias, asked(q, k), compiled=False), edges, q, k, v, bias)
    local = edges & window(5)
    check(BlockLocal.of(local, bias, asked(q, k)), local, q, k, v, bias)


@given(composed(B, T), st.sampled_from([1, 2, 4]), st.sampled_from([None, "relative", "alibi"]))
def test_any_composition_over_any_path(edges, groups, position):
    bias = {None: None, "relative": RelativeBias(H).double(), "alibi": Alibi(H).double()}[position]
    q, k, v = messages(groups=groups)
    check(DenseMask.of(edges, bias, asked(q, k)), edges, q, k, v, bias)
    check(select_kernel(edges, bias, asked(q, k)), edges, q, k, v, bias)
    if math.isfinite(edges.left_span + edges.right_span):
        check(BlockLocal.of(edges, bias, asked(q, k)), edges, q, k, v, bias)


@given(composed(2, 140), st.integers(1, 8), st.booleans())
def test_the_chosen_path_equals_the_dense_one(edges, size, local):
    edges = edges & window(size) if local else edges
    q, k, v = messages(heads=2, groups=1, queries=140, keys=140, batch=2, channels=2)
    at = asked(q, k)
    torch.testing.assert_close(select_kernel(edges, None, at)(q, k, v), DenseMask.of(edges, None, at)(q, k, v))


# --- queries and keys that are not the same nodes ---


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize(("queries", "keys"), [(5, T), (1, T), (T, 5)])
def test_cross_attention(name, queries, keys):
    edges = READY[name](B, T)
    q, k, v = messages(groups=2, queries=queries, keys=keys)
    check(select_kernel(edges, None, asked(q, k)), edges, q, k, v)


@pytest.mark.parametrize("position", [None, "relative", "alibi"])
@pytest.mark.parametrize("start", [7, torch.tensor([7, 3, 5])], ids=["together", "ragged"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("name", READY)
def test_queries_after_nodes_that_were_read_before(name, queries, start, position):
    edges = READY[name](B, T)
    bias = {None: None, "relative": RelativeBias(H).double(), "alibi": Alibi(H).double()}[position]
    q, k, v = messages(groups=2, queries=queries, keys=7 + queries)
    check(select_kernel(edges, bias, asked(q, k, start)), edges, q, k, v, bias, start)


@pytest.mark.parametrize("edges", [causal, window(3), causal & window(3)], ids=str)
@pytest.mark.parametrize("start", [0, 5])
def test_as_many_queries_as_keys_may_still_stand_elsewhere(edges, start):
    q, k, v = messages(heads=2, groups=1, queries=130, keys=130, batch=1, channels=2)
    check(select_kernel(edges, None, asked(q, k, start)), edges, q, k, v, start=start)


# --- nodes without edges ---


def test_a_lonely_row_answers_exactly_zero_and_has_finite_gradients(kernel):
    edges = within(torch.tensor([T, 0, 3])) & window(2)  # all of row 1, the end of row 2
    for bias in (None, RelativeBias(H).double()):
        q, k, v = messages()
        for path in (DenseMask.of(edges, bias, asked(q, k)), BlockLocal.of(edges, bias, asked(q, k))):
            read = path.mask if path.mask.dtype == torch.bool else path.mask.isfinite()
            assert read.any(-1).all()  # softmax over nothing is NaN on some machines: it must not be asked
            y = path(q, k, v)
            assert not y[1].any() and not y[2, :, 4:].any() and y[0].any()
            gradients = torch.autograd.grad(y.square().sum(), [q, k, v])
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert not any(gradient[1].any() for gradient in gradients)


# --- which path ---


def test_plain_edges_take_the_plain_path():
    at = AttentionSpec(1, H, T, T, 0, CPU)
    assert select_kernel(full, None, at) == SDPA() and select_kernel(causal, None, at) == SDPA(triangle=True)
    assert select_kernel(causal, None, AttentionSpec(1, H, 1, T, T - 1, CPU)) == SDPA()


@pytest.mark.parametrize(
    ("edges", "at"),
    [
        (causal, AttentionSpec(2, H, 3, T, T - 3, CPU)),
        (causal, AttentionSpec(2, H, 1, T, torch.tensor([3, T - 1]), CPU)),
        (every(2), AttentionSpec(2, H, T, T, 0, CPU)),
        (causal & window(4), AttentionSpec(2, H, 1, 500, 499, CPU)),
    ],
    ids=["a chunk", "ragged rows", "a rule without span", "a step"],
)
def test_other_edges_take_the_dense_path(edges, at):
    assert isinstance(select_kernel(edges, None, at), DenseMask)


def test_a_step_with_a_window_looks_at_the_window_only():
    assert select_kernel(causal & window(4), None, AttentionSpec(2, H, 1, 500, 499, CPU)).mask.shape[-1] == 4


@pytest.mark.parametrize("edges", [causal & window(16), window(16), neighbors(40, 8, 1) & causal], ids=str)
def test_the_cost_of_a_window_grows_with_the_nodes_not_with_their_square(edges):
    size = []
    for nodes in (320, 640):
        path = select_kernel(edges, None, AttentionSpec(1, H, nodes, nodes, 0, CPU))
        assert isinstance(path, BlockLocal)
        size.append(path.mask.numel())
    assert size[1] == 2 * size[0] < 640 * 640 / 4


def test_without_dropout_a_path_gives_the_same_twice_and_with_it_not(kernel):
    q, k, v = messages(queries=70, keys=70)
    for edges in (full, causal, causal & window(3), every(2)):
        path = select_kernel(edges, None, asked(q, k))
        assert torch.equal(path(q, k, v), path(q, k, v, 0.0))
        assert not torch.equal(path(q, k, v, 0.5), path(q, k, v, 0.5))


def test_what_is_dropped_never_takes_the_path_that_cannot_drop(monkeypatch):
    """FlexAttention has no dropout of weights: with dropout a GPU goes another way."""
    monkeypatch.setattr(paths, "build_flex", lambda *_: pytest.fail("took FlexAttention"))
    monkeypatch.setattr(DenseMask, "of", lambda *_: "dense")
    gpu = torch.device("cuda")
    assert select_kernel(causal & every(2), None, AttentionSpec(1, H, 9, 9, 0, gpu, drop=0.1)) == "dense"


# --- on a GPU: compiled, with a backward ---


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("position", [None, "relative", "alibi"])
@pytest.mark.parametrize("name", ["causal & window", "within", "same, one a row", "by row and head", "nobody"])
def test_flex_compiled_equals_dense(name, position):
    torch.manual_seed(0)
    nodes = 200
    edges = READY[name](B, nodes)
    table = edges.build_mask(B, nodes, nodes, H).expand(B, H, -1, -1).cuda()  # what the rule holds lies on the CPU
    on_gpu = Edges(lambda b, h, q, k: table[b, h, q, k], right_span=edges.right_span)
    bias = {None: None, "relative": RelativeBias(H).cuda(), "alibi": Alibi(H).cuda()}[position]
    q, k, v = (torch.randn(B, g, nodes, 32, device="cuda", requires_grad=True) for g in (H, 2, 2))
    learned = [bias.weight] if position == "relative" else []
    answers = []
    for make in (DenseMask.of, build_flex):
        y = make(on_gpu, bias, asked(q, k))(q, k, v)
        dy = torch.linspace(-1, 1, y.numel(), device="cuda").view(y.shape)
        answers.append([y, *torch.autograd.grad(y, [q, k, v, *learned], dy)])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
