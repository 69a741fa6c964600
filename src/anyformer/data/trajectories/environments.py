"""Environments: where trajectories come from. Those of gymnasium, and a walk on a line that needs nothing.

All episodes are played side by side, each with a seed of its own, so that what happens in one does not depend on how
many others there are.

Shapes: n episodes that still go on, S numbers of a state, A of an action.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...errors import InputError, nearest
from ...events import progress
from ..io.resolve import cache_dir
from .minari import PREFIX, read_minari
from .read import Trajectories, read, write

LONGEST = 10_000  # steps, for environments that never end by themselves
LINE = "Line-v0"


class Policy(Protocol):
    """What to do in each episode that goes on: their states (n, S), their numbers (n,), the rewards of their last steps
    (n,) and the step's number -> actions, (n,) int or (n, A) float."""

    def __call__(self, states: np.ndarray, rows: np.ndarray, rewards: np.ndarray, t: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Space:
    """What an environment takes: one of `actions`, or that many numbers from low to high."""

    states: int
    actions: int
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def draw(self, rng: np.random.Generator) -> Any:
        if self.low is None or self.high is None:
            return int(rng.integers(self.actions))
        return rng.uniform(self.low, self.high)

    def fit(self, action: np.ndarray) -> Any:
        """The nearest action that can be taken. Raises InputError for a discrete one that does not exist."""
        if self.low is not None:
            return np.clip(np.asarray(action, np.float32).reshape(-1), self.low, self.high)
        if not 0 <= int(action) < self.actions:
            raise InputError(f"action {int(action)} is outside the space: 0 to {self.actions - 1} can be taken")
        return int(action)


class Line:
    """Walk on a line: a step to the left (0) or right (1) of which every tenth slips, a reward of 1 wherever the walker
    then stands within 1 of the middle, 20 steps."""

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.rng, self.t = np.random.default_rng(seed), 0
        self.x = int(self.rng.integers(-5, 6))
        return self.seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.rng.random() >= 0.1:
            self.x = int(np.clip(self.x + (1 if action == 1 else -1), -8, 8))
        self.t += 1
        return self.seen(), float(abs(self.x) <= 1), False, self.t >= 20, {}

    def seen(self) -> np.ndarray:
        return np.array([self.x / 8, self.t / 20], np.float32)


def make(name: str, count: int) -> tuple[list[Any], Space]:
    """So many of this environment, and what it takes. Raises InputError."""
    if name == LINE:
        return [Line() for _ in range(count)], Space(2, 2)
    try:
        import gymnasium
    except ImportError:
        raise InputError(f"the environment '{name}' needs gymnasium: pip install 'anyformer[control]'") from None
    if name not in gymnasium.registry:  # a name with a colon would import a module of the caller's choice
        raise InputError(f"there is no environment '{name}': {closest(name, [LINE, *gymnasium.registry])}")
    try:
        envs = [gymnasium.make(name, disable_env_checker=True) for _ in range(count)]
    except gymnasium.error.Error as error:
        raise InputError(f"the environment '{name}' cannot be made: {error}") from None
    return envs, space_of(name, envs[0])


def closest(name: str, valid: list[str]) -> str:
    """Gymnasium has dozens: the nearest, and a few."""
    hint = nearest(name, valid).split("valid:")[0]
    return f"{hint}valid: CartPole-v1, Pendulum-v1, {LINE} and the others of gymnasium"


def space_of(name: str, env: Any) -> Space:
    states, actions = env.observation_space, env.action_space
    if states.shape is None or not states.shape or not np.issubdtype(states.dtype, np.floating):
        raise InputError(f"the environment '{name}' shows {states}: only states made of numbers (Box) can be read")
    size = int(np.prod(states.shape))
    if hasattr(actions, "n") and getattr(actions, "start", 0) == 0:
        return Space(size, int(actions.n))
    if getattr(actions, "low", None) is None or not np.isfinite([actions.low, actions.high]).all():
        raise InputError(f"the environment '{name}' takes {actions}: only Discrete or a bounded Box can be done")
    return Space(size, int(np.prod(actions.shape)), actions.low.reshape(-1), actions.high.reshape(-1))


def play(name: str, policy: Policy, seeds: Sequence[int], longest: int = LONGEST) -> Trajectories:
    """One episode for each seed, all side by side; none longer than `longest`. Raises InputError."""
    if not seeds:
        raise InputError("0 episodes: at least 1 must be played")
    envs, space = make(name, len(seeds))
    states = [np.asarray(env.reset(seed=seed)[0], np.float32).reshape(-1) for env, seed in zip(envs, seeds)]
    told: list[tuple[list, list, list]] = [([], [], []) for _ in seeds]  # states, actions and rewards of each episode
    rows, rewards = np.arange(len(seeds)), np.zeros(len(seeds), np.float32)
    for t in range(longest):
        chosen = policy(np.stack([states[r] for r in rows]), rows, rewards[rows], t)
        over = set()
        for row, action in zip(rows.tolist(), chosen):
            fitted = space.fit(action)
            seen, reward, ended, cut, _ = envs[row].step(fitted)
            for part, value in zip(told[row], (states[row], fitted, reward)):
                part.append(value)
            states[row], rewards[row] = np.asarray(seen, np.float32).reshape(-1), reward
            if ended or cut:
                over.add(row)
        rows = np.array([row for row in rows if row not in over], np.int64)
        progress(f"playing {name}", len(seeds) - len(rows), len(seeds))
        if not len(rows):
            break
    kind = np.int64 if space.low is None else np.float32
    parts = [np.concatenate([np.asarray(one[i]) for one in told]) for i in range(3)]
    ends = np.cumsum([len(one[2]) for one in told])
    return Trajectories(parts[0], parts[1].astype(kind), parts[2].astype(np.float32), ends)


# --- policies that need no learning ---


def balance(states: np.ndarray) -> np.ndarray:
    """CartPole: push to the side where the pole falls, with a thought for the cart."""
    return (states @ np.array([0.1, 0.5, 1.0, 1.0]) > 0).astype(np.int64)


def swing_up(states: np.ndarray) -> np.ndarray:
    """Pendulum: give it the energy to stand, and near the top hold it there."""
    cos, sin, speed = states.T
    energy = 0.5 * speed**2 / 3 + 5 * (cos - 1)  # of a rod of length 1 and mass 1, 0 when it stands; gravity 10
    pump = np.where(energy < 0, 2.0, -2.0) * np.where(speed >= 0, 1, -1)
    hold = -(12 * np.arctan2(sin, cos) + 3 * speed)
    return np.where(cos > 0.85, hold, pump).clip(-2, 2)[:, None].astype(np.float32)


def homeward(states: np.ndarray) -> np.ndarray:
    """Line: back to the middle."""
    return (states[:, 0] < 0).astype(np.int64)


EXPERTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "CartPole-v1": balance,
    "Pendulum-v1": swing_up,
    LINE: homeward,
}


class Rule:
    """A rule of states -> actions, or with probability `epsilon` (one for each episode) anything. None: anything."""

    def __init__(self, space: Space, rule: Callable | None, epsilon: Sequence[float], seeds: Sequence[int]):
        self.space, self.rule, self.epsilon = space, rule, epsilon
        self.rngs = [np.random.default_rng((seed, 1)) for seed in seeds]  # another stream than the environment's own

    def __call__(self, states: np.ndarray, rows: np.ndarray, rewards: np.ndarray, t: int) -> np.ndarray:
        wise = [None] * len(rows) if self.rule is None else self.rule(states)
        return np.array([self.one(row, action) for row, action in zip(rows.tolist(), wise)])

    def one(self, row: int, action: Any) -> Any:
        at_random = self.rngs[row].random() < self.epsilon[row]
        return self.space.draw(self.rngs[row]) if action is None or at_random else action


# --- sets that are rolled out on the spot ---


@dataclass(frozen=True)
class Mixed:
    """Episodes of mixed quality: the expert's rule, of whose actions a share is at random."""

    env: str
    episodes: int
    """For each epsilon."""
    epsilon: tuple[float, ...]
    seed: int = 0


SETS = {
    "line": Mixed(LINE, 30, (1.0, 0.5, 0.05)),
    "cartpole": Mixed("CartPole-v1", 200, (1.0, 0.7, 0.4, 0.05)),
    "pendulum": Mixed("Pendulum-v1", 150, (1.0, 0.7, 0.4, 0.05)),
}


def mixed(asked: Mixed) -> Trajectories:
    """Play such a set. The same seed gives the same episodes."""
    epsilon = [e for e in asked.epsilon for _ in range(asked.episodes)]
    seeds = [asked.seed * 1_000_003 + i for i in range(len(epsilon))]
    _, space = make(asked.env, 1)
    return play(asked.env, Rule(space, EXPERTS[asked.env], epsilon, seeds), seeds)


def trajectories(data: str) -> Trajectories:
    """A file, a set of Minari's, or one by name, which is played once and then kept in the cache. Raises InputError."""
    path = Path(data).expanduser()
    if data and path.is_file():
        return read(path)
    if data.startswith(PREFIX):
        return read_minari(data)
    if data not in SETS:
        if path.suffix or os.sep in data:
            raise InputError(f"data '{data}': no such file (looked in {Path.cwd()})")
        raise InputError(f"data '{data}': no such file or set of trajectories: {nearest(data, SETS)}")
    asked = SETS[data]
    text = json.dumps([asdict(asked), version(asked.env)])
    kept = cache_dir() / "trajectories" / f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if not kept.is_file():
        write(kept, mixed(asked))
    return read(kept)


def version(env: str) -> str:
    """Another version may move differently."""
    if env == LINE:
        return "1"
    make(env, 1)
    import gymnasium

    return gymnasium.__version__
