"""Each activation is the function of its paper, computed here number by number."""

import math

import pytest
import torch

from anyformer.model.activations import ACTIVATIONS


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: max(0.0, x),
    "relu2": lambda x: max(0.0, x) ** 2,
    "silu": lambda x: x * sigmoid(x),
}
GATES = {"swiglu": "silu", "geglu": "gelu_tanh", "geglu_exact": "gelu"}  # the function of the gate


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_its_formula(name: str):
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    expected = [FORMULAS[GATES.get(name, name)](value) for value in x.tolist()]
    assert ACTIVATIONS[name](x).tolist() == pytest.approx(expected, abs=1e-12)
