"""Forecast: one or many series of numbers, with the uncertainty of what comes next.

raw    a table (csv, tsv, jsonl, parquet), long (a row for each series and time) or wide (a column for each series)
nodes  patches of a series with its seasonal differences, covariates, the calendar and what is known ahead
edges  causal
head   nine quantiles of each of the next values, after every patch; they start as the seasonal naive forecast
loss   pinball loss of the quantiles, in units of the series' own mean absolute seasonal difference

    anyformer train forecast                                              a minute on two cores: the traffic of a road
    anyformer train forecast --data series.csv --horizon 24 --minutes 1
    anyformer predict RUN new.csv --request '{"horizon": 48}'

The last fifth of each series is held out. From origins that roll over it, `eval` reports MASE (1 is the error of the
seasonal naive forecast one step ahead in the past), weighted quantile loss, and how much of the truth lies in the 80 %
band. Forecasts beyond the horizon go on from paths that are sampled from the quantiles.

Patches as nodes: PatchTST (2211.14730), TimesFM (2310.10688); the linear path beside them: DLinear (2205.13504).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..data.io.checks import load_json
from ..data.sampling import sample_indices, select_split
from ..data.series.batches import Batch, WindowShape, build_batch, list_windows, measure_units, score_seasonal_naive
from ..data.series.datasets import SeriesDataset, load_series
from ..data.series.prepare import SeriesFacts, check_lengths, measure_facts, read_example
from ..data.series.read import Columns, SeriesTable
from ..data.series.times import CALENDAR_FEATURES
from ..errors import InputError
from ..inference.forecasting import (
    MAX_HORIZON,
    MEDIAN,
    NORMAL_QUANTILES,
    QUANTILES,
    Request,
    describe_forecasts,
    forecast,
    read_lists,
)
from ..model import Transformer, TransformerConfig, causal, initialize
from ..model.embeddings import SeriesPatchEmbedding
from ..parsing import check_range, check_types, parse_dataclass, path_field
from ..recipe import BatchStream, Figure, FileInput, Graph, GraphInput, SizeOption, StreamState, init_stream
from ..training.config import TrainConfig
from ._shared.presets import MINUTE_TRAIN, TINY_TRAIN, make_model_config
from ._shared.sizes import Size, offer_sizes
from ._shared.trivial_baselines import Baselines

PRIOR_STEPS = 8  # how many values the unit of the whole series counts for in the running scale of a window
FIGURE_SERIES = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """A model of series, their table and its training."""

    data: str = path_field("traffic")
    """A .csv, .tsv, .jsonl or .parquet of series, long or wide, or a generated set: traffic or shops."""
    horizon: int = 24
    """How many steps ahead are predicted at once; a prediction may ask for any number."""
    target: str = ""
    """The columns to forecast, with commas between. Default: every column of numbers."""
    past_covariates: str = ""
    """Columns that help and are known up to now, with commas between."""
    future_covariates: str = ""
    """Columns that are known ahead (holidays, prices), with commas between: rows at the end may lack the target."""
    season: str = path_field("auto", [".json"])
    """Steps of a season: auto (from the times or the autocorrelation), a number, or a trained model's season.json."""
    gaps: Literal["error", "fill"] = "error"
    """Missing values and times: an error, or fill, which repeats the last value."""
    patch: int = 8
    """Values of a node."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context is the longest past, in patches."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "horizon", at_least=1, at_most=MAX_HORIZON)
        check_range(self, "patch", at_least=1, at_most=MAX_HORIZON)


SMALL = Config(
    model=make_model_config(48, 2, 4, 24, position="rotary", dropout=0.2),
    train=replace(MINUTE_TRAIN, steps=600, batch=32, lr=1e-3, weight_decay=0.1, clip=1.0, eval_every=50, save_every=50),
)
KINDS = {"series": {"preset": "small"}}
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


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def load_dataset(config: Config, data: str | None = None) -> SeriesDataset:
    columns = Columns(
        *(split_names(text) for text in (config.target, config.past_covariates, config.future_covariates))
    )
    return load_series(config.data if data is None else data, columns, config.gaps)


def load_facts(config: Config) -> SeriesFacts:
    """Read what a trained model knows of its data, or measure it on the part before the held-out ends."""
    if config.season.endswith(".json"):
        return parse_dataclass(SeriesFacts, load_json(config.season, "season"), f"season '{config.season}'")
    return measure_facts(load_dataset(config), config.season, config.patch, config.model.context, config.horizon)


def batches(config: Config, split: str, state: StreamState | None = None) -> BatchStream:
    """Yield batches as `data.series.batches.build_batch` makes them. "train" never ends and draws every window once an
    epoch; "val" and "all" yield each rolling origin once."""
    dataset, facts, c = load_dataset(config), load_facts(config), config.train
    check_lengths(dataset, config.patch, config.horizon)
    shape = WindowShape(config.patch, config.model.context, config.horizon, facts.season)
    select_split(split, dict.fromkeys(("train", "val", "all")))
    windows, units = list_windows(dataset, split, shape), measure_units(dataset, split, shape)
    state = init_stream(state, config.data, dataset.sha256)

    def build_rows(rows: Any) -> dict[str, Tensor]:
        chosen = [windows[i] for i in rows]
        return to_tensors(build_batch(dataset.table, units, chosen, shape, facts.scale))

    for start in range(0, len(windows) if split != "train" else 0, c.batch):
        yield build_rows(range(start, min(start + c.batch, len(windows)))), state
    while split == "train":
        rows = sample_indices(np.arange(len(windows)), c.batch, c.seed, state["step"])
        state = state | {"step": state["step"] + 1, "tokens": state["tokens"] + c.batch * config.model.context}
        yield build_rows(rows), state


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


# --- model ---


class Forecaster(nn.Module):
    """values (B, N p), calendar (B, N, 6), and where the data have them past_covariates (B, N p, features) and
    future_covariates (B, N p + H, features) -> quantiles of the H values after each patch (B, N, H, 9)"""

    def __init__(self, config: Config, facts: SeriesFacts):
        super().__init__()
        self.config, self.facts = config, facts
        self.files = {"season.json": json.dumps(asdict(facts))}
        n_past, n_future = (len(split_names(text)) for text in (config.past_covariates, config.future_covariates))
        self.shape = WindowShape(config.patch, config.model.context, config.horizon, facts.season)
        self.lags = min(self.shape.length, max(2 * facts.season, 2 * config.patch))
        self.nodes = SeriesPatchEmbedding(config.patch, 3 + n_past + n_future, config.model)
        self.ahead = nn.Linear(CALENDAR_FEATURES + config.horizon * n_future, config.model.dim)
        self.body = Transformer(config.model)
        self.linear = nn.Linear(self.lags, config.horizon, bias=False)
        self.head = nn.Linear(config.model.dim, config.horizon * len(QUANTILES))

    def forward(
        self,
        values: Tensor,
        calendar: Tensor,
        past_covariates: Tensor | None = None,
        future_covariates: Tensor | None = None,
    ) -> Tensor:
        p, season, length = self.config.patch, self.shape.season, values.shape[1]
        ends = torch.arange(p, length + 1, p, device=values.device)  # (N,)
        ahead = ends[:, None] + torch.arange(self.config.horizon, device=values.device)  # (N, H)
        past = (ends[:, None] - self.lags + torch.arange(self.lags, device=values.device)).clamp(min=0)  # (N, lags)
        difference = nn.functional.pad(values[:, season:] - values[:, :-season], (season, 0))[:, :length]
        scale = self.measure_scale(difference)[..., None]  # (B, N, 1)
        last = values[:, ends - 1, None]  # (B, N, 1)
        patches = [values.unflatten(1, (-1, p)) - last, values.unflatten(1, (-1, p)), difference.unflatten(1, (-1, p))]
        channels = [torch.asinh(patch / scale).flatten(1)[..., None] for patch in patches]  # each (B, N p, 1)
        channels += [features[:, :length] for features in (past_covariates, future_covariates) if features is not None]
        ahead_features = (
            [] if future_covariates is None else [future_covariates[:, ahead].flatten(2)]
        )  # (B, N, H features)
        x = self.nodes(torch.cat(channels, -1)) + self.ahead(torch.cat([calendar, *ahead_features], -1))
        spread = self.head(self.body(x, causal)).unflatten(-1, (self.config.horizon, -1))  # (B, N, H, 9)
        base = last + self.linear(values[:, past] - last)  # (B, N, H)
        return base[..., None] + scale[..., None] * spread

    @torch.inference_mode()
    def predict_quantiles(self, batch: Batch) -> np.ndarray:
        """Return the sorted quantiles after the last node of each window, (B, H, 9)."""
        device = self.linear.weight.device
        tensors = {name: tensor.to(device) for name, tensor in to_tensors(batch).items()}
        return select_origins(self, tensors)[0].cpu().numpy()

    def measure_scale(self, difference: Tensor) -> Tensor:
        """Return the mean absolute seasonal difference up to the end of each node, (B, N p) -> (B, N); at the start of
        a window, where there are few, it is near that of the series, 1."""
        sums = difference.abs().cumsum(1)[:, self.config.patch - 1 :: self.config.patch]
        ends = torch.arange(1, sums.shape[1] + 1, device=sums.device) * self.config.patch
        counts = (ends - self.shape.season).clamp(min=0)
        return (sums + PRIOR_STEPS) / (counts + PRIOR_STEPS)


def build(config: Config) -> Forecaster:
    model = Forecaster(config, load_facts(config))
    initialize(model, config.model)
    season, lags, horizon = model.shape.season, model.lags, config.horizon
    weight = torch.zeros(horizon, lags)
    steps = torch.arange(horizon)
    weight[steps, lags - season + steps % season] = 1.0  # the value a season before
    with torch.no_grad():
        model.linear.weight.copy_(weight)
        model.head.bias.copy_(torch.tensor(NORMAL_QUANTILES).repeat(horizon))
    return model


INPUTS = ("values", "calendar", "past_covariates", "future_covariates")


def call_model(model: Forecaster, batch: dict[str, Tensor]) -> Tensor:
    return model(*(batch.get(name) for name in INPUTS)).float()


def pinball(quantiles: Tensor, labels: Tensor) -> Tensor:
    """Return twice the pinball loss, which is the absolute error for the median: (..., 9), (...) -> (..., 9)"""
    error = labels[..., None] - quantiles
    levels = torch.tensor(QUANTILES, device=labels.device)
    return 2 * torch.maximum(levels * error, (levels - 1) * error)


def loss(model: Forecaster, batch: dict[str, Tensor]) -> Tensor:
    losses = pinball(call_model(model, batch), batch["labels"]).mean(-1)
    return (losses * batch["is_label"]).sum() / loss_weight(batch).clamp(min=1)


def loss_weight(batch: dict[str, Tensor]) -> Tensor:
    return batch["is_label"].sum()


def select_origins(model: Forecaster, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sorted quantiles (B, H, 9) after the last node of each window, and the labels (B, H)."""
    rows = torch.arange(len(batch["node"]), device=batch["node"].device)
    return call_model(model, batch)[rows, batch["node"]].sort(-1).values, batch["labels"][rows, batch["node"]]


def evaluate(model: Forecaster, batches: Iterator[dict[str, Tensor]]) -> dict[str, float]:
    """Return the pinball loss, MASE, the weighted quantile loss and the share of the truth in the 80 % band."""
    parts = []
    for batch in batches:
        quantiles, labels = select_origins(model, batch)
        losses, unit, level = pinball(quantiles, labels).mean(-1), batch["unit"][:, None], batch["level"][:, None]
        is_inside = (quantiles[..., 0] <= labels) & (labels <= quantiles[..., -1])
        errors = (quantiles[..., MEDIAN] - labels).abs()
        values = (losses, errors, losses * unit, (labels * unit + level).abs(), is_inside)
        parts.append(torch.stack([value.double().cpu().flatten() for value in values]))
    loss, mase, weighted, size, coverage = torch.cat(parts, 1).mean(1).tolist()
    return {"loss": loss, "mase": mase, "weighted_quantile_loss": weighted / (size or 1.0), "coverage_80": coverage}


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
    """Continue series: {"input": table or numbers, "horizon": 48}, the fields of `Request`.

    Returns {"results": [{"input", "series", "times", "median", "quantiles": {"0.1": [...], ...}}, ...]}, one for each
    series; "steps" instead of "times" where the data have none. Without input: the end of a series in the training
    data, with what really followed as "truth".
    """
    fields, results = parse_dataclass(Request, request, "request"), []
    if fields.input is None:
        table, truth = read_example(model.facts, model.config.horizon, fields.horizon or 0)
        (result,) = describe_forecasts(table, forecast(model, table, fields))
        return {"results": [result | {"truth": truth.tolist()}]}
    for source, table in read_inputs(model.config, fields.input):
        results += [source | result for result in describe_forecasts(table, forecast(model, table, fields))]
    return {"results": results}


def file_input(model: Forecaster, config: Config) -> FileInput:
    """Refuse to predict row by row: a row of a series has no prediction of its own."""
    raise InputError("the rows of series are forecast together: anyformer predict RUN series.csv, without --file")


def read_inputs(config: Config, inputs: Any) -> Iterator[tuple[dict[str, Any], SeriesTable]]:
    """Yield the tables of a request, each with what it is called in the answer."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], str)):
        for path in [inputs] if isinstance(inputs, str) else inputs:
            yield {"input": path}, load_dataset(config, path).table
        return
    if names := ", ".join(filter(None, (config.past_covariates, config.future_covariates))):
        raise InputError(f"this model reads the columns {names} too: give it a table and not a list of numbers")
    yield {}, read_lists(inputs)


# --- figures ---


def figures(model: Forecaster, config: Config) -> list[Figure]:
    """Draw the ends of the first series: the truth, and the median and the 80 % band that were predicted."""
    dataset, drawn = load_dataset(config), []
    for series in dataset.table.series[:FIGURE_SERIES]:
        origin, start = len(series.values) - config.horizon, max(0, len(series.values) - 4 * config.horizon)
        past = replace(series, values=series.values[:origin], past_covariates=series.past_covariates[:origin])
        (quantiles,) = forecast(model, replace(dataset.table, series=(past,)), Request())
        ahead = list(range(origin, origin + config.horizon))
        lines = [{"name": "truth", "x": list(range(start, len(series.values))), "y": series.values[start:].tolist()}]
        for name, level in (("median", MEDIAN), ("10 %", 0), ("90 %", -1)):
            lines.append({"name": name, "x": ahead, "y": quantiles[:, level].tolist()})
        note = "the end of the series, which was held out: four of five values should lie between 10 % and 90 %"
        drawn.append({"kind": "lines", "title": f"Forecast of {series.name}", "note": note, "x_label": "step"})
        drawn[-1] |= {"lines": lines, "zero": False}
    return drawn
