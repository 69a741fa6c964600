"""Linear maps that read the same nodes, fused into one product for inference: each product has its own overhead. The
sums are the same. In training the maps stay apart, since a checkpoint names each.

Shapes: B batch, T nodes, C channels, H heads, D channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels.linear import Linear
from ..positions import CosSin, apply_rotary
from ..transformer import MLP, Attention, Block


class FusedAttention(Attention):
    """Self-attention whose queries, keys and values are one product."""

    def __init__(self, plain: Attention):
        nn.Module.__init__(self)
        self.config, self.layer, self.head_channels = plain.config, plain.layer, plain.head_channels
        self.output, self.query_norm, self.key_norm = plain.output, plain.query_norm, plain.key_norm
        maps = [plain.query, plain.key, plain.value]
        self.widths, self.query_key_value = [linear.out_features for linear in maps], concat_linears(maps)

    def project_qkv(self, x: Tensor) -> Sequence[Tensor]:
        return self.query_key_value(x).split(self.widths, dim=-1)

    def qkv(self, x: Tensor, cos_sin: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.qk_norm or cos_sin is None:
            return super().qkv(x, cos_sin)
        query_key, v = self.query_key_value(x).split([sum(self.widths[:2]), self.widths[2]], dim=-1)
        heads = self.config.n_head, self.config.kv_heads
        q, k = apply_rotary(self.split_heads(query_key), cos_sin).split(heads, dim=1)
        return q, k, self.split_heads(v)


class FusedMLP(MLP):
    """A gated MLP whose `gate` and `up` are one product."""

    def __init__(self, plain: MLP, gate: nn.Linear):
        nn.Module.__init__(self)
        self.down, self.activation, self.gate_up = plain.down, plain.activation, concat_linears([gate, plain.up])

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


def concat_linears(maps: Sequence[nn.Linear]) -> Linear:
    """One map with the outputs of all, in their order."""
    weight = torch.cat([linear.weight.detach() for linear in maps])
    fused = Linear(weight.shape[1], len(weight), any(linear.bias is not None for linear in maps), device="meta")
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if fused.bias is not None:
        biases = [
            weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach() for linear in maps
        ]
        fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return fused


def fuse_linears(model: nn.Module) -> None:
    """Fuse maps in every block, in place. The model can then no longer be trained or saved. Maps with LoRA adapters are
    left alone."""
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        attn, mlp = block.attn, block.mlp
        if type(attn) is Attention and _are_linear(attn.query, attn.key, attn.value):
            block.attn = FusedAttention(attn).train(attn.training)
        if type(mlp) is MLP and mlp.gate is not None and _are_linear(mlp.gate, mlp.up):
            block.mlp = FusedMLP(mlp, mlp.gate).train(mlp.training)


def _are_linear(*maps: nn.Module) -> bool:
    return all(isinstance(linear, nn.Linear) for linear in maps)
