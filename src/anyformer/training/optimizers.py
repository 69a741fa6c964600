"""Optimizers and learning rate schedules."""

import math

import torch
from torch import Tensor, nn

from ..model.transformer import Transformer
from .config import TrainConfig
from .distributed import collect, get_size, share_like
from .muon import Muon, OwnedMuon
from .optimizer_dtype import store_states
from .uncompiled import AdamW

STATE_KEYS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.Muon: {"momentum_buffer"}}
DECAY_FRACTION = 0.4  # of the steps after the warm-up, at the end of the trapezoid schedule


def get_lr(step: float, config: TrainConfig) -> float:
    """Return the learning rate of a step (counted from 0): linear warm-up, then the schedule. By the clock, a step is
    the same share of `config.steps` as that of the time that has been used."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = min(1.0, (1 - progress) / DECAY_FRACTION)
    return config.lr * (config.min_lr + (1 - config.min_lr) * factor)


class Optimizer:
    """One or two of torch's optimizers behind one interface; every parameter belongs to exactly one of them.

    Matrices decay, vectors do not. With "muon", the weights of linear layers in Transformer blocks are updated by Muon,
    its update scaled to the RMS of AdamW's (2502.16982), so that one learning rate serves both; everything else,
    adapters included, is updated by AdamW.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        stacks = [module for module in model.modules() if isinstance(module, Transformer)]
        linears = [m for stack in stacks for m in stack.blocks.modules() if isinstance(m, nn.Linear)]
        weights = {m.weight for m in linears} if config.optimizer == "muon" else set()
        trained = [p for p in model.parameters() if p.requires_grad]
        by_muon, by_adamw = [p for p in trained if p in weights], [p for p in trained if p not in weights]
        groups = [
            {"params": [p for p in by_adamw if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in by_adamw if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = all(p.device.type in ("cpu", "cuda") for p in by_adamw)
        self.optimizers: list[torch.optim.Optimizer] = [
            AdamW(groups, config.lr, (0.9, float(config.beta2)), fused=fused)
        ]
        if by_muon:
            kind = OwnedMuon if get_size() > 1 else Muon
            self.optimizers.append(kind(by_muon, config.lr, config.weight_decay, adjust_lr_fn="match_rms_adamw"))
        if config.optimizer_dtype == "bfloat16":
            for optimizer in self.optimizers:
                store_states(optimizer, torch.bfloat16)

    def step(self, lr: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all state tensors, by "optimizer.parameter.key": "0.12.exp_avg". Of several processes all must call
        this, and the first gets them."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, OwnedMuon):
                optimizer.gather_state()
        tensors = {
            f"{i}.{index}.{key}": value
            for i, optimizer in enumerate(self.optimizers)
            for index, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }
        tensors = collect(tensors)
        self.drop_state()
        return tensors

    def drop_state(self) -> None:
        """Forget the state that other processes keep."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, OwnedMuon):
                optimizer.drop_state()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state. Raises ValueError or IndexError if the tensors do not belong to these parameters."""
        parameters = [[p for group in opt.param_groups for p in group["params"]] for opt in self.optimizers]
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name, value in tensors.items():
            i, index, key = name.split(".")
            parameter = parameters[int(i)][int(index)]
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {list(value.shape)}, not {list(parameter.shape)}")
            value = share_like(value, parameter) if value.ndim else value
            states[int(i)].setdefault(int(index), {})[key] = value
        for optimizer, state in zip(self.optimizers, states):
            keys = next(keys for kind, keys in STATE_KEYS.items() if isinstance(optimizer, kind))
            if not state or any(values.keys() != keys for values in state.values()):
                raise ValueError(f"it is not the state of {type(optimizer).__name__}")
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.drop_state()
