"""anyformer rollout ENV: play episodes in an environment, and store them to learn from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..data.trajectories import MAX_EPISODES, MAX_RETURN
from ..errors import InputError
from ..parsing import check_range
from ..training.config import MAX_SEED
from .flags import POSITIONAL, DeviceFlag, JsonFlag, RecipeFlag
from .terminal import show_progress

if TYPE_CHECKING:
    from ..data.trajectories.environments import EnvSpec, Policy


@dataclass(frozen=True)
class Command:
    """Play episodes of an environment, in parallel and each with its own seed.

    --out stores them for `anyformer train control --data FILE.npz`."""

    env: Annotated[str, POSITIONAL, "Line-v0, or an environment of gymnasium: CartPole-v1."]
    policy: str = "random"
    """random; expert (a rule for Line-v0, CartPole-v1 and Pendulum-v1); weights w ("0.1,0.5,1,1": action 1 where
    state @ w > 0, or action = state @ w); or a run of the control recipe."""
    epsilon: Annotated[tuple[float, ...], "Fraction of random actions; several values play --episodes each."] = (0.0,)
    target_return: float | None = None
    """For a run: the return to reach. Default: the one it was trained with."""
    temperature: Annotated[float, "For a run with discrete actions; 0 takes the most probable."] = 1.0
    episodes: Annotated[int, "Episodes for each epsilon."] = 10
    seed: Annotated[int, "Seed of everything random."] = 0
    out: Annotated[Path | None, "An .npz file to store the episodes in."] = None
    recipe: RecipeFlag = None
    device: DeviceFlag = "auto"
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "epsilon", at_least=0, at_most=1)
        check_range(self, "target_return", at_least=-MAX_RETURN, at_most=MAX_RETURN)
        check_range(self, "temperature", at_least=0, at_most=1e6)
        check_range(self, "episodes", at_least=1, at_most=MAX_EPISODES)
        check_range(self, "seed", at_least=0, at_most=MAX_SEED)


def run(options: Command) -> None:
    check_options(options)
    from ..data.trajectories.environments import make_envs, play_episodes
    from ..data.trajectories.read import write_trajectories

    with show_progress():
        _, spec = make_envs(options.env, 1)
        epsilon = [value for value in options.epsilon for _ in range(options.episodes)]
        seeds = [options.seed * 1_000_003 + i for i in range(len(epsilon))]
        policy, max_steps = select_policy(options, spec, epsilon, seeds)
        episodes = play_episodes(options.env, policy, seeds, max_steps)
    if options.out is not None:
        write_trajectories(options.out, episodes)
    returns = episodes.returns
    facts = {"env": options.env, "policy": options.policy, "episodes": len(returns), "steps": len(episodes.states)}
    facts |= {"mean": returns.mean(), "lowest": returns.min(), "highest": returns.max()}
    if options.json:
        print(json.dumps(facts | {"returns": returns.tolist(), "out": options.out and str(options.out)}))
        return
    print(f"{options.env}: {len(returns)} episodes, {len(episodes.states):,} steps, played by {options.policy}")
    print(f"  return         {returns.mean():,.2f} (from {returns.min():,.2f} to {returns.max():,.2f})")
    if options.out is not None:
        print(f"  stored in      {options.out}")


def check_options(options: Command) -> None:
    count = options.episodes * len(options.epsilon)
    if count > MAX_EPISODES:
        limits = f"from 1 to {MAX_EPISODES:,} can be played at once"
        raise InputError(f"--episodes {options.episodes} makes {count} episodes; {limits}")
    if options.out is not None and options.out.suffix != ".npz":
        raise InputError(f"--out {options.out}: trajectories are stored as .npz, so its name must end in .npz")


def select_policy(options: Command, spec: "EnvSpec", epsilon: list[float], seeds: list[int]) -> tuple["Policy", int]:
    """Return the policy and the longest episode that it can play. Raises InputError."""
    from ..data.trajectories.environments import EXPERT_POLICIES, MAX_STEPS, EpsilonGreedy

    rule = None
    if options.policy == "expert":
        rule = EXPERT_POLICIES.get(options.env)
        if rule is None:
            names = ", ".join(EXPERT_POLICIES)
            raise InputError(f"--policy expert: there is a rule for {names}, not for {options.env}")
    elif options.policy != "random":
        if Path(options.policy).exists():
            return load_policy(options, seeds)
        rule = linear_policy(options.policy, spec)
    return EpsilonGreedy(spec, rule, epsilon, seeds), MAX_STEPS


def linear_policy(text: str, spec: "EnvSpec") -> Any:
    """Return a rule with one weight for each number of the state. Raises InputError."""
    import numpy as np

    try:
        weights = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise InputError(f"--policy '{text}': random, expert, numbers like 0.1,0.5,1,1, or an existing run") from None
    if len(weights) != spec.states or spec.actions != (2 if spec.low is None else 1):
        raise InputError(
            f"--policy has {len(weights)} numbers, for states of {spec.states} and {spec.actions} actions: it needs "
            "one for each number of the state, and two discrete actions or one continuous one"
        )
    if spec.low is None:
        return lambda states: (states @ weights > 0).astype(np.int64)
    return lambda states: (states @ weights)[:, None].astype(np.float32)


def load_policy(options: Command, seeds: list[int]) -> tuple["Policy", int]:
    """Return a trained model as a policy. Raises InputError."""
    from .. import api
    from ..recipe import SupportsPolicy
    from ..recipe_loading import recipes_with

    if any(options.epsilon):
        raise InputError("--epsilon is for rules: a run conditions on its own actions, which must be the real ones")
    model = api.load(options.policy, options.device, recipe=options.recipe)
    if not isinstance(model.recipe, SupportsPolicy):
        names = recipes_with(SupportsPolicy)
        raise InputError(f"{options.policy} is a run of '{model.name}', not of {names}: it cannot act")
    settings = {"target_return": options.target_return, "temperature": options.temperature, "seeds": seeds}
    return model.recipe.make_policy(model.module, model.config, options.env, **settings)
