"""Optimisers and schedules: how a gradient becomes a step."""

import math

import torch
from torch import Tensor, nn

from ..model.transformer import Transformer
from .config import TrainConfig

STATE_KEYS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}  # what each remembers of a parameter


def get_lr(step: int, c: TrainConfig) -> float:
    """Linear warm-up, then the schedule. step counts from 0."""
    if step < c.warmup:
        return c.lr * (step + 1) / (c.warmup + 1)
    done = min(1.0, (step - c.warmup) / max(1, c.steps - c.warmup))
    cosine, trapezoid = 0.5 * (1 + math.cos(math.pi * done)), min(1.0, (1 - done) / 0.4)  # down in the last two fifths
    left = cosine if c.schedule == "cosine" else trapezoid
    return c.lr * (c.min_lr + (1 - c.min_lr) * left)


class Optimizer:
    """One or two of torch's optimisers under one name: every parameter belongs to exactly one.

    Matrices decay, vectors do not. Under "muon" the matrices of Transformer blocks are stepped by Muon, its step scaled
    to the size of AdamW's (2502.16982), so that one learning rate serves both.
    """

    def __init__(self, model: nn.Module, c: TrainConfig):
        blocks = [m for stack in model.modules() if isinstance(stack, Transformer) for m in stack.blocks.modules()]
        inner = {m.weight for m in blocks if isinstance(m, nn.Linear)} if c.optimizer == "muon" else set()
        rest = [p for p in model.parameters() if p.requires_grad and p not in inner]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": c.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = all(p.device.type in ("cpu", "cuda") for p in rest)
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, c.lr, (0.9, c.beta2), fused=fused)]
        if inner:
            matrices = [p for p in model.parameters() if p in inner]  # in the model's order, not the set's
            muon = torch.optim.Muon(matrices, c.lr, c.weight_decay, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)

    def step(self, lr: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All its tensors, named part.parameter.what."""
        return {
            f"{i}.{index}.{name}": value
            for i, part in enumerate(self.parts)
            for index, values in part.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError or IndexError where these are not the tensors of these parameters."""
        parameters = [[p for group in part.param_groups for p in group["params"]] for part in self.parts]
        owns: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        for key, value in state.items():
            which, index, name = key.split(".")
            wanted = parameters[int(which)][int(index)].shape
            if value.ndim and value.shape != wanted:
                raise ValueError(f"{key} has shape {list(value.shape)}, not {list(wanted)}")
            owns[int(which)].setdefault(int(index), {})[name] = value
        for part, own in zip(self.parts, owns):
            if not own or any(values.keys() != STATE_KEYS[type(part).__name__] for values in own.values()):
                raise ValueError(f"it is not the state of {type(part).__name__}")
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
