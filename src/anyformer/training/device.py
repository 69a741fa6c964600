"""Devices and number formats."""

import contextlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..processes import get_local_rank, get_world_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the fastest kind available. Raises InputError if the machine lacks it."""
    available = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
    if get_world_size() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{get_local_rank()}"  # each process has a device of its own
    available += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] * torch.cuda.is_available()
    if name == "auto":
        name = next((d for d in ("cuda", "mps") if d in available), "cpu")
    if name not in available:
        raise InputError(f"--device {name} is not available on this machine; it has: auto, {', '.join(available)}")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of this device.

    On a CPU, torch.manual_seed would format a traceback for each kind of accelerator that is not there: a millisecond.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products.

    "auto" is bfloat16 where the hardware supports it, float16 (trained with loss scaling) on GPUs without it, and
    float32 on CPUs without it.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_native_bfloat16() else torch.float32


@cache
def has_native_bfloat16() -> bool | None:
    """Return whether the CPU has instructions for bfloat16 matrices; None if that cannot be determined."""
    with contextlib.suppress(AttributeError, RuntimeError):  # newer versions of torch know
        return any(bool(value) for key, value in torch.cpu.get_capabilities().items() if "bf16" in key)
    with contextlib.suppress(OSError):  # Linux lists avx512_bf16 and amx_bf16 on x86, bf16 on ARM
        lines = Path("/proc/cpuinfo").read_text().lower().splitlines()
        return any("bf16" in line for line in lines if line.startswith(("flags", "features")))
    return None


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Compute matrix products in `dtype`, and norms, softmax and the loss in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def evaluation_autocast(model: torch.nn.Module, dtype: str) -> contextlib.AbstractContextManager:
    """Compute as `loop.evaluate` does: predictions that are counted elsewhere must agree with its metrics."""
    device = next(model.parameters()).device
    return autocast(device, resolve_dtype(dtype, device))


def move_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch to a device; from CPU to CUDA asynchronously, through pinned memory."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in batch.items()}
    pinned = {name: value.pin_memory() if value.device.type == "cpu" else value for name, value in batch.items()}
    return {name: value.to(device, non_blocking=True) for name, value in pinned.items()}
