"""What the lens shows of a forecast: the patches of a series, and the median that follows each.

Shapes: N nodes, H steps ahead, p steps of a patch.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...data.series.batches import build_batch, build_last_window
from ...data.series.prepare import read_example, restore_values, transform_table
from ...errors import InputError
from ...inference.forecasting import MEDIAN, Request, check_series, gather_columns
from ...parsing import parse_dataclass
from ...recipe import LensNodes, LensView
from .forecaster import Forecaster, call_model, to_tensors

MAX_LABEL_STEPS = 3


def view_series(model: Forecaster, request: dict[str, Any], read_inputs: Any) -> LensView:
    """Show the last window of a series, of several the first. `read_inputs`: (config, input) -> (name, table) of each
    source."""
    fields, patch = parse_dataclass(Request, gather_columns(request), "request"), model.config.patch
    if is_example := fields.input is None:
        table, _ = read_example(model.facts, model.config.horizon, 0)
    else:
        table = next((table for _, table in read_inputs(model.config, fields.input)), None)
    if table is None or not table.series:
        raise InputError("the input holds no series")
    notes = [f"of {len(table.series):,} series the first is shown"] if len(table.series) > 1 else []
    table = replace(table, series=table.series[:1])
    check_series(table.series[0], patch, model.config.horizon)
    readings = table.series[0].values
    table = transform_table(table, [len(readings)], model.facts)
    series = table.series[0]
    window, unit = build_last_window(series, model.shape)
    if window.start:
        notes.append(f"the series has {len(readings):,} values: the first {window.start:,} exceed the context")
    arrays = build_batch(table, [unit], [window], model.shape, model.facts.scale)
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in to_tensors(arrays).items()}
    level, count = float(series.values[window.start]), window.nodes

    def forward() -> Tensor:
        medians = call_model(model, batch, not is_example)[0, :count].sort(-1).values[..., MEDIAN]  # (N, H)
        values = level + unit * medians.double().cpu().numpy()
        return torch.from_numpy(restore_values(values, series.is_log)).float()

    shown = readings[window.start : window.start + count * patch].tolist()
    labels = [", ".join(f"{x:.3g}" for x in shown[i * patch : (i + 1) * patch][:MAX_LABEL_STEPS]) for i in range(count)]
    labels = [f"{label} …" if patch > MAX_LABEL_STEPS else label for label in labels]
    n_padding = model.shape.nodes - count
    nodes = LensNodes(
        labels + ["(padding)"] * n_padding,
        ["slice"] * count + ["absent"] * n_padding,
        series=shown,
        boxes=[(float(i * patch), 0.0, float(patch), 1.0) for i in range(count)] + [None] * n_padding,
    )
    rows = [(f"after {label}", i) for i, label in enumerate(labels)]
    return LensView({"body": nodes}, forward, rows, lambda i: f"{i + 1} ahead", is_logits=False, notes=notes)
