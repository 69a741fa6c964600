"""What a model of trajectories must know besides its weights: how many numbers a state has, what can be done, and how
both become numbers of a size that a network likes. Kept beside the weights as space.json."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, nearest
from .read import Trajectories

LARGEST = 1 << 20  # bytes of such a file
MOST = 1 << 16  # numbers of a state or an action
SHOWN = 5  # steps of the example


@dataclass(frozen=True)
class Space:
    """States s become (s - mean) / std. Actions are one of `actions`, or that many numbers, divided by `reach`."""

    states: int
    actions: int
    discrete: bool
    mean: tuple[float, ...] = ()
    """Empty: states are taken as they are."""
    std: tuple[float, ...] = ()
    reach: tuple[float, ...] = ()
    """Empty: actions are taken as they are."""
    example: dict[str, Any] = field(default_factory=dict)
    """The beginning of an episode, to show what the model does: {"states", "actions", "returns"}."""

    def json(self) -> str:
        return json.dumps(asdict(self))

    def normal(self, states: np.ndarray) -> np.ndarray:
        """(..., S) -> (..., S)"""
        return (states - np.array(self.mean, np.float32)) / np.array(self.std, np.float32) if self.mean else states

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """(...) ids or (..., A) numbers -> (..., A). Raises InputError for an action that does not exist."""
        if not self.discrete:
            return actions / np.array(self.reach, np.float32) if self.reach else actions
        if actions.size and (actions.min() < 0 or actions.max() >= self.actions):
            strange = actions.max() if actions.max() >= self.actions else actions.min()
            raise InputError(f"action {strange} is outside the space: 0 to {self.actions - 1} can be taken")
        return np.eye(self.actions, dtype=np.float32)[actions]

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """Numbers of the model (..., A) -> of the environment."""
        return actions * np.array(self.reach, np.float32) if self.reach else actions

    def check(self, found: Trajectories) -> None:
        """Raises InputError where trajectories are of another space."""
        kind, given = (("discrete" if discrete else "continuous") for discrete in (self.discrete, found.discrete))
        if self.discrete != found.discrete:
            raise InputError(f"the data have {given} actions, the model has {kind} ones")
        if found.states.shape[1] != self.states:
            raise InputError(f"the data's states have {found.states.shape[1]} numbers, the model's {self.states}")
        if self.discrete and found.actions.max() >= self.actions:
            step = int(found.actions.argmax())
            raise InputError(
                f"action {found.actions.max()} at step {step} is outside the space: 0 to {self.actions - 1} exist"
            )
        if not self.discrete and found.actions.shape[1] != self.actions:
            raise InputError(f"the data's actions have {found.actions.shape[1]} numbers, the model's {self.actions}")


def measured(found: Trajectories, normal: bool) -> Space:
    """The space of these trajectories, with their mean and deviation if states are to be `normal`."""
    states, last = found.states.astype(np.float64), min(SHOWN, int(found.ends[0]))
    actions = int(found.actions.max()) + 1 if found.discrete else found.actions.shape[1]
    reach = () if found.discrete or not normal else numbers(np.abs(found.actions).max(0).astype(np.float64), 1e-6)
    example = {
        "states": found.states[:last].tolist(),
        "actions": found.actions[: last - 1].tolist(),
        "returns": found.to_go[:last].tolist(),
    }
    mean, std = (numbers(states.mean(0)), numbers(states.std(0), 1e-3)) if normal else ((), ())
    return Space(found.states.shape[1], actions, found.discrete, mean, std, reach, example)


def numbers(row: np.ndarray, least: float | None = None) -> tuple[float, ...]:
    return tuple(float(x) if least is None else max(float(x), least) for x in row)


def read_space(given: str) -> Space:
    """A space.json (its path), or the JSON itself. Raises InputError."""
    values = read_json(given)
    known = tuple(Space.__dataclass_fields__)
    if strange := [name for name in values if name not in known]:
        raise InputError(f"space: unknown field '{strange[0]}': {nearest(strange[0], known)}")
    for name in ("states", "actions"):
        size = values.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MOST:
            raise InputError(f"space: {name} is {size!r}; it must be a whole number from 1 to {MOST}")
    if not isinstance(values.get("discrete"), bool):
        raise InputError(f"space: discrete is {values.get('discrete')!r}; it must be true or false")
    rows = {}
    for name, size in (("mean", values["states"]), ("std", values["states"]), ("reach", values["actions"])):
        row = values.get(name) or []
        if not isinstance(row, list) or len(row) not in (0, size) or not all(finite(x) for x in row):
            raise InputError(f"space: {name} is {row!r}; it must be {size} numbers, or none")
        rows[name] = tuple(map(float, row))
    if len(rows["mean"]) != len(rows["std"]) or min(rows["std"] + rows["reach"], default=1) <= 0:
        raise InputError("space: mean and std belong together, and std and reach must be above 0")
    example = values.get("example") or {}
    if not isinstance(example, dict):
        raise InputError("space: example must be an object with states, actions and returns")
    return Space(values["states"], values["actions"], values["discrete"], **rows, example=example)


def finite(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def read_json(given: str) -> dict:
    try:
        if not given.lstrip().startswith("{"):
            path = Path(given)
            if path.stat().st_size > LARGEST:
                raise InputError(f"{path} is larger than {LARGEST >> 20} MiB, which no such file is")
            given = path.read_text(encoding="utf-8")
        found = json.loads(given)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"space '{given}' cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"space '{given[:60]}' is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"space '{given[:60]}' should hold an object")
    return found
