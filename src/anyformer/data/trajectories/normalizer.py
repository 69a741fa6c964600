"""What a model of trajectories needs besides its weights: sizes and normalization of states and actions.

It is stored beside the weights as space.json.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...errors import InputError, suggest
from ..io.checks import is_finite_number, load_json
from .read import Trajectories

MAX_FILE_BYTES = 1 << 20
MAX_DIM = 1 << 16  # numbers per state or action
EXAMPLE_STEPS = 5


@dataclass(frozen=True)
class TrajectoryNormalizer:
    """Maps states s to (s - mean) / std, and actions a to one-hot vectors or to a / reach.

    Attributes:
        states: numbers per state.
        actions: number of discrete actions, or numbers per action.
        mean, std, reach: empty where states or actions are used as they are.
        example: the beginning of an episode to demonstrate the model on: {"states", "actions", "returns"}.
    """

    states: int
    actions: int
    discrete: bool
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reach: tuple[float, ...] = ()
    example: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def normalize_states(self, states: np.ndarray) -> np.ndarray:
        """(..., S) -> (..., S)"""
        return (states - np.array(self.mean, np.float32)) / np.array(self.std, np.float32) if self.mean else states

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """(...) ids or (..., A) numbers -> (..., A). Raises InputError for an action that does not exist."""
        if not self.discrete:
            return actions / np.array(self.reach, np.float32) if self.reach else actions
        if actions.size and (actions.min() < 0 or actions.max() >= self.actions):
            invalid = actions.max() if actions.max() >= self.actions else actions.min()
            raise InputError(f"action {invalid} does not exist: valid are 0 to {self.actions - 1}")
        return np.eye(self.actions, dtype=np.float32)[actions]

    def decode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Map numbers of the model, (..., A), to those of the environment."""
        return actions * np.array(self.reach, np.float32) if self.reach else actions

    def check(self, data: Trajectories) -> None:
        """Raise InputError where trajectories have other states or actions than the model."""
        if self.discrete != data.is_discrete:
            model, other = ("discrete" if discrete else "continuous" for discrete in (self.discrete, data.is_discrete))
            raise InputError(f"the data have {other} actions, the model has {model} ones")
        if data.states.shape[1] != self.states:
            raise InputError(f"the data's states have {data.states.shape[1]} numbers, the model's {self.states}")
        if self.discrete and data.actions.max() >= self.actions:
            step = int(data.actions.argmax())
            raise InputError(
                f"action {data.actions.max()} at step {step} does not exist: valid are 0 to {self.actions - 1}"
            )
        if not self.discrete and data.actions.shape[1] != self.actions:
            raise InputError(f"the data's actions have {data.actions.shape[1]} numbers, the model's {self.actions}")


def fit_normalizer(data: Trajectories, normalize: bool) -> TrajectoryNormalizer:
    """Build the normalizer of these trajectories; without `normalize`, states and actions are used as they are."""
    actions = int(data.actions.max()) + 1 if data.is_discrete else data.actions.shape[1]
    last = min(EXAMPLE_STEPS, int(data.ends[0]))
    example = {
        "states": data.states[:last].tolist(),
        "actions": data.actions[: last - 1].tolist(),
        "returns": data.return_to_go[:last].tolist(),
    }
    mean, std, reach = (), (), ()
    if normalize:
        states = data.states.astype(np.float64)
        mean = tuple(states.mean(0).tolist())
        std = tuple(np.maximum(states.std(0), 1e-3).tolist())
        if not data.is_discrete:
            reach = tuple(np.maximum(np.abs(data.actions).max(0).astype(np.float64), 1e-6).tolist())
    return TrajectoryNormalizer(data.states.shape[1], actions, data.is_discrete, mean, std, reach, example)


def load_normalizer(text: str) -> TrajectoryNormalizer:
    """Load a space.json: its path, or its content. Raises InputError."""
    values = load_json(text, "space", MAX_FILE_BYTES)
    fields = tuple(TrajectoryNormalizer.__dataclass_fields__)
    if unknown := [name for name in values if name not in fields]:
        raise InputError(f"space: unknown field '{unknown[0]}': {suggest(unknown[0], fields)}")
    for name in ("states", "actions"):
        size = values.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_DIM:
            raise InputError(f"space: {name} is {size!r}; it must be an integer from 1 to {MAX_DIM}")
    if not isinstance(values.get("discrete"), bool):
        raise InputError(f"space: discrete is {values.get('discrete')!r}; it must be true or false")
    rows = {}
    for name, size in (("mean", values["states"]), ("std", values["states"]), ("reach", values["actions"])):
        row = values.get(name) or []
        if not isinstance(row, list) or len(row) not in (0, size) or not all(map(is_finite_number, row)):
            raise InputError(f"space: {name} is {row!r}; it must be {size} numbers, or none")
        rows[name] = tuple(map(float, row))
    if len(rows["mean"]) != len(rows["std"]) or min(rows["std"] + rows["reach"], default=1) <= 0:
        raise InputError("space: mean and std must be given together, and std and reach must be above 0")
    example = values.get("example") or {}
    if not isinstance(example, dict):
        raise InputError("space: example must be an object with states, actions and returns")
    return TrajectoryNormalizer(values["states"], values["actions"], values["discrete"], **rows, example=example)
