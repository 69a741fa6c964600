"""Muon on one process: torch's, and the same in float32 on a CPU without instructions for bfloat16."""

import pytest
import torch
from torch import Tensor

from anyformer.training import muon

SHAPES = ((6, 5), (16, 40), (40, 16), (24, 24))


def draw_matrices(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def move_matrices(kind: type[torch.optim.Muon]) -> list[Tensor]:
    """Return the matrices after three updates with fixed gradients."""
    parameters = [torch.nn.Parameter(matrix) for matrix in draw_matrices(0)]
    unused = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = kind([*parameters, unused], 0.1, 0.1, adjust_lr_fn="match_rms_adamw")
    for seed in (1, 2, 3):
        for parameter, gradient in zip(parameters, draw_matrices(seed)):
            parameter.grad = gradient
        optimizer.step()
    assert torch.equal(unused, torch.ones(3, 3))
    return [parameter.detach() for parameter in parameters]


def test_it_is_torchs_where_there_is_bfloat16(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(muon, "has_native_bfloat16", lambda: True)
    for own, other in zip(move_matrices(muon.Muon), move_matrices(torch.optim.Muon), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("answer", [False, None])
def test_float32_gives_the_same_but_for_the_rounding(answer: bool | None, monkeypatch: pytest.MonkeyPatch):
    group = torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))]).param_groups[0]
    monkeypatch.setattr(muon, "has_native_bfloat16", lambda: answer)
    monkeypatch.setattr(muon, "_zeropower_via_newtonschulz", lambda *_: pytest.fail("this is slow here"))
    updates = [muon.orthogonalize(matrix.bfloat16(), group) for matrix in draw_matrices(1)]
    monkeypatch.undo()
    for matrix, update in zip(draw_matrices(1), updates, strict=True):
        expected = torch.optim._muon._zeropower_via_newtonschulz(
            matrix.bfloat16(), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        assert update.dtype == expected.dtype == torch.bfloat16 and update.shape == matrix.shape
        assert (update - expected).norm() < 0.03 * expected.norm()
        values = torch.linalg.svdvals(update.float())
        assert values.min() > 0.5 and values.max() < 1.3
