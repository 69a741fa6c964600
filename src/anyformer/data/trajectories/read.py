"""Trajectories: what an agent saw, did and got, step by step, in episodes of unlike length.

Kept flat: the steps of all episodes one after the other, and where each episode ends. Read from .npz (no pickle) and
.parquet, or rolled out on the spot (data/environments.py).

Shapes: N steps of all episodes, E episodes, S numbers of a state, A of an action, B batch, K steps of a window.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest

LARGEST = 16 << 30  # bytes of all arrays together
NAMES = {"states": "observations", "actions": "actions", "rewards": "rewards"}  # ours, and D4RL's (2004.07219)
FLAGS = ("terminals", "timeouts")


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Episodes, checked. Raises InputError where the arrays do not fit together."""

    states: np.ndarray
    """(N, S) float32"""
    actions: np.ndarray
    """Discrete: (N,) int64 from 0 on. Continuous: (N, A) float32."""
    rewards: np.ndarray
    """(N,) float32"""
    ends: np.ndarray
    """(E,) int64: the step after the last of each episode."""

    def __post_init__(self) -> None:
        n = len(self.states)
        if self.states.ndim != 2 or self.actions.ndim > 2 or self.rewards.ndim != 1:
            raise InputError(
                f"trajectories: states {self.states.shape}, actions {self.actions.shape} and rewards "
                f"{self.rewards.shape} must be (steps, numbers), (steps,) or (steps, numbers), and (steps,)"
            )
        for name in ("actions", "rewards"):
            if len(getattr(self, name)) != n:
                raise InputError(f"trajectories: {n} states but {len(getattr(self, name))} {name}: one a step is right")
        for name in ("states", "actions", "rewards"):
            if not (good := np.isfinite(getattr(self, name))).all():
                raise InputError(f"trajectories: {name} of step {int(np.argwhere(~good)[0, 0])} is not a number")
        if self.discrete and n and self.actions.min() < 0:
            raise InputError(f"trajectories: action {self.actions.min()} at step {self.actions.argmin()} is below 0")
        check_ends(self.ends, n)

    @property
    def discrete(self) -> bool:
        return self.actions.ndim == 1

    @cached_property
    def begins(self) -> np.ndarray:
        """(E,) the first step of each episode."""
        return np.concatenate([[0], self.ends[:-1]])

    @cached_property
    def episode(self) -> np.ndarray:
        """(N,) which episode a step belongs to."""
        return np.repeat(np.arange(len(self.ends)), self.ends - self.begins)

    @cached_property
    def at(self) -> np.ndarray:
        """(N,) the step's number within its episode."""
        return np.arange(len(self.states)) - self.begins[self.episode]

    @cached_property
    def returns(self) -> np.ndarray:
        """(E,) the sum of each episode's rewards."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.begins)

    @cached_property
    def to_go(self) -> np.ndarray:
        """(N,) the return to go: this step's reward and all that follow in its episode."""
        run = np.concatenate([[0], np.cumsum(self.rewards, dtype=np.float64)])
        return (run[self.ends[self.episode]] - run[:-1]).astype(np.float32)

    @cached_property
    def sha256(self) -> str:
        content = hashlib.sha256()
        for part in (self.states, self.actions, self.rewards, self.ends):
            content.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        return content.hexdigest()

    def pick(self, episodes: np.ndarray) -> "Trajectories":
        """Some of the episodes, in the order given."""
        spans = [np.arange(self.begins[e], self.ends[e]) for e in episodes]
        steps, lengths = np.concatenate(spans), [len(span) for span in spans]
        return Trajectories(self.states[steps], self.actions[steps], self.rewards[steps], np.cumsum(lengths))

    def best(self, fraction: float) -> "Trajectories":
        """The episodes with the highest returns, at least one, in their order."""
        keep = max(1, round(fraction * len(self.ends)))
        return self if keep >= len(self.ends) else self.pick(np.sort(np.argsort(-self.returns, kind="stable")[:keep]))

    def split(self, name: str, fraction: float) -> np.ndarray:
        """Episodes of "train", "val" or "all": every so many-th episode is kept for validation. Raises InputError."""
        every = np.arange(len(self.ends))
        if name == "all":
            return every
        if not 0 < fraction < 1 or len(every) < 2:
            raise InputError(
                f"{len(every)} episodes and a val_fraction of {fraction}: training needs two or more, and a fraction "
                "above 0 and below 1"
            )
        stride = min(len(every), max(2, round(1 / fraction)))
        return every[(every % stride == stride - 1) == (name == "val")]


def check_ends(ends: np.ndarray, steps: int) -> None:
    """Every step belongs to an episode, and every episode has a step. Raises InputError."""
    if ends.ndim != 1 or len(ends) == 0 or ends[-1] != steps:
        last = ends[-1] if ends.ndim == 1 and len(ends) else "nothing"
        raise InputError(f"trajectories: the last episode ends at {last}; there are {steps} steps, and that is right")
    lengths = np.diff(ends, prepend=0)
    if (lengths < 1).any():
        e = int(np.argmax(lengths < 1))
        raise InputError(f"trajectories: episode {e} has length {lengths[e]}; each must have at least one step")


def windows(found: Trajectories, starts: np.ndarray, context: int) -> dict[str, np.ndarray]:
    """From each of these steps on, `context` steps of its episode; what lies past its end is 0 and not `real`.
    starts (B,) -> state (B, K, S), action (B, K[, A]), wanted (B, K, 1), at (B, K), real (B, K)"""
    steps = starts[:, None] + np.arange(context)
    ends = found.ends[found.episode[starts]][:, None]
    real = steps < ends
    steps = np.minimum(steps, ends - 1)
    parts = {"state": found.states, "action": found.actions, "wanted": found.to_go[:, None], "at": found.at}
    made = {name: part[steps] for name, part in parts.items()}
    return {
        name: np.where(real.reshape(*real.shape, *[1] * (part.ndim - 2)), part, 0) for name, part in made.items()
    } | {"real": real}


def drawn(found: Trajectories, episodes: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """Where the windows of a training step begin: any step of these episodes is as likely. (B,)"""
    lengths = found.ends[episodes] - found.begins[episodes]
    at = np.random.default_rng((seed, step)).integers(lengths.sum(), size=batch)
    which = np.searchsorted(np.cumsum(lengths), at, side="right")
    return found.begins[episodes][which] + at - (np.cumsum(lengths) - lengths)[which]


def swept(found: Trajectories, episodes: np.ndarray, context: int) -> np.ndarray:
    """Where windows begin that hold every step of these episodes once."""
    return np.concatenate([np.arange(found.begins[e], found.ends[e], context) for e in episodes])


# --- files ---


def read(path: Path) -> Trajectories:
    """A .npz or .parquet of trajectories. Raises InputError."""
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
    """Arrays `states` (or `observations`), `actions`, `rewards`, and `ends` (the step after the last of each) or
    flags `terminals` and perhaps `timeouts`."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST:
        raise InputError(f"its arrays have {size:,} bytes, more than {LARGEST:,}")
    with np.load(path, allow_pickle=False) as stored:
        known = {*NAMES, *NAMES.values(), *FLAGS, "ends"}
        return assembled({name: stored[name] for name in stored.files if name in known}, stored.files)


def assembled(arrays: Mapping[str, np.ndarray], there: Any) -> Trajectories:
    """Trajectories of named arrays. Raises InputError that names the nearest there is."""
    parts = {}
    for name, other in NAMES.items():
        if name not in arrays and other not in arrays:
            raise InputError(f"it has no array '{name}': {nearest(name, there)}")
        parts[name] = numbers(arrays[name] if name in arrays else arrays[other], name)
    n = len(parts["rewards"])
    if "ends" in arrays:
        ends = numbers(arrays["ends"], "ends").astype(np.int64)
    elif "terminals" in arrays:
        flags = [numbers(arrays[name], name).astype(bool).reshape(-1) for name in FLAGS if name in arrays]
        if any(len(flag) != n for flag in flags):
            raise InputError(
                f"{n} rewards but {[len(flag) for flag in flags]} terminals and timeouts: one a step is right"
            )
        last = np.logical_or.reduce(flags)
        last[-1:] = True  # what was cut off by the end of the file is an episode too
        ends = np.flatnonzero(last) + 1
    else:
        raise InputError(f"it has no array 'ends' (nor 'terminals'): {nearest('ends', there)}")
    actions = parts["actions"]
    discrete = actions.dtype.kind in "iub" and actions.size == len(actions)
    actions = actions.reshape(-1).astype(np.int64) if discrete else wide(actions)
    return Trajectories(wide(parts["states"]), actions, parts["rewards"].reshape(-1).astype(np.float32), ends)


def wide(part: np.ndarray) -> np.ndarray:
    """(N, ...) -> (N, numbers)"""
    return part.reshape(len(part), part.size // max(1, len(part))).astype(np.float32)


def numbers(part: np.ndarray, name: str) -> np.ndarray:
    if part.dtype.kind not in "fiub" or part.ndim == 0:
        raise InputError(f"'{name}' is {part.dtype} of shape {part.shape}; it must be an array of numbers")
    return part


def read_parquet(path: Path) -> Trajectories:
    """One row a step, episodes one after the other: columns `episode` (a number or name), `state` (a list of numbers),
    `action` (a whole number, or a list of numbers) and `reward`."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError("parquet needs pyarrow: pip install 'anyformer[parquet]'") from None
    file = parquet.ParquetFile(path)
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    if size > LARGEST:
        raise InputError(f"its columns have {size:,} bytes, more than {LARGEST:,}")
    for name in ("episode", "state", "action", "reward"):
        if name not in file.schema_arrow.names:
            raise InputError(f"it has no column '{name}': {nearest(name, file.schema_arrow.names)}")
    table = file.read(["episode", "state", "action", "reward"]).to_pydict()
    change = [i for i in range(1, len(table["episode"])) if table["episode"][i] != table["episode"][i - 1]]
    if len(set(table["episode"])) != len(change) + bool(table["episode"]):
        raise InputError("the rows of an episode must stand together: sort by episode and step")
    try:
        arrays = {f"{name}s": np.array(table[name]) for name in ("state", "action", "reward")}
    except ValueError:
        raise InputError("states (or actions) are lists of unlike length") from None
    return assembled(arrays | {"ends": np.array([*change, len(table["episode"])])}, ())


def write(path: Path, found: Trajectories) -> None:
    """As .npz, whole or not at all. Raises InputError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, states=found.states, actions=found.actions, rewards=found.rewards, ends=found.ends
            )
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
