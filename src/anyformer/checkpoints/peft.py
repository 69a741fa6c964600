"""Adapters of a LoRA run in the layout of PEFT: adapter_model.safetensors and adapter_config.json.

Where a family stores several maps of ours in one (GPT-2's query, key and value), their adapters become one of as many
times the rank, with zeros between them: the same sum.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from ..training.checkpoints import whole
from ..training.lora import Adapted
from . import hf_folder as directory
from .tensor_map import Row, Values


def write(folder: Path, recipe: str, values: Values, model: nn.Module, base: str) -> None:
    """Write the adapters of an adapted model. base: where the weights they belong to are. Raises InputError."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    if not adapted:
        raise InputError("there are no adapters to write: train with --init RUN --lora.rank 8, or export --to hf")
    own = {name.replace(".base.", "."): p for name, p in model.named_parameters() if ".lora_" not in name}
    if learnt := [name for name, p in own.items() if p.requires_grad]:
        raise InputError(f"{learnt[0]} was trained beside the adapters and has no place in PEFT's file: use --to hf")
    found, config = directory.fitting(recipe, values, own)
    numbers: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    flips: set[bool] = set()
    for row, parts in joined(found.rows(config), adapted):
        assert row.theirs is not None
        name = row.theirs.removesuffix(".weight")
        numbers[f"base_model.model.{name}.lora_A.weight"] = torch.cat([part.lora_A for part in parts])
        numbers[f"base_model.model.{name}.lora_B.weight"] = torch.block_diag(*(part.lora_B for part in parts))
        ranks[name] = sum(len(part.lora_A) for part in parts)
        flips.add(row.flip)
    if len(flips) > 1:
        raise InputError("this family stores some maps flipped and some not, which PEFT cannot say")
    described = settings(ranks, next(iter(adapted.values())), flips.pop()) | {"base_model_name_or_path": base}
    with whole(folder) as temporary:
        whole_numbers = {name: tensor.detach().contiguous() for name, tensor in numbers.items()}
        save_file(whole_numbers, temporary / "adapter_model.safetensors", {"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def joined(rows: list[Row], adapted: dict[str, Adapted]) -> Iterator[tuple[Row, list[Adapted]]]:
    """The rows whose tensor has adapters on it, with them."""
    for row in rows:
        names = [name.removesuffix(".weight") for name in row.ours if name.endswith(".weight")]
        parts = [adapted[name] for name in names if name in adapted]
        if parts and row.theirs is not None:
            yield row, parts


def settings(ranks: dict[str, int], one: Adapted, flipped: bool) -> dict[str, Any]:
    """adapter_config.json. PEFT scales by alpha / rank, which is to be the same for all."""
    rank = len(one.lora_A)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": one.scale * rank,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: one.scale * r for name, r in ranks.items() if r != rank},
        "fan_in_fan_out": flipped,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
