"""Trajectories by name: files, Minari's datasets, and sets that are played once and kept in the cache."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError, suggest
from ..io.archives import unpack_archive
from ..io.cache import build_directory, cache_by_files, cache_dir, data_files, has_directory
from .environments import EXPERT_POLICIES, LINE, EpsilonGreedy, import_gymnasium, make_envs, play_episodes
from .read import MINARI_PREFIX, Trajectories, read_minari, read_trajectories, write_trajectories

STEPS_FILE = "steps.npz"  # of a cached set
NAMED_SETS = {  # the arguments of `play_mixed`
    "line": (LINE, 30, (1.0, 0.5, 0.05)),
    "cartpole": ("CartPole-v1", 200, (1.0, 0.7, 0.4, 0.05)),
    "pendulum": ("Pendulum-v1", 150, (1.0, 0.7, 0.4, 0.05)),
}


@cache_by_files(data_files)
def load_trajectories(data: str) -> Trajectories:
    """Load a file, a dataset of Minari's (minari:NAME), or a named set. Raises InputError."""
    path = unpack_archive(Path(data).expanduser())
    if path.is_file():
        return read_trajectories(path)
    if data.startswith(MINARI_PREFIX):
        return read_minari(data)
    if data not in NAMED_SETS:
        if path.suffix or os.sep in data:
            raise InputError(f"data '{data}': no such file (looked in {Path.cwd()})")
        raise InputError(f"data '{data}': no such file or set of trajectories: {suggest(data, NAMED_SETS)}")
    env = NAMED_SETS[data][0]
    version = "1" if env == LINE else import_gymnasium(env).__version__
    key = hashlib.sha256(json.dumps([NAMED_SETS[data], version]).encode()).hexdigest()[:16]
    cached = cache_dir() / "trajectories" / f"{data}-{key}"
    if not has_directory(cached):
        with build_directory(cached) as folder:
            write_trajectories(folder / STEPS_FILE, play_mixed(*NAMED_SETS[data]))
    return read_trajectories(cached / STEPS_FILE)


def play_mixed(env: str, episodes: int, epsilons: Sequence[float], seed: int = 0) -> Trajectories:
    """Play `episodes` for each epsilon: the expert's rule with this share of random actions, always the same."""
    epsilon = [e for e in epsilons for _ in range(episodes)]
    seeds = [seed * 1_000_003 + i for i in range(len(epsilon))]
    return play_episodes(env, EpsilonGreedy(make_envs(env, 1)[1], EXPERT_POLICIES[env], epsilon, seeds), seeds)
