"""What the tests of public checkpoints share: random models of the library's, saved, loaded here, compared."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="the oracle of these tests: pip install transformers")


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter random, norms and biases too: a fresh model's zeros and ones would hide a mistaken name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def opened(kind: Any, folder: Path) -> nn.Module:
    """The library's model from a folder, with an empty loading report."""
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}, report
    return model.eval()


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the largest number there, in float32."""
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), (ours - theirs).abs().max() / theirs.abs().max()


def same_tensors(ours: nn.Module, others: nn.Module) -> None:
    """Bit for bit."""
    one, other = ours.state_dict(), others.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
