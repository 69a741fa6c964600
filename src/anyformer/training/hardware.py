"""How fast a device multiplies and reads: what no training and no answer on it can pass. Measured, not looked up."""

import time
from collections.abc import Callable

import torch

COPY_BYTES = 128 * 2**20  # bytes; larger than the caches of all but the largest servers
MIN_MATMUL_SECONDS = 0.03  # seconds; a matrix multiplication that takes this long has warmed up and is well measured
UNSUPPORTED_ERRORS = (RuntimeError, TypeError, NotImplementedError)  # how torch says that a device cannot, or lacks the memory


def first_line(error: BaseException) -> str:
    """Why, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def measure_matmul_gflops(device: str, dtype: str) -> float:
    """The best speed of a square matrix multiplication in GFLOP/s, over sizes that double until one takes a while."""
    best = 0.0
    for n in (256, 512, 1024, 2048, 4096, 8192):
        a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
        seconds = time_fastest(lambda a=a: a @ a, device)
        best = max(best, 2 * n**3 / seconds / 1e9)
        if seconds > MIN_MATMUL_SECONDS / 8:  # the next size takes eight times as long
            break
    return round(best, 1)


def measure_copy_bandwidth(device: str) -> float:
    """Memory bandwidth in GB/s: a copy of 128 MiB, the bytes read and the bytes written both counted."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return round(2 * COPY_BYTES / time_fastest(lambda: target.copy_(source), device) / 1e9, 1)


def measure_read_bandwidth(device: str) -> float:
    """What the memory gives to who only reads, in GB/s: the sum of 256 MiB of numbers."""
    many = torch.ones(2 * COPY_BYTES // 4, device=device)
    return round(2 * COPY_BYTES / time_fastest(many.sum, device, 30) / 1e9, 1)


def time_fastest(work: Callable[[], object], device: str, times: int = 4) -> float:
    """Seconds of the fastest of a few runs, after one that is not counted."""
    kind = torch.device(device).type
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(kind, lambda: None)
    best = float("inf")
    for attempt in range(times + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds = time.perf_counter() - start
        best = min(best, seconds) if attempt else best
    return max(best, 1e-9)
