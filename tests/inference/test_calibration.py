"""Intervals of numbers, as measured on rows that were not trained on."""

import pytest
import torch

from anyformer.inference.calibration import measure_radii


def test_intervals_cover_new_rows():
    torch.manual_seed(0)
    radii = measure_radii(torch.randn(400).abs())
    new = torch.randn(20_000).abs()
    for radius, share in zip(radii, (0.8, 0.9), strict=True):
        assert (new <= radius).float().mean() == pytest.approx(share, abs=0.04)


def test_intervals_by_hand():
    """The k-th smallest error of n, k = ceil(share (n + 1)); with few rows the largest."""
    assert measure_radii(torch.arange(1.0, 20.0)) == [16.0, 18.0]
    assert measure_radii(torch.tensor([3.0, 1.0])) == [3.0, 3.0]
