"""Codebooks that lie in the weights of a model."""

from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ...training.checkpoints import open_safetensors


def read_codebook(file: str, shape: tuple[int, int], unit: str) -> Tensor | None:
    """Return the codebook (K, D) of the checkpoint that a file lies in; None where there is none. Raises InputError if
    its shape is another one; a center is of what `unit` says."""
    weights = Path(file).with_name("model.safetensors") if file.endswith(".json") else None
    if weights is None or not weights.is_file():
        return None
    with open_safetensors(weights) as tensors:
        codebook = tensors.get_tensor("codebook") if "codebook" in set(tensors.keys()) else torch.empty(0)
    if codebook.shape != shape:
        raise InputError(f"{weights} has no codebook of {shape[0]} {unit} of {shape[1]} numbers")
    return codebook
