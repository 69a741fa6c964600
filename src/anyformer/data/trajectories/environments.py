"""Environments: those of gymnasium, and a walk on a line that needs no dependency.

Episodes are played side by side, each with its own seed, so that an episode does not depend on the others.

Shapes: n running episodes, S numbers per state, A per action.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...events import report_progress
from ..io.files import import_optional
from .read import Trajectories

MAX_STEPS = 10_000  # of an episode, for environments that never end by themselves
LINE = "Line-v0"


Policy = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""Chooses the actions, (n,) int or (n, A) float, of the running episodes, from their states (n, S), their indices (n,),
the rewards of their last steps (n,) and the step index."""


@dataclass(frozen=True)
class EnvSpec:
    """The sizes of an environment: numbers per state; discrete actions, or numbers per action from `low` to `high`."""

    states: int
    actions: int
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def sample_action(self, rng: np.random.Generator) -> Any:
        if self.low is None or self.high is None:
            return int(rng.integers(self.actions))
        return rng.uniform(self.low, self.high)

    def clip_action(self, action: np.ndarray) -> Any:
        """Return the nearest valid action. Raises InputError for a discrete one that does not exist."""
        if self.low is not None:
            return np.clip(np.asarray(action, np.float32).reshape(-1), self.low, self.high)
        if not 0 <= int(action) < self.actions:
            raise InputError(f"action {int(action)} does not exist: valid are 0 to {self.actions - 1}")
        return int(action)


class LineEnv:
    """A walk of 20 steps on a line: left (0) or right (1), one step in ten slips, reward 1 within 1 of the middle."""

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.rng, self.t = np.random.default_rng(seed), 0
        self.x = int(self.rng.integers(-5, 6))
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.rng.random() >= 0.1:
            self.x = int(np.clip(self.x + (1 if action == 1 else -1), -8, 8))
        self.t += 1
        return self.observe(), float(abs(self.x) <= 1), False, self.t >= 20, {}

    def observe(self) -> np.ndarray:
        return np.array([self.x / 8, self.t / 20], np.float32)


def make_envs(name: str, count: int) -> tuple[list[Any], EnvSpec]:
    """Create `count` environments of this name. Raises InputError."""
    if name == LINE:
        return [LineEnv() for _ in range(count)], EnvSpec(2, 2)
    gymnasium = import_gymnasium(name)
    if name not in gymnasium.registry:  # a name with a colon would import a module of the caller's choice
        hint = suggest(name, [LINE, *gymnasium.registry]).split("valid:")[0]  # there are dozens
        few = f"CartPole-v1, Pendulum-v1, {LINE} and the others of gymnasium"
        raise InputError(f"there is no environment '{name}': {hint}valid: {few}")
    try:
        envs = [gymnasium.make(name, disable_env_checker=True) for _ in range(count)]
    except gymnasium.error.Error as error:
        raise InputError(f"the environment '{name}' cannot be made: {error}") from None
    return envs, read_env_spec(name, envs[0])


def import_gymnasium(name: str) -> Any:
    return import_optional("gymnasium", f"the environment '{name}' needs gymnasium: pip install 'anyformer[control]'")


def read_env_spec(name: str, env: Any) -> EnvSpec:
    states, actions = env.observation_space, env.action_space
    if states.shape is None or not states.shape or not np.issubdtype(states.dtype, np.floating):
        raise InputError(f"the environment '{name}' has states {states}: only a Box of floats is supported")
    size = int(np.prod(states.shape))
    if hasattr(actions, "n") and getattr(actions, "start", 0) == 0:
        return EnvSpec(size, int(actions.n))
    if getattr(actions, "low", None) is None or not np.isfinite([actions.low, actions.high]).all():
        raise InputError(f"the environment '{name}' has actions {actions}: only Discrete or a bounded Box is supported")
    return EnvSpec(size, int(np.prod(actions.shape)), actions.low.reshape(-1), actions.high.reshape(-1))


def play_episodes(name: str, policy: Policy, seeds: Sequence[int], max_steps: int = MAX_STEPS) -> Trajectories:
    """Play one episode for each seed, side by side, each of at most `max_steps`. Raises InputError."""
    envs, spec = make_envs(name, len(seeds))
    states = [np.asarray(env.reset(seed=seed)[0], np.float32).reshape(-1) for env, seed in zip(envs, seeds)]
    records: list[list[tuple]] = [[] for _ in seeds]  # (state, action, reward) of each step of each episode
    rows, rewards = np.arange(len(seeds)), np.zeros(len(seeds), np.float32)
    for t in range(max_steps):
        actions = policy(np.stack([states[r] for r in rows]), rows, rewards[rows], t)
        running = []
        for row, action in zip(rows.tolist(), actions):
            clipped = spec.clip_action(action)
            state, reward, terminated, truncated, _ = envs[row].step(clipped)
            records[row].append((states[row], clipped, reward))
            states[row], rewards[row] = np.asarray(state, np.float32).reshape(-1), reward
            if not (terminated or truncated):
                running.append(row)
        rows = np.array(running, np.int64)
        report_progress(f"playing {name}", len(seeds) - len(rows), len(seeds))
        if not len(rows):
            break
    columns = zip(*chain.from_iterable(records), strict=True)
    dtypes = (np.float32, np.int64 if spec.low is None else np.float32, np.float32)
    arrays = [np.array(column).astype(dtype) for column, dtype in zip(columns, dtypes, strict=True)]
    return Trajectories(*arrays, np.cumsum([len(steps) for steps in records]))


def balance_pole(states: np.ndarray) -> np.ndarray:
    """CartPole: push to the side where the pole falls, with a small weight on the cart's position and speed."""
    return (states @ np.array([0.1, 0.5, 1.0, 1.0]) > 0).astype(np.int64)


def swing_up(states: np.ndarray) -> np.ndarray:
    """Pendulum: pump energy until it can stand, and hold it near the top."""
    cos, sin, speed = states.T
    energy = 0.5 * speed**2 / 3 + 5 * (cos - 1)  # of a rod of length 1 and mass 1, 0 when it stands; gravity 10
    pump = np.where(energy < 0, 2.0, -2.0) * np.where(speed >= 0, 1, -1)
    hold = -(12 * np.arctan2(sin, cos) + 3 * speed)
    return np.where(cos > 0.85, hold, pump).clip(-2, 2)[:, None].astype(np.float32)


EXPERT_POLICIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "CartPole-v1": balance_pole,
    "Pendulum-v1": swing_up,
    LINE: lambda states: (states[:, 0] < 0).astype(np.int64),
}


class EpsilonGreedy:
    """Follows a rule of states -> actions, with probability `epsilon` (one per episode) of a random action instead;
    without a rule, all actions are random."""

    def __init__(self, spec: EnvSpec, rule: Callable | None, epsilon: Sequence[float], seeds: Sequence[int]):
        self.spec, self.rule, self.epsilon = spec, rule, epsilon
        self.rngs = [np.random.default_rng((seed, 1)) for seed in seeds]  # not the environment's own stream

    def __call__(self, states: np.ndarray, rows: np.ndarray, rewards: np.ndarray, t: int) -> np.ndarray:
        actions = [None] * len(rows) if self.rule is None else list(self.rule(states))
        for i, row in enumerate(rows.tolist()):
            if self.rngs[row].random() < self.epsilon[row] or self.rule is None:
                actions[i] = self.spec.sample_action(self.rngs[row])
        return np.array(actions)
