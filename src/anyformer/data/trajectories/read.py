"""Trajectories: the states, actions and rewards of episodes of various lengths, from files and from Minari.

    episodes.npz        arrays, without pickles: states (or observations), actions, rewards, and ends (the step after
                        the last of each episode) or flags terminals and timeouts, as in D4RL (2004.07219)
    episodes.parquet    a row per step: episode (number or name), state (list of numbers), action (integer, or list of
                        numbers), reward; needs pyarrow
    minari:NAME         a dataset that Minari has downloaded to this machine; its environment is not created

Shapes: N steps of all episodes, one after the other; E episodes; S numbers per state, A per action.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ...events import report_progress
from ..io.files import import_optional
from ..sampling import select_split

MAX_ARRAY_BYTES = 16 << 30  # of all arrays together
ARRAY_NAMES = {"states": "observations", "actions": "actions", "rewards": "rewards"}  # ours -> D4RL's
END_FLAGS = ("terminals", "timeouts")
MINARI_PREFIX = "minari:"


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Validated episodes. Raises InputError where the arrays do not fit together."""

    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # discrete: (N,) int64 from 0 on; continuous: (N, A) float32
    rewards: np.ndarray  # (N,) float32
    ends: np.ndarray  # (E,) int64, the step after the last of each episode

    def __post_init__(self) -> None:
        n = len(self.states)
        if self.states.ndim != 2 or self.actions.ndim > 2 or self.rewards.ndim != 1:
            shapes = f"states {self.states.shape}, actions {self.actions.shape} and rewards {self.rewards.shape}"
            raise InputError(f"trajectories: {shapes} must be (steps, numbers), (steps[, numbers]) and (steps,)")
        for name in ("actions", "rewards"):
            if len(getattr(self, name)) != n:
                raise InputError(f"trajectories: {n} states but {len(getattr(self, name))} {name}: one per step")
        for name in ("states", "actions", "rewards"):
            if not (finite := np.isfinite(getattr(self, name))).all():
                raise InputError(f"trajectories: {name} of step {int(np.argwhere(~finite)[0, 0])} is not a number")
        if self.is_discrete and n and self.actions.min() < 0:
            raise InputError(f"trajectories: action {self.actions.min()} at step {self.actions.argmin()} is below 0")
        check_ends(self.ends, n)

    @property
    def is_discrete(self) -> bool:
        return self.actions.ndim == 1

    @cached_property
    def starts(self) -> np.ndarray:
        """The first step of each episode, (E,)."""
        return np.concatenate([[0], self.ends[:-1]])

    @cached_property
    def episode_ids(self) -> np.ndarray:
        """The episode of each step, (N,)."""
        return np.repeat(np.arange(len(self.ends)), self.ends - self.starts)

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The index of each step within its episode, (N,)."""
        return np.arange(len(self.states)) - self.starts[self.episode_ids]

    @cached_property
    def returns(self) -> np.ndarray:
        """The sum of the rewards of each episode, (E,)."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    @cached_property
    def return_to_go(self) -> np.ndarray:
        """The sum of this step's reward and all later ones of its episode, (N,)."""
        cumulative = np.concatenate([[0], np.cumsum(self.rewards, dtype=np.float64)])
        return (cumulative[self.ends[self.episode_ids]] - cumulative[:-1]).astype(np.float32)

    @cached_property
    def sha256(self) -> str:
        content = hashlib.sha256()
        for array in (self.states, self.actions, self.rewards, self.ends):
            content.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return content.hexdigest()

    def select(self, episodes: np.ndarray) -> "Trajectories":
        """Return these episodes, in this order."""
        spans = [np.arange(self.starts[e], self.ends[e]) for e in episodes]
        steps, lengths = np.concatenate(spans), [len(span) for span in spans]
        return Trajectories(self.states[steps], self.actions[steps], self.rewards[steps], np.cumsum(lengths))

    def select_best(self, fraction: float) -> "Trajectories":
        """Return the episodes with the highest returns, at least one, in their original order."""
        count = max(1, round(fraction * len(self.ends)))
        if count >= len(self.ends):
            return self
        return self.select(np.sort(np.argsort(-self.returns, kind="stable")[:count]))

    def split(self, name: str, val_fraction: float = 0.1) -> np.ndarray:
        """Return the episodes of "train", "val" or "all": every k-th episode is for validation. Raises InputError."""
        episodes = np.arange(len(self.ends))
        if name == "all":
            return episodes
        if not 0 < val_fraction < 1 or len(episodes) < 2:
            counts = f"{len(episodes)} episodes and a val_fraction of {val_fraction}"
            raise InputError(f"{counts}: training needs two or more episodes, and a fraction above 0 and below 1")
        stride = min(len(episodes), max(2, round(1 / val_fraction)))
        is_val = episodes % stride == stride - 1
        return select_split(name, {"train": episodes[~is_val], "val": episodes[is_val], "all": episodes})


def check_ends(ends: np.ndarray, steps: int) -> None:
    """Raise InputError unless every step belongs to an episode and every episode has a step."""
    if ends.ndim != 1 or len(ends) == 0 or ends[-1] != steps:
        last = ends[-1] if ends.ndim == 1 and len(ends) else "nothing"
        raise InputError(f"trajectories: the last episode ends at {last}; it must end at {steps}, the number of steps")
    lengths = np.diff(ends, prepend=0)
    if (lengths < 1).any():
        e = int(np.argmax(lengths < 1))
        raise InputError(f"trajectories: episode {e} has length {lengths[e]}; each must have at least one step")


# --- files ---


def read_trajectories(path: Path) -> Trajectories:
    """Read a .npz or .parquet file. Raises InputError."""
    readers = {".npz": read_npz, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise InputError(f"data '{path}': trajectories are read from {' or '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from None


def read_npz(path: Path) -> Trajectories:
    with zipfile.ZipFile(path) as archive:
        check_size(sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as stored:
        names = {*ARRAY_NAMES, *ARRAY_NAMES.values(), *END_FLAGS, "ends"}
        return from_arrays({name: stored[name] for name in stored.files if name in names}, stored.files)


def check_size(size: int) -> None:
    if size > MAX_ARRAY_BYTES:
        raise InputError(f"its arrays have {size:,} bytes, more than {MAX_ARRAY_BYTES:,}")


def from_arrays(arrays: Mapping[str, np.ndarray], names: Any = ()) -> Trajectories:
    """Build trajectories from named arrays; `names` are all that the file has, for messages. Raises InputError."""
    parts = {}
    for name, d4rl_name in ARRAY_NAMES.items():
        if name not in arrays and d4rl_name not in arrays:
            raise InputError(f"it has no array '{name}': {suggest(name, names)}")
        parts[name] = check_numeric(arrays[name] if name in arrays else arrays[d4rl_name], name)
    n = len(parts["rewards"])
    if "ends" in arrays:
        ends = check_numeric(arrays["ends"], "ends").astype(np.int64)
    elif "terminals" in arrays:
        flags = [check_numeric(arrays[name], name).astype(bool).reshape(-1) for name in END_FLAGS if name in arrays]
        if any(len(flag) != n for flag in flags):
            raise InputError(f"{n} rewards but {[len(flag) for flag in flags]} terminals and timeouts: one per step")
        is_last = np.logical_or.reduce(flags)
        is_last[-1:] = True  # an episode that the end of the file cuts off counts too
        ends = np.flatnonzero(is_last) + 1
    else:
        raise InputError(f"it has no array 'ends' (nor 'terminals'): {suggest('ends', names)}")
    actions = parts["actions"]
    is_discrete = actions.dtype.kind in "iub" and actions.size == len(actions)
    actions = actions.reshape(-1).astype(np.int64) if is_discrete else to_matrix(actions)
    return Trajectories(to_matrix(parts["states"]), actions, parts["rewards"].reshape(-1).astype(np.float32), ends)


def to_matrix(array: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N, numbers) float32"""
    return array.reshape(len(array), array.size // max(1, len(array))).astype(np.float32)


def check_numeric(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise InputError(f"'{name}' is {array.dtype} of shape {array.shape}; it must be an array of numbers")
    return array


def read_parquet(path: Path) -> Trajectories:
    parquet = import_optional("pyarrow.parquet", "parquet needs pyarrow: pip install 'anyformer[parquet]'")
    file = parquet.ParquetFile(path)
    check_size(sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)))
    columns = ["episode", "state", "action", "reward"]
    for name in columns:
        if name not in file.schema_arrow.names:
            raise InputError(f"it has no column '{name}': {suggest(name, file.schema_arrow.names)}")
    table = file.read(columns).to_pydict()
    episodes = table["episode"]
    changes = [i for i in range(1, len(episodes)) if episodes[i] != episodes[i - 1]]
    if len(set(episodes)) != len(changes) + bool(episodes):
        raise InputError("the rows of an episode must be consecutive: sort by episode and step")
    try:
        arrays = {f"{name}s": np.array(table[name]) for name in ("state", "action", "reward")}
    except ValueError:
        raise InputError("states (or actions) are lists of different lengths") from None
    return from_arrays(arrays | {"ends": np.array([*changes, len(episodes)])})


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
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError, AssertionError) as error:
        raise InputError(f"data '{data}' cannot be read: {error}") from None
    if not parts:
        raise InputError(f"data '{data}' holds no episodes")
    states, actions, rewards = (np.concatenate(arrays) for arrays in zip(*parts))
    ends = np.cumsum([len(rewards) for _, _, rewards in parts])
    return from_arrays({"states": states, "actions": actions, "rewards": rewards, "ends": ends})


def iterate_episodes(dataset: Any, data: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield states, actions and rewards of each episode, without the state after the last step."""
    done = 0
    for episode in dataset.iterate_episodes():
        for name in ("observations", "actions"):
            if not isinstance(array := getattr(episode, name), np.ndarray):
                raise InputError(f"data '{data}': its {name} are a {type(array).__name__}; only arrays can be read")
        steps = len(episode.rewards)
        size = sum(array.nbytes for array in (episode.observations, episode.actions, episode.rewards))
        if steps and size / steps * dataset.total_steps > MAX_ARRAY_BYTES:
            raise InputError(f"data '{data}': its arrays have more than {MAX_ARRAY_BYTES:,} bytes")
        done += steps
        report_progress(f"reading {data}", done, dataset.total_steps)
        yield episode.observations[:steps], episode.actions, episode.rewards
