"""Measured limits of a device: the speed of its matrix products and of its memory."""

import time
from collections.abc import Callable

import torch

COPY_BYTES = 128 * 2**20  # larger than the caches of all but the largest servers
MIN_MATMUL_SECONDS = 0.03  # a matrix multiplication this long is warmed up and measured well
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "A10G": 70,
    "A10": 125, "A40": 150, "L40S": 362, "L4": 121, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""Dense bfloat16 TFLOP/s of GPUs, by a part of their name; the first that fits counts."""
UNSUPPORTED_ERRORS = (RuntimeError, TypeError, NotImplementedError)  # of torch, if a device cannot, or lacks memory


def first_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def get_peak_flops(device: torch.device) -> float | None:
    """Return the dense bfloat16 FLOP/s of a GPU as its maker states them; None for other devices."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((1e12 * tflops for kind, tflops in PEAK_TFLOPS.items() if kind in name), None)


def measure_matmul_gflops(device: str, dtype: str) -> float:
    """Measure the highest speed of a square matrix multiplication in GFLOP/s, over doubling sizes."""
    best = 0.0
    for n in (256, 512, 1024, 2048, 4096, 8192):
        a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
        seconds = time_fastest(lambda a=a: a @ a, device)
        best = max(best, 2 * n**3 / seconds / 1e9)
        if seconds > MIN_MATMUL_SECONDS / 8:  # the next size takes eight times as long
            break
    return round(best, 1)


def measure_copy_bandwidth(device: str) -> float:
    """Measure memory bandwidth in GB/s with a copy of 128 MiB; bytes read and bytes written both count."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return round(2 * COPY_BYTES / time_fastest(lambda: target.copy_(source), device) / 1e9, 1)


def measure_read_bandwidth(device: str) -> float:
    """Measure read bandwidth in GB/s with the sum of 256 MiB."""
    values = torch.ones(2 * COPY_BYTES // 4, device=device)
    return round(2 * COPY_BYTES / time_fastest(values.sum, device, 30) / 1e9, 1)


def time_fastest(function: Callable[[], object], device: str, repeats: int = 4) -> float:
    """Return the seconds of the fastest of several calls, after one warm-up call."""
    kind = torch.device(device).type
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(kind, lambda: None)
    times = []
    for _ in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return max(min(times[1:]), 1e-9)
