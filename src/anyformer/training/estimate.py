"""Estimate what a training would cost, without training: on torch's meta device, which has shapes and no values."""

import warnings
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..recipe import Recipe
from .device import resolve_device, resolve_dtype
from .distributed import check_shard
from .memory_estimate import MAX_ROWS, estimate_memory
from .updates import count_own

MAX_CPU_ROWS = 4  # rows of the batch on which models run that cannot run on the meta device


def estimate(recipe: Recipe, config: Any, processes: int = 1) -> dict[str, Any]:
    """Return parameters, FLOPs of an update, bytes of memory of each process and the shapes of one batch, as plain
    values. Raises InputError if so many processes cannot train together under this config."""
    c = config.train
    check_shard(c.shard, processes)
    count_own(c.accumulate, processes)
    batch, tokens, scale = read_batch(recipe, config, MAX_ROWS)
    try:
        with torch.device("meta"):
            model = recipe.build(config)
        flops = scale * count_flops(recipe, model, {name: value.to("meta") for name, value in batch.items()})
    except (RuntimeError, TypeError):  # the loss depends on values: indexing by a mask, lengths, lookups in numpy
        small, _, small_scale = read_batch(recipe, config, MAX_CPU_ROWS)
        model = recipe.build(config)
        flops = small_scale * count_flops(recipe, model, small)
    device = resolve_device(c.device)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_step": round(flops) * c.accumulate,
        "flops": round(flops) * c.accumulate * c.steps,
        "processes": processes,
        "memory_bytes": estimate_memory(recipe, config, partial(read_batch, recipe, config), processes),
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


def count_flops(recipe: Recipe, model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Return the FLOPs of one forward and backward pass; what activation checkpointing computes twice counts once."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))  # mkldnn.flags warns on CPUs of other makers
        # mkldnn's recurrent layers are one operation that the counter does not know
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        flops = stack.enter_context(FlopCounterMode(display=False))
        recipe.loss(model, batch).backward()
    return flops.get_total_flops()


def describe_tensor(tensor: Tensor, scale: float) -> dict[str, Any]:
    """Return shape and dtype, the first axis (rows) scaled up."""
    rows = [round(size * scale) for size in tensor.shape[:1]]
    return {"shape": [*rows, *tensor.shape[1:]], "dtype": str(tensor.dtype).removeprefix("torch.")}


def format_estimate(title: str, facts: dict[str, Any]) -> str:
    """Format an estimate for the terminal."""
    memory, steps, tokens = facts["memory_bytes"], facts["steps"], facts["tokens_per_step"]
    place = f" in each of {facts['processes']} processes" if facts["processes"] > 1 else ""
    rows = {
        "parameters": f"{facts['parameters']:,}",
        "a batch": ", ".join(f"{name} {tuple(b['shape'])} {b['dtype']}" for name, b in facts["batch"].items()),
        "a step": f"{facts['flops_per_step'] / 1e9:,.1f} GFLOP, {tokens:,} tokens",
        "all steps": f"{steps:,}: {facts['flops'] / 1e12:,.2f} TFLOP, {tokens * steps / 1e6:,.1f} M tokens",
        "on": f"{facts['device']} in {facts['dtype']}",
        "memory": f"{memory['total'] / 1e6:,.1f} MB at the peak of a step{place}:",
    }
    table = [f"    {part:<14}{size / 1e6:>11,.1f} MB" for part, size in memory.items() if size and part != "total"]
    return "\n".join([title, *(f"  {name:<11} {value}" for name, value in rows.items()), *table])
