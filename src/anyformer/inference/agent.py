"""Act with a model of trajectories: the past of an episode goes in, the next action comes out.

Shapes: n episodes, S numbers of a state, A of an action, K steps of context.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.trajectories.normalizer import TrajectoryNormalizer

BATCH_SIZE = 256  # episodes in one forward


class Agent(Protocol):
    """What a model must have to act."""

    normalizer: TrajectoryNormalizer
    context: int
    """K"""
    max_episode_steps: int
    """How many timesteps have an embedding."""

    @property
    def nodes(self) -> nn.Module: ...

    def predict_action(self, return_to_go: Tensor, state: Tensor, action: Tensor, timestep: Tensor) -> Tensor: ...


class Actor:
    """A policy that plays any number of episodes at once, each towards its own return.

    Args:
        model: The model that predicts actions.
        target_returns: The return to reach in each episode.
        temperature: Of the sampling of discrete actions; 0 takes the likeliest.
        seeds: Of the sampling, one for each episode, so that an episode does not depend on the others.
    """

    def __init__(self, model: Agent, target_returns: Sequence[float], temperature: float, seeds: Sequence[int]):
        self.model, self.temperature = model, temperature
        self.remaining = np.array(target_returns, np.float32)
        self.rngs = [np.random.default_rng((seed, 2)) for seed in seeds]
        K, normalizer, n = model.context, model.normalizer, len(self.remaining)
        self.returns_to_go, self.states = np.zeros((n, K), np.float32), np.zeros((n, K, normalizer.states), np.float32)
        shape, dtype = ((n, K), np.int64) if normalizer.discrete else ((n, K, normalizer.actions), np.float32)
        self.actions = np.zeros(shape, dtype)

    def __call__(self, states: np.ndarray, rows: np.ndarray, rewards: np.ndarray, t: int) -> np.ndarray:
        K = self.model.context
        self.remaining[rows] -= rewards
        past = min(t, K - 1)  # earlier steps within the context
        windows = (self.returns_to_go, self.states, self.actions)
        if t >= K:
            for window in windows:
                window[rows, :-1] = window[rows, 1:]
        self.returns_to_go[rows, past], self.states[rows, past] = self.remaining[rows], states
        self.actions[rows, past] = 0
        timesteps = np.arange(t - past, t + 1)
        outputs = predict_actions(self.model, *(window[rows, : past + 1] for window in windows), timesteps)
        actions = np.array([self.sample_action(row, output) for row, output in zip(rows.tolist(), outputs)])
        self.actions[rows, past] = actions
        return actions

    def sample_action(self, row: int, output: np.ndarray) -> Any:
        """Turn the model's output (A,) into an action of the environment."""
        if not self.model.normalizer.discrete:
            return self.model.normalizer.decode_actions(output)
        if self.temperature == 0:
            return int(output.argmax())
        noise = self.rngs[row].gumbel(size=len(output))
        return int((output.astype(np.float64) / self.temperature + noise).argmax())


@torch.inference_mode()
def predict_actions(
    model: Agent, returns_to_go: np.ndarray, states: np.ndarray, actions: np.ndarray, timesteps: np.ndarray
) -> np.ndarray:
    """Predict the action of the last of these steps.

    Shapes:
        returns_to_go (n, k), states (n, k, S), actions (n, k) or (n, k, A), timesteps (k,) -> (n, A): logits where
        actions are discrete. The last action of `actions` is a placeholder that is never read.
    """
    device, normalizer = next(model.nodes.parameters()).device, model.normalizer
    outputs = []
    for start in range(0, len(returns_to_go), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        arrays = (
            returns_to_go[rows, :, None],
            normalizer.normalize_states(states[rows]),
            normalizer.encode_actions(actions[rows]),
        )
        inputs = [torch.from_numpy(array).float().to(device) for array in arrays]
        steps = torch.from_numpy(np.minimum(timesteps, model.max_episode_steps - 1)).expand(len(inputs[0]), -1)
        outputs.append(model.predict_action(*inputs, steps.to(device))[:, -1].float().cpu().numpy())
    return np.concatenate(outputs)
