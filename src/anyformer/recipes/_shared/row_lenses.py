"""What the lens shows of recipes of episodes, rows and series: time steps, fields and slices.

Shapes: K steps, S numbers of a state, A of an action, T nodes, N nodes of all fields, H steps ahead.
"""

import json
from collections.abc import Mapping, Sequence
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

    nodes = describe_fields(schema, row[1], present[0].tolist(), [array[0] for array, _ in columns])
    names = target.values if is_class else (target.name,)
    return LensView({"body": nodes}, forward, [(target.name, None)], names.__getitem__, is_class, notes=notes)


Box = tuple[float, float, float, float] | None


def describe_fields(
    schema: Any, row: Mapping[str, Any], present: list[bool], values: Sequence[np.ndarray]
) -> LensNodes:
    """The class node, then the nodes of the fields that the row has; those that it lacks are padding at the end."""
    nodes: list[tuple[bool, str, str, Box]] = []
    picture, media = draw_fields(
        [
            (field, array)
            for field, array, places in zip(schema.fields, values, node_slices(schema))
            if field.kind in MEDIA and any(present[places])
        ]
    )
    for field, places in zip(schema.fields, node_slices(schema)):
        value = row.get(field.name)
        text = format_number(value) if isinstance(value, int | float) else " ".join(str(value).split())
        text = text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}…"
        count = places.stop - places.start
        for i, is_present in enumerate(present[places]):
            label = f"{field.name} {i + 1}" if count > 1 else f"{field.name} {text}"
            box = media[field.name][i] if is_present and field.name in media else None
            nodes.append((is_present, label if is_present else f"({field.name})", field.kind, box))
    ordered = [node for node in nodes if node[0]] + [(*node[:2], "absent", None) for node in nodes if not node[0]]
    _, labels, kinds, boxes = zip((True, "class", "class", None), *ordered)
    return LensNodes(labels, kinds, picture, boxes=boxes)


MEDIA = ("image", "audio", "series")
MAX_WIDTH, MAX_HEIGHT = 640, 96  # pixels to which a small picture of a field is enlarged


def draw_fields(fields: Sequence[tuple[Any, np.ndarray]]) -> tuple[np.ndarray | None, dict[str, list[Box]]]:
    """One picture (H, W, 3) of the images, sounds and series of a row, one below the other, and by the name of each
    field the boxes of its nodes in it."""
    blocks, boxes, y = [], {}, 0
    for field, array in fields:
        pixels, cell = draw_field(field, array)
        height, width = pixels.shape[:2]
        factor = max(1, min(MAX_WIDTH // width, MAX_HEIGHT // height))
        columns = width // cell[0]
        boxes[field.name] = [
            (i % columns * cell[0] * factor, y + i // columns * cell[1] * factor, cell[0] * factor, cell[1] * factor)
            for i in range(field.nodes)
        ]
        blocks.append(pixels.repeat(factor, 0).repeat(factor, 1))
        y += height * factor
    if not blocks:
        return None, {}
    widest = max(block.shape[1] for block in blocks)
    return np.concatenate([np.pad(block, ((0, 0), (0, widest - block.shape[1]), (0, 0))) for block in blocks]), boxes


def draw_field(field: Any, array: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of a value (H, W, 3), and the width and height of a node. A series has a row for each channel."""
    if field.kind == "image":
        return np.broadcast_to(array, (*array.shape[:2], 3)), (field.patch, field.patch)
    rows = array[::-1].astype(np.float32) if field.kind == "audio" else array.T  # low tones at the bottom
    axis = None if field.kind == "audio" else 1
    low, high = (np.nan_to_num(edge(rows, axis=axis, keepdims=True)) for edge in (np.nanmin, np.nanmax))
    shares = np.nan_to_num((rows - low) / np.maximum(high - low, 1e-6))
    cell = (2 if field.kind == "audio" else field.patch, len(rows))
    return np.repeat((shares * 255).astype(np.uint8)[..., None], 3, 2), cell
