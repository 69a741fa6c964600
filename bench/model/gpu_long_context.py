"""Attention over long contexts on a GPU, for bench/gpu.py: a causal window through FlexAttention, and full causal
attention through torch's kernel. (On a CPU: bench/model/long_context.py.)
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from anyformer.model.edges import causal, window
from anyformer.model.kernels.dense import DenseMask
from anyformer.model.kernels.flex import Flex
from anyformer.model.kernels.select import AttentionSpec
from anyformer.training import hardware

Row = dict[str, Any]


def list_windows(setup: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield the measurements of both at each length, for the `Setup` of bench/gpu.py."""
    width = 16 if setup.dry else setup.options.width
    for nodes in (64, 128) if setup.dry else setup.options.lengths:
        yield f"window({width}), {nodes:,} nodes", lambda T=nodes: measure_window(setup, T, width)
        yield f"all of the past, {nodes:,} nodes", lambda T=nodes: measure_full(setup, T)


def random_qkv(setup: Any, nodes: int) -> list[torch.Tensor]:
    """Return queries, keys, values and a gradient of the output, (1, 8, T, 64) each."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, 8, nodes, 64, device=setup.device, dtype=torch.bfloat16) for _ in range(4)]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def detach_on_cpu(x: list[torch.Tensor]) -> list[torch.Tensor]:
    """Detach on a CPU, where FlexAttention has no backward and refuses tensors that require one."""
    return x if x[0].device.type == "cuda" else [tensor.detach() for tensor in x]


def measure_window(setup: Any, nodes: int, width: int) -> Row:
    """Measure the kernel that the library selects on a GPU, and separately the time of building its block mask."""
    *x, gradient = random_qkv(setup, nodes)
    x = detach_on_cpu(x)
    edges, spec = causal & window(width), AttentionSpec(1, 8, nodes, nodes, 0, setup.device)
    kernels: list[Any] = []
    table_seconds = hardware.time_fastest(
        lambda: kernels.append(Flex(edges, None, spec, not setup.dry)), str(setup.device), 2
    )
    if nodes <= 1024:
        with torch.no_grad():
            difference = (kernels[-1](*x) - DenseMask(edges, None, spec)(*x)).abs().max().item()
        assert difference < 0.05, f"it lies {difference:.2g} from a dense table"
    return {"nodes": nodes} | time_passes(setup, kernels[-1], x, gradient) | {"table_ms": 1e3 * table_seconds}


def measure_full(setup: Any, nodes: int) -> Row:
    *x, gradient = random_qkv(setup, nodes)
    return {"nodes": nodes} | time_passes(
        setup, lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), x, gradient
    )


def time_passes(setup: Any, attend: Callable[..., Any], x: list[torch.Tensor], gradient: torch.Tensor) -> Row:
    """Return the milliseconds of a forward pass, and of forward and backward where there is a backward."""
    with torch.no_grad():
        forward = hardware.time_fastest(lambda: attend(*x), str(setup.device))
    training = None
    if x[0].requires_grad:
        training = 1e3 * hardware.time_fastest(lambda: torch.autograd.grad(attend(*x), x, gradient), str(setup.device))
    return {"forward_ms": 1e3 * forward, "training_ms": training}
