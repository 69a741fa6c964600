"""Every attention kernel equals the slow oracle, in values and in gradients, under every rule of edges.

Shapes: B batch, H heads, G heads of keys and values, Q queries, K keys, T nodes, D channels of a head.
"""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from anyformer.model.edges import Edges, causal, every, full, neighbors, same, window, within
from anyformer.model.kernels import flex, sdpa, select
from anyformer.model.kernels.block_local import BlockLocal
from anyformer.model.kernels.dense import DenseMask
from anyformer.model.kernels.flex import Flex
from anyformer.model.kernels.sdpa import SDPA, is_matmul_faster, matmul_attention
from anyformer.model.kernels.segments import Segments
from anyformer.model.kernels.select import AttentionKernel, AttentionSpec, select_kernel
from anyformer.model.position_bias import Alibi, RelativeBias
from reference import Head, Node, attend_slowly, gradients_slowly
from rules import RULES, caption, compositions, pairwise

QUICK = {
    "test_flex": {"causal & window-None", "first-relative", "by row and head-None"},
}  # with which parameters a test runs each time; with all others it is slow (conftest.py)


CPU = torch.device("cpu")
B, H, T, D = 3, 4, 12, 4
POSITIONS = [None, "relative", "alibi"]
BACKENDS = ["torch's kernel", "matmul"]
uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def make_qkv(heads: int = H, groups: int = H, queries: int = T, keys: int = T, batch: int = B, channels: int = D):
    """Random q, k, v in float64, with gradients."""
    torch.manual_seed(queries * 100 + keys)
    shapes = (batch, heads, queries, channels), (batch, groups, keys, channels), (batch, groups, keys, channels)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def make_bias(position: str | None, heads: int = H) -> RelativeBias | Alibi | None:
    torch.manual_seed(0)
    return None if position is None else {"relative": RelativeBias, "alibi": Alibi}[position](heads).double()


def spec_of(q: Tensor, k: Tensor, start: int | Tensor = 0) -> AttentionSpec:
    return AttentionSpec(q.shape[0], q.shape[1], q.shape[2], k.shape[2], start, q.device)


def bias_of_edges(bias: Any, q: Tensor, k: Tensor, edges: Edges, start: int | Tensor = 0) -> Tensor | None:
    """The bias of each edge, (B or 1, H, Q, K)."""
    if bias is None:
        return None
    queries = torch.arange(q.shape[2]).view(1, 1, -1, 1) + torch.as_tensor(start).view(-1, 1, 1, 1)
    return bias(torch.arange(q.shape[1]).view(1, -1, 1, 1), queries, torch.arange(k.shape[2]), edges.right_span > 0)


def check(kernel: AttentionKernel, edges: Edges, qkv: list[Tensor], bias: Any = None, start: int | Tensor = 0) -> None:
    """The kernel equals the oracle in y and in the gradients of q, k, v and the weights of the bias."""
    q, k, v = qkv
    weights = [bias.weight] if isinstance(bias, RelativeBias) else []
    biases = bias_of_edges(bias, q, k, edges, start)
    y = kernel(q, k, v)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y, attend_slowly(q, k, v, edges, biases, start))
    if not y.requires_grad:  # there are no edges at all
        return
    result = torch.autograd.grad(y, [q, k, v, *weights], dy, allow_unused=True, materialize_grads=True)
    *expected, dbias = gradients_slowly(dy, q, k, v, edges, biases, start)
    if weights:
        expected += torch.autograd.grad(biases, weights, dbias.sum(0, keepdim=True) if len(biases) == 1 else dbias)
    for actual, slow in zip(result, expected, strict=True):
        torch.testing.assert_close(actual, slow)


@torch.no_grad()
def check_values(kernel: AttentionKernel, edges: Edges, qkv: list[Tensor], bias: Any = None) -> None:
    """FlexAttention has no backward on a CPU."""
    q, k, v = (x.detach() for x in qkv)
    torch.testing.assert_close(kernel(q, k, v), attend_slowly(q, k, v, edges, bias_of_edges(bias, q, k, edges)))


@pytest.fixture(autouse=True)
def choose_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by torch's kernel or by batched products, a few heads at a time, as the test's `setting` says."""
    setting = getattr(request.node, "callspec", None) and request.node.callspec.params.get("setting", {})
    if setting and "backend" in setting:
        monkeypatch.setattr(sdpa, "is_matmul_faster", lambda q, k, p=0.0: setting["backend"] == "matmul")
        monkeypatch.setattr(sdpa, "MAX_SCORES_AT_ONCE", 5 * T * T)


# --- the oracle itself ---


def test_the_order_of_messages_changes_nothing():
    torch.manual_seed(0)
    maps = [torch.randn(D, D, dtype=torch.float64) for _ in range(3)]
    head = Head(*[lambda node, m=m: (m @ torch.tensor(node.data, dtype=torch.float64)).tolist() for m in maps])
    nodes = [Node(torch.randn(D).tolist()) for _ in range(6)]
    incoming = [(node, 0.0) for node in nodes[1:]]
    shuffled = random.Random(0).sample(incoming, len(incoming))
    assert nodes[0].receive(head, incoming) == pytest.approx(nodes[0].receive(head, shuffled))


def test_the_oracle_agrees_with_a_softmax_in_one_line():
    q, k, v = make_qkv()
    dense = (q @ k.mT / math.sqrt(D)).softmax(-1) @ v
    torch.testing.assert_close(attend_slowly(q, k, v, full), dense)
    assert not attend_slowly(q, k, v, ~full).any()
    dy = torch.randn_like(dense)
    slow, fast = gradients_slowly(dy, q, k, v, full), torch.autograd.grad(dense, [q, k, v], dy)
    for actual, expected in zip(slow, fast, strict=False):
        torch.testing.assert_close(actual, expected)


# --- each kernel, each rule ---


@pytest.mark.parametrize("setting", pairwise({"causal": [0, 1], "groups": [4, 2, 1], "backend": BACKENDS}), ids=caption)
def test_sdpa(setting):
    check(SDPA(bool(setting["causal"])), causal if setting["causal"] else full, make_qkv(groups=setting["groups"]))


KERNEL_FACTORS = {"rule": list(RULES), "groups": [4, 2, 1], "position": POSITIONS, "backend": BACKENDS}


@pytest.mark.parametrize("setting", pairwise(KERNEL_FACTORS), ids=caption)
def test_dense_mask(setting):
    edges, bias, qkv = RULES[setting["rule"]](B, T), make_bias(setting["position"]), make_qkv(groups=setting["groups"])
    check(DenseMask(edges, bias, spec_of(*qkv[:2])), edges, qkv, bias)


ROW, COLUMN = torch.arange(12) // 4, torch.arange(12) % 4
GRID_RULES = {
    "rows": same(ROW),
    "columns": same(COLUMN),
    "other columns": same(ROW) & ~same(COLUMN),
    "no edges": same(ROW) & same(COLUMN) & ~same(ROW),
    "ragged": within(torch.tensor([12, 5, 1])) & same(COLUMN),
    "rows unlike": (causal | within(torch.tensor([3, 9, 12]))) & same(ROW),
}
SEGMENT_FACTORS = {"rule": list(GRID_RULES), "groups": [4, 2, 1], "position": POSITIONS}


@pytest.mark.parametrize("setting", pairwise(SEGMENT_FACTORS | {"backend": BACKENDS}), ids=caption)
def test_segments(setting):
    """The rows and the columns of a grid of 3 by 4 nodes."""
    edges, qkv = GRID_RULES[setting["rule"]], make_qkv(groups=setting["groups"])
    bias = make_bias(setting["position"])
    spec = spec_of(*qkv[:2])
    kernel = select_kernel(edges, bias, spec)
    assert isinstance(kernel, Segments) and Segments.find(edges | causal, spec) is None
    assert Segments.find(same(torch.arange(12) // 5), spec) is None, "of unequal size"
    check(kernel, edges, qkv, bias)


def test_segments_cost_what_their_pairs_cost():
    """64 rows of 140 columns: one mask of a row, not one of 80 million pairs."""
    row, column = torch.arange(64 * 140) // 140, torch.arange(64 * 140) % 140
    spec = AttentionSpec(1, 2, 64 * 140, 64 * 140, 0, CPU)
    by_row, by_column = (select_kernel(rule, None, spec) for rule in (same(row) & ~same(column), same(column)))
    assert by_row.mask.shape == (1, 1, 140, 140) and by_column.mask is None
    assert select_kernel(same(column), Alibi(2), spec).mask.shape == (140, 2, 64, 64)


@pytest.mark.parametrize("setting", pairwise(KERNEL_FACTORS | {"nodes": [43, 64]}), ids=caption)
def test_block_local(setting):
    """Blocks of 32 nodes, the last one incomplete or full."""
    nodes = setting["nodes"]
    edges, bias = window(4) & RULES[setting["rule"]](2, nodes), make_bias(setting["position"])
    qkv = make_qkv(groups=setting["groups"], queries=nodes, keys=nodes, batch=2, channels=2)
    check(BlockLocal(edges, bias, spec_of(*qkv[:2])), edges, qkv, bias)


@pytest.mark.parametrize("edges", [causal & window(41), ~causal & window(41), neighbors(9, 11, 2)], ids=str)
def test_block_local_with_spans_longer_than_a_block(edges):
    qkv = make_qkv(heads=2, groups=1, queries=99, keys=99, batch=1, channels=2)
    check(BlockLocal(edges, None, spec_of(*qkv[:2])), edges, qkv)


@uncompiled
@pytest.mark.parametrize(("rule", "position"), list(zip(RULES, POSITIONS * len(RULES))))
def test_flex(rule, position):
    edges, bias, qkv = RULES[rule](B, T), make_bias(position), make_qkv(groups=2, channels=16)
    check_values(Flex(edges, bias, spec_of(*qkv[:2]), compiled=False), edges, qkv, bias)


@given(compositions(B, T), st.sampled_from([1, 2, 4]), st.sampled_from(POSITIONS))
def test_any_composition_by_any_kernel(edges, groups, position):
    bias, qkv = make_bias(position), make_qkv(groups=groups)
    check(DenseMask(edges, bias, spec_of(*qkv[:2])), edges, qkv, bias)
    if math.isfinite(edges.left_span + edges.right_span):
        check(BlockLocal(edges, bias, spec_of(*qkv[:2])), edges, qkv, bias)


@given(compositions(2, 140), st.integers(1, 8), st.booleans())
def test_the_selected_kernel_equals_a_dense_mask(edges, size, is_local):
    edges = edges & window(size) if is_local else edges
    q, k, v = make_qkv(heads=2, groups=1, queries=140, keys=140, batch=2, channels=2)
    spec = spec_of(q, k)
    torch.testing.assert_close(select_kernel(edges, None, spec)(q, k, v), DenseMask(edges, None, spec)(q, k, v))


# --- queries and keys that are not the same nodes ---

CROSS = {"rule": list(RULES), "sizes": [(5, T), (1, T), (T, 5)], "backend": BACKENDS}
CACHED = {"rule": list(RULES), "queries": [1, 3], "start": ["equal", "ragged"], "position": POSITIONS}


@pytest.mark.parametrize("setting", pairwise(CROSS), ids=caption)
def test_cross_attention(setting):
    edges, (queries, keys) = RULES[setting["rule"]](B, T), setting["sizes"]
    qkv = make_qkv(groups=2, queries=queries, keys=keys)
    check(select_kernel(edges, None, spec_of(*qkv[:2])), edges, qkv)


@pytest.mark.parametrize("setting", pairwise(CACHED), ids=caption)
def test_queries_after_nodes_in_a_cache(setting):
    edges, start = RULES[setting["rule"]](B, T), 7 if setting["start"] == "equal" else torch.tensor([7, 3, 5])
    bias, queries = make_bias(setting["position"]), setting["queries"]
    qkv = make_qkv(groups=2, queries=queries, keys=7 + queries)
    check(select_kernel(edges, bias, spec_of(*qkv[:2], start)), edges, qkv, bias, start)


@pytest.mark.parametrize("edges", [causal, window(3), causal & window(3)], ids=str)
def test_as_many_queries_as_keys_may_start_at_another_position(edges):
    qkv = make_qkv(heads=2, groups=1, queries=130, keys=130, batch=1, channels=2)
    check(select_kernel(edges, None, spec_of(*qkv[:2], 5)), edges, qkv, start=5)


# --- queries without edges ---


@pytest.mark.parametrize("setting", [{"backend": backend} for backend in BACKENDS], ids=caption)
@pytest.mark.parametrize("position", [None, "relative"])
def test_a_query_without_edges_gives_zero_with_finite_gradients(setting, position):
    edges = within(torch.tensor([T, 0, 3])) & window(2)  # none in row 1 and at the end of row 2
    q, k, v = make_qkv()
    for kernel in (DenseMask, BlockLocal):
        kernel = kernel(edges, make_bias(position), spec_of(q, k))
        is_read = kernel.mask if kernel.mask.dtype == torch.bool else kernel.mask.isfinite()
        assert is_read.any(-1).all()  # a softmax over nothing is NaN on some machines
        y = kernel(q, k, v)
        assert not y[1].any() and not y[2, :, 4:].any() and y[0].any()
        gradients = torch.autograd.grad(y.square().sum(), [q, k, v])
        assert all(gradient.isfinite().all() and not gradient[1].any() for gradient in gradients)


# --- which kernel ---


def test_full_and_causal_need_no_mask():
    for edges, spec, is_causal in [
        (full, AttentionSpec(1, H, T, T, 0, CPU), False),
        (causal, AttentionSpec(1, H, T, T, 0, CPU), True),
        (causal, AttentionSpec(1, H, 1, T, T - 1, CPU), False),
    ]:
        kernel = select_kernel(edges, None, spec)
        assert isinstance(kernel, SDPA) and kernel.is_causal == is_causal


@pytest.mark.parametrize(
    ("edges", "spec"),
    [
        (causal, AttentionSpec(2, H, 3, T, T - 3, CPU)),
        (causal, AttentionSpec(2, H, 1, T, torch.tensor([3, T - 1]), CPU)),
        (every(2), AttentionSpec(2, H, T, T, 0, CPU)),
        (causal & window(4), AttentionSpec(2, H, 1, 500, 499, CPU)),
    ],
    ids=["chunk", "ragged rows", "no finite span", "step"],
)
def test_other_edges_take_a_dense_mask(edges, spec):
    kernel = select_kernel(edges, None, spec)
    assert isinstance(kernel, DenseMask) and kernel.mask.shape[-1] == (4 if spec.keys == 500 else T)


@pytest.mark.parametrize("edges", [causal & window(16), window(16), neighbors(40, 8, 1) & causal], ids=str)
def test_the_cost_of_a_window_grows_linearly(edges):
    kernels = [select_kernel(edges, None, AttentionSpec(1, H, nodes, nodes, 0, CPU)) for nodes in (320, 640)]
    assert all(isinstance(kernel, BlockLocal) for kernel in kernels)
    sizes = [kernel.mask.numel() for kernel in kernels]
    assert sizes[1] == 2 * sizes[0] < 640 * 640 / 4


@pytest.mark.parametrize("setting", [{"backend": backend} for backend in BACKENDS], ids=caption)
def test_kernels_are_deterministic_without_dropout_and_random_with_it(setting):
    q, k, v = make_qkv(queries=70, keys=70)
    for edges in (full, causal, causal & window(3), every(2)):
        kernel = select_kernel(edges, None, spec_of(q, k))
        assert torch.equal(kernel(q, k, v), kernel(q, k, v, 0.0))
        assert not torch.equal(kernel(q, k, v, 0.5), kernel(q, k, v, 0.5))


def test_a_gpu_takes_flex_attention_except_with_dropout(monkeypatch):
    """FlexAttention has no dropout of weights."""
    monkeypatch.setattr(select, "Flex", lambda *_: "flex")
    monkeypatch.setattr(select, "DenseMask", lambda *_: "dense")
    for dropout_p, expected in ((0.1, "dense"), (0.0, "flex")):
        spec = AttentionSpec(1, H, 9, 9, 0, torch.device("cuda"), dropout_p)
        assert select_kernel(causal & every(2), None, spec) == expected


# --- batched products instead of torch's kernel ---


@pytest.mark.parametrize("edges", [full, causal, every(2), causal & window(3)], ids=str)
def test_products_serve_bfloat16_and_are_as_exact_as_torchs_kernel(edges, monkeypatch):
    exact = torch.randn(3, 2, 4, 130, 16, generator=torch.Generator().manual_seed(0)).unbind()
    kernel = select_kernel(edges, None, AttentionSpec(2, 4, 130, 130, 0, CPU))
    rounded = [x.bfloat16() for x in exact]
    assert is_matmul_faster(*rounded[:2]) and not is_matmul_faster(*exact[:2])
    error = (kernel(*rounded).float() - kernel(*exact)).abs().max()
    monkeypatch.setattr(sdpa, "is_matmul_faster", lambda q, k, p=0.0: False)
    assert error < 2 * (kernel(*rounded).float() - kernel(*exact)).abs().max() + 0.01


def test_products_serve_single_queries_with_many_keys_and_no_long_sequences(monkeypatch):
    q, k = torch.randn(2, 4, 1, 16), torch.randn(2, 4, 130, 16)
    monkeypatch.setattr(sdpa, "MIN_KEY_NUMBERS", k.numel())
    assert is_matmul_faster(q, k) and not is_matmul_faster(q, k[:1])
    long = torch.empty(1, 1, 1100, 8, dtype=torch.bfloat16)
    assert not is_matmul_faster(long, long)  # all scores would be kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("mask_shape", [None, (1, 1), (2, 6)], ids=str)
def test_products_of_a_single_query_equal_torchs_kernel(heads: int, groups: int, mask_shape, dtype: torch.dtype):
    """Over part of a cache, with and without a mask, heads sharing keys or not."""
    rng = torch.Generator().manual_seed(heads)
    q = torch.randn(2, heads, 1, 16, generator=rng).to(dtype)
    k, v = (torch.randn(2, groups, 90, 16, generator=rng).to(dtype)[:, :, 3:40] for _ in range(2))
    mask = None
    if mask_shape is not None:
        mask = torch.randn(mask_shape[0], heads if mask_shape[1] > 1 else 1, 1, 37, generator=rng)
        mask = mask.masked_fill(torch.rand(mask.shape, generator=rng) < 0.3, -torch.inf)
    y = matmul_attention(q, k, v, mask, 0.0, 0.3)
    expected = sdpa.sdpa(q.float(), k.float(), v.float(), mask, 0.0, 0.3)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.03)


# --- FlexAttention's blocks ---


@pytest.mark.parametrize("name", RULES)
def test_the_blocks_of_a_rule_are_those_that_torch_finds(name: str, monkeypatch):
    """Evaluated a few rows at a time, or all at once."""
    nodes, batch = 300, 2
    edges = RULES[name](batch, nodes)
    b, h = batch if edges.uses_batch else None, H if edges.uses_head else None
    expected = create_block_mask(edges, b, h, nodes, nodes, device="cpu")
    for pairs in (1, 1 << 26):
        monkeypatch.setattr(flex, "MAX_PAIRS_AT_ONCE", pairs)
        mask = flex.build_block_mask(edges, batch, H, nodes, nodes, CPU)
        assert mask.shape == expected.shape and mask.sparsity() == expected.sparsity()
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(mask, name), getattr(expected, name)), name
        for count, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
            is_listed = torch.arange(3) < getattr(mask, count)[..., None]
            assert torch.equal(getattr(mask, indices)[is_listed], getattr(expected, indices)[is_listed]), indices


@pytest.mark.slow
def test_the_block_mask_of_a_window_fits_into_memory_at_32k_nodes():
    """torch's own function would evaluate all pairs at once: 1 GB."""
    nodes = 1 << 15
    mask = flex.build_block_mask(causal & window(256), 1, 1, nodes, nodes, CPU)
    n_blocks = mask.kv_num_blocks + mask.full_kv_num_blocks
    assert n_blocks.shape == (1, 1, nodes // flex.BLOCK) and n_blocks.max() == 3


@uncompiled
@torch.no_grad()
def test_flex_takes_queries_and_keys_of_a_wider_dtype_and_leaves_narrow_heads_to_a_dense_mask(monkeypatch):
    """As autocast on a GPU hands them over, with normed queries and keys; torch's kernel there needs 16 channels."""
    edges = causal & window(3)
    for channels, has_flex in ((8, False), (16, True)):
        q, k, v = (x.float() for x in make_qkv(groups=2, channels=channels))
        calls = []
        attend = flex._flex_attention(False)
        monkeypatch.setattr(flex, "_flex_attention", lambda _, attend=attend, calls=calls: calls.append(1) or attend)
        y = Flex(edges, None, spec_of(q, k), compiled=False)(q, k, v.bfloat16())
        monkeypatch.undo()
        assert bool(calls) == has_flex
        torch.testing.assert_close(y.float(), DenseMask(edges, None, spec_of(q, k))(q, k, v), atol=0.03, rtol=0.03)
