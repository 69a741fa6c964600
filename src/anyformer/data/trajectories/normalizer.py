"""Sizes and normalization of the states and actions of a model, stored beside its weights as space.json."""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np

from ...errors import InputError
from ...parsing import check_range, parse_dataclass
from ..io.checks import load_json
from .read import Trajectories

MAX_FILE_BYTES = 1 << 20
MAX_DIM = 1 << 16  # numbers per state or action


@dataclass(frozen=True)
class TrajectoryNormalizer:
    """Maps states s to (s - mean) / std, and actions a to one-hot vectors or to a / reach."""

    states: int  # numbers per state
    actions: int  # discrete actions, or numbers per action
    discrete: bool
    mean: tuple[float, ...] = ()  # empty: states are used as they are
    std: tuple[float, ...] = ()
    reach: tuple[float, ...] = ()  # empty: actions are used as they are

    def __post_init__(self) -> None:
        check_range(self, "states", "actions", above=0, at_most=MAX_DIM)
        for name, size in (("mean", self.states), ("std", self.states), ("reach", self.actions)):
            if len(getattr(self, name)) not in (0, size):
                raise InputError(f"{name} is {getattr(self, name)}; it must be {size} numbers, or none")
        if len(self.mean) != len(self.std) or min(self.std + self.reach, default=1) <= 0:
            raise InputError("mean and std must be given together, and std and reach must be above 0")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def normalize_states(self, states: np.ndarray) -> np.ndarray:
        """(..., S) -> (..., S)"""
        return (states - np.array(self.mean, np.float32)) / np.array(self.std, np.float32) if self.mean else states

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """(...) ids or (..., A) numbers -> (..., A). Raises InputError for an action that does not exist."""
        if not self.discrete:
            return actions / np.array(self.reach, np.float32) if self.reach else actions
        if (invalid := actions[(actions < 0) | (actions >= self.actions)]).size:
            raise InputError(f"action {invalid[0]} does not exist: valid are 0 to {self.actions - 1}")
        return np.eye(self.actions, dtype=np.float32)[actions]

    def decode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Map numbers of the model, (..., A), to those of the environment."""
        return actions * np.array(self.reach, np.float32) if self.reach else actions

    def check(self, data: Trajectories) -> None:
        """Raise InputError where trajectories have other states or actions than the model."""
        actions = "discrete" if data.is_discrete else f"{data.actions.shape[1]} continuous"
        own_actions = "discrete" if self.discrete else f"{self.actions} continuous"
        size = data.states.shape[1]
        if (size, actions) != (self.states, own_actions):
            model = f"{own_actions} actions and states of {self.states}"
            raise InputError(f"the data have {actions} actions and states of {size} numbers, the model has {model}")
        if self.discrete and (action := data.actions.max()) >= self.actions:
            step = data.actions.argmax()
            raise InputError(f"action {action} at step {step} does not exist: valid are 0 to {self.actions - 1}")


def fit_normalizer(data: Trajectories, normalize: bool) -> TrajectoryNormalizer:
    """Build the normalizer of these trajectories; without `normalize`, states and actions are used as they are."""
    actions = int(data.actions.max()) + 1 if data.is_discrete else data.actions.shape[1]
    normalizer = TrajectoryNormalizer(data.states.shape[1], actions, data.is_discrete)
    if not normalize:
        return normalizer
    states, reach = data.states.astype(np.float64), ()
    if not data.is_discrete:
        reach = tuple(np.maximum(np.abs(data.actions).max(0).astype(np.float64), 1e-6).tolist())
    std = tuple(np.maximum(states.std(0), 1e-3).tolist())
    return replace(normalizer, mean=tuple(states.mean(0).tolist()), std=std, reach=reach)


def load_normalizer(text: str) -> TrajectoryNormalizer:
    """Load a space.json: its path, or its content. Raises InputError."""
    values = load_json(text, "space", MAX_FILE_BYTES)
    values.pop("example", None)  # older files have one
    return parse_dataclass(TrajectoryNormalizer, values, "space")
