"""Estimate what a training would cost, without training: on torch's meta device, which has shapes and no values."""

import warnings
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..recipe import Recipe
from .device import resolve_device, resolve_dtype

MAX_ROWS = 256  # rows of the batch that is read; the cost of a larger one is scaled up from it
MAX_CPU_ROWS = 4  # the same for models that cannot run on the meta device


def estimate(recipe: Recipe, config: Any) -> dict[str, Any]:
    """Return parameters, FLOPs of a step, bytes of memory and the shapes of one batch, as plain values."""
    c = config.train
    batch, tokens, scale = read_batch(recipe, config, MAX_ROWS)
    try:
        with torch.device("meta"):
            model = recipe.build(config)
        cost = measure_step(recipe, model, {name: value.to("meta") for name, value in batch.items()})
        cost_scale = scale
    except (RuntimeError, TypeError):  # the loss depends on values: indexing by a mask, lengths, lookups in numpy
        small, _, cost_scale = read_batch(recipe, config, MAX_CPU_ROWS)
        model = recipe.build(config)
        cost = measure_step(recipe, model, small)
    flops, activation_bytes = (round(value * cost_scale) for value in cost)
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = {"weights": n_bytes, "gradients": n_bytes, "optimizer": 2 * n_bytes, "activations": activation_bytes}
    device = resolve_device(c.device)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_step": flops * c.accumulate,
        "flops": flops * c.accumulate * c.steps,
        "memory_bytes": memory | {"total": sum(memory.values())},
        "batch": {name: describe_tensor(value, scale) for name, value in batch.items()},
        "tokens_per_step": round(tokens * scale) * c.accumulate,
        "steps": c.steps,
        "device": str(device),
        "dtype": str(resolve_dtype(c.dtype, device)).removeprefix("torch."),
    }


def read_batch(recipe: Recipe, config: Any, max_rows: int) -> tuple[dict[str, Tensor], int, float]:
    """Read the first batch with at most so many rows.

    Returns the batch, its number of tokens, and by how much the config's batch is larger.
    """
    rows = min(config.train.batch, max_rows)
    smaller = replace(config, train=replace(config.train, batch=rows))
    batch, state = next(recipe.batches(smaller, "train", None))
    is_all_data = max(value.shape[0] for value in batch.values()) < rows
    return batch, state.get("tokens", 0), 1.0 if is_all_data else config.train.batch / rows


def measure_step(recipe: Recipe, model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Return the FLOPs of one forward and backward pass, and the bytes of the tensors kept for the backward pass."""
    bytes_by_storage: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        bytes_by_storage[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))  # mkldnn.flags warns on CPUs of other makers
        # mkldnn's recurrent layers are one operation that the counter does not know
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(saved_tensors_hooks(record, lambda tensor: tensor))
        flops = stack.enter_context(FlopCounterMode(display=False))
        recipe.loss(model, batch).backward()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    return flops.get_total_flops(), sum(size for key, size in bytes_by_storage.items() if key not in weights)


def describe_tensor(tensor: Tensor, scale: float) -> dict[str, Any]:
    """Return shape and dtype, the first axis (rows) scaled up."""
    rows = [round(size * scale) for size in tensor.shape[:1]]
    return {"shape": [*rows, *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}


def format_estimate(title: str, facts: dict[str, Any]) -> str:
    """Format an estimate for the terminal."""
    memory, steps, tokens = facts["memory_bytes"], facts["steps"], facts["tokens_per_step"]
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items() if name != "total")
    rows = {
        "parameters": f"{facts['parameters']:,}",
        "a batch": ", ".join(f"{name} {tuple(b['shape'])} {b['dtype']}" for name, b in facts["batch"].items()),
        "a step": f"{facts['flops_per_step'] / 1e9:,.1f} GFLOP, {tokens:,} tokens",
        "all steps": f"{steps:,}: {facts['flops'] / 1e12:,.2f} TFLOP, {tokens * steps / 1e6:,.1f} M tokens",
        "memory": f"{memory['total'] / 1e6:,.0f} MB ({parts})",
        "on": f"{facts['device']} in {facts['dtype']}",
    }
    return "\n".join([title, *(f"  {name:<11} {value}" for name, value in rows.items())])
