"""Attention over long contexts on a GPU, for bench/gpu.py: a causal window through FlexAttention, beside all of the
past through torch's kernel. (On a CPU: bench/model/long_context.py.)"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from anyformer.model.edges import causal, window
from anyformer.model.kernels.dense import DenseMask
from anyformer.model.kernels.flex import Flex
from anyformer.model.kernels.select import AttentionSpec
from anyformer.training import hardware as ceilings

Row = dict[str, Any]


def windows(here: Any) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Both sides for each length. here: device, dry, asked.width and asked.lengths."""
    width = 16 if here.dry else here.asked.width
    for nodes in (64, 128) if here.dry else here.asked.lengths:
        yield f"window({width}), {nodes:,} nodes", lambda T=nodes: one_window(here, T, width)
        yield f"all of the past, {nodes:,} nodes", lambda T=nodes: one_past(here, T)


def messages(here: Any, nodes: int) -> list[torch.Tensor]:
    """Queries, keys, values and a gradient of what comes of them: (1, 8, T, 64)."""
    torch.manual_seed(0)
    made = [torch.randn(1, 8, nodes, 64, device=here.device, dtype=torch.bfloat16) for _ in range(4)]
    return [x.requires_grad_() for x in made[:3]] + made[3:]


def takes(x: list[torch.Tensor]) -> list[torch.Tensor]:
    """What FlexAttention takes: on a CPU it has no backward, and refuses what asks for one."""
    return x if x[0].device.type == "cuda" else [one.detach() for one in x]


def one_window(here: Any, nodes: int, width: int) -> Row:
    """The path that the library takes on a GPU; its table of blocks is made anew each forward, and told by itself."""
    *x, told = messages(here, nodes)
    x = takes(x)
    edges, asked = causal & window(width), AttentionSpec(1, 8, nodes, nodes, 0, here.device)
    made: list[Any] = []
    table = ceilings.time_fastest(lambda: made.append(Flex(edges, None, asked, not here.dry)), str(here.device), 2)
    if nodes <= 1024:
        with torch.no_grad():
            apart = (made[-1](*x) - DenseMask(edges, None, asked)(*x)).abs().max().item()
        assert apart < 0.05, f"it lies {apart:.2g} from a dense table"
    return passes(here, made[-1], x, told) | {"table_ms": 1e3 * table}


def one_past(here: Any, nodes: int) -> Row:
    *x, told = messages(here, nodes)
    return passes(here, lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), x, told)


def passes(here: Any, path: Callable[..., Any], x: list[torch.Tensor], told: torch.Tensor) -> Row:
    """Milliseconds of a forward, and of a forward with its backward where there is one."""
    with torch.no_grad():
        forward = ceilings.time_fastest(lambda: path(*x), str(here.device))
    both = None
    if x[0].requires_grad:
        both = 1e3 * ceilings.time_fastest(lambda: torch.autograd.grad(path(*x), x, told), str(here.device))
    return {"forward_ms": 1e3 * forward, "training_ms": both}
