"""Linear regression in context: the task, the answers of classical methods, and a Transformer that is trained on it.

A sequence is x_1, y_1, x_2, y_2 ... with y = w x / sqrt(d) + noise, and a new w in every sequence: what w is, only the
pairs before say (2208.01066). The network must have learned to learn.

Shapes: B sequences, K pairs, d numbers of an x, T = 2 K nodes, C channels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...model.config import TransformerConfig
from ...model.edges import causal
from ...model.init import initialize
from ...model.transformer import Transformer

NEIGHBORS = 3


@dataclass(frozen=True)
class Task:
    """How sequences are drawn."""

    d: int
    pairs: int
    noise: float = 0.0
    """Standard deviation of what is added to y, whose own is 1."""

    def draw(self, batch: int, generator: torch.Generator, active: int | None = None) -> tuple[Tensor, Tensor]:
        """Draw x (B, K, d), of which the first `active` numbers are not 0, and w (B, d), scaled so that y = w x."""
        x = torch.randn(batch, self.pairs, self.d, generator=generator)
        if active is not None:
            x[..., active:] = 0
        return x, torch.randn(batch, self.d, generator=generator) / math.sqrt(self.d)

    def answer(self, x: Tensor, w: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return y as it is shown, with noise, and as it should be predicted, without: (B, K) each."""
        y = torch.einsum("bkd,bd->bk", x, w)
        return (y + self.noise * torch.randn(y.shape, generator=generator) if self.noise else y), y


# --- classical methods: a prediction of each y from the pairs before it, (B, K) ---


def predict_ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Ridge regression; without a penalty, least squares of the smallest norm. With noise of variance v, the penalty
    v d is that of the Bayes estimate."""
    predictions = torch.zeros_like(y)
    for k in range(1, x.shape[1]):
        past, target = x[:, :k].double(), y[:, :k, None].double()
        if penalty:
            gram = past.mT @ past + penalty * torch.eye(x.shape[2], dtype=torch.float64)
            w = torch.linalg.solve(gram, past.mT @ target)
        else:
            w = torch.linalg.pinv(past) @ target
        predictions[:, k] = (x[:, k, None].double() @ w)[:, 0, 0].float()
    return predictions


def predict_descent(x: Tensor, y: Tensor, steps: int, rates: Tensor) -> Tensor:
    """Gradient descent on the squared error from w = 0, with the rate that errs least in the mean over the sequences,
    chosen for each number of pairs."""
    predictions = torch.zeros_like(y)
    for k in range(1, x.shape[1]):
        past, target = x[:, :k], y[:, :k, None]
        best = math.inf
        for rate in rates.tolist():
            w = torch.zeros(len(x), x.shape[2], 1)
            for _ in range(steps):
                w = w - rate / k * (past.mT @ (past @ w - target))
            guess = (x[:, k, None] @ w)[:, 0, 0]
            if (error := float((guess - y[:, k]).square().mean())) < best:
                best, predictions[:, k] = error, guess
    return predictions


def predict_neighbors(x: Tensor, y: Tensor) -> Tensor:
    """The mean y of the nearest x so far."""
    predictions = torch.zeros_like(y)
    for k in range(1, x.shape[1]):
        distances = (x[:, :k] - x[:, k, None]).square().sum(-1)
        nearest = distances.topk(min(NEIGHBORS, k), largest=False).indices
        predictions[:, k] = y[:, :k].gather(1, nearest).mean(1)
    return predictions


# --- the Transformer ---


class RegressionModel(nn.Module):
    """x (B, K, d), y (B, K) -> a prediction of each y by the pairs before it, (B, K)."""

    def __init__(self, d: int, config: TransformerConfig):
        super().__init__()
        self.x, self.y = nn.Linear(d, config.dim), nn.Linear(1, config.dim)
        self.position = nn.Parameter(torch.empty(config.context, config.dim).normal_(std=0.02))
        self.body, self.head = Transformer(config), nn.Linear(config.dim, 1)
        initialize(self, config)
        nn.init.normal_(self.x.weight, std=d**-0.5)
        nn.init.normal_(self.y.weight)

    def embed(self, x: Tensor, y: Tensor) -> Tensor:
        """The nodes in turn: x_1, y_1, x_2 ...: (B, T, C)"""
        nodes = torch.stack([self.x(x), self.y(y[..., None])], dim=2).flatten(1, 2)
        return nodes + self.position[: nodes.shape[1]]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x, y), causal)[:, ::2])[..., 0]

    def read_layers(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """The nodes of each x before the first block and after each: (B, K, C) each."""
        states: list[Tensor] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])) for block in self.body.blocks
        ]
        hooks.append(self.body.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])))
        try:
            self(x, y)
        finally:
            for hook in hooks:
                hook.remove()
        return [state[:, ::2] for state in states]


def probe_layers(
    model: RegressionModel, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], pair: int
) -> list[float]:
    """How well a linear map of each layer's node predicts y after `pair` examples: the mean squared error on the test
    sequences of a map that is fitted to others."""
    errors = []
    for states, others in zip(model.read_layers(*fit), model.read_layers(*test), strict=True):
        features, target = add_one(states[:, pair]), fit[1][:, pair, None].double()
        gram = features.mT @ features
        gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        w = torch.linalg.solve(gram, features.mT @ target)
        errors.append(float((add_one(others[:, pair]) @ w - test[1][:, pair, None]).square().mean()))
    return errors


def add_one(states: Tensor) -> Tensor:
    """(B, C) -> (B, C + 1) in float64, for a map with a constant."""
    return torch.cat([states.double(), torch.ones(len(states), 1, dtype=torch.float64)], dim=1)
