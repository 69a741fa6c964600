"""Trajectories by name: files, Minari's datasets, and sets that are played once and kept in the cache."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import InputError, suggest
from ..io.cache import cache_by_files, cache_dir, data_files
from .environments import EXPERT_POLICIES, LINE, EpsilonGreedy, make_envs, play_episodes
from .read import MINARI_PREFIX, Trajectories, read_minari, read_trajectories, write_trajectories


@dataclass(frozen=True)
class MixedEpisodes:
    """Episodes of mixed quality: those of the expert's rule with a share `epsilon` of random actions."""

    env: str
    episodes: int  # for each epsilon
    epsilon: tuple[float, ...]
    seed: int = 0


NAMED_SETS = {
    "line": MixedEpisodes(LINE, 30, (1.0, 0.5, 0.05)),
    "cartpole": MixedEpisodes("CartPole-v1", 200, (1.0, 0.7, 0.4, 0.05)),
    "pendulum": MixedEpisodes("Pendulum-v1", 150, (1.0, 0.7, 0.4, 0.05)),
}


@cache_by_files(data_files)
def load_trajectories(data: str) -> Trajectories:
    """Load a file, a dataset of Minari's (minari:NAME), or a named set. Raises InputError."""
    path = Path(data).expanduser()
    if data and path.is_file():
        return read_trajectories(path)
    if data.startswith(MINARI_PREFIX):
        return read_minari(data)
    if data not in NAMED_SETS:
        if path.suffix or os.sep in data:
            raise InputError(f"data '{data}': no such file (looked in {Path.cwd()})")
        raise InputError(f"data '{data}': no such file or set of trajectories: {suggest(data, NAMED_SETS)}")
    config = NAMED_SETS[data]
    key = json.dumps([asdict(config), env_version(config.env)])
    cached = cache_dir() / "trajectories" / f"{data}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not cached.is_file():
        write_trajectories(cached, play_mixed(config))
    return read_trajectories(cached)


def play_mixed(config: MixedEpisodes) -> Trajectories:
    """Play a set of episodes. The same seed gives the same episodes."""
    epsilon = [e for e in config.epsilon for _ in range(config.episodes)]
    seeds = [config.seed * 1_000_003 + i for i in range(len(epsilon))]
    _, spec = make_envs(config.env, 1)
    return play_episodes(config.env, EpsilonGreedy(spec, EXPERT_POLICIES[config.env], epsilon, seeds), seeds)


def env_version(env: str) -> str:
    """Return the version of the code of an environment, which is part of the cache key."""
    if env == LINE:
        return "1"
    make_envs(env, 1)
    import gymnasium

    return gymnasium.__version__
