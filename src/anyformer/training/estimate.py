"""What a training would take, without training: counted on torch's meta device, which has shapes and no numbers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..recipe import Recipe
from .device import resolve_device, resolve_dtype

OPTIMIZER_STATES = {"adamw": 2, "muon": 2}  # numbers an optimiser keeps for each weight, at most


def estimate(recipe: Recipe, config: Any) -> dict[str, Any]:
    """Parameters, FLOPs of a step, bytes of memory and the shapes of one real batch. JSON-able."""
    c = config.train
    batch, place = next(recipe.batches(config, "train", None))
    with torch.device("meta"):
        model = recipe.build(config)
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(hold, lambda tensor: tensor):
        recipe.loss(model, {name: value.to("meta") for name, value in batch.items()}).backward()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    activations = sum(size for storage, size in held.items() if storage not in own)
    memory = {
        "weights": weights,
        "gradients": weights,
        "optimizer": OPTIMIZER_STATES[c.optimizer] * weights,
        "activations": activations,
    }
    where = resolve_device(c.device)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_step": flops.get_total_flops() * c.accumulate,
        "flops": flops.get_total_flops() * c.accumulate * c.steps,
        "memory_bytes": memory | {"total": sum(memory.values())},
        "batch": {
            name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in batch.items()
        },
        "tokens_per_step": place.get("tokens", 0) * c.accumulate,
        "steps": c.steps,
        "device": str(where),
        "dtype": str(resolve_dtype(c.dtype, where)).removeprefix("torch."),
    }


def format_estimate(title: str, facts: dict[str, Any]) -> str:
    """The same for a person."""
    memory = facts["memory_bytes"]
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in memory.items() if name != "total")
    shapes = ", ".join(f"{name} {tuple(b['shape'])} {b['dtype']}" for name, b in facts["batch"].items())
    rows = {
        "parameters": f"{facts['parameters']:,}",
        "a batch": shapes,
        "a step": f"{facts['flops_per_step'] / 1e9:,.1f} GFLOP, {facts['tokens_per_step']:,} tokens",
        "all steps": f"{facts['steps']:,}: {facts['flops'] / 1e12:,.2f} TFLOP, "
        f"{facts['tokens_per_step'] * facts['steps'] / 1e6:,.1f} M tokens",
        "memory": f"{memory['total'] / 1e6:,.0f} MB ({parts})",
        "on": f"{facts['device']} in {facts['dtype']}",
    }
    return "\n".join([title, *(f"  {name:<11} {value}" for name, value in rows.items())])
