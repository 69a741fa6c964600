"""A model of trajectories acts: what it has seen goes in, what it would do next comes out.

Shapes: n rows that act, S numbers of a state, A of an action, K steps that the model can see.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.trajectories.normalizer import Space

ROWS = 256  # that the model looks at together


class Agent(Protocol):
    """What a model must have to act."""

    space: Space
    context: int
    """K"""
    steps: int
    """The longest episode it knows of."""

    @property
    def nodes(self) -> nn.Module: ...

    def answer(self, wanted: Tensor, state: Tensor, action: Tensor, at: Tensor) -> Tensor: ...


class Actor:
    """Plays any number of episodes side by side, each towards a return of its own.

    temperature: of the choice among discrete actions; 0 takes the likeliest. What chance there is comes from each row's
    own seed. wanted: the return for each row.
    """

    def __init__(self, model: Agent, wanted: Sequence[float], temperature: float, seeds: Sequence[int]):
        self.model, self.temperature = model, temperature
        self.to_go = np.array(wanted, np.float32)
        self.rngs = [np.random.default_rng((seed, 2)) for seed in seeds]
        K, space, n = model.context, model.space, len(self.to_go)
        self.wanted, self.states = np.zeros((n, K), np.float32), np.zeros((n, K, space.states), np.float32)
        self.actions = np.zeros((n, K) if space.discrete else (n, K, space.actions), np.float32)
        if space.discrete:
            self.actions = self.actions.astype(np.int64)

    def __call__(self, states: np.ndarray, rows: np.ndarray, rewards: np.ndarray, t: int) -> np.ndarray:
        K = self.model.context
        self.to_go[rows] -= rewards
        seen = min(t, K - 1)  # steps before this one that are still in sight
        if t >= K:
            for kept in (self.wanted, self.states, self.actions):
                kept[rows, :-1] = kept[rows, 1:]
        self.wanted[rows, seen], self.states[rows, seen], self.actions[rows, seen] = self.to_go[rows], states, 0
        at = np.arange(t - seen, t + 1)
        parts = [part[rows, : seen + 1] for part in (self.wanted, self.states, self.actions)]
        answers = look(self.model, *parts, at)
        chosen = np.array([self.choose(row, answer) for row, answer in zip(rows.tolist(), answers)])
        self.actions[rows, seen] = chosen
        return chosen

    def choose(self, row: int, answer: np.ndarray) -> Any:
        """An action of the environment from what the model says of it, (A,)."""
        if not self.model.space.discrete:
            return self.model.space.decode(answer)
        if self.temperature == 0:
            return int(answer.argmax())
        noise = self.rngs[row].gumbel(size=len(answer))
        return int((answer.astype(np.float64) / self.temperature + noise).argmax())


@torch.inference_mode()
def look(model: Agent, wanted: np.ndarray, states: np.ndarray, actions: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What the model says after the last of these steps: wanted (n, k), states (n, k, S), actions (n, k[, A]), at (k,)
    -> (n, A), logits where actions are discrete. The last action is not known yet, and never read."""
    where, space = next(model.nodes.parameters()).device, model.space
    found = []
    for i in range(0, len(wanted), ROWS):
        state, action = space.normal(states[i : i + ROWS]), space.encode(actions[i : i + ROWS])
        rows = torch.from_numpy(np.minimum(at, model.steps - 1)).expand(len(state), -1)
        told = (torch.from_numpy(part).float().to(where) for part in (wanted[i : i + ROWS, :, None], state, action))
        found.append(model.answer(*told, rows.to(where))[:, -1].float().cpu().numpy())
    return np.concatenate(found)
