"""Which device, and which number format on it."""

import contextlib
from pathlib import Path

import torch

from ..errors import InputError, suggest


def resolve_device(name: str) -> torch.device:
    """ "auto" is the best there is. Raises InputError for a device that this machine lacks."""
    there = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
    there += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] * torch.cuda.is_available()
    if name == "auto":
        return torch.device(next((d for d in ("cuda", "mps") if d in there), "cpu"))
    if name not in there:
        raise InputError(f"--device {name} is not on this machine: {suggest(name, ['auto', *there])}")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the device has instructions for it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and has_native_bfloat16() else torch.float32


def has_native_bfloat16() -> bool | None:
    """Whether this processor has instructions for bfloat16 matrices; None when nothing here can say.

    torch answers in newer versions only (torch.cpu.get_capabilities), Linux through /proc/cpuinfo: avx512_bf16 and
    amx_bf16 on x86, bf16 on ARM.
    """
    try:
        able = torch.cpu.get_capabilities()
        return any(bool(value) for key, value in able.items() if "bf16" in key)
    except (AttributeError, RuntimeError):
        pass
    try:
        lines = Path("/proc/cpuinfo").read_text().lower().splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith(("flags", "features"))), "")
    return any("bf16" in flag for flag in flags.split())


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Matrix products in `dtype`, everything delicate (norms, softmax, loss) in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
