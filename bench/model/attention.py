"""Attention on a CPU: torch's kernel (SDPA) and our batched matrix products, in the forward pass, in training, and in a
decoding step.

    python -m bench.model.attention                                                    60 rows, some minutes
    python -m bench.model.attention --shapes 64,6,256,64 --dtypes bfloat16 --edges causal

Outputs and gradients must agree before anything is timed. The backends are measured in turns and the median counts; the
ratio is time of the kernel / time of the products. A star marks the rows where the library selects the products
(`is_matmul_faster`).
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
from bench._common import make_parser

SHAPES = ("12,4,64,32", "64,4,64,32", "16,4,256,32", "64,6,256,64", "8,6,512,64", "4,12,1024,64")  # B, H, T, D
DTYPES, EDGES, PASSES = ("float32", "bfloat16"), ("causal", "full"), ("forward", "training", "step")
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the difference, relative to the largest output
MIN_ROUNDS = 5  # of each backend
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def attend_matmul(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attend as the library does; building the causal mask is part of the time."""
    T = q.shape[2]
    return matmul_attention(q, k, v, q.new_full((1, 1, T, T), -math.inf).triu(1) if causal else None, 0.0, None)


def forward(attend: Attend, qkv: list[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (attend(*qkv),)


def step(attend: Attend, qkv: list[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """Attend with the newest node alone, as in decoding."""
    q, k, v = qkv
    with torch.no_grad():
        return (attend(q[:, :, -1:], k, v),)


def training(attend: Attend, qkv: list[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """Return the output and the gradients of queries, keys and values."""
    y = attend(*qkv)
    return y, *torch.autograd.grad(y, qkv, gradient)


def measure(shape: tuple[int, ...], dtype: str, edges: str, pass_name: str, min_seconds: float) -> dict[str, Any]:
    """Return the seconds of both backends. Raises SystemExit if they disagree."""
    torch.manual_seed(0)
    *qkv, gradient = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(4))
    qkv = [x.requires_grad_() for x in qkv]
    run = {"forward": forward, "training": training, "step": step}[pass_name]
    backends: dict[str, Attend] = {
        "kernel": partial(attend_sdpa, causal=edges == "causal"),
        "products": partial(attend_matmul, causal=edges == "causal"),
    }
    outputs = [run(attend, qkv, gradient) for attend in backends.values()]  # also the warm-up
    difference = max((ours.float() - theirs.float()).abs().max().item() for ours, theirs in zip(*outputs))
    scale = max(ours.float().abs().max().item() for ours in outputs[0])
    if not difference <= TOLERANCE[dtype] * scale:
        raise SystemExit(f"{shape} {dtype} {edges} {pass_name}: the backends differ by {difference:.2g} of {scale:.2g}")
    times: dict[str, list[float]] = {name: [] for name in backends}
    while len(times["products"]) < MIN_ROUNDS or sum(map(sum, times.values())) < min_seconds:
        for name, attend in backends.items():
            start = time.perf_counter()
            run(attend, qkv, gradient)
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(durations) for name, durations in times.items()}
    row: dict[str, Any] = {"shape": shape, "dtype": dtype, "edges": edges, "pass": pass_name, "apart": difference}
    q, k, _ = qkv
    is_selected = is_matmul_faster(q[:, :, -1:] if pass_name == "step" else q, k)
    return row | seconds | {"ratio": seconds["kernel"] / seconds["products"], "taken": is_selected}


def format_row(row: dict[str, Any]) -> str:
    setting = f"{','.join(map(str, row['shape'])):<14} {row['dtype']:<8} {row['edges']:<6} {row['pass']:<8}"
    times = f"kernel {1e3 * row['kernel']:9.3f} ms   products {1e3 * row['products']:9.3f} ms"
    return f"{setting}  {times}   ratio {row['ratio']:6.2f} {'*' if row['taken'] else ''}"


def parse_shape(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) != 4 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not of the form batch,heads,nodes,channels")
    return numbers


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=[parse_shape(text) for text in SHAPES])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--edges", nargs="+", choices=EDGES, default=EDGES)
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds of measuring for each row")
    options = parser.parse_args()
    rows = []
    for shape, dtype, edges, pass_name in product(options.shapes, options.dtypes, options.edges, options.passes):
        if pass_name == "step" and edges == "causal":  # the same as full: all keys are in the past
            continue
        rows.append(measure(shape, dtype, edges, pass_name, options.patience))
        if not options.json:
            print(format_row(rows[-1]), flush=True)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}))
