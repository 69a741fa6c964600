"""One copy of a model for several processes (FSDP2): each holds a part of every tensor, and of its optimizer state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import distribute_tensor

from ..model.transformer import Transformer
from .distributed import collect, get_rank


def make_mesh(size: int, shard: int, device: torch.device) -> DeviceMesh:
    """Arrange the processes: those of a row share a copy of the model."""
    if shard == size:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shards",))
    return init_device_mesh(device.type, (size // shard, shard), mesh_dim_names=("copies", "shards"))


def shard_step(step: nn.Module, size: int, shard: int, device: torch.device) -> nn.Module:
    """Share the parameters of each block, and of everything else, among groups of `shard` processes, in place."""
    mesh = make_mesh(size, shard, device)
    stacks = [module for module in step.modules() if isinstance(module, Transformer)]
    for block in dict.fromkeys(block for stack in stacks for block in stack.blocks):  # stacks may share blocks
        fully_shard(block, mesh=mesh)
    fully_shard(step, mesh=mesh)
    for name in ("evaluate", "predict"):
        register_fsdp_forward_method(step, name)
    return step


def list_sharded(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def sync_copies(module: nn.Module, is_last: bool) -> None:
    """Sum gradients over the copies of the model in the last backward pass of an update only. Within a copy they are
    summed in every pass: kept full, they would need the memory that sharding saves."""
    for part in list_sharded(module):
        part.set_requires_all_reduce(is_last)


def share(value: Tensor, target: Any) -> Tensor:
    """Return the part of a full tensor that this process holds of `target`, as a tensor like it."""
    value = value.to(target.to_local().device)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def gather_model(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """Return a model of its own for the first process, in the memory of its CPU, like one that processes share; the
    others get that one. All must call this."""
    tensors = collect({**dict(model.named_parameters()), **dict(model.named_buffers())})
    if get_rank() > 0:
        return model
    full, trained = build(), {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in full.named_parameters():
        parameter.requires_grad_(name in trained).copy_(tensors[name])
    for name, buffer in full.named_buffers():
        buffer.copy_(tensors[name])
    return full.to(next(model.parameters()).device)


def release(module: nn.Module) -> None:
    """Free the parameters that a forward pass without a backward pass has left gathered."""
    for part in list_sharded(module):
        part.reshard()
