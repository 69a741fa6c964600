"""Act with a model of trajectories: predict the next action of an episode, or play episodes in an environment.

A model has `normalizer`, `context` (steps that it reads), `max_episode_steps`, `env`, `target_return`, `return_scale`
(0: it does not read the return), `nodes`, and `predict_action(return_to_go, state, action, timestep)`.

Shapes: n episodes or steps, S numbers of a state, A of an action, K steps of context.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.trajectories import MAX_EPISODES, MAX_RETURN
from ..data.trajectories.environments import make_envs, play_episodes
from ..errors import InputError
from ..parsing import check_range, check_types, parse_dataclass

BATCH_SIZE = 256  # episodes in one forward
TRACE = ("states", "actions", "rewards")  # of an episode that is returned


class Actor:
    """A policy that plays any number of episodes at once, each towards its own return and with its own seed, so that no
    episode depends on the others. `temperature` is that of discrete actions; 0 takes the likeliest."""

    def __init__(self, model: Any, target_returns: Sequence[float], temperature: float, seeds: Sequence[int]):
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
    model: Any,
    returns_to_go: np.ndarray,
    states: np.ndarray,
    actions: np.ndarray,
    timesteps: np.ndarray,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Predict the action of the last of k steps, or of the last of as many as `lengths` says; the action there is a
    placeholder that is never read, and steps after it do not matter.

    Shapes:
        returns_to_go (n, k), states (n, k, S), actions (n, k) or (n, k, A), timesteps (k,) or (n, k), lengths (n,) ->
        (n, A): logits where actions are discrete.
    """
    device, normalizer, outputs = next(model.nodes.parameters()).device, model.normalizer, []
    timesteps = np.broadcast_to(np.minimum(timesteps, model.max_episode_steps - 1), returns_to_go.shape)
    last = (np.full(len(returns_to_go), timesteps.shape[1]) if lengths is None else lengths) - 1
    for start in range(0, len(returns_to_go), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        normalized = normalizer.normalize_states(states[rows]), normalizer.encode_actions(actions[rows])
        inputs = [torch.from_numpy(a).float().to(device) for a in (returns_to_go[rows, :, None], *normalized)]
        steps = torch.from_numpy(timesteps[rows].copy()).to(device)
        predicted = model.predict_action(*inputs, steps)
        outputs.append(predicted[torch.arange(len(predicted)), last[rows]].float().cpu().numpy())
    return np.concatenate(outputs)


# --- episodes in an environment ---


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
    trace: bool = False
    """Return the states, actions and rewards of the first episode for each return."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "target_return", at_least=-MAX_RETURN, at_most=MAX_RETURN)
        check_range(self, "episodes", at_least=1, at_most=MAX_EPISODES)
        check_range(self, "seed", at_least=0, at_most=1 << 40)
        check_range(self, "temperature", at_least=0, at_most=1e6)


def roll_out(model: Any, request: Any) -> list[dict[str, Any]]:
    """Play episodes for each return to reach, all at once. `request` holds the fields of `RolloutRequest`.

    Returns for each: {"env", "wanted", "episodes", "achieved", "low", "high", "returns"}, "achieved" being the mean of
    the returns and "low" to "high" its 95 % confidence interval; with `trace`, also "trace", the first of the episodes:
    {"states", "actions", "rewards"}. Raises InputError.
    """
    rollout = parse_dataclass(RolloutRequest, request, "rollout")
    env = model.env if rollout.env is None else rollout.env
    targets, count = rollout.target_return, rollout.episodes
    targets = targets if isinstance(targets, list) else [model.target_return if targets is None else targets]
    if not 1 <= len(targets) * count <= MAX_EPISODES:
        raise InputError(f"rollout: {len(targets) * count:,} episodes in all; it must be from 1 to {MAX_EPISODES:,}")
    check_environment(model, env)
    seeds = [rollout.seed * 1_000_003 + i for i in range(count)] * len(targets)
    actor = Actor(model, [target for target in targets for _ in range(count)], rollout.temperature, seeds)
    played = play_episodes(env, actor, seeds, model.max_episode_steps)
    results = []
    for i, (target, row) in enumerate(zip(targets, played.returns.reshape(len(targets), count))):
        mean, half = float(row.mean()), 1.96 * float(row.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        scores = {"achieved": mean, "low": mean - half, "high": mean + half, "returns": row.tolist()}
        results.append({"env": env, "wanted": float(target), "episodes": count} | scores)
        if rollout.trace:
            steps = slice(played.starts[i * count], played.ends[i * count])
            results[-1]["trace"] = {name: getattr(played, name)[steps].tolist() for name in TRACE}
    return results


def check_environment(model: Any, env: str) -> None:
    """Raise InputError if the environment's states or actions are not the model's."""
    spec, own = make_envs(env, 1)[1], model.normalizer
    if (spec.states, spec.actions, spec.low is None) != (own.states, own.actions, own.discrete):
        kinds = [f"{sizes.states} numbers a state and {sizes.actions} actions" for sizes in (spec, own)]
        raise InputError(f"the environment '{env}' has {kinds[0]}, the model was trained for {kinds[1]}")


# --- the next action ---


@dataclass(frozen=True)
class EpisodeRequest:
    """An episode so far: one action less than states, and for each state the return to go, or the return to reach and
    the rewards so far."""

    states: Any = None
    actions: Any = ()
    returns: Any = None
    """The return to go before each step."""
    target_return: float | None = None
    """Instead of `returns`, with `rewards`. `wanted` is an alias."""
    rewards: Any = ()
    start: int = 0
    """The timestep of the first state."""

    def __post_init__(self) -> None:
        check_range(self, "target_return", at_least=-MAX_RETURN, at_most=MAX_RETURN)
        check_range(self, "start", at_least=0, at_most=1 << 31)


def read_episode_row(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of `EpisodeRequest` that a row of a table has; lists may be JSON. Raises InputError."""
    names = [field.name for field in fields(EpisodeRequest)]
    values = {name: row[name] for name in names if row.get(name) not in (None, "")}
    for name, value in values.items():
        try:
            values[name] = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise InputError(f"{name}: {value[:40]!r} is not JSON, such as [[0.1, 0.2], [0.3, 0.4]]") from None
    return values


def predict_next_actions(model: Any, requests: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the next "action" of each episode, and its "probabilities" where actions are discrete. A request holds the
    fields of `EpisodeRequest`. Raises InputError."""
    episodes = [read_episode(model, request, f"input {i}") for i, request in enumerate(requests)]
    if not episodes:
        return []
    lengths = np.array([len(arrays[0]) for arrays in episodes])
    padded = [np.zeros((len(episodes), lengths.max(), *array.shape[1:]), array.dtype) for array in episodes[0]]
    for i, arrays in enumerate(episodes):
        for rows, array in zip(padded, arrays, strict=True):
            rows[i, : len(array)] = array
    outputs = predict_actions(model, *padded, lengths=lengths)
    return [describe_action(model.normalizer, output) for output in outputs]


def describe_action(normalizer: Any, output: np.ndarray) -> dict[str, Any]:
    if not normalizer.discrete:
        return {"action": normalizer.decode_actions(output).tolist()}
    exp = np.exp(output.astype(np.float64) - output.max())
    return {"action": int(output.argmax()), "probabilities": (exp / exp.sum()).tolist()}


def read_episode(model: Any, request: Any, where: str) -> list[np.ndarray]:
    """Return the last k steps of an episode as far as the context reaches: returns to go (k,), states (k, S), actions
    (k,) or (k, A) and timesteps (k,). `where` names it in messages. Raises InputError."""
    episode, normalizer = parse_dataclass(EpisodeRequest, request, where), model.normalizer
    states = read_array(episode.states, "states", (-1, normalizer.states), where)
    n = len(states)
    if n < 1:
        raise InputError(f"{where} has an episode of length 0: at least one state is needed")
    if not 0 <= episode.start <= model.max_episode_steps - n:
        last = f"the model knows timesteps up to {model.max_episode_steps - 1}"
        raise InputError(f"{where} goes from step {episode.start} to {episode.start + n - 1}; {last}")
    actions = read_actions(episode, normalizer, n, where)
    timesteps = np.arange(episode.start, episode.start + n)
    arrays = read_returns_to_go(model, episode, n, where), states, actions, timesteps
    return [array[-model.context :] for array in arrays]


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
        normalizer.encode_actions(actions)  # raises for an action that does not exist
    return np.concatenate([actions, np.zeros((1, *actions.shape[1:]), actions.dtype)])


def read_returns_to_go(model: Any, episode: EpisodeRequest, n: int, where: str) -> np.ndarray:
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
