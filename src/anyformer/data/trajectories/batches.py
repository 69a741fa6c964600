"""Windows of trajectories. Pure functions.

Shapes: B batch, K steps of a window, S numbers per state, A per action.
"""

import numpy as np

from .read import Trajectories


def build_windows(data: Trajectories, starts: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """Cut windows of `context` steps that begin at `starts` (B,): state (B, K, S), action (B, K[, A]), return_to_go
    (B, K, 1), timestep (B, K), and real (B, K) bool: False past the end of an episode, where everything else is 0."""
    steps = starts[:, None] + np.arange(context)
    ends = data.ends[data.episode_ids[starts]][:, None]
    real = steps < ends
    steps = np.minimum(steps, ends - 1)
    arrays = {"state": data.states, "action": data.actions, "timestep": data.timesteps}
    windows = {"real": real}
    for name, array in (arrays | {"return_to_go": data.return_to_go[:, None]}).items():
        windows[name] = np.where(real.reshape(*real.shape, *[1] * (array.ndim - 1)), array[steps], 0)
    return windows


def sample_starts(data: Trajectories, episodes: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """Draw the first steps of the windows of a training step, (B,), uniformly among the steps of these episodes."""
    lengths = data.ends[episodes] - data.starts[episodes]
    offsets = np.random.default_rng((seed, step)).integers(lengths.sum(), size=batch)
    index = np.searchsorted(np.cumsum(lengths), offsets, side="right")
    return data.starts[episodes][index] + offsets - (np.cumsum(lengths) - lengths)[index]


def eval_starts(data: Trajectories, episodes: np.ndarray, context: int) -> np.ndarray:
    """Return the first steps of windows that contain every step of these episodes once."""
    return np.concatenate([np.arange(data.starts[e], data.ends[e], context) for e in episodes])
