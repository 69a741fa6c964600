"""anyformer rollout ENV: play episodes in an environment, and keep them to learn from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..errors import InputError
from .parse import parse
from .terminal import busy

if TYPE_CHECKING:
    from ..data.trajectories.environments import Policy, Space

MOST = 10_000  # episodes at once


@dataclass(frozen=True)
class Command:
    """Play episodes of an environment, all side by side and each with its own seed; --out keeps them as .npz, which
    `anyformer train control --data FILE.npz` learns from."""

    env: tyro.conf.Positional[str]
    """Line-v0, or one of gymnasium: CartPole-v1."""
    policy: str = "random"
    """random; expert (a rule for Line-v0, CartPole-v1 and Pendulum-v1); numbers w ("0.1,0.5,1,1": action 1 where
    state @ w is above 0, or action state @ w); or a run of the control recipe."""
    epsilon: tuple[float, ...] = (0.0,)
    """Share of random actions; several make a set of mixed quality, so many episodes of each."""
    wanted: float | None = None
    """For a run: the return to act for. None: the one it was trained with."""
    temperature: float = 1.0
    """For a run with discrete actions: 0 takes the likeliest."""
    episodes: int = 10
    """For each epsilon."""
    seed: int = 0
    """Of everything random."""
    out: Path | None = None
    """A .npz to keep the episodes in."""
    device: str = "auto"
    """For a run: auto, cpu, cuda, mps."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer rollout")
    check(asked)
    from ..data.trajectories.environments import make, play
    from ..data.trajectories.read import write

    with busy():
        _, space = make(asked.env, 1)
        epsilon = [e for e in asked.epsilon for _ in range(asked.episodes)]
        seeds = [asked.seed * 1_000_003 + i for i in range(len(epsilon))]
        policy, longest = chosen(asked, space, epsilon, seeds)
        found = play(asked.env, policy, seeds, longest)
    if asked.out is not None:
        write(asked.out, found)
    returns = found.returns
    about = {"env": asked.env, "policy": asked.policy, "episodes": len(returns), "steps": len(found.states)}
    about |= {"mean": returns.mean(), "lowest": returns.min(), "highest": returns.max()}
    if asked.json:
        print(json.dumps(about | {"returns": returns.tolist(), "out": asked.out and str(asked.out)}))
        return 0
    print(f"{asked.env}: {len(returns)} episodes, {len(found.states):,} steps, played by {asked.policy}")
    print(f"  return         {returns.mean():,.2f} (from {returns.min():,.2f} to {returns.max():,.2f})")
    if asked.out is not None:
        print(f"  kept in        {asked.out}")
    return 0


def check(asked: Command) -> None:
    """Raises InputError."""
    count = asked.episodes * len(asked.epsilon)
    if not 0 < count <= MOST:
        raise InputError(
            f"--episodes {asked.episodes} makes {count} episodes; from 1 to {MOST:,} can be played at once"
        )
    if strange := [e for e in asked.epsilon if not 0 <= e <= 1]:
        raise InputError(f"--epsilon is {strange[0]}; a share is from 0 to 1")
    if asked.seed < 0 or asked.temperature < 0:
        raise InputError(f"--seed {asked.seed} and --temperature {asked.temperature} must be 0 or more")
    if asked.out is not None and asked.out.suffix != ".npz":
        raise InputError(f"--out {asked.out}: trajectories are kept as .npz, so its name must end so")


def chosen(asked: Command, space: "Space", epsilon: list[float], seeds: list[int]) -> tuple["Policy", int]:
    """The policy that is meant, and the longest episode it can play. Raises InputError."""
    from ..data.trajectories.environments import EXPERTS, LONGEST, Rule

    if asked.policy == "random":
        return Rule(space, None, epsilon, seeds), LONGEST
    if asked.policy == "expert":
        if asked.env not in EXPERTS:
            raise InputError(f"--policy expert: there is a rule for {', '.join(EXPERTS)}, not for {asked.env}")
        return Rule(space, EXPERTS[asked.env], epsilon, seeds), LONGEST
    if Path(asked.policy).exists():
        if any(epsilon):
            raise InputError("--epsilon is for rules: a run remembers what it did, and would be told wrong")
        return agent(asked, seeds)
    return Rule(space, linear(asked.policy, space), epsilon, seeds), LONGEST


def linear(text: str, space: "Space") -> Any:
    """A rule of one number for each number of the state."""
    import numpy as np

    try:
        weights = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise InputError(f"--policy '{text}': random, expert, numbers like 0.1,0.5,1,1, or an existing run") from None
    if len(weights) != space.states or space.actions != (2 if space.low is None else 1):
        raise InputError(
            f"--policy has {len(weights)} numbers, for states of {space.states} and {space.actions} actions: one for "
            "each number of the state, and two discrete actions or one number, can be done"
        )
    if space.low is None:
        return lambda states: (states @ weights > 0).astype(np.int64)
    return lambda states: (states @ weights)[:, None].astype(np.float32)


def agent(asked: Command, seeds: list[int]) -> tuple["Policy", int]:
    """A trained model as a policy."""
    from .. import api
    from ..inference.agent import Actor
    from ..inference.rollouts import fits

    model = api.load(asked.policy, asked.device)
    if model.name != "control":
        raise InputError(f"{asked.policy} is a run of recipe '{model.name}', not 'control': it cannot act")
    module: Any = model.module
    fits(module, asked.env)
    wanted = model.config.wanted if asked.wanted is None else asked.wanted
    return Actor(module, [wanted] * len(seeds), asked.temperature, seeds), module.steps
