"""Maps that read the same nodes, as one product: for answering, where each product costs its own beginning. The sums
are the same. For training they stay apart, since each has a name of its own in a checkpoint.

Shapes: B batch, T nodes, C channels, H heads, D channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..transformer import Attention
from ..transformer import MLP, Block
from ..kernels.linear import Linear


class FusedAttention(Attention):
    """Attention of nodes to each other whose queries, keys and values are one product."""

    def __init__(self, plain: Attention):
        nn.Module.__init__(self)
        self.layer, self.channels, self.dropout, self.scale = plain.layer, plain.channels, plain.dropout, plain.scale
        self.output, self.query_norm, self.key_norm = plain.output, plain.query_norm, plain.key_norm
        whole = [plain.query, plain.key, plain.value]
        self.widths, self.all = [linear.out_features for linear in whole], concat_linears(whole)

    def maps(self, x: Tensor) -> Sequence[Tensor]:
        return self.all(x).split(self.widths, dim=-1)


class FusedMLP(MLP):
    """A gated MLP whose gate and what it is for are one product."""

    def __init__(self, plain: MLP, gate: nn.Linear):
        nn.Module.__init__(self)
        self.down, self.activation, self.both = plain.down, plain.activation, concat_linears([gate, plain.up])

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


def concat_linears(maps: Sequence[nn.Linear]) -> Linear:
    """One map whose outputs are those of all, in their order."""
    weight = torch.cat([linear.weight.detach() for linear in maps])
    whole = Linear(weight.shape[1], len(weight), any(linear.bias is not None for linear in maps), device="meta")
    whole.weight = nn.Parameter(weight, requires_grad=False)
    if whole.bias is not None:
        none = (weight.new_zeros(linear.out_features) for linear in maps)
        parts = [zero if linear.bias is None else linear.bias.detach() for linear, zero in zip(maps, none)]
        whole.bias = nn.Parameter(torch.cat(parts), requires_grad=False)
    return whole


def fuse_linears(model: nn.Module) -> None:
    """Join what can be in every block, in place; it can then no longer be trained or saved. Maps with adapters on them
    stay apart."""
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        attn, mlp = block.attn, block.mlp
        if type(attn) is Attention and plain(attn.query, attn.key, attn.value):
            block.attn = FusedAttention(attn).train(attn.training)
        if type(mlp) is MLP and mlp.gate is not None and plain(mlp.gate, mlp.up):
            block.mlp = FusedMLP(mlp, mlp.gate).train(mlp.training)


def plain(*maps: nn.Module) -> bool:
    return all(isinstance(linear, nn.Linear) for linear in maps)
