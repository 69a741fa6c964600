"""Trajectories: the states, actions and rewards of episodes of various lengths, from files and from Minari.

    episodes.npz        arrays, without pickles: states, actions, rewards, and ends (the step after the last of each
                        episode), the episode of each step, or flags terminals and timeouts, as in D4RL (2004.07219)
    steps.parquet       a row per step: episode (number or name), state (list of numbers), action (integer, or list of
                        numbers), reward; also csv, tsv, jsonl, json, and with a column for each number: obs_0, obs_1,
                        or any names beside action, reward and episode or done
    episodes.jsonl      a row per episode: states, actions and rewards, lists with an entry for each step
    minari:NAME         a dataset that Minari has downloaded to this machine; its environment is not created

Shapes: N steps of all episodes, one after the other; E episodes; S numbers per state, A per action.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...events import report_progress
from ..io.arrays import MAX_ARRAY_BYTES, open_npz
from ..io.files import import_optional
from ..io.manifest import TABLE_EXTENSIONS, is_table, plain_name, read_rows
from ..sampling import select_split, split_by_mask

ROLES = {
    "states": ("states", "observations", "state", "observation", "obs", "observation_state"),
    "actions": ("actions", "action", "act"),
    "rewards": ("rewards", "reward", "rew", "next_reward"),
    "ends": ("ends", "episode_ends"),
    "episodes": ("episode", "episodes", "episode_id", "episode_ids", "episode_index", "traj_id", "trajectory"),
    "terminals": ("terminals", "terminal", "dones", "done", "terminations", "terminated", "next_done"),
    "timeouts": ("timeouts", "timeout", "truncations", "truncated"),
}  # names of arrays and columns, also those of LeRobot's
STEP_NAMES = ("", "t", "step", "steps", "timestep", "time_step", "time", "index", "unnamed_0", "return_to_go", "info")
MAX_ACTIONS = 1 << 16  # that a step chooses from: each has an embedding
MINARI_PREFIX = "minari:"


class Trajectories:
    """Episodes, one after the other: states (N, S) float32, actions (N,) int64 from 0 on or (N, A) float32, rewards
    (N,) float32, and ends (E,) int64, the step after the last of each. Raises InputError where they do not fit."""

    def __init__(self, states: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ends: np.ndarray):
        check_arrays(states, actions, rewards, ends)
        self.states, self.actions, self.rewards, self.ends = states, actions, rewards, ends
        self.is_discrete = actions.ndim == 1
        self.starts = np.concatenate([[0], ends[:-1]])  # (E,) the first step of each episode
        self.episode_ids = np.repeat(np.arange(len(ends)), ends - self.starts)  # (N,) the episode of each step
        self.timesteps = np.arange(len(states)) - self.starts[self.episode_ids]  # (N,) within the episode
        self.returns = np.add.reduceat(rewards.astype(np.float64), self.starts)  # (E,) the sum of the rewards
        sums = np.concatenate([[0], np.cumsum(rewards, dtype=np.float64)])
        self.return_to_go = (sums[ends[self.episode_ids]] - sums[:-1]).astype(np.float32)  # (N,) from this step on

    @cached_property
    def sha256(self) -> str:
        content = hashlib.sha256()
        for array in (self.states, self.actions, self.rewards, self.ends):
            content.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return content.hexdigest()

    def select(self, episodes: np.ndarray) -> "Trajectories":
        """Return these episodes, in this order."""
        steps = np.concatenate([np.arange(self.starts[e], self.ends[e]) for e in episodes])
        ends = np.cumsum((self.ends - self.starts)[episodes])
        return Trajectories(self.states[steps], self.actions[steps], self.rewards[steps], ends)

    def select_best(self, fraction: float) -> "Trajectories":
        """Return the episodes with the highest returns, at least one, in their original order."""
        count = max(1, round(fraction * len(self.ends)))
        best = np.argsort(-self.returns, kind="stable")[:count]
        return self if count >= len(self.ends) else self.select(np.sort(best))

    def split(self, name: str, val_fraction: float = 0.1) -> np.ndarray:
        """Return the episodes of "train", "val" or "all": every k-th episode is for validation. Raises InputError."""
        n = len(self.ends)
        if name == "all":
            return np.arange(n)
        if not 0 < val_fraction < 1 or n < 2:
            counts = f"{n} episodes and a val_fraction of {val_fraction}"
            raise InputError(f"{counts}: training needs two or more episodes, and a fraction above 0 and below 1")
        stride = min(n, max(2, round(1 / val_fraction)))
        return select_split(name, split_by_mask(np.arange(n) % stride == stride - 1))


def check_arrays(states: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ends: np.ndarray) -> None:
    n = len(states)
    if states.ndim != 2 or actions.ndim > 2 or rewards.ndim != 1:
        shapes = f"states {states.shape}, actions {actions.shape} and rewards {rewards.shape}"
        raise InputError(f"trajectories: {shapes} must be (steps, numbers), (steps[, numbers]) and (steps,)")
    for name, array in {"states": states, "actions": actions, "rewards": rewards}.items():
        if len(array) != n:
            raise InputError(f"trajectories: {n} states but {len(array)} {name}: one per step")
        if not (finite := np.isfinite(array)).all():
            raise InputError(f"trajectories: {name} of step {np.argwhere(~finite)[0, 0]} is not a number")
    if actions.ndim == 1 and (bad := np.flatnonzero((actions < 0) | (actions >= MAX_ACTIONS))).size:
        verdict = "below 0" if actions[bad[0]] < 0 else f"too large: they are numbered from 0, up to {MAX_ACTIONS:,}"
        raise InputError(f"trajectories: action {actions[bad[0]]} at step {bad[0]} is {verdict}")
    if ends.ndim != 1 or len(ends) == 0 or ends[-1] != n:
        last = ends[-1] if ends.ndim == 1 and len(ends) else "nothing"
        raise InputError(f"trajectories: the last episode ends at {last}; it must end at {n}, the number of steps")
    if (bad := np.flatnonzero(np.diff(ends, prepend=0) < 1)).size:
        length = np.diff(ends, prepend=0)[bad[0]]
        raise InputError(f"trajectories: episode {bad[0]} has length {length}; each must have at least one step")


# --- files ---


def read_trajectories(path: Path) -> Trajectories:
    """Read a .npz file or a table. Raises InputError."""
    if path.suffix != ".npz" and not (path.is_file() and is_table(path)):
        raise InputError(f"data '{path}': trajectories are read from .npz or {', '.join(TABLE_EXTENSIONS)}")
    try:
        return read_npz(path) if path.suffix == ".npz" else read_steps(path)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from None


def read_npz(path: Path) -> Trajectories:
    with open_npz(path) as arrays:
        return from_arrays(arrays)


def check_size(size: int) -> None:
    if size > MAX_ARRAY_BYTES:
        raise InputError(f"its arrays have {size:,} bytes, more than {MAX_ARRAY_BYTES:,}")


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Trajectories:
    """Build trajectories from named arrays, of which others than the necessary are not read. Raises InputError."""
    states, actions = read_numbers(arrays, "states"), read_numbers(arrays, "actions")
    rewards = read_numbers(arrays, "rewards").reshape(-1).astype(np.float32)
    is_discrete = actions.dtype.kind in "iub" and actions.size == len(actions)
    actions = actions.reshape(-1).astype(np.int64) if is_discrete else to_matrix(actions)
    return Trajectories(to_matrix(states), actions, rewards, find_ends(arrays, len(rewards)))


def find_ends(arrays: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Return the step after the last of each episode, given n steps: from the ends, the episode of each step, or flags.
    An episode that the end of the file cuts off counts too."""
    if find_name(arrays, "ends"):
        return read_numbers(arrays, "ends").astype(np.int64)
    is_last = np.zeros(n, bool)
    is_last[-1:] = True
    names = [name for name in ("episodes", "terminals", "timeouts") if find_name(arrays, name)]
    for name in names:
        values = np.asarray(arrays[find_name(arrays, name)]).reshape(-1)
        values = values.astype(str) if values.dtype == object else values  # a cell can hold JSON of any kind
        if len(values) != n:
            raise InputError(f"{n} rewards but {len(values)} {find_name(arrays, name)}: one per step")
        if name == "episodes":
            is_last[:-1] |= values[1:] != values[:-1]
            if len(set(values.tolist())) != is_last.sum():
                raise InputError("the steps of an episode must be consecutive: sort by episode and step")
            break
        is_last |= read_numbers(arrays, name).astype(bool).reshape(-1)
    if not names:
        raise InputError(f"it has no array 'ends', 'episodes' or 'terminals': {suggest('ends', arrays)}")
    return np.flatnonzero(is_last) + 1


def find_name(names: Iterable[str], role: str) -> str:
    """Return the name under which arrays or columns hold a role (of ROLES), "" if none does."""
    plain = {plain_name(name): name for name in names}
    return next((plain[alias] for alias in ROLES[role] if alias in plain), "")


def find_columns(names: Iterable[str], role: str) -> list[str]:
    """Return the column of a role, or the numbered columns of its parts: obs_0, obs_1."""
    names = list(names)
    if single := find_name(names, role):
        return [single]
    numbered = re.compile(rf"({'|'.join(ROLES[role])})_?\d+")
    return [name for name in names if numbered.fullmatch(plain_name(name))]


def find_states(names: Iterable[str]) -> list[str]:
    """Return the columns of the state: named so, or, beside an action, a reward and the episodes, all others that do
    not number the step or tell of the next one."""
    names = list(names)
    if named := find_columns(names, "states"):
        return named
    roles = {role: find_columns(names, role) for role in ROLES}
    has_ends = any(roles[role] for role in ("episodes", "terminals", "timeouts"))
    if not (roles["actions"] and roles["rewards"] and has_ends):
        return []
    taken = {name for columns in roles.values() for name in columns}
    others = [name for name in names if name not in taken and plain_name(name) not in STEP_NAMES]
    return [name for name in others if not plain_name(name).startswith("next_")]


def is_trajectory(names: Iterable[str]) -> bool:
    """Whether arrays or columns of these names hold trajectories."""
    names = list(names)
    roles = [bool(find_states(names)), *(bool(find_columns(names, role)) for role in ("actions", "rewards"))]
    return all(roles[:2]) and (roles[2] or {"observations", "actions"} <= {plain_name(name) for name in names})


def read_numbers(arrays: Mapping[str, np.ndarray], role: str) -> np.ndarray:
    if not (name := find_name(arrays, role)):
        raise InputError(f"it has no array '{role}': {suggest(role, arrays)}")
    array = arrays[name]
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise InputError(f"'{name}' is {array.dtype} of shape {array.shape}; it must be an array of numbers")
    return array


def to_matrix(array: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N, numbers) float32"""
    return array.reshape(len(array), array.size // max(1, len(array))).astype(np.float32)


def read_steps(path: Path) -> Trajectories:
    """Read a table with a row for each step, or for each episode."""
    rows = [row for _, row in read_rows(path)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {role: find_columns(names, role) for role in ROLES} | {"states": find_states(names)}
    if missing := [role for role in ("states", "actions", "rewards") if not columns[role]]:
        role = missing[0].removesuffix("s")
        raise InputError(f"it has no column '{role}': {suggest(role, names)}")
    if isinstance(parse_cell(rows[0][columns["rewards"][0]]), list):
        return read_episodes(rows, {role: role_columns[0] for role, role_columns in columns.items() if role_columns})
    arrays: dict[str, np.ndarray] = {}
    for role, role_columns in columns.items():
        if role_columns and role != "ends":
            values = [[parse_cell(row.get(name)) for name in role_columns] for row in rows]
            arrays[role] = to_array(values if len(role_columns) > 1 else [value[0] for value in values], role)
    return from_arrays(arrays)


def read_episodes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Trajectories:
    """Build trajectories from rows that hold an episode each, as lists with an entry for each step."""
    arrays: dict[str, np.ndarray] = {}
    for role in ("states", "actions", "rewards"):
        episodes = [parse_cell(row.get(columns[role])) for row in rows]
        if not all(isinstance(episode, list) for episode in episodes):
            raise InputError(f"{columns[role]} must be a list with an entry for each step in every row")
        arrays[role] = to_array([step for episode in episodes for step in episode], role)
    lengths = [len(parse_cell(row[columns["rewards"]])) for row in rows]
    return from_arrays(arrays | {"ends": np.cumsum(lengths)})


def parse_cell(value: Any) -> Any:
    """Convert the text of a number, a flag or a list to its value; other texts stay."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def to_array(values: list[Any], role: str) -> np.ndarray:
    try:
        return np.array(values)
    except ValueError:
        raise InputError(f"{role} are lists of different lengths") from None


def write_trajectories(path: Path, data: Trajectories) -> None:
    """Write a .npz file atomically. Raises InputError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(file, states=data.states, actions=data.actions, rewards=data.rewards, ends=data.ends)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# --- Minari (minari.farama.org) ---


def read_minari(data: str) -> Trajectories:
    """Read a dataset that Minari has downloaded, named `minari:NAME`. Raises InputError."""
    minari = import_optional("minari", f"data '{data}' needs Minari: pip install 'minari[arrow,hdf5]'")
    name, local = data.removeprefix(MINARI_PREFIX), sorted(minari.list_local_datasets())
    if name not in local:
        hint = suggest(name, local) if local else "it has none yet"
        raise InputError(f"data '{data}': Minari has no such set on this machine ({hint}): minari download {name}")
    try:
        parts = list(iterate_episodes(minari.load_dataset(name), data))
        if not parts:
            raise InputError("it holds no episodes")
        lengths = [len(rewards) for _, _, rewards in parts]
        states, actions, rewards = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    except InputError as error:
        raise InputError(f"data '{data}': {error}") from None
    except (OSError, ValueError, KeyError, ImportError, AssertionError) as error:
        raise InputError(f"data '{data}' cannot be read: {error}") from None
    return from_arrays({"states": states, "actions": actions, "rewards": rewards, "ends": np.cumsum(lengths)})


def iterate_episodes(dataset: Any, data: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield states, actions and rewards of each episode, without the state after the last step."""
    done = 0
    for episode in dataset.iterate_episodes():
        for name in ("observations", "actions"):
            if not isinstance(array := getattr(episode, name), np.ndarray):
                raise InputError(f"its {name} are a {type(array).__name__}; only arrays can be read")
        steps = len(episode.rewards)
        size = sum(array.nbytes for array in (episode.observations, episode.actions, episode.rewards))
        check_size(size * dataset.total_steps // max(1, steps))
        done += steps
        report_progress(f"reading {data}", done, dataset.total_steps)
        yield episode.observations[:steps], episode.actions, episode.rewards
