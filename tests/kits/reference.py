"""The oracle: message passing node by node, in plain Python numbers. Slow and obvious; everything fast must equal it.

A node holds private data. The linear maps of a head give its query (what it looks for), key (what it has) and value
(what it passes on). Its query meets the keys of all nodes with an edge to it, in any order; the softmax of the dot
products weighs their values. All updates are applied at the end of the round.

Shapes: B batch, H heads, G heads of keys and values, Q queries, K keys, T nodes, C channels, D channels of a head.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Vector = list[float]
Map = Callable[[Vector], Vector]
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def multiply(a: Vector, b: Vector) -> Vector:
    return [x * y for x, y in zip(a, b, strict=True)]


def softmax(scores: Vector) -> Vector:
    maximum = max(scores, default=0.0)
    weights = [math.exp(score - maximum) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


# --- one round of messages ---


@dataclass(frozen=True)
class Head:
    """Query, key and value of a node: three maps."""

    query: Callable[["Node"], Vector]
    key: Callable[["Node"], Vector]
    value: Callable[["Node"], Vector]


@dataclass
class Node:
    """Private data, and a position, which a head may use or not."""

    data: Vector
    position: int = 0

    def receive(self, head: Head, incoming: Sequence[tuple["Node", float]], softcap: float | None = None) -> Vector:
        """The message over edges from other nodes, each with a bias that is added to its score."""
        messages = [(head.key(node), head.value(node), bias) for node, bias in incoming]
        return mean_value(head.query(self), messages, softcap)


def mean_value(query: Vector, messages: Sequence[tuple[Vector, Vector, float]], softcap: float | None = None) -> Vector:
    """The mean of the values, weighted by how well their keys meet the query; 0 without messages."""
    mean = [0.0] * len(query)
    scale = 1 / math.sqrt(len(query))
    cap = (lambda score: score) if softcap is None else (lambda score: softcap * math.tanh(score / softcap))
    weights = softmax([cap(dot(query, key) * scale) + bias for key, _, bias in messages])
    for weight, (_, value, _) in zip(weights, messages, strict=True):
        mean = add(mean, [weight * x for x in value])
    return mean


# --- attention over tensors, and its gradients by hand ---


def evaluate_rule(edges: Rule, B: int, H: int, Q: int, K: int, start: int | Tensor = 0) -> Tensor:
    """The rule for every single pair: (B, H, Q, K) bool. start: position of the first query, or (B,)"""
    b, h = torch.arange(B).view(-1, 1, 1, 1), torch.arange(H).view(1, -1, 1, 1)
    q, k = torch.arange(Q).view(1, 1, -1, 1), torch.arange(K).view(1, 1, 1, -1)
    b, h, q, k = torch.broadcast_tensors(b, h, q + torch.as_tensor(start).view(-1, 1, 1, 1), k)
    return edges(b, h, q, k).expand(B, H, Q, K)


def _queries(q: Tensor, k: Tensor, edges: Rule, bias: Tensor | None, start: int | Tensor) -> Iterator[tuple]:
    """(b, h, g, i, keys of its edges, their biases) of each query; g is the key and value head that serves head h."""
    (B, H, Q, _), (_, G, K, _) = q.shape, k.shape
    mask = evaluate_rule(edges, B, H, Q, K, start).tolist()
    biases = (torch.zeros(1) if bias is None else bias).detach().expand(B, H, Q, K).tolist()
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                ends = [j for j in range(K) if mask[b][h][i][j]]
                yield b, h, h // (H // G), i, ends, [biases[b][h][i][j] for j in ends]


def weigh_slowly(q: Tensor, k: Tensor, edges: Rule, bias: Tensor | None = None, start: int | Tensor = 0) -> Tensor:
    """The attention weights: q (B, H, Q, D), k (B, G, K, D) -> (B, H, Q, K)"""
    queries, keys = q.tolist(), k.tolist()
    weights = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for b, h, g, i, ends, biases in _queries(q, k, edges, bias, start):
        scale = 1 / math.sqrt(q.shape[-1])
        scores = [dot(queries[b][h][i], keys[b][g][j]) * scale + x for j, x in zip(ends, biases, strict=True)]
        for j, weight in zip(ends, softmax(scores), strict=True):
            weights[b, h, i, j] = weight
    return weights


def attend_slowly(
    q: Tensor, k: Tensor, v: Tensor, edges: Rule, bias: Tensor | None = None, start: int | Tensor = 0
) -> Tensor:
    """q (B, H, Q, D), k and v (B, G, K, D), bias (B or 1, H or 1, Q, K) -> (B, H, Q, D)"""
    queries, keys, values = q.tolist(), k.tolist(), v.tolist()
    y = torch.zeros(q.shape).tolist()
    for b, h, g, i, ends, biases in _queries(q, k, edges, bias, start):
        messages = [(keys[b][g][j], values[b][g][j], number) for j, number in zip(ends, biases, strict=True)]
        y[b][h][i] = mean_value(queries[b][h][i], messages)
    return torch.tensor(y, dtype=torch.float64)


def gradients_slowly(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, edges: Rule, bias: Tensor | None = None, start: int | Tensor = 0
) -> tuple[Tensor, ...]:
    """The gradients of (dy * y).sum() for q, k, v and the bias of each edge (B, H, Q, K): the chain rule, edge by edge.

    y = sum_j w_j v_j, w = softmax(s), s_j = q . k_j / sqrt(D) + bias_j, hence ds_j = w_j (dy . v_j - dy . y).
    """
    queries, keys, values, grads = q.tolist(), k.tolist(), v.tolist(), dy.tolist()
    dq, dk, dv = (torch.zeros(x.shape).tolist() for x in (q, k, v))
    dbias = torch.zeros(*q.shape[:3], k.shape[2]).tolist()
    root = math.sqrt(q.shape[-1])
    for b, h, g, i, ends, biases in _queries(q, k, edges, bias, start):
        query, grad = queries[b][h][i], grads[b][h][i]
        scores = [dot(query, keys[b][g][j]) / root + number for j, number in zip(ends, biases, strict=True)]
        weights = softmax(scores)
        gains = [dot(grad, values[b][g][j]) for j in ends]
        mean = dot(weights, gains)
        for j, weight, gain in zip(ends, weights, gains, strict=True):
            change = weight * (gain - mean)
            dbias[b][h][i][j] = change
            dq[b][h][i] = add(dq[b][h][i], [change / root * x for x in keys[b][g][j]])
            dk[b][g][j] = add(dk[b][g][j], [change / root * x for x in query])
            dv[b][g][j] = add(dv[b][g][j], [weight * x for x in grad])
    return tuple(torch.tensor(x, dtype=torch.float64) for x in (dq, dk, dv, dbias))


# --- positions ---


def rotate_slowly(x: Vector, position: int, base: float) -> Vector:
    """Rotary: channels i and i + D/2 are a complex number, turned by position * base^(-2i/D) (2104.09864, eq. 34)."""
    half = len(x) // 2
    angles = [position * base ** (-2 * i / len(x)) for i in range(half)]
    pairs = [complex(x[i], x[i + half]) * complex(math.cos(a), math.sin(a)) for i, a in enumerate(angles)]
    return [pair.real for pair in pairs] + [pair.imag for pair in pairs]


def bucket_slowly(offset: int, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> int:
    """T5 (1910.10683, section 2.1): the bucket of an edge to a key `offset` nodes after the query.

    Half of a side's buckets hold one distance each; the others grow as a geometric series up to `max_distance`; the
    last takes all beyond. Half of all buckets serve keys after the query, or, in one direction, bucket 0 does.
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    steps = buckets - exact
    # step j begins at exact * (max_distance / exact)^(j / steps); in integers, so that no rounding decides
    begun = [j for j in range(steps) if distance**steps * exact**j >= max_distance**j * exact**steps]
    return first + exact + begun[-1]


def slopes_slowly(n_head: int) -> Vector:
    """ALiBi (2108.12409, section 3): a geometric series from 2^(-8/n) with that ratio; for a count between powers of
    two, that of the power below, then every other slope of the power above."""
    if n_head & (n_head - 1) == 0:
        return [2 ** (-8 / n_head * (i + 1)) for i in range(n_head)]
    below = 1 << (n_head.bit_length() - 1)
    return slopes_slowly(below) + slopes_slowly(2 * below)[::2][: n_head - below]


# --- a complete Transformer ---

UNIT: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}
UNIT |= {"geglu": UNIT["gelu_tanh"], "geglu_exact": UNIT["gelu"]}


class SlowTransformer:
    """The weights of a Transformer, and the messages its nodes send: one row of a batch at a time."""

    def __init__(self, model: torch.nn.Module):
        self.weights = {name: weight.double().tolist() for name, weight in model.state_dict().items()}
        self.config = model.config

    def __call__(
        self,
        x: Tensor,
        layers: Sequence[Rule],
        memory: Tensor | None = None,
        memory_edges: Rule | None = None,
    ) -> Tensor:
        """x (T, C), one rule a layer, memory (M, C) -> (T, C)"""
        nodes = [Node(data, position) for position, data in enumerate(x.tolist())]
        sources = None if memory is None else [Node(data, position) for position, data in enumerate(memory.tolist())]
        for layer, edges in enumerate(layers):
            block = f"blocks.{layer}."
            base = self.config.rotary_base
            if self.config.rotary_cycle:
                base = self.config.rotary_cycle[layer % len(self.config.rotary_cycle)]
            self.base = base if self.config.position == "rotary" else 0
            self.round(nodes, block + "attn", lambda data, p=block, e=edges: self.attend(p + "attn", data, None, e))
            if sources is not None:
                self.round(
                    nodes, block + "cross", lambda data, p=block: self.attend(p + "cross", data, sources, memory_edges)
                )
            self.round(nodes, block + "mlp", lambda data, p=block: [self.mlp(p + "mlp", node.data) for node in data])
        end = list if self.config.norm_place == "post" else self.norm("norm")
        return torch.tensor([end(node.data) for node in nodes], dtype=torch.float64)

    def round(self, nodes: list[Node], name: str, sublayer: Callable[[list[Node]], list[Vector]]) -> None:
        """All updates are computed from what the nodes were, then applied."""
        place = self.config.norm_place
        norm = list if place == "output" else self.norm(f"{name}_norm")
        after = self.norm(f"{name}_output_norm") if place in ("output", "sandwich") else list
        if place != "post":
            updates = sublayer([Node(norm(node.data), node.position) for node in nodes])
            for node, update in zip(nodes, updates, strict=True):
                node.data = add(node.data, after(update))
        else:
            for node, update in zip(nodes, sublayer(nodes), strict=True):
                node.data = norm(add(node.data, update))

    def attend(self, name: str, nodes: list[Node], memory: list[Node] | None, edges: Rule) -> list[Vector]:
        config, sources = self.config, nodes if memory is None else memory
        mask = evaluate_rule(edges, 1, config.n_head, len(nodes), len(sources))[0].tolist()
        bidirectional = memory is None and getattr(edges, "right_span", 1) > 0
        output = self.linear(f"{name}.output")
        updates = []
        for node in nodes:
            message: Vector = []
            for h in range(config.n_head):
                incoming = [
                    (source, 0.0 if memory else self.bias(h, source.position - node.position, bidirectional))
                    for source in reversed(sources)  # in any order
                    if mask[h][node.position][source.position]
                ]
                message += node.receive(self.head(name, h, is_self=memory is None), incoming, config.softcap)
            updates.append(output(message))
        return updates

    def head(self, name: str, h: int, is_self: bool) -> Head:
        config = self.config
        D, g = config.head_channels, h // (config.n_head // config.kv_heads)

        def compute(node: Node, kind: str, channels: slice) -> Vector:
            if config.qk_norm and config.qk_norm_joint:
                x = self.rms(self.linear(f"{name}.{kind}")(node.data), self.scales(f"{name}.{kind}_norm", joint=True))
                x = x[channels]
            else:
                x = self.linear(f"{name}.{kind}", channels)(node.data)
            if config.qk_norm and not config.qk_norm_joint:
                x = self.rms(x, self.scales(f"{name}.{kind}_norm"))
            return rotate_slowly(x, node.position, self.base) if is_self and self.base else x

        value = self.linear(f"{name}.value", slice(g * D, (g + 1) * D))
        return Head(
            lambda node: compute(node, "query", slice(h * D, (h + 1) * D)),
            lambda node: compute(node, "key", slice(g * D, (g + 1) * D)),
            lambda node: value(node.data),
        )

    def bias(self, h: int, offset: int, bidirectional: bool) -> float:
        if self.config.position == "alibi":
            return -slopes_slowly(self.config.n_head)[h] * abs(offset)
        if self.config.position in ("relative", "mixed"):
            return self.weights["bias.weight"][bucket_slowly(offset, bidirectional)][h]
        return 0.0

    def mlp(self, name: str, x: Vector) -> Vector:
        unit = UNIT[self.config.activation]
        if self.config.activation in ("swiglu", "geglu", "geglu_exact"):
            hidden = multiply([unit(a) for a in self.linear(f"{name}.gate")(x)], self.linear(f"{name}.up")(x))
        else:
            hidden = [unit(a) for a in self.linear(f"{name}.up")(x)]
        return self.linear(f"{name}.down")(hidden)

    def linear(self, name: str, rows: slice = slice(None)) -> Map:
        weight, bias = self.weights[f"{name}.weight"][rows], self.weights.get(f"{name}.bias")
        shift = [0.0] * len(weight) if bias is None else bias[rows]
        return lambda x: [dot(row, x) + number for row, number in zip(weight, shift, strict=True)]

    def norm(self, name: str) -> Map:
        weight, bias = self.scales(name), self.weights.get(f"{name}.bias")
        if self.config.norm != "layernorm":
            return lambda x: self.rms(x, weight)
        shift = [0.0] * len(weight) if bias is None else bias
        return lambda x: add(self.rms([number - sum(x) / len(x) for number in x], weight), shift)

    def scales(self, name: str, joint: bool = False) -> Vector:
        """What a norm multiplies the channels by."""
        weight = self.weights[f"{name}.weight"]
        return [1 + number for number in weight] if self.config.norm == "rmsnorm_1p" and not joint else weight

    def rms(self, x: Vector, weight: Vector) -> Vector:
        root = math.sqrt(dot(x, x) / len(x) + self.config.norm_eps)
        return [number / root * scale for number, scale in zip(x, weight, strict=True)]
