"""The oracle: message passing as the lecture tells it, node by node, in plain Python numbers. Slow and obvious.

A node holds private data. By its head's linear maps it emits a query (what I look for), a key (what I have) and a value
(what I tell). Its query meets the keys of all nodes that point to it, in any order; the softmax of the dot products
weighs their values. All updates are applied at the end of the round. Everything fast must equal this.

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


def times(a: Vector, b: Vector) -> Vector:
    return [x * y for x, y in zip(a, b, strict=True)]


def softmax(scores: Vector) -> Vector:
    top = max(scores, default=0.0)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


# --- one round of messages ---


@dataclass(frozen=True)
class Head:
    """What a node looks for, what it has, what it tells: three maps of a node."""

    query: Callable[["Node"], Vector]
    key: Callable[["Node"], Vector]
    value: Callable[["Node"], Vector]


@dataclass
class Node:
    """Private data, and the place it stands at (which a head may feel or not)."""

    data: Vector
    at: int = 0

    def hear(self, head: Head, incoming: Sequence[tuple["Node", float]]) -> Vector:
        """What comes in over edges from other nodes, each with a number added to its score."""
        query = head.query(self)
        return listen(query, [(head.key(node), head.value(node), bias) for node, bias in incoming])


def listen(query: Vector, messages: Sequence[tuple[Vector, Vector, float]]) -> Vector:
    """The mean of the values, weighted by how well their keys meet the query. No messages: nothing was heard, 0."""
    heard = [0.0] * len(query)
    weights = softmax([dot(query, key) / math.sqrt(len(query)) + bias for key, _, bias in messages])
    for weight, (_, value, _) in zip(weights, messages, strict=True):
        heard = add(heard, [weight * x for x in value])
    return heard


# --- attention over tensors, and its gradients by hand ---


def ask(edges: Rule, B: int, H: int, Q: int, K: int, start: int | Tensor = 0) -> Tensor:
    """The rule asked of every single pair: (B, H, Q, K) bool. `start`: where the first query stands, a row or all."""
    b, h = torch.arange(B).view(-1, 1, 1, 1), torch.arange(H).view(1, -1, 1, 1)
    q, k = torch.arange(Q).view(1, 1, -1, 1), torch.arange(K).view(1, 1, 1, -1)
    b, h, q, k = torch.broadcast_tensors(b, h, q + torch.as_tensor(start).view(-1, 1, 1, 1), k)
    return edges(b, h, q, k).expand(B, H, Q, K)


def _queries(q: Tensor, k: Tensor, edges: Rule, bias: Tensor | None, start: int | Tensor) -> Iterator[tuple]:
    """(b, h, g, i, edges' ends, edges' biases) of each query node; g is the key and value head that serves head h."""
    (B, H, Q, _), (_, G, K, _) = q.shape, k.shape
    table = ask(edges, B, H, Q, K, start).tolist()
    numbers = (torch.zeros(1) if bias is None else bias).detach().expand(B, H, Q, K).tolist()
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                ends = [j for j in range(K) if table[b][h][i][j]]
                yield b, h, h // (H // G), i, ends, [numbers[b][h][i][j] for j in ends]


def attend_slowly(
    q: Tensor, k: Tensor, v: Tensor, edges: Rule, bias: Tensor | None = None, start: int | Tensor = 0
) -> Tensor:
    """q (B, H, Q, D), k and v (B, G, K, D), bias (B or 1, H or 1, Q, K) -> (B, H, Q, D)"""
    asks, has, tells = q.tolist(), k.tolist(), v.tolist()
    y = torch.zeros(q.shape).tolist()
    for b, h, g, i, ends, numbers in _queries(q, k, edges, bias, start):
        messages = [(has[b][g][j], tells[b][g][j], number) for j, number in zip(ends, numbers, strict=True)]
        y[b][h][i] = listen(asks[b][h][i], messages)
    return torch.tensor(y, dtype=torch.float64)


def gradients_slowly(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, edges: Rule, bias: Tensor | None = None, start: int | Tensor = 0
) -> tuple[Tensor, ...]:
    """How (dy * y).sum() changes with q, k, v and the bias of each edge (B, H, Q, K): the chain rule, edge by edge.

    y = sum_j w_j v_j, w = softmax(s), s_j = q . k_j / sqrt(D) + bias_j, hence ds_j = w_j (dy . v_j - dy . y).
    """
    asks, has, tells, back = q.tolist(), k.tolist(), v.tolist(), dy.tolist()
    dq, dk, dv = (torch.zeros(x.shape).tolist() for x in (q, k, v))
    dbias = torch.zeros(*q.shape[:3], k.shape[2]).tolist()
    root = math.sqrt(q.shape[-1])
    for b, h, g, i, ends, numbers in _queries(q, k, edges, bias, start):
        query, heard = asks[b][h][i], back[b][h][i]
        scores = [dot(query, has[b][g][j]) / root + number for j, number in zip(ends, numbers, strict=True)]
        weights = softmax(scores)
        gains = [dot(heard, tells[b][g][j]) for j in ends]
        mean = dot(weights, gains)
        for j, weight, gain in zip(ends, weights, gains, strict=True):
            change = weight * (gain - mean)
            dbias[b][h][i][j] = change
            dq[b][h][i] = add(dq[b][h][i], [change / root * x for x in has[b][g][j]])
            dk[b][g][j] = add(dk[b][g][j], [change / root * x for x in query])
            dv[b][g][j] = add(dv[b][g][j], [weight * x for x in heard])
    return tuple(torch.tensor(x, dtype=torch.float64) for x in (dq, dk, dv, dbias))


# --- positions ---


def turned(x: Vector, at: int, base: float) -> Vector:
    """Rotary: channels i and i + D/2 are a complex number, turned by at * base^(-2i/D) (2104.09864, eq. 34)."""
    half = len(x) // 2
    angles = [at * base ** (-2 * i / len(x)) for i in range(half)]
    pairs = [complex(x[i], x[i + half]) * complex(math.cos(a), math.sin(a)) for i, a in enumerate(angles)]
    return [pair.real for pair in pairs] + [pair.imag for pair in pairs]


def bucket_slowly(offset: int, both_sides: bool, buckets: int = 32, furthest: int = 128) -> int:
    """T5 (1910.10683, section 2.1): which bucket an edge to a key `offset` nodes after the query falls into.

    Half of a side's buckets hold one distance each; the rest grow as a geometric series up to `furthest`; the last
    takes all beyond. Half of all buckets serve keys after the query, or, where only one side counts, bucket 0 does.
    """
    first = 0
    if both_sides:
        buckets //= 2
        first = buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    single = buckets // 2
    if distance < single:
        return first + distance
    steps = buckets - single
    # step j begins at single * (furthest / single)^(j / steps); in whole numbers, so that no rounding decides
    begun = [j for j in range(steps) if distance**steps * single**j >= furthest**j * single**steps]
    return first + single + begun[-1]


def slopes_slowly(n_head: int) -> Vector:
    """ALiBi (2108.12409, section 3): a geometric series from 2^(-8/n) with that ratio; for a count between powers of
    two, that of the power below, then every other slope of the power above."""
    if n_head & (n_head - 1) == 0:
        return [2 ** (-8 / n_head * (i + 1)) for i in range(n_head)]
    below = 1 << (n_head.bit_length() - 1)
    return slopes_slowly(below) + slopes_slowly(2 * below)[::2][: n_head - below]


# --- a whole Transformer ---

UNIT: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}
UNIT["geglu"] = UNIT["gelu_tanh"]


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
        nodes = [Node(data, at) for at, data in enumerate(x.tolist())]
        told = None if memory is None else [Node(data, at) for at, data in enumerate(memory.tolist())]
        for layer, edges in enumerate(layers):
            place = f"blocks.{layer}."
            self.round(nodes, place + "attn", lambda data, p=place, e=edges: self.attend(p + "attn", data, None, e))
            if told is not None:
                self.round(
                    nodes, place + "cross", lambda data, p=place: self.attend(p + "cross", data, told, memory_edges)
                )
            self.round(nodes, place + "mlp", lambda data, p=place: [self.think(p + "mlp", node.data) for node in data])
        end = self.norm("norm") if self.config.norm_place == "pre" else list
        return torch.tensor([end(node.data) for node in nodes], dtype=torch.float64)

    def round(self, nodes: list[Node], name: str, sublayer: Callable[[list[Node]], list[Vector]]) -> None:
        """All updates are worked out on what the nodes were, then applied."""
        norm = self.norm(f"{name}_norm")
        if self.config.norm_place == "pre":
            updates = sublayer([Node(norm(node.data), node.at) for node in nodes])
            for node, update in zip(nodes, updates, strict=True):
                node.data = add(node.data, update)
        else:
            for node, update in zip(nodes, sublayer(nodes), strict=True):
                node.data = norm(add(node.data, update))

    def attend(self, name: str, nodes: list[Node], told: list[Node] | None, edges: Rule) -> list[Vector]:
        config, ends = self.config, nodes if told is None else told
        table = ask(edges, 1, config.n_head, len(nodes), len(ends))[0].tolist()
        both = told is None and getattr(edges, "ahead", 1) > 0
        output = self.linear(f"{name}.output")
        updates = []
        for node in nodes:
            heard: Vector = []
            for h in range(config.n_head):
                incoming = [
                    (end, 0.0 if told is not None else self.bias(h, end.at - node.at, both))
                    for end in reversed(ends)  # in any order
                    if table[h][node.at][end.at]
                ]
                heard += node.hear(self.head(name, h, placed=told is None), incoming)
            updates.append(output(heard))
        return updates

    def head(self, name: str, h: int, placed: bool) -> Head:
        config = self.config
        D, g = config.head_channels, h // (config.n_head // config.kv_heads)

        def feel(x: Vector, kind: str, at: int) -> Vector:
            if config.qk_norm:
                x = self.rms(x, self.weights[f"{name}.{kind}_norm.weight"])
            return turned(x, at, config.rotary_base) if placed and config.position == "rotary" else x

        query = self.linear(f"{name}.query", slice(h * D, (h + 1) * D))
        key = self.linear(f"{name}.key", slice(g * D, (g + 1) * D))
        value = self.linear(f"{name}.value", slice(g * D, (g + 1) * D))
        return Head(
            lambda node: feel(query(node.data), "query", node.at),
            lambda node: feel(key(node.data), "key", node.at),
            lambda node: value(node.data),
        )

    def bias(self, h: int, offset: int, both_sides: bool) -> float:
        if self.config.position == "alibi":
            return -slopes_slowly(self.config.n_head)[h] * abs(offset)
        if self.config.position == "relative":
            return self.weights["bias.weight"][bucket_slowly(offset, both_sides)][h]
        return 0.0

    def think(self, name: str, x: Vector) -> Vector:
        unit = UNIT[self.config.activation]
        if self.config.activation in ("swiglu", "geglu"):
            hidden = times([unit(a) for a in self.linear(f"{name}.gate")(x)], self.linear(f"{name}.up")(x))
        else:
            hidden = [unit(a) for a in self.linear(f"{name}.up")(x)]
        return self.linear(f"{name}.down")(hidden)

    def linear(self, name: str, rows: slice = slice(None)) -> Map:
        weight, bias = self.weights[f"{name}.weight"][rows], self.weights.get(f"{name}.bias")
        shift = [0.0] * len(weight) if bias is None else bias[rows]
        return lambda x: [dot(row, x) + number for row, number in zip(weight, shift, strict=True)]

    def norm(self, name: str) -> Map:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if self.config.norm == "rmsnorm":
            return lambda x: self.rms(x, weight)
        shift = [0.0] * len(weight) if bias is None else bias
        return lambda x: add(self.rms([number - sum(x) / len(x) for number in x], weight), shift)

    def rms(self, x: Vector, weight: Vector) -> Vector:
        root = math.sqrt(dot(x, x) / len(x) + self.config.norm_eps)
        return [number / root * scale for number, scale in zip(x, weight, strict=True)]
