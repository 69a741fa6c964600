"""Edges: what each rule means, the algebra of rules, pickling, and the questions to a stack of rules."""

import math
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from anyformer.model.edges import (
    Edges,
    as_edges,
    between,
    causal,
    every,
    first,
    from_mask,
    full,
    hops,
    leak,
    neighbors,
    prefix,
    reach,
    same,
    window,
    within,
)
from rules import RULES, compositions, near_by_head

B, H, T = 3, 4, 12
LENGTHS = torch.tensor([5, 12, 0])
KINDS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 2, 2]]).repeat(B, 1) + torch.tensor([[0], [1], [0]])
READS = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()


def evaluate(edges: Edges) -> torch.Tensor:
    return edges.build_mask(B, T, T, H).expand(B, H, T, T)


def build_mask_slowly(rule: Callable[[int, int, int, int], bool]) -> torch.Tensor:
    """The mask of a rule over plain numbers."""
    rows = [[[[rule(b, h, q, k) for k in range(T)] for q in range(T)] for h in range(H)] for b in range(B)]
    return torch.tensor(rows)


# --- what each rule means ---

MEANING = {
    "full": (full, lambda b, h, q, k: True),
    "causal": (causal, lambda b, h, q, k: k in range(q + 1)),
    "window": (window(3), lambda b, h, q, k: k in (q - 2, q - 1, q, q + 1, q + 2)),
    "a window of one": (window(1), lambda b, h, q, k: q == k),
    "first": (first(3), lambda b, h, q, k: k in range(3)),
    "every": (every(4), lambda b, h, q, k: q % 4 == k % 4),
    "within": (within(LENGTHS), lambda b, h, q, k: k in range([5, 12, 0][b])),
    "prefix": (prefix(LENGTHS), lambda b, h, q, k: k in range([5, 12, 0][b])),
    "prefix language model": (causal | prefix(LENGTHS), lambda b, h, q, k: k <= max(q, [4, 11, -1][b])),
    "same for all rows": (same(KINDS[0]), lambda b, h, q, k: int(KINDS[0, q]) == int(KINDS[0, k])),
    "same by row": (same(KINDS), lambda b, h, q, k: int(KINDS[b, q]) == int(KINDS[b, k])),
    "between": (between(KINDS), lambda b, h, q, k: int(KINDS[b, q]) != int(KINDS[b, k])),
    "between for all rows": (between(KINDS[0]), lambda b, h, q, k: int(KINDS[0, q]) != int(KINDS[0, k])),
    "between by a table": (between(KINDS, READS), lambda b, h, q, k: bool(READS[KINDS[b, q], KINDS[b, k]])),
    "neighbors": (
        neighbors(2, 5, 1),  # the last two nodes are past the grid's end
        lambda b, h, q, k: max(q, k) < 10 and abs(q // 5 - k // 5) <= 1 and abs(q % 5 - k % 5) <= 1,
    ),
}


@pytest.mark.parametrize("name", MEANING)
def test_a_rule_has_exactly_its_edges(name):
    edges, rule = MEANING[name]
    assert torch.equal(evaluate(edges), build_mask_slowly(rule))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_flexattentions_mask_mod(name):
    edges = RULES[name](B, T)
    assert torch.equal(evaluate(edges), create_mask(edges, B, H, T, T, device="cpu"))


@pytest.mark.parametrize("make", [window, first, every, lambda n: neighbors(n, 3, 1), lambda n: neighbors(3, n, 1)])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "2"])
def test_a_size_that_is_no_positive_integer_is_rejected(make, size):
    with pytest.raises(ValueError, match=f"{size}; it must be an integer of at least 1"):
        make(size)


def test_a_bare_function_is_a_rule_that_depends_on_everything():
    edges = as_edges(near_by_head)
    assert as_edges(causal) is causal and repr(edges) == "near_by_head"
    assert edges.uses_batch and edges.uses_head and edges.left_span == edges.right_span == math.inf
    assert torch.equal(evaluate(causal & near_by_head), evaluate(causal) & evaluate(edges))
    assert torch.equal(evaluate(causal | near_by_head), evaluate(causal) | evaluate(edges))


def test_a_mask_is_a_rule_only_by_from_mask():
    mask = torch.rand(T, T, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(from_mask(mask).build_mask(1, T, T)[0, 0], mask)
    masks = torch.stack([mask, ~mask])[:, None].expand(2, H, T, T)
    assert torch.equal(from_mask(masks).build_mask(2, T, T, H), masks)
    with pytest.raises(TypeError, match=r"edges is a tensor of shape \(12, 12\); .* from_mask"):
        causal & mask
    for wrong in (mask.float(), mask[0]):
        with pytest.raises(ValueError, match="a mask is bool, "):
            from_mask(wrong)


@pytest.mark.parametrize("edges", ["causal", 3, [causal], None])
def test_what_is_no_rule_is_rejected(edges):
    with pytest.raises(TypeError, match="must be a rule such as causal"):
        as_edges(edges)


def test_a_rule_that_returns_numbers_is_rejected():
    with pytest.raises(TypeError, match=r"distance returns torch.int64; it must return bool"):
        Edges(lambda b, h, q, k: q - k, "distance").build_mask(1, 4, 4)


# --- pickling ---


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_pickled(name):
    edges = RULES[name](B, T)
    copy = pickle.loads(pickle.dumps(edges))
    assert torch.equal(evaluate(copy), evaluate(edges)) and vars(copy).keys() == vars(edges).keys()
    assert all(getattr(copy, name) == getattr(edges, name) for name in vars(edges).keys() - {"mask_mod", "origin"})


@given(compositions(B, T))
def test_every_composition_can_be_pickled(edges):
    copy = pickle.loads(pickle.dumps(edges))
    assert torch.equal(evaluate(copy), evaluate(edges)) and repr(copy) == repr(edges)


def test_a_copy_of_full_or_causal_is_recognized():
    """Kernels of these two need no mask, in a spawned process too."""
    for copy in (lambda edges: pickle.loads(pickle.dumps(edges)), deepcopy):
        assert copy(full) is full and copy(causal) is causal


# --- the algebra ---


@given(compositions(B, T), compositions(B, T))
def test_rules_combine_as_sets_do(first, second):
    a, b = evaluate(first), evaluate(second)
    assert torch.equal(evaluate(first & second), a & b)
    assert torch.equal(evaluate(first | second), a | b)
    assert torch.equal(evaluate(~first), ~a)
    assert torch.equal(evaluate(~(first & second)), evaluate(~first | ~second))


def test_full_adds_no_condition():
    assert (causal & full) is causal and (full & causal) is causal and (causal & causal) is causal


def test_the_repr_is_the_formula():
    assert repr(causal & window(8)) == "causal & window(8)"
    assert repr(~(causal | every(2)) & full) == "~(causal | every(2))"
    assert repr(causal & (window(8) | every(4))) == "causal & (window(8) | every(4))"


# --- spans and dependence ---


def is_within_its_span(edges: Edges) -> bool:
    _, _, q, k = evaluate(edges).nonzero().unbind(1)
    is_left = ((q - k) <= edges.left_span) | (k < edges.pinned)
    return bool(is_left.all() and ((k - q) <= edges.right_span).all())


@given(compositions(B, T))
def test_no_edge_is_longer_than_the_span(edges):
    assert is_within_its_span(edges)


def test_spans_are_tight():
    assert all(is_within_its_span(edges) for edges, _ in MEANING.values())
    assert (causal.left_span, causal.right_span) == (math.inf, 0)
    assert (first(4).left_span, first(4).right_span, first(4).pinned) == (0, 3, 4)
    assert window(4).right_span == 3
    assert (window(4).left_span, (causal & window(4)).left_span, (causal & window(4)).right_span) == (3, 3, 0)
    assert ((window(4) | window(6)).left_span, (~window(4)).left_span) == (5, math.inf)
    stream = causal & (window(4) | first(2))
    assert (stream.left_span, stream.right_span, stream.pinned) == (3, 0, 2)
    assert ((stream | window(6) | first(3)).pinned, (stream & window(3)).pinned, (stream & stream).pinned) == (3, 0, 2)
    assert ((~stream).pinned, (stream | causal).pinned, (causal & first(4)).left_span) == (0, 0, 0)


@given(compositions(B, T))
def test_a_rule_that_does_not_use_batch_or_head_is_the_same_for_all(edges):
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    b, h = torch.arange(B).view(-1, 1, 1, 1), torch.arange(H).view(1, -1, 1, 1)
    q, k = torch.arange(T).view(1, 1, -1, 1), torch.arange(T).view(1, 1, 1, -1)
    mask = edges(b, h, q, k).expand(B, H, T, T)
    if not edges.uses_batch:
        assert torch.equal(mask, edges(zero, h, q, k).expand(B, H, T, T))
    if not edges.uses_head:
        assert torch.equal(mask, edges(b, zero, q, k).expand(B, H, T, T))
    assert edges.build_mask(B, T, T).shape[1] == 1
    assert edges.build_mask(B, T, T, H).shape == (B if edges.uses_batch else 1, H if edges.uses_head else 1, T, T)


def test_only_rules_that_use_batch_or_head_say_so():
    simple = (full, causal, window(2) & causal, ~every(2) | causal)
    assert not any(edges.uses_batch or edges.uses_head for edges in simple)
    assert not same(KINDS[0]).uses_batch and same(KINDS).uses_batch and (causal & same(KINDS)).uses_batch
    shared = (within(LENGTHS), prefix(LENGTHS), same(KINDS[0]), same(KINDS), between(KINDS[0]), between(KINDS))
    assert not any(edges.uses_head for edges in shared)


# --- questions to a stack ---


def search_hops(layers: Sequence[Edges], nodes: int) -> list[list[int]]:
    """Hops from k to q by breadth-first search. A state is (node, layers passed): in each layer what a node holds
    stays (no message) or is read by another node (one message)."""
    masks = [edges.build_mask(1, nodes, nodes)[0, 0].tolist() for edges in layers]
    result = [[-1] * nodes for _ in range(nodes)]
    for k in range(nodes):
        queue, fewest = deque([(k, 0, 0)]), {(k, 0): 0}
        while queue:
            node, layer, sent = queue.popleft()
            if layer == len(layers) or sent > fewest[node, layer]:
                continue
            for q in range(nodes):
                cost = sent + (q != node)
                if (q == node or masks[layer][q][node]) and cost < fewest.get((q, layer + 1), len(layers) + 1):
                    fewest[q, layer + 1] = cost
                    queue.append((q, layer + 1, cost))
        for q in range(nodes):
            result[q][k] = fewest.get((q, len(layers)), -1)
    return result


@given(st.lists(compositions(1, 8), min_size=1, max_size=4))
def test_hops_reach_and_leak_agree_with_a_search(layers):
    expected = torch.tensor(search_hops(layers, 8))
    assert torch.equal(hops(layers, 8), expected)
    assert torch.equal(reach(layers, 8), expected >= 0)
    assert leak(layers, 8).tolist() == [[q, k] for q in range(8) for k in range(q + 1, 8) if expected[q, k] >= 0]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_windows_reach_as_far_as_their_sum(layers):
    count = hops([causal & window(4)] * layers, 16)
    assert [count[15, k] for k in (15, 14, 12, 11)] == [0, 1, 1, 2 if layers > 1 else -1]
    assert (count[15] >= 0).sum() == min(16, 1 + 3 * layers)


def test_the_order_of_local_and_global_layers_matters():
    hub = Edges(lambda b, h, q, k: k == 0, "reads node 0", uses_batch=False, uses_head=False)
    gather = Edges(lambda b, h, q, k: q == 0, "node 0 reads", uses_batch=False, uses_head=False)
    assert reach([gather, hub], 6).all()
    assert not reach([hub, gather], 6)[3, 4]


def test_one_global_layer_among_local_ones_reaches_every_node():
    assert not reach([causal & window(2)] * 4, 12)[11, 0]
    assert reach([causal & window(2), causal, causal & window(2)], 12).tril().equal(torch.ones(12, 12).tril().bool())


@given(st.lists(compositions(1, 8), min_size=1, max_size=3))
def test_causal_layers_do_not_leak(layers):
    assert not len(leak([causal & edges for edges in layers], 8))


@pytest.mark.parametrize(
    "layers",
    [[full], [causal, window(2)], [causal | prefix(torch.tensor([3]))], [lambda b, h, q, k: q < k]],
    ids=["full", "window", "prefix", "function"],
)
def test_one_layer_that_reads_the_future_leaks(layers):
    assert len(leak(layers, 8))


def test_a_mask_needs_nothing_that_imports_sympy(monkeypatch: pytest.MonkeyPatch):
    """torch.broadcast_shapes does, which takes a second."""
    monkeypatch.delattr(torch, "broadcast_shapes")
    monkeypatch.delattr(torch.functional, "broadcast_shapes")
    assert (causal & window(3)).build_mask(1, 4, 4).shape == (1, 1, 4, 4)
