"""Forecast: one or many series of numbers, with the uncertainty of what comes next.

raw    a table (csv, tsv, jsonl, parquet), long (a row for each series and time) or wide (a column for each series)
nodes  patches of a series with its seasonal differences, covariates, the calendar and what is known ahead
edges  causal
head   nine quantiles of each of the next values, after every patch; they start as those of a ridge regression
loss   pinball loss of the quantiles, in units of the series' own mean absolute seasonal difference

    anyformer train forecast                                              a minute on two cores: the traffic of a road
    anyformer train forecast --data series.csv --horizon 24 --minutes 1
    anyformer predict RUN new.csv --request '{"horizon": 48}'
    anyformer predict RUN --file history.csv --out forecast.csv

The last fifth of each series is held out. From origins that roll over it, `eval` reports MASE (1 is the error of the
seasonal naive forecast one step ahead in the past), weighted quantile loss, and how much of the truth lies in the 80 %
band. The bands are widened by factors fitted there; the coverage of each half of the origins is measured with the
factors of the other half. What was trained is taken only as far as it improves on the ridge regression there, and
predictions use a ridge regression of all values. Forecasts beyond the horizon go on from paths that are sampled from
the quantiles.

Patches as nodes: PatchTST (2211.14730), TimesFM (2310.10688); the linear path beside them: DLinear (2205.13504).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.sampling import sample_indices, select_split
from ...data.series.batches import (
    WindowShape,
    build_batch,
    list_windows,
    measure_units,
    number_folds,
    score_seasonal_naive,
)
from ...data.series.prepare import (
    check_lengths,
    read_example,
    restore_values,
)
from ...data.series.read import SeriesTable
from ...errors import InputError
from ...events import report_progress
from ...forms import Form, Task
from ...inference.band_calibration import fit_folds
from ...inference.forecasting import (
    MEDIAN,
    Request,
    check_series,
    describe_forecasts,
    forecast,
    gather_columns,
    list_rows,
    read_lists,
)
from ...model import initialize
from ...parsing import parse_dataclass
from ...recipe import (
    BatchStream,
    DataDefaults,
    Figure,
    Graph,
    GraphInput,
    LensView,
    SizeOption,
    StreamState,
    advance_stream,
    init_stream,
)
from .._shared.presets import MINUTE_TRAIN, TINY_TRAIN, make_model_config
from .._shared.sizes import Size, offer_sizes
from .._shared.trivial_baselines import Baselines
from .config import Config, example_input, load_dataset, load_facts, read_rows, split_names, transform_dataset
from .forecaster import Forecaster, Refitted, call_model, pinball, select_origins, start_linear, to_tensors
from .series_lens import view_series

FIGURE_SERIES = 3
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of what was trained, beside the linear start

SMALL = Config(
    transform="auto",
    model=make_model_config(48, 2, 4, 24, position="rotary", dropout=0.2),
    train=replace(MINUTE_TRAIN, steps=600, batch=32, lr=3e-4, weight_decay=0.1, clip=1.0, eval_every=25, save_every=50),
)
KINDS: dict[str, dict[str, str]] = {"series": {}}
SIZES = (Size(24, 1, 16, 0),)  # of --minutes
PRESETS = {
    # seconds: for tests
    "tiny": Config(
        data="shops",
        horizon=6,
        target="sales",
        past_covariates="visitors",
        future_covariates="promotion",
        season="7",
        gaps="fill",
        patch=7,
        model=make_model_config(32, 2, 2, 8, position="rotary"),
        train=TINY_TRAIN,
    ),
    # a minute on two cores
    "small": SMALL,
}


def sizes(config: Config) -> Iterator[SizeOption]:
    yield from offer_sizes(config, SIZES, steps=300)


# --- data ---


def data_defaults(overrides: dict[str, Any]) -> DataDefaults | None:
    """Choose a shorter horizon for short series."""
    names = ("data", "target", "past_covariates", "future_covariates", "gaps", "patch")
    if "horizon" in overrides:
        return None
    config = replace(SMALL, **{name: overrides[name] for name in names if name in overrides})
    shortest = min(len(series.values) for series in load_dataset(config).table.series)
    if shortest // 8 >= SMALL.horizon:
        return None
    horizon = max(1, shortest // 8)
    reason = (
        f"data '{config.data}': {shortest} values: --horizon {horizon}, an eighth of them (--horizon names another)"
    )
    return DataDefaults("small", {"horizon": horizon}, reason)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches as `data.series.batches.build_batch` makes them. "train" never ends and draws every window once an
    epoch; "val" and "all" yield each rolling origin once."""
    dataset, facts, c = load_dataset(config), load_facts(config), config.train
    check_lengths(dataset, config.patch, config.horizon)
    shape = WindowShape(config.patch, config.model.context, config.horizon, facts.season)
    select_split(split, dict.fromkeys(("train", "val", "all")))
    windows, plain_units = list_windows(dataset, split, shape), np.array(measure_units(dataset, split, shape))
    folds = number_folds(windows) if split == "val" else np.zeros(len(windows), int)
    state = init_stream(state, config.data, dataset.sha256)
    dataset = transform_dataset(dataset, facts, config.horizon)
    units, is_log = measure_units(dataset, split, shape), np.array([s.is_log for s in dataset.table.series])

    def build_rows(rows: Any) -> dict[str, Tensor]:
        chosen = [windows[i] for i in rows]
        series = [window.series for window in chosen]
        batch = build_batch(dataset.table, units, chosen, shape, facts.scale)
        extra = {"plain_unit": plain_units[series], "is_log": is_log[series], "fold": folds[list(rows)]}
        return to_tensors(batch | extra)

    for start in range(0, len(windows) if split != "train" else 0, c.batch):
        yield build_rows(range(start, min(start + c.batch, len(windows)))), state
    while split == "train":
        rows = sample_indices(np.arange(len(windows)), c.batch, c.seed, state["step"])
        state = advance_stream(state, c.batch * config.model.context)
        yield build_rows(rows), state


# --- model and loss ---


def build(config: Config) -> Forecaster:
    """Build a model that starts as the linear forecast of its data. One that is about to be loaded reads no data."""
    model = Forecaster(config, load_facts(config))
    initialize(model, config.model)
    if not config.season.endswith(".json"):
        start_linear(model)
    return model


def loss(model: Forecaster, batch: dict[str, Tensor]) -> Tensor:
    losses = pinball(call_model(model, batch), batch["labels"]).mean(-1)
    return (losses * batch["is_label"]).sum() / loss_weight(batch).clamp(min=1)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    return batch["is_label"].sum()


@torch.no_grad()
def evaluate(model: Forecaster, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the pinball loss, and of the calibrated forecasts in the units of the data MASE, the weighted quantile
    loss and the share of the truth in the 80 % band, which is unknown before the bands are calibrated."""
    parts = []
    for batch in batches:
        quantiles, labels = select_origins(model, batch)
        losses = pinball(quantiles, labels).mean(-1).double().cpu().numpy()
        names = ("level", "unit", "plain_unit", "is_log", "fold")
        level, unit, plain_unit, is_log, folds = (batch[name].cpu().numpy() for name in names)
        widened = model.widen(quantiles.double().cpu().numpy(), folds)
        predicted, truth = (
            restore(x, level, unit, is_log) for x in (widened, labels.double().cpu().numpy()[..., None])
        )
        errors = np.abs(truth[..., 0] - predicted[..., MEDIAN])
        weighted = pinball(torch.from_numpy(predicted), torch.from_numpy(truth[..., 0])).mean(-1).numpy()
        is_inside = (predicted[..., 0] <= truth[..., 0]) & (truth[..., 0] <= predicted[..., -1])
        values = (losses, errors / plain_unit[:, None], weighted, np.abs(truth[..., 0]), is_inside)
        parts.append(np.stack([value.astype(float).ravel() for value in values]))
    loss, mase, weighted, size, coverage = np.concatenate(parts, 1).mean(1).tolist()
    metrics = {"loss": loss, "mase": mase, "weighted_quantile_loss": weighted / (size or 1.0)}
    return metrics | ({"coverage_80": coverage} if model.facts.calibration else {})


def restore(values: np.ndarray, level: np.ndarray, unit: np.ndarray, is_log: np.ndarray) -> np.ndarray:
    """Return values as batches hold them, (B, H, Q), in the units of the data."""
    values = level[:, None, None].astype(float) + unit[:, None, None].astype(float) * values
    return np.where(is_log[:, None, None], restore_values(values, is_log=bool(is_log.any())), values)


@torch.inference_mode()
def finish_model(model: Forecaster, config: Config) -> None:
    """Take what was trained only as far as it improves on the linear start, and fit the widths of the bands, both on
    the errors at the origins of the validation split."""
    if model.facts.fixed_linear:
        blend_start(model, config)
    quantiles, labels, folds = predict_origins(model, config)
    dataset = load_dataset(config)
    cuts = dataset.cuts(config.horizon)
    steps = [len(series.values) - cut for series, cut in zip(dataset.table.series, cuts, strict=True)]
    calibration = fit_folds(quantiles, labels, folds, float(np.mean(steps)) / config.horizon)
    model.set_facts(replace(model.facts, calibration=calibration))


def predict_origins(model: Forecaster, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the quantiles, the labels and the folds of the origins of the validation split."""
    device, parts = model.head.weight.device, []
    for batch, _ in batches(config, "val"):
        quantiles, labels = select_origins(model, {name: tensor.to(device) for name, tensor in batch.items()})
        parts.append((quantiles.double().cpu().numpy(), labels.double().cpu().numpy(), batch["fold"].numpy()))
    quantiles, labels, folds = (np.concatenate(arrays) for arrays in zip(*parts))
    return quantiles, labels, folds


def blend_start(model: Forecaster, config: Config) -> None:
    """Move the head back towards its start, as far as the pinball loss of the validation split asks for: 0 is the
    linear forecast alone."""
    weight, bias, start = model.head.weight.clone(), model.head.bias.clone(), model.get_buffer("start").flatten()
    losses = {}
    for share in BLENDS:
        model.head.weight.copy_(share * weight)
        model.head.bias.copy_(start + share * (bias - start))
        quantiles, labels, _ = predict_origins(model, config)
        losses[share] = pinball(torch.from_numpy(quantiles), torch.from_numpy(labels)).mean().item()
    share = min(losses, key=lambda share: losses[share])
    model.head.weight.copy_(share * weight)
    model.head.bias.copy_(start + share * (bias - start))


def baselines(config: Config) -> Baselines:
    shape = WindowShape(config.patch, config.model.context, config.horizon, load_facts(config).season)
    scores = score_seasonal_naive(load_dataset(config), shape)
    return {metric: {f"seasonal naive (season {shape.season})": value} for metric, value in scores.items()}


def export_graph(model: Forecaster) -> Graph:
    n, c = model.shape.length, model.config
    inputs = {"values": GraphInput(f"batch {n}"), "calendar": GraphInput(f"batch {c.model.context} 6")}
    counts = {
        "past_covariates": (n, len(split_names(c.past_covariates))),
        "future_covariates": (n + c.horizon, len(split_names(c.future_covariates))),
    }
    inputs |= {name: GraphInput(f"batch {steps} {k}") for name, (steps, k) in counts.items() if k}

    def call(*tensors: Tensor) -> Tensor:
        return call_model(model, dict(zip(inputs, tensors, strict=True)))

    return Graph(call, inputs, ("quantiles",))


# --- predictions ---


def predict(model: Forecaster, request: dict[str, Any]) -> dict[str, Any]:
    """Continue series: {"input": table or numbers, "horizon": 48}, the fields of `Request`; the columns of a table may
    also stand for themselves, {"date": [...], "sales": [...], "horizon": 48}.

    Returns {"results": [{"input", "series", "times", "median", "quantiles": {"0.1": [...], ...}}, ...]}, one for each
    series; "steps" instead of "times" where the data have none. Without input: the end of a series in the training
    data, with what really followed as "truth".
    """
    fields, results = parse_dataclass(Request, gather_columns(request), "request"), []
    if fields.input is None:
        table, truth = read_example(model.facts, model.config.horizon, fields.horizon or 0)
        (result,) = describe_forecasts(table, forecast(model, table, fields))
        return {"results": [result | {"truth": truth.tolist()}]}
    for source, table in read_inputs(model.config, fields.input):
        answers = forecast(Refitted(model), table, fields)
        results += [source | result for result in describe_forecasts(table, answers)]
    return {"results": results}


def form(model: Forecaster, config: Config) -> Form:
    example = example_input(config, model.facts)
    usual = {"horizon": (1, 4 * config.horizon)}
    return Form((Task("Forecast", "series", Request, "quantiles", usual=usual, examples=(example,)),))


def predict_table(
    model: Forecaster, config: Config, file: Path, batch: int, settings: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """Yield a row for each series of a table and each step ahead: series, time (or step), median and the quantiles."""
    request = parse_dataclass(Request, settings, "request")
    table, ready = load_dataset(config, str(file)).table, []
    for series in table.series:
        try:
            check_series(series, config.patch, request.horizon or config.horizon)
            ready.append(series)
        except InputError as error:
            yield str(file), InputError(f"{file}: {error}")
    for start in range(0, len(ready), batch):
        part = replace(table, series=tuple(ready[start : start + batch]))
        report_progress("predicting", start, len(ready))
        for result in describe_forecasts(part, forecast(Refitted(model), part, request)):
            name = "time" if "times" in result else "step"
            for step, time in enumerate(result[f"{name}s"]):
                values = {level: column[step] for level, column in result["quantiles"].items()}
                yield str(file), {"series": result["series"], name: time, "median": result["median"][step]} | values


def read_inputs(config: Config, inputs: Any) -> Iterator[tuple[dict[str, Any], SeriesTable]]:
    """Yield the tables of a request, each with what it is called in the answer."""
    paths = [inputs] if isinstance(inputs, str) else inputs
    if isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths):
        for path in paths:
            yield {"input": path}, load_dataset(config, path).table
    elif rows := list_rows(inputs):
        yield {}, read_rows(config, rows)
    elif names := ", ".join(filter(None, (config.past_covariates, config.future_covariates))):
        raise InputError(f"this model reads the columns {names} too: give it a table and not a list of numbers")
    else:
        yield {}, read_lists(inputs)


def lens(model: Forecaster, request: dict[str, Any]) -> LensView:
    """Show the patches of a series, by default of the example in the training data."""
    return view_series(model, request, read_inputs)


# --- figures ---


def figures(model: Forecaster, config: Config) -> list[Figure]:
    """Draw the ends of the first series: the truth, and the median and the 80 % band that were predicted."""
    dataset, drawn = load_dataset(config), []
    for series in dataset.table.series[:FIGURE_SERIES]:
        origin, start = len(series.values) - config.horizon, max(0, len(series.values) - 4 * config.horizon)
        past = replace(series, values=series.values[:origin], past_covariates=series.past_covariates[:origin])
        (quantiles,) = forecast(model, replace(dataset.table, series=(past,)), Request())
        ahead = list(range(origin, origin + config.horizon))
        lines: list[dict[str, Any]] = [
            {"name": "80 % band", "x": ahead, "low": quantiles[:, 0].tolist(), "high": quantiles[:, -1].tolist()},
            {"name": "truth", "x": list(range(start, len(series.values))), "y": series.values[start:].tolist()},
            {"name": "median", "x": ahead, "y": quantiles[:, MEDIAN].tolist()},
        ]
        for line, color in zip(lines, (1, 0, 1), strict=True):
            line["color"] = color
        note = "the end of the series, which was held out: four of five values should lie in the band"
        drawn.append({"kind": "lines", "title": f"Forecast of {series.name}", "note": note, "x_label": "step"})
        drawn[-1] |= {"lines": lines, "zero": False}
    return drawn
