"""Temperatures and intervals, as measured on rows that were not trained on."""

import pytest
import torch

from anyformer.inference.calibration import fit_temperature, measure_radii


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_logits_need(true: float):
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 3)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.1)


def test_few_rows_change_little():
    """Two confident answers that are right do not make the model more confident without bound."""
    assert 0.6 < fit_temperature(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])) <= 1.0


def test_intervals_cover_new_rows():
    torch.manual_seed(0)
    radii = measure_radii(torch.randn(400).abs())
    new = torch.randn(20_000).abs()
    for name, share in (("80%", 0.8), ("90%", 0.9)):
        assert (new <= radii[name]).float().mean() == pytest.approx(share, abs=0.04)


def test_intervals_by_hand():
    """The k-th smallest error of n, k = ceil(share (n + 1)); with few rows the largest."""
    assert measure_radii(torch.arange(1.0, 20.0)) == {"80%": 16.0, "90%": 18.0}
    assert measure_radii(torch.tensor([3.0, 1.0])) == {"80%": 3.0, "90%": 3.0}
