"""Trajectories out of Minari's sets (minari.farama.org), where it is installed: `minari:D4RL/door/human-v2`.

Only what lies on this machine already is read (`minari download NAME` brings it), and of it only arrays: no environment
that a set describes is made.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from ...events import progress
from .read import LARGEST, Trajectories, assembled

PREFIX = "minari:"


def read_minari(data: str) -> Trajectories:
    """The episodes of a set, by its name behind `minari:`. Raises InputError."""
    try:
        minari: Any = importlib.import_module("minari")
    except ImportError:
        raise InputError(f"data '{data}' needs Minari: pip install 'minari[arrow,hdf5]'") from None
    name, known = data.removeprefix(PREFIX), sorted(minari.list_local_datasets())
    if name not in known:
        hint = nearest(name, known) if known else "it has none yet"
        raise InputError(f"data '{data}': Minari has no such set on this machine ({hint}): minari download {name}")
    try:
        found = minari.load_dataset(name)
        parts = list(episodes(found, data))
    except (OSError, ValueError, KeyError, ImportError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"data '{data}' cannot be read: {error}") from None
    if not parts:
        raise InputError(f"data '{data}' holds no episodes")
    states, actions, rewards = (np.concatenate(part) for part in zip(*parts))
    ends = np.cumsum([len(part[2]) for part in parts])
    return assembled({"states": states, "actions": actions, "rewards": rewards, "ends": ends}, ())


def episodes(found: Any, data: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """States, actions and rewards of each episode; the state after the last step is left out."""
    done = 0
    for episode in found.iterate_episodes():
        for name in ("observations", "actions"):
            if not isinstance(part := getattr(episode, name), np.ndarray):
                raise InputError(f"data '{data}': its {name} are a {type(part).__name__}; only arrays can be read")
        steps = len(episode.rewards)
        size = sum(part.nbytes for part in (episode.observations, episode.actions, episode.rewards))
        if steps and size / steps * found.total_steps > LARGEST:
            raise InputError(f"data '{data}': its arrays have more than {LARGEST:,} bytes")
        done += steps
        progress(f"reading {data}", done, found.total_steps)
        yield episode.observations[:steps], episode.actions, episode.rewards
