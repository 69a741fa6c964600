"""How sure predictions are, as measured on rows that were not trained on: temperatures of classes (1706.04599), and
intervals of numbers by split conformal prediction (1604.04173).

Shapes: N rows, K classes.
"""

import math

import torch
from torch import Tensor

COVERAGES = {"80%": 0.8, "90%": 0.9}  # of the intervals
TEMPERATURES = torch.linspace(-1.5, 1.5, 121).exp()
PRIOR = 5.0  # nats for a temperature of e instead of 1: few rows change little


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that logits (N, K) are divided by so that the probabilities fit labels (N,) best."""
    nats = torch.stack([torch.nn.functional.cross_entropy(logits / t, labels, reduction="sum") for t in TEMPERATURES])
    return float(TEMPERATURES[(nats + PRIOR * TEMPERATURES.log() ** 2).argmin()])


def measure_radii(errors: Tensor) -> dict[str, float]:
    """Return, for each coverage, how far from the prediction the truth lies at most in that share of the cases, from
    absolute errors (N,) of other rows."""
    errors, n = errors.sort().values, len(errors)
    ranks = {name: min(n, math.ceil((n + 1) * share)) for name, share in COVERAGES.items()}
    return {name: float(errors[rank - 1]) for name, rank in ranks.items()}
