"""What the lens shows of recipes of episodes, rows and series: time steps, fields and slices.

Shapes: K steps, S numbers of a state, A of an action, T nodes, N nodes of all fields, H steps ahead.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.tables.batches import node_slices
from ...errors import InputError
from ...inference.agent import read_episode
from ...inference.table_prediction import encode_column, iterate_rows, to_tensor
from ...parsing import parse_dataclass
from ...recipe import LensNodes, LensView

MAX_LABEL = 24  # characters of a value


@dataclass(frozen=True)
class RowLensRequest:
    """An episode or a row to look at."""

    input: Any = None
    """As for `predict`, or its JSON; of several the first. None: an example."""

    @property
    def first(self) -> Any:
        return self.input[0] if isinstance(self.input, list | tuple) and self.input else self.input


def format_number(value: Any) -> str:
    return f"{float(value):.3g}"


# --- episodes ---


def lens_control(model: Any, request: dict[str, Any]) -> LensView:
    """Return to go, state and action of each step, and the action that each state leads to."""
    episode, normalizer = parse_dataclass(RowLensRequest, request, "request").first, model.normalizer
    if isinstance(episode, str):
        episode = parse_json(episode)
    if episode is None:
        mean = list(normalizer.mean) or [0.0] * normalizer.states
        episode = {"states": [mean], "target_return": model.target_return}
    returns, states, actions, timesteps = read_episode(model, episode, "input")
    total = len(episode.get("states", ())) if isinstance(episode, dict) else 0
    notes = [f"the episode has {total:,} steps: the last {len(states):,} fit"] if total > len(states) else []
    arrays = returns[:, None], normalizer.normalize_states(states), normalizer.encode_actions(actions)
    device = next(model.parameters()).device
    inputs = [torch.from_numpy(np.ascontiguousarray(array, np.float32))[None].to(device) for array in arrays]
    inputs.append(
        torch.from_numpy(np.minimum(timesteps, model.max_episode_steps - 1).astype(np.int64))[None].to(device)
    )

    def forward() -> Tensor:
        return model.predict_action(*inputs)[0].float()

    rows: list[Any] = [(f"at step {step}", 3 * i + 1) for i, step in enumerate(timesteps.tolist())]
    nodes = describe_steps(returns, states, actions)
    return LensView({"body": nodes}, forward, rows, lambda i: f"action {i}", is_logits=normalizer.discrete, notes=notes)


def parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f'the input is not JSON: {text[:40]!r}; an episode is {{"states": [...], ...}}') from None


def describe_steps(returns: np.ndarray, states: np.ndarray, actions: np.ndarray) -> LensNodes:
    """Three nodes for each step; the last action is not taken yet."""
    labels: list[str] = []
    for i, (value, state, action) in enumerate(zip(returns, states, actions)):
        numbers = " ".join(map(format_number, state[:4])) + (" …" if len(state) > 4 else "")
        taken = " ".join(map(format_number, np.atleast_1d(action)[:4])) if i < len(actions) - 1 else "?"
        labels += [f"return {format_number(value)}", f"state {numbers}", f"action {taken}"]
    return LensNodes(labels, ["return", "state", "action"] * len(returns))


# --- rows of a table ---


@torch.inference_mode()
def lens_multimodal(model: Any, request: dict[str, Any]) -> LensView:
    """The fields of a row, and the first target."""
    schema = model.schema
    is_row = "input" not in request and any(field.name in request for field in schema.fields)
    inputs = request if is_row else parse_dataclass(RowLensRequest, request, "request").first
    row = next(iterate_rows({} if inputs is None else inputs, schema), None)
    if row is None:
        raise InputError("the input holds no row")
    columns, device = [encode_column(field, [row]) for field in schema.fields], next(model.parameters()).device
    values = [to_tensor(array).to(device) for array, _ in columns]
    present = torch.from_numpy(np.concatenate([nodes for _, nodes in columns], 1)).to(device)
    target, notes = schema.targets[0], []
    if len(schema.targets) > 1:
        notes.append(f"of {len(schema.targets)} targets the first is shown: {target.name}")
    is_class = target.kind == "class"

    def forward() -> Tensor:
        output = model(values, present)[0].float()
        return output if is_class else output * target.std[0] + target.mean[0]

    nodes = describe_fields(schema, row[1], present[0].tolist())
    names = target.values if is_class else (target.name,)
    return LensView({"body": nodes}, forward, [(target.name, 0)], names.__getitem__, is_class, notes=notes)


def describe_fields(schema: Any, row: Mapping[str, Any], present: list[bool]) -> LensNodes:
    """The class node, then the nodes of the fields that the row has; those that it lacks are padding at the end."""
    nodes: list[tuple[bool, str, str]] = []
    for field, places in zip(schema.fields, node_slices(schema)):
        value = row.get(field.name)
        text = format_number(value) if isinstance(value, int | float) else " ".join(str(value).split())
        text = text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}…"
        count = places.stop - places.start
        for i, is_present in enumerate(present[places]):
            label = f"{field.name} {i + 1}" if count > 1 else f"{field.name} {text}"
            nodes.append((is_present, label if is_present else f"({field.name})", field.kind))
    ordered = [node for node in nodes if node[0]] + [(False, label, "absent") for is_in, label, _ in nodes if not is_in]
    return LensNodes(["class", *(label for _, label, _ in ordered)], ["class", *(kind for *_, kind in ordered)])
