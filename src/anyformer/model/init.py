"""Initial weights, all in one place.

Maps and embeddings are small and normal (GPT-2: 0.02), so that logits start near zero and all tokens are nearly equally
likely. Maps that write to the residual stream start smaller, by the root of their number, or at zero, so that the
variance of the stream does not grow with depth. Norms start as the identity, biases at zero.
"""

import math

from torch import nn

from .config import TransformerConfig
from .position_bias import RelativeBias
from .positions import LearnedPosition
from .transformer import Transformer


def initialize(model: nn.Module, config: TransformerConfig) -> nn.Module:
    """Set every weight of the model, in the order of its modules, from torch's global random generator. Returns it."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | LearnedPosition | RelativeBias):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for stack in model.modules():
        if isinstance(stack, Transformer):
            _initialize_residual_writers(stack, config)
    return model


def _initialize_residual_writers(stack: Transformer, config: TransformerConfig) -> None:
    writers = (3 if stack.cross else 2) * config.n_layer
    std = 0.0 if config.init == "zero" else 0.02 / math.sqrt(writers)
    for name, module in stack.named_modules():
        if name.endswith((".output", ".down")):
            nn.init.normal_(module.weight, std=std)
