"""Attention on a CPU: torch's kernel (SDPA) beside our batched products: forward, with the backward, a step of writing.

    python -m bench.model.attention                                                    60 rows, some minutes
    python -m bench.model.attention --shapes 64,6,256,64 --dtypes bfloat16 --edges causal

The two must agree, gradients too, before anything is timed. They take turns, and the median of each is told; the ratio
is how many times as quick the products are. A star stands where the library takes them (`products_pay`).
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.model.kernels.sdpa import is_matmul_faster, matmul_attention

SHAPES = ("12,4,64,32", "64,4,64,32", "16,4,256,32", "64,6,256,64", "8,6,512,64", "4,12,1024,64")  # B, H, T, D
DTYPES, EDGES, PASSES = ("float32", "bfloat16"), ("causal", "full"), ("forward", "training", "step")
NEAR = {"float32": 1e-4, "bfloat16": 3e-2}  # how far the sides may lie apart: their roundings differ
ROUNDS = 5  # of each side, at least
Side = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_kernel(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """As `SDPA` calls them: the triangle is made anew each time, and that is part of the time."""
    T = q.shape[2]
    return matmul_attention(q, k, v, q.new_full((1, 1, T, T), -math.inf).triu(1) if causal else None, 0.0, None)


def forward(side: Side, messages: list[Tensor], told: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (side(*messages),)


def step(side: Side, messages: list[Tensor], told: Tensor) -> tuple[Tensor, ...]:
    """The newest node alone reads all there are, as it does where a text is written."""
    q, k, v = messages
    with torch.no_grad():
        return (side(q[:, :, -1:], k, v),)


def training(side: Side, messages: list[Tensor], told: Tensor) -> tuple[Tensor, ...]:
    """The answer and what the gradient `told` of it is for queries, keys and values."""
    y = side(*messages)
    return y, *torch.autograd.grad(y, messages, told)


def measure(shape: tuple[int, ...], dtype: str, edges: str, what: str, patience: float) -> dict[str, Any]:
    """Seconds of both sides. Raises SystemExit where they do not agree."""
    torch.manual_seed(0)
    *messages, told = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(4))
    messages = [x.requires_grad_() for x in messages]
    run = {"forward": forward, "training": training, "step": step}[what]
    sides: dict[str, Side] = {
        "kernel": partial(by_kernel, causal=edges == "causal"),
        "products": partial(by_products, causal=edges == "causal"),
    }
    answers = [run(side, messages, told) for side in sides.values()]  # both have warmed up now
    apart = max((one.float() - other.float()).abs().max().item() for one, other in zip(*answers))
    size = max(one.float().abs().max().item() for one in answers[0])
    if not apart <= NEAR[dtype] * size:
        raise SystemExit(f"{shape} {dtype} {edges} {what}: the sides lie {apart:.2g} apart, of {size:.2g}")
    times: dict[str, list[float]] = {name: [] for name in sides}
    while len(times["products"]) < ROUNDS or sum(map(sum, times.values())) < patience:
        for name, side in sides.items():
            began = time.perf_counter()
            run(side, messages, told)
            times[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    about: dict[str, Any] = {"shape": shape, "dtype": dtype, "edges": edges, "pass": what, "apart": apart}
    q, k, _ = messages
    pays = is_matmul_faster(q[:, :, -1:] if what == "step" else q, k)
    return about | seconds | {"ratio": seconds["kernel"] / seconds["products"], "taken": pays}


def line(one: dict[str, Any]) -> str:
    about = f"{','.join(map(str, one['shape'])):<14} {one['dtype']:<8} {one['edges']:<6} {one['pass']:<8}"
    both = f"kernel {1e3 * one['kernel']:9.3f} ms   products {1e3 * one['products']:9.3f} ms"
    return f"{about}  {both}   ratio {one['ratio']:6.2f} {'*' if one['taken'] else ''}"


def shape_of(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) != 4 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no batch,heads,nodes,channels")
    return numbers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=[shape_of(text) for text in SHAPES])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--edges", nargs="+", choices=EDGES, default=EDGES)
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds of measuring for each row")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    found = []
    for shape, dtype, edges, what in product(asked.shapes, asked.dtypes, asked.edges, asked.passes):
        if what == "step" and edges == "causal":  # to the newest node all is past
            continue
        found.append(measure(shape, dtype, edges, what, asked.patience))
        if not asked.json:
            print(line(found[-1]), flush=True)
    if asked.json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": found}))
