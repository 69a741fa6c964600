"""What an agent is asked, in plain values: the next action of an episode, or episodes played to the end."""

import math
from typing import Any, Protocol

import numpy as np

from ..data.trajectories.environments import make, play
from ..data.trajectories.normalizer import finite
from ..errors import InputError, nearest
from .agent import Actor, Agent, look

MOST = 10_000  # episodes at once
ROLLOUT = ("env", "wanted", "episodes", "seed", "temperature")
EPISODE = ("states", "actions", "returns", "wanted", "rewards", "start")


class Player(Agent, Protocol):
    """An agent with an environment and a goal of its own."""

    env: str
    wanted_return: float
    scale: float
    """0: it is not told the return."""


def known(values: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InputError(f"{where} is {values!r}; it must be an object with {', '.join(names)}")
    for name in values:
        if name not in names:
            raise InputError(f"{where} has no '{name}': {nearest(str(name), names)}")
    return values


def whole_number(values: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    found = values.get(name, default)
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise InputError(f"{name} is {found!r}; it must be a whole number from {least} to {most}")
    return found


def number(values: dict[str, Any], name: str, default: float) -> float:
    found = values.get(name, default)
    if not finite(found):
        raise InputError(f"{name} is {found!r}; it must be a number")
    return float(found)


# --- play ---


def rollout(model: Player, request: Any) -> list[dict[str, Any]]:
    """Episodes of the real environment for each return that is wanted: all at once, each with its own seed. The
    interval is the mean's, 95 %. Raises InputError."""
    asked = known(request, ROLLOUT, "rollout")
    count = whole_number(asked, "episodes", 20, 1, MOST)
    seed = whole_number(asked, "seed", 0, 0, 1 << 40)
    temperature = number(asked, "temperature", 1.0)
    goals = asked.get("wanted", model.wanted_return)
    goals = goals if isinstance(goals, list) else [goals]
    if not goals or not all(finite(goal) for goal in goals) or len(goals) * count > MOST or temperature < 0:
        raise InputError(
            f"wanted is {goals!r} and temperature {temperature}: numbers are right, at least one return and at most "
            f"{MOST:,} episodes in all, and a temperature from 0 on"
        )
    env = asked.get("env", model.env)
    if not isinstance(env, str) or not env:
        raise InputError(f"env is {env!r}; name an environment to act in, such as CartPole-v1")
    fits(model, env)
    seeds = [seed * 1_000_003 + i for i in range(count)] * len(goals)
    actor = Actor(model, [goal for goal in goals for _ in range(count)], temperature, seeds)
    returns = play(env, actor, seeds, model.steps).returns.reshape(len(goals), count)
    return [told(env, goal, row) for goal, row in zip(goals, returns)]


def fits(model: Player, env: str) -> None:
    """Raises InputError where the environment's states or actions are not the model's."""
    there, here = make(env, 1)[1], model.space
    if (there.states, there.actions, there.low is None) != (here.states, here.actions, here.discrete):
        kinds = [f"{s.states} numbers a state and {s.actions} actions" for s in (there, here)]
        raise InputError(f"the environment '{env}' has {kinds[0]}, the model was trained for {kinds[1]}")


def told(env: str, goal: float, returns: np.ndarray) -> dict[str, Any]:
    mean = float(returns.mean())
    half = 1.96 * float(returns.std(ddof=1)) / math.sqrt(len(returns)) if len(returns) > 1 else 0.0
    about = {"env": env, "wanted": float(goal), "episodes": len(returns), "achieved": mean}
    return about | {"low": mean - half, "high": mean + half, "returns": returns.tolist()}


# --- the next action ---


def episode(model: Player, request: Any, i: int) -> dict[str, Any]:
    """The next action after what an episode has shown so far. Raises InputError."""
    where = f"input {i}"
    asked, space = known(request, EPISODE, where), model.space
    states = array(asked, "states", (-1, space.states), where)
    n = len(states)
    if n < 1:
        raise InputError(f"{where} has an episode of length 0: at least one state is needed")
    start = whole_number(asked, "start", 0, 0, model.steps - 1)
    if start + n > model.steps:
        raise InputError(f"{where} goes to step {start + n}, and the model knows of {model.steps}")
    actions = past(asked, space, n, where)
    wanted = returns(model, asked, n, where)
    last = max(0, n - model.context)
    at = np.arange(start + last, start + n)
    answer = look(model, wanted[None, last:], states[None, last:], actions[None, last:], at)[0]
    if not space.discrete:
        return {"action": space.decode(answer).tolist()}
    exp = np.exp(answer.astype(np.float64) - answer.max())
    return {"action": int(answer.argmax()), "probabilities": (exp / exp.sum()).tolist()}


def past(asked: dict[str, Any], space: Any, n: int, where: str) -> np.ndarray:
    """The actions so far, one less than states, and a blank for the one that is asked for."""
    shape = (-1,) if space.discrete else (-1, space.actions)
    actions = array(asked | {"actions": asked.get("actions", [])}, "actions", shape, where)
    if len(actions) != n - 1:
        raise InputError(f"{where} has {n} states and {len(actions)} actions: one action less than states is right")
    if space.discrete:
        if (actions != np.floor(actions)).any():
            raise InputError(f"{where}: actions must be whole numbers from 0 to {space.actions - 1}")
        actions = actions.astype(np.int64)
        space.encode(actions)
    return np.concatenate([actions, np.zeros((1, *actions.shape[1:]), actions.dtype)])


def returns(model: Player, asked: dict[str, Any], n: int, where: str) -> np.ndarray:
    """The return to go before each step, (n,). Raises InputError where nothing says what is wanted."""
    if not model.scale and not {"returns", "wanted"} & asked.keys():
        return np.zeros(n, np.float32)  # a clone is not told
    if "returns" in asked:
        found = array(asked, "returns", (-1,), where)
    elif "wanted" in asked:
        rewards = array(asked | {"rewards": asked.get("rewards", [])}, "rewards", (-1,), where)
        found = number(asked, "wanted", 0.0) - np.concatenate([[0], np.cumsum(rewards)]).astype(np.float32)
    else:
        raise InputError(f"{where} does not say what return is wanted: give 'returns', or 'wanted' and 'rewards'")
    if len(found) != n:
        raise InputError(f"{where} has {n} states and {len(found)} returns to go: one for each state is right")
    return found.astype(np.float32)


def array(asked: dict[str, Any], name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if name not in asked:
        raise InputError(f"{where} lacks '{name}'")
    wanted = "a list of numbers" if len(shape) == 1 else f"a list of lists of {shape[1]} numbers"
    try:
        found = np.array(asked[name], np.float32)
    except (ValueError, TypeError):
        found = np.array(np.nan)
    empty = found.size == 0 and isinstance(asked[name], list)
    if not empty and (found.ndim != len(shape) or found.shape[1:] != shape[1:] or not np.isfinite(found).all()):
        raise InputError(f"{where}: {name} must be {wanted}")
    return found.reshape(0, *shape[1:]) if empty else found
