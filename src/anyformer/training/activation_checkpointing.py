"""Activation checkpointing (1604.06174): a block keeps its input only, and is computed again for the backward pass."""

from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from ..model.transformer import Block, Transformer
from .config import TrainConfig


def checkpoint_activations(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Checkpoint every block of the Transformers in a model if the config says so, in place. Returns the model.

    The gradients are the same, bit for bit: the state of the random generators is restored for the second pass. The
    `forward` of a block is replaced, not its call, so that hooks of a block (those of FSDP) run around both passes.
    """
    if config.activation_checkpointing:
        blocks = [b for stack in model.modules() if isinstance(stack, Transformer) for b in stack.blocks]
        if not blocks:
            raise InputError("train.activation_checkpointing: this model has no blocks of a Transformer")
        for block in blocks:
            block.forward = partial(_forward, cast(Block, block))
    return model


def _forward(block: Block, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
