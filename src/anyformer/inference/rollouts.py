"""Requests to an agent, in plain values: the next action of an episode, or whole episodes in an environment.

Shapes: n steps of an episode, S numbers of a state, A of an action.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..data.trajectories.environments import make_envs, play_episodes
from ..errors import InputError
from ..parsing import parse_dataclass
from .agent import Actor, Agent, predict_actions

MAX_EPISODES = 10_000
MAX_SEED = 1 << 40


class EnvironmentAgent(Agent, Protocol):
    """An agent with an environment and a return to reach where a request names none."""

    env: str
    target_return: float
    return_scale: float
    """0: the model does not read the return."""


@dataclass(frozen=True)
class RolloutRequest:
    """Episodes to play for each of some returns. Raises InputError for values that make no sense."""

    env: str | None = None
    """None: the model's own."""
    target_return: float | list[float] | None = None
    """The return to reach, or several; None: the model's own. `wanted` is an alias."""
    episodes: int = 20
    """For each return."""
    seed: int = 0
    temperature: float = 1.0
    """Of the sampling of discrete actions; 0 takes the likeliest."""

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= MAX_EPISODES or not 0 <= self.seed <= MAX_SEED:
            limits = f"they must be from 1 to {MAX_EPISODES:,} and from 0 to 2^40"
            raise InputError(f"rollout: episodes is {self.episodes} and seed {self.seed}; {limits}")
        if self.temperature < 0:
            raise InputError(f"rollout: temperature is {self.temperature}; it must be 0 or more")
        if self.env == "":
            raise InputError("rollout: env is ''; name an environment, such as CartPole-v1")
        if (count := len(self.target_returns(0.0)) * self.episodes) not in range(1, MAX_EPISODES + 1):
            raise InputError(f"rollout: {count:,} episodes in all; from 1 to {MAX_EPISODES:,} can be played at once")

    def target_returns(self, default: float) -> list[float]:
        value = default if self.target_return is None else self.target_return
        return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode so far: one action less than states, and for each state the return to go, or the return to reach and
    the rewards so far. Arrays are checked against the model later."""

    states: Any = None
    actions: Any = ()
    returns: Any = None
    """The return to go before each step."""
    target_return: float | None = None
    """Instead of `returns`, with `rewards`. `wanted` is an alias."""
    rewards: Any = ()
    start: int = 0
    """The timestep of the first state."""


# --- episodes in an environment ---


def roll_out(model: EnvironmentAgent, request: Any) -> list[dict[str, Any]]:
    """Play episodes for each return to reach, all at once, and summarize the returns achieved.

    Args:
        model: The agent.
        request: The fields of `RolloutRequest`.

    Returns:
        For each return: {"env", "wanted", "episodes", "achieved", "low", "high", "returns"}, "achieved" being the mean
        of the returns and "low" to "high" its 95 % confidence interval.

    Raises:
        InputError: If the request makes no sense, or the environment does not fit the model.
    """
    rollout = parse_dataclass(RolloutRequest, request, "rollout")
    env, count, targets = rollout.env or model.env, rollout.episodes, rollout.target_returns(model.target_return)
    check_environment(model, env)
    seeds = [rollout.seed * 1_000_003 + i for i in range(count)] * len(targets)
    actor = Actor(model, [target for target in targets for _ in range(count)], rollout.temperature, seeds)
    returns = play_episodes(env, actor, seeds, model.max_episode_steps).returns.reshape(len(targets), count)
    return [summarize_returns(env, target, row) for target, row in zip(targets, returns)]


def check_environment(model: Agent, env: str) -> None:
    """Raise InputError if the environment's states or actions are not the model's."""
    spec, own = make_envs(env, 1)[1], model.normalizer
    if (spec.states, spec.actions, spec.low is None) != (own.states, own.actions, own.discrete):
        kinds = [f"{sizes.states} numbers a state and {sizes.actions} actions" for sizes in (spec, own)]
        raise InputError(f"the environment '{env}' has {kinds[0]}, the model was trained for {kinds[1]}")


def summarize_returns(env: str, target: float, returns: np.ndarray) -> dict[str, Any]:
    mean = float(returns.mean())
    half = 1.96 * float(returns.std(ddof=1)) / math.sqrt(len(returns)) if len(returns) > 1 else 0.0
    summary = {"env": env, "wanted": float(target), "episodes": len(returns), "achieved": mean}
    return summary | {"low": mean - half, "high": mean + half, "returns": returns.tolist()}


# --- the next action ---


def predict_next_action(model: EnvironmentAgent, request: Any, where: str) -> dict[str, Any]:
    """Predict the next action of an episode.

    Args:
        model: The agent.
        request: The fields of `EpisodeRequest`.
        where: What to call the request in messages.

    Returns:
        {"action"}, and {"probabilities"} where actions are discrete.

    Raises:
        InputError: If the request does not fit the model.
    """
    episode, normalizer = parse_dataclass(EpisodeRequest, request, where), model.normalizer
    states = read_array(episode.states, "states", (-1, normalizer.states), where)
    n = len(states)
    if n < 1:
        raise InputError(f"{where} has an episode of length 0: at least one state is needed")
    if not 0 <= episode.start <= model.max_episode_steps - n:
        last = f"the model knows timesteps up to {model.max_episode_steps - 1}"
        raise InputError(f"{where} goes from step {episode.start} to {episode.start + n - 1}; {last}")
    actions = read_actions(episode, normalizer, n, where)
    returns_to_go = read_returns_to_go(model, episode, n, where)
    first = max(0, n - model.context)
    timesteps = np.arange(episode.start + first, episode.start + n)
    arrays = returns_to_go[None, first:], states[None, first:], actions[None, first:]
    output = predict_actions(model, *arrays, timesteps)[0]
    if not normalizer.discrete:
        return {"action": normalizer.decode_actions(output).tolist()}
    exp = np.exp(output.astype(np.float64) - output.max())
    return {"action": int(output.argmax()), "probabilities": (exp / exp.sum()).tolist()}


def read_actions(episode: EpisodeRequest, normalizer: Any, n: int, where: str) -> np.ndarray:
    """Return the actions so far, and a placeholder for the next: (n,) or (n, A)"""
    shape = (-1,) if normalizer.discrete else (-1, normalizer.actions)
    actions = read_array(episode.actions, "actions", shape, where)
    if len(actions) != n - 1:
        raise InputError(f"{where} has {n} states and {len(actions)} actions: one action less than states is right")
    if normalizer.discrete:
        if (actions != np.floor(actions)).any():
            raise InputError(f"{where}: actions must be whole numbers from 0 to {normalizer.actions - 1}")
        actions = actions.astype(np.int64)
        normalizer.encode_actions(actions)
    return np.concatenate([actions, np.zeros((1, *actions.shape[1:]), actions.dtype)])


def read_returns_to_go(model: EnvironmentAgent, episode: EpisodeRequest, n: int, where: str) -> np.ndarray:
    """Return the return to go before each step, (n,)."""
    if episode.returns is not None:
        returns = read_array(episode.returns, "returns", (-1,), where)
    elif episode.target_return is not None:
        rewards = read_array(episode.rewards, "rewards", (-1,), where)
        returns = episode.target_return - np.concatenate([[0], np.cumsum(rewards)]).astype(np.float32)
    elif not model.return_scale:
        return np.zeros(n, np.float32)
    else:
        raise InputError(f"{where} names no return to reach: give 'returns', or 'target_return' and 'rewards'")
    if len(returns) != n:
        raise InputError(f"{where} has {n} states and {len(returns)} returns to go: one for each state is right")
    return returns.astype(np.float32)


def read_array(values: Any, name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Convert nested lists to an array of this shape; -1 is any length."""
    if values is None:
        raise InputError(f"{where} lacks '{name}'")
    if isinstance(values, list | tuple) and not values:
        return np.zeros((0, *shape[1:]), np.float32)
    try:
        array = np.array(values, np.float32)
    except (ValueError, TypeError):
        array = np.array(np.nan)
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not np.isfinite(array).all():
        expected = "a list of numbers" if len(shape) == 1 else f"a list of lists of {shape[1]} numbers"
        raise InputError(f"{where}: {name} must be {expected}")
    return array
