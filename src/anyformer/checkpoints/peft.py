"""Write the adapters of a LoRA run in PEFT's layout: adapter_model.safetensors and adapter_config.json.

Where a family stores several local maps in one (GPT-2's query, key and value), their adapters become one of the summed
rank, block-diagonal: the same product.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from ..recipe import Recipe
from ..training.checkpoints import atomic_directory
from ..training.lora import LoRALinear
from .family import select_family
from .tensor_map import ConfigDict


def write(folder: Path, recipe: Recipe, values: ConfigDict, model: nn.Module, base: str) -> None:
    """Write the adapters of a model with LoRA.

    Args:
        values: the recipe's config, as JSON values.
        base: path or name of the model that the adapters belong to.

    Raises:
        InputError: the model has no adapters, or trained other weights too, or no family can express it.
    """
    adapters = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not adapters:
        raise InputError("there are no adapters to write: train with --init RUN --lora.rank 8, or export --to hf")
    tensors = {name.replace(".base.", "."): p for name, p in model.named_parameters() if ".lora_" not in name}
    if trained := [name for name, parameter in tensors.items() if parameter.requires_grad]:
        raise InputError(f"{trained[0]} was trained besides the adapters and has no place in PEFT's file: use --to hf")
    family = select_family(recipe, values)
    exported: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    transposed: set[bool] = set()
    for mapping in family.build_tensor_map(values, family.write_config(values, tensors)):
        parts = [adapters[name] for name in mapping.local if name in adapters]
        if parts and mapping.public is not None:
            name = mapping.public.removesuffix(".weight")
            exported[f"base_model.model.{name}.lora_A.weight"] = torch.cat([part.lora_A for part in parts]).detach()
            joined = torch.block_diag(*(part.lora_B for part in parts))
            exported[f"base_model.model.{name}.lora_B.weight"] = joined.detach()
            ranks[name] = sum(len(part.lora_A) for part in parts)
            transposed.add(mapping.transposed)
    if len(transposed) > 1:
        raise InputError("this family stores some adapted maps transposed and some not, which PEFT cannot express")
    config = make_adapter_config(ranks, next(iter(adapters.values())), transposed.pop())
    with atomic_directory(folder) as temporary:
        save_file(exported, temporary / "adapter_model.safetensors", {"format": "pt"})
        text = json.dumps(config | {"base_model_name_or_path": base}, indent=2)
        (temporary / "adapter_config.json").write_text(text, encoding="utf-8")


def make_adapter_config(ranks: dict[str, int], adapter: LoRALinear, transposed: bool) -> dict[str, Any]:
    """Return adapter_config.json. PEFT scales by alpha / rank, which must be the same for all maps."""
    rank = len(adapter.lora_A)
    other_ranks = {name: r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": adapter.scale * rank,
        "target_modules": sorted(ranks),
        "rank_pattern": other_ranks,
        "alpha_pattern": {name: adapter.scale * r for name, r in other_ranks.items()},
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
