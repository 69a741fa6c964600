"""Optimizer states in bfloat16 between updates: half the memory. An update is computed in float32."""

from typing import Any

import torch
from torch import Tensor

from .muon import OwnedMuon

KEPT = "step"  # the number of updates, which stays exact


def store_states(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    """Let an optimizer keep its averages in a dtype between updates, also after `load_state_dict`.

    During an update all of them are in float32: activations are freed by then, so that the peak of a training step is
    lower unless activations take less than half of the states. Values are rounded to the nearest, so that an average
    that decays by less than 2^-8 in an update stays where it is.
    """

    def widen(*_: Any) -> None:
        convert(optimizer, torch.float32)

    def narrow(*_: Any) -> None:
        convert(optimizer, dtype)

    if isinstance(optimizer, OwnedMuon):
        optimizer.state_dtype = dtype
    optimizer.register_step_pre_hook(widen)
    optimizer.register_step_post_hook(narrow)
    optimizer.register_load_state_dict_post_hook(narrow)


def convert(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    for state in optimizer.state.values():
        for key, value in state.items():
            if key != KEPT and isinstance(value, Tensor):
                state[key] = value.to(dtype)
