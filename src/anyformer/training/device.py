"""Which device, and which number format on it."""

import contextlib

import torch

from ..errors import InputError, nearest


def device(name: str) -> torch.device:
    """ "auto" is the best there is. Raises InputError for a device that this machine lacks."""
    there = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
    there += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] * torch.cuda.is_available()
    if name == "auto":
        return torch.device(next((d for d in ("cuda", "mps") if d in there), "cpu"))
    if name not in there:
        raise InputError(f"--device {name} is not on this machine: {nearest(name, ['auto', *there])}")
    return torch.device(name)


def dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the device has instructions for it, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.float32


def precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Matrix products in `dtype`, everything delicate (norms, softmax, loss) in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
