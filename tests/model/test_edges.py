"""Edges: rules mean what their names say, combine by the laws of sets, and answer questions about a stack truly."""

import math
from collections import deque
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from anyformer.model.edges import (
    Edges,
    between,
    causal,
    every,
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
from rules import READY, composed

B, H, T = 3, 4, 12
LENGTHS = torch.tensor([5, 12, 0])
KINDS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 2, 2]]).repeat(B, 1) + torch.tensor([[0], [1], [0]])
READS = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()


def table(edges: Edges) -> torch.Tensor:
    return edges.build_mask(B, T, T, H).expand(B, H, T, T)


def written(rule: Callable[[int, int, int, int], bool]) -> torch.Tensor:
    """The table of a rule over plain numbers."""
    rows = [[[[rule(b, h, q, k) for k in range(T)] for q in range(T)] for h in range(H)] for b in range(B)]
    return torch.tensor(rows)


# --- what each rule means ---

MEANING = {
    "full": (full, lambda b, h, q, k: True),
    "causal": (causal, lambda b, h, q, k: k in range(q + 1)),
    "window": (window(3), lambda b, h, q, k: k in (q - 2, q - 1, q, q + 1, q + 2)),
    "a window of one": (window(1), lambda b, h, q, k: q == k),
    "every": (every(4), lambda b, h, q, k: q % 4 == k % 4),
    "within": (within(LENGTHS), lambda b, h, q, k: k in range([5, 12, 0][b])),
    "prefix": (prefix(LENGTHS), lambda b, h, q, k: k in range([5, 12, 0][b])),
    "prefix language model": (causal | prefix(LENGTHS), lambda b, h, q, k: k <= max(q, [4, 11, -1][b])),
    "same, one for all": (same(KINDS[0]), lambda b, h, q, k: int(KINDS[0, q]) == int(KINDS[0, k])),
    "same, one a row": (same(KINDS), lambda b, h, q, k: int(KINDS[b, q]) == int(KINDS[b, k])),
    "between": (between(KINDS), lambda b, h, q, k: int(KINDS[b, q]) != int(KINDS[b, k])),
    "between, one for all": (between(KINDS[0]), lambda b, h, q, k: int(KINDS[0, q]) != int(KINDS[0, k])),
    "between, as told": (between(KINDS, READS), lambda b, h, q, k: bool(READS[KINDS[b, q], KINDS[b, k]])),
    "neighbours": (
        neighbors(2, 5, 1),  # the last two nodes are past the grid's end
        lambda b, h, q, k: max(q, k) < 10 and abs(q // 5 - k // 5) <= 1 and abs(q % 5 - k % 5) <= 1,
    ),
}


@pytest.mark.parametrize("name", MEANING)
def test_a_rule_means_what_its_name_says(name):
    edges, rule = MEANING[name]
    assert torch.equal(table(edges), written(rule))


@pytest.mark.parametrize("name", READY)
def test_a_rule_is_flexattentions_mask_mod(name):
    edges = READY[name](B, T)
    assert torch.equal(table(edges), create_mask(edges, B, H, T, T, device="cpu"))


@pytest.mark.parametrize("make", [window, every, lambda n: neighbors(n, 3, 1), lambda n: neighbors(3, n, 1)])
def test_a_size_below_one_is_refused(make):
    with pytest.raises(ValueError, match="0; it must be at least 1"):
        make(0)


# --- the algebra ---


@given(composed(B, T), composed(B, T))
def test_rules_combine_as_sets_do(one, other):
    a, b = table(one), table(other)
    assert torch.equal(table(one & other), a & b)
    assert torch.equal(table(one | other), a | b)
    assert torch.equal(table(~one), ~a)
    assert torch.equal(table(~(one & other)), table(~one | ~other))


def test_full_adds_no_condition():
    assert (causal & full) is causal and (full & causal) is causal and (causal & causal) is causal


def test_a_rule_can_be_read():
    assert repr(causal & window(8)) == "causal & window(8)"
    assert repr(~(causal | every(2)) & full) == "~(causal | every(2))"
    assert repr(causal & (window(8) | every(4))) == "causal & (window(8) | every(4))"


# --- what a rule knows of itself ---


def within_its_span(edges: Edges) -> bool:
    _, _, q, k = table(edges).nonzero().unbind(1)
    return bool(((q - k) <= edges.left_span).all() and ((k - q) <= edges.right_span).all())


@pytest.mark.parametrize("name", MEANING)
def test_no_edge_is_longer_than_its_rule_says(name):
    assert within_its_span(MEANING[name][0])


@given(composed(B, T))
def test_no_edge_is_longer_than_its_composed_rule_says(edges):
    assert within_its_span(edges)


def test_spans_are_tight():
    assert (causal.left_span, causal.right_span) == (math.inf, 0)
    assert (window(4).left_span, (causal & window(4)).left_span, (causal & window(4)).right_span) == (3, 3, 0)
    assert ((window(4) | window(6)).left_span, (~window(4)).left_span) == (5, math.inf)


@given(composed(B, T))
def test_a_rule_that_does_not_look_at_rows_or_heads_is_the_same_for_all(edges):
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    b, h = torch.arange(B).view(-1, 1, 1, 1), torch.arange(H).view(1, -1, 1, 1)
    q, k = torch.arange(T).view(1, 1, -1, 1), torch.arange(T).view(1, 1, 1, -1)
    whole = edges(b, h, q, k).expand(B, H, T, T)
    if not edges.uses_batch:
        assert torch.equal(whole, edges(zero, h, q, k).expand(B, H, T, T))
    if not edges.uses_head:
        assert torch.equal(whole, edges(b, zero, q, k).expand(B, H, T, T))
    assert edges.build_mask(B, T, T, H).shape == (B if edges.uses_batch else 1, H if edges.uses_head else 1, T, T)


def test_only_what_looks_at_rows_or_heads_says_so():
    assert not any(edges.uses_batch or edges.uses_head for edges in (full, causal, window(2) & causal, ~every(2) | causal))
    assert not same(KINDS[0]).uses_batch and same(KINDS).uses_batch and (causal & same(KINDS)).uses_batch
    assert not any(edges.uses_head for edges in (within(LENGTHS), prefix(LENGTHS), same(KINDS), between(KINDS)))


# --- questions to a stack ---


def searched(layers: Sequence[Edges], nodes: int) -> list[list[int]]:
    """Hops from k to q by a search, breadth first. A state is (node, layers passed): in each layer what a node holds
    stays (no message) or is read by another node (one message)."""
    edge = [edges.build_mask(1, nodes, nodes)[0, 0].tolist() for edges in layers]
    found = [[-1] * nodes for _ in range(nodes)]
    for k in range(nodes):
        queue, fewest = deque([(k, 0, 0)]), {(k, 0): 0}
        while queue:
            node, layer, sent = queue.popleft()
            if layer == len(layers) or sent > fewest[node, layer]:
                continue
            for q in range(nodes):
                cost = sent + (q != node)
                if (q == node or edge[layer][q][node]) and cost < fewest.get((q, layer + 1), len(layers) + 1):
                    fewest[q, layer + 1] = cost
                    queue.append((q, layer + 1, cost))
        for q in range(nodes):
            found[q][k] = fewest.get((q, len(layers)), -1)
    return found


@given(st.lists(composed(1, 8), min_size=1, max_size=4))
def test_hops_and_reach_agree_with_a_search(layers):
    want = torch.tensor(searched(layers, 8))
    assert torch.equal(hops(layers, 8), want)
    assert torch.equal(reach(layers, 8), want >= 0)
    assert leak(layers, 8).tolist() == [[q, k] for q in range(8) for k in range(q + 1, 8) if want[q, k] >= 0]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_windows_reach_as_far_as_their_sum(layers):
    far = hops([causal & window(4)] * layers, 16)
    assert [far[15, k] for k in (15, 14, 12, 11)] == [0, 1, 1, 2 if layers > 1 else -1]
    assert (far[15] >= 0).sum() == min(16, 1 + 3 * layers)


def test_the_order_of_local_and_global_layers_matters():
    hub = Edges(lambda b, h, q, k: k == 0, "reads node 0", uses_batch=False, uses_head=False)
    gather = Edges(lambda b, h, q, k: q == 0, "node 0 reads", uses_batch=False, uses_head=False)
    assert reach([gather, hub], 6).all()
    assert not reach([hub, gather], 6)[3, 4]


def test_one_global_layer_among_local_ones_reaches_everyone():
    assert not reach([causal & window(2)] * 4, 12)[11, 0]
    assert reach([causal & window(2), causal, causal & window(2)], 12).tril().equal(torch.ones(12, 12).tril().bool())


@given(st.lists(composed(1, 8), min_size=1, max_size=3))
def test_nothing_flows_from_the_future_where_each_layer_is_causal(layers):
    assert not len(leak([causal & edges for edges in layers], 8))


@pytest.mark.parametrize(
    "layers", [[full], [causal, window(2)], [causal | prefix(torch.tensor([3]))], [causal, ~causal]], ids=str
)
def test_one_layer_that_reads_the_future_leaks(layers):
    assert len(leak(layers, 8))
