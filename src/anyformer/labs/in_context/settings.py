"""The flags of `anyformer lab in-context`."""

from dataclasses import dataclass
from typing import Literal

from ...parsing import check_range
from ..lab import LabSettings


@dataclass(frozen=True, kw_only=True)
class Settings(LabSettings):
    """Transformers that learn within their forward pass, from the examples in it.

    regression  linear regressions, beside least squares, ridge, gradient descent
                and nearest neighbours
    functions   functions on words that were never trained, beside n-gram counts
    heads       induction heads appear, and with them what late positions gain"""

    part: Literal["all", "regression", "functions", "heads"] = "all"
    """What to run."""
    width: int = 128
    """Channels of the Transformers."""
    layers: int = 6
    """Their blocks."""
    dim: int = 8
    """Regression: numbers of an input."""
    pairs: int = 24
    """Regression: examples of a sequence."""
    noise: float = 0.0
    """Regression: standard deviation of the noise on the answers, whose own is 1."""
    steps: int = 4000
    """Regression: steps of training, each on 64 new sequences."""
    lr: float = 5e-3
    """The learning rate of regression and functions."""
    tests: int = 2000
    """Regression: sequences of the test."""
    function_steps: int = 3000
    """Functions: steps of training, each on new functions."""
    function_tests: int = 200
    """Functions: questions for each kind of function and number of examples."""
    head_steps: int = 600
    """Heads: steps of training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "dim", at_least=1, at_most=256)
        check_range(self, "pairs", at_least=2, at_most=1024)
        check_range(self, "noise", at_least=0, at_most=10)
        check_range(self, "width", at_least=8, at_most=4096)
        check_range(self, "layers", at_least=1, at_most=64)
        check_range(self, "steps", "function_steps", "head_steps", at_least=1, at_most=10**8)
        check_range(self, "tests", "function_tests", at_least=10, at_most=10**6)
        check_range(self, "lr", above=0, at_most=1)
