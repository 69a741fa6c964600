"""Which kernel computes an attention: the fastest that is exact for the rule of edges.

One rule and one position bias serve every kernel, and each kernel must equal the slow oracle of the tests. A stack
selects once a forward, for all layers that share a rule.

Shapes: B batch, H heads, Q queries, K keys, D channels of a head.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..edges import Edges, causal, full
from .block_local import BlockLocal
from .dense import DenseMask
from .flex import Flex
from .sdpa import SDPA
from .segments import Segments

PositionBias = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(h, q, k, bidirectional) -> number added to the score of the edge."""


class AttentionKernel(Protocol):
    """q (B, H, Q, D), k and v (B, H or fewer, K, D) -> (B, H, Q, D). scale: of the scores, None for 1 / sqrt(D)"""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, scale: float | None = None
    ) -> Tensor: ...


class AttentionSpec(NamedTuple):
    """The sizes of an attention. Queries are at positions `start` + 0, 1 ..., keys at 0, 1 ... or `slot_positions`."""

    batch: int
    heads: int
    queries: int
    keys: int
    start: int | Tensor
    """Position of the first query: a number, or one for each row, (B,)."""
    device: torch.device
    dropout_p: float = 0.0
    """Of the attention weights."""
    slot_positions: Tensor | None = None
    """The position of each key, (K,) or (B, K); below 0: an empty slot, which no query may read."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap), before a bias is added."""

    @property
    def is_from_start(self) -> bool:
        """Whether the nodes read each other, from position 0 on: no cache, or an empty one."""
        return self.queries == self.keys and isinstance(self.start, int) and self.start == 0


def select_kernel(edges: Edges, bias: PositionBias | None, spec: AttentionSpec) -> AttentionKernel:
    """The fastest kernel that computes this rule exactly."""
    is_plain = bias is None and spec.softcap is None
    if is_plain and edges is full:
        return SDPA()
    if is_plain and edges is causal and isinstance(spec.start, int):
        if spec.is_from_start:
            return SDPA(is_causal=True)
        if spec.queries == 1 and spec.keys == spec.start + 1:
            return SDPA()  # the newest node reads all keys; is_causal would show it the first one only
    is_flexible = spec.softcap is None and not spec.dropout_p  # FlexAttention has no dropout
    if spec.is_from_start and spec.device.type == "cuda" and is_flexible:
        return Flex(edges, bias, spec)
    if spec.is_from_start and not torch.compiler.is_exporting() and BlockLocal.is_worth(edges, spec.queries):
        return BlockLocal(edges, bias, spec)
    segment = Segments.find(edges, spec) if spec.is_from_start and not torch.compiler.is_exporting() else None
    if segment is not None:
        return Segments(edges, bias, spec, segment)
    return DenseMask(edges, bias, spec)
