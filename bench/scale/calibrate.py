"""The model of one node against real processes on this machine: gloo, torch's DistributedDataParallel, CPUs.

    python -m bench.scale.calibrate
    python -m bench.scale.calibrate --processes 1 2 --seconds 1 --json

For each number of processes are measured: matrix products, all together; adding up tensors of several sizes, from which
latency and bandwidth follow; forward and backward passes of a small model without communication; and the same model
trained by DistributedDataParallel. The last is what is predicted from the others, without overlap: on a CPU the
communication takes the cores that the model computes on.
"""

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.scale.simulate import BUCKET

SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 22)  # numbers of float32 that are added up
WIDTH, DEPTH, ROWS = 512, 8, 256  # of the model that is trained: 8.4M parameters
Row = dict[str, Any]


def time_in_turns(works: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Return the median seconds of each call, while all processes make the same calls in the same order: what else
    runs on the machine disturbs all of them alike."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    is_over, started_at = torch.zeros(1), time.perf_counter()
    while len(times[0]) < 3 or not is_over:
        for work, taken in zip(works, times):
            dist.barrier()
            start = time.perf_counter()
            work()
            dist.barrier()
            taken.append(time.perf_counter() - start)
        is_over.fill_(time.perf_counter() - started_at > seconds)
        dist.all_reduce(is_over, dist.ReduceOp.MAX)
    return [statistics.median(taken) for taken in times]


def fit_line(sizes: list[float], seconds: list[float]) -> tuple[float, float]:
    """Return (latency, bytes per second) of calls: the smallest call is all latency, the largest nearly all bytes."""
    latency = seconds[0]
    return latency, sizes[-1] / max(seconds[-1] - latency, 1e-9)


def build_model() -> nn.Module:
    torch.manual_seed(0)
    pairs = [(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(DEPTH)]
    return nn.Sequential(*(module for pair in pairs for module in pair))


def measure(rank: int, processes: int, port: int, seconds: float, results: Any) -> None:
    """Measure in one of several processes; the first puts the row into `results`."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    matrix, x, model = torch.randn(WIDTH, WIDTH), torch.randn(ROWS, WIDTH), build_model()
    parallel = DistributedDataParallel(build_model()) if processes > 1 else model

    def train(module: nn.Module) -> None:
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()

    (product,) = time_in_turns([lambda: matrix @ matrix], seconds / 4)
    tensors = [torch.ones(size) for size in SIZES]
    works: list[Callable[[], Any]] = [lambda t=t: dist.all_reduce(t, dist.ReduceOp.MAX) for t in tensors]
    *calls, alone, together = time_in_turns([*works, lambda: train(model), lambda: train(parallel)], seconds)
    latency, bandwidth = fit_line([4.0 * size for size in SIZES], calls)
    if rank == 0:
        size = 4.0 * sum(p.numel() for p in model.parameters())
        predicted = alone + (predict_reduction(size, latency, bandwidth) if processes > 1 else 0.0)
        row: Row = {"processes": processes, "gflops": 2 * WIDTH**3 / product / 1e9}
        if processes > 1:
            row |= {"latency_ms": 1e3 * latency, "gb_per_s": bandwidth / 1e9}
        row |= {"compute_ms": 1e3 * alone, "predicted_ms": 1e3 * predicted, "measured_ms": 1e3 * together}
        results.put(row | {"measured_of_predicted": together / predicted})
    dist.barrier()
    dist.destroy_process_group()


def predict_reduction(size: float, latency: float, bandwidth: float) -> float:
    """Return the seconds of adding up gradients in buckets."""
    return max(1.0, size / BUCKET) * latency + size / bandwidth


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def calibrate(processes: int, seconds: float) -> Row:
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(measure, (processes, find_port(), seconds, results), nprocs=processes)
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of processes")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    rows = [calibrate(n, options.seconds) for n in options.processes]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
