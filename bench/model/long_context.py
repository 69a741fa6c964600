"""One layer of attention over long contexts on a CPU: a causal window and full causal attention, forward and backward.

    python -m bench.model.long_context --out long.svg

Both are the same `Attention` (512 channels, 8 heads) under different edges; full causal attention uses torch's fused
kernel (SDPA). Time and memory are measured in a process of their own for each length, with huge pages where the system
offers them (torch's THP_MEM_ALLOC_ENABLE): allocating small pages takes half of the time at the largest lengths.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anyformer.model.config import TransformerConfig
from anyformer.model.edges import causal, window
from anyformer.model.transformer import Transformer
from anyformer.report.chart import Series, line_chart
from bench._common import make_parser

MAX_SECONDS = 60.0  # of a measurement; longer contexts of that rule are skipped
RULES = {"window": lambda width: causal & window(width), "dense": lambda width: causal}


def measure(rule: str, nodes: int, width: int) -> dict[str, float]:
    """Return the seconds of forward and backward, the best of four or five, and the additional bytes they took."""
    torch.manual_seed(0)
    body = Transformer(TransformerConfig(dim=512, n_layer=1, n_head=8, context=nodes, position="rotary"))
    layer, edges = body.blocks[0].get_submodule("attn"), RULES[rule](width)
    x = torch.randn(1, nodes, 512, requires_grad=True)
    before, times = peak_bytes(), []
    while len(times) < 4 or (len(times) < 5 and sum(times) < MAX_SECONDS / 10):
        start = time.perf_counter()
        layer(x, edges).square().mean().backward()
        times.append(time.perf_counter() - start)
        if times[0] > MAX_SECONDS / 2:
            break
    return {"seconds": min(times), "bytes": peak_bytes() - before}


def peak_bytes() -> int:
    """Return the peak memory of this process. (A child inherits the value that getrusage reports.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure_in_child(rule: str, nodes: int, width: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.model.long_context", "--measure", rule, str(nodes), "--width", str(width)]
    pages = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=pages).stdout)


def measure_lengths(lengths: list[int], width: int, report: Any) -> dict[str, dict[int, dict[str, float]]]:
    results: dict[str, dict[int, dict[str, float]]] = {rule: {} for rule in RULES}
    for rule in RULES:
        for nodes in lengths:
            result = results[rule][nodes] = measure_in_child(rule, nodes, width)
            text = f"{1e6 * result['seconds'] / nodes:8.2f} us and {result['bytes'] / nodes / 1024:7.1f} KiB per node"
            report(f"{rule:<7} context {nodes:>6,}  {text}")
            if result["seconds"] * (1 if rule == "window" else 4) > MAX_SECONDS:
                break
    return results


def draw(results: dict[str, dict[int, dict[str, float]]], width: int) -> str:
    """Draw microseconds per node by length, for both rules."""
    names = {"window": f"causal & window({width})", "dense": "causal"}
    series = []
    for rule, rows in results.items():
        times = [1e6 * result["seconds"] / nodes for nodes, result in rows.items()]
        series.append(Series(names[rule], list(rows), times, len(series), dots=True))
    title = "Forward and backward of one layer, microseconds per node"
    return line_chart(series, title=title, x_label="context", log=True, heading=False)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1 << i for i in range(10, 17)])
    parser.add_argument("--width", type=int, default=256, help="of the window")
    parser.add_argument("--out", type=Path, help="write a chart, .svg")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "NODES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options.width)))
    else:
        report = (lambda text: None) if options.json else partial(print, flush=True)
        rows = measure_lengths(options.lengths, options.width, report)
        common = [n for n in rows["window"] if n in rows["dense"]]
        crossing = next((n for n in common if rows["window"][n]["seconds"] < rows["dense"][n]["seconds"]), None)
        result = {"width": options.width, **rows, "crossing": crossing}
        print(json.dumps(result) if options.json else f"crossing at {crossing}")
        if options.out:
            options.out.write_text(draw(rows, options.width), encoding="utf-8")
