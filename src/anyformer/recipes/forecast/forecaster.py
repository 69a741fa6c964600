"""The model of `forecast`: a linear forecast, and a Transformer that corrects it."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...data.series.batches import (
    Batch,
    WindowShape,
)
from ...data.series.linear import LAGS, PRIOR_STEPS, fit_linear
from ...data.series.prepare import (
    SeriesFacts,
)
from ...data.series.times import CALENDAR_FEATURES
from ...inference.band_calibration import select_factors
from ...inference.forecasting import (
    MEDIAN,
    NORMAL_QUANTILES,
    QUANTILES,
)
from ...model import Transformer, causal
from ...model.embeddings import SeriesPatchEmbedding
from .config import Config, load_dataset, split_names, transform_dataset


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


class Forecaster(nn.Module):
    """values (B, N p), calendar (B, N, 6), and where the data have them past_covariates (B, N p, features) and
    future_covariates (B, N p + H, features) -> quantiles of the H values after each patch (B, N, H, 9)"""

    def __init__(self, config: Config, facts: SeriesFacts):
        super().__init__()
        self.config = config
        self.set_facts(facts)
        n_past, n_future = (len(split_names(text)) for text in (config.past_covariates, config.future_covariates))
        self.shape = WindowShape(config.patch, config.model.context, config.horizon, facts.season)
        longest = max(LAGS) if facts.fixed_linear else 2 * config.patch
        self.lags = min(self.shape.length, max(2 * facts.season, longest))
        self.nodes = SeriesPatchEmbedding(config.patch, 3 + n_past + n_future, config.model)
        self.ahead = nn.Linear(CALENDAR_FEATURES + config.horizon * n_future, config.model.dim)
        self.body = Transformer(config.model)
        if facts.fixed_linear:
            # linear forecasts fitted before the held-out ends and to all values, and the quantiles at the start
            self.register_buffer("base", torch.zeros(config.horizon, self.lags))
            self.register_buffer("refitted_base", torch.zeros(config.horizon, self.lags))
            self.register_buffer("start", torch.zeros(config.horizon, len(QUANTILES)))
        else:  # runs of earlier versions
            self.linear = nn.Linear(self.lags, config.horizon, bias=False)
        self.head = nn.Linear(config.model.dim, config.horizon * len(QUANTILES))

    def set_facts(self, facts: SeriesFacts) -> None:
        self.facts, self.files = facts, {"season.json": json.dumps(asdict(facts))}

    def forward(
        self,
        values: Tensor,
        calendar: Tensor,
        past_covariates: Tensor | None = None,
        future_covariates: Tensor | None = None,
        refitted: bool = False,
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
        base = last + nn.functional.linear(values[:, past] - last, self.linear_weight(refitted))  # (B, N, H)
        return base[..., None] + scale[..., None] * spread

    def linear_weight(self, refitted: bool = False) -> Tensor:
        """Return the weights of the linear path (H, lags), fitted before the held-out ends or, `refitted`, to all
        values."""
        if not self.facts.fixed_linear:
            return self.linear.weight
        return self.get_buffer("refitted_base" if refitted else "base")

    @torch.inference_mode()
    def predict_quantiles(self, batch: Batch, refitted: bool = False) -> np.ndarray:
        """Return the sorted, calibrated quantiles after the last node of each window, (B, H, 9)."""
        device = next(self.parameters()).device
        tensors = {name: tensor.to(device) for name, tensor in to_tensors(batch).items()}
        quantiles = select_origins(self, tensors, refitted)[0].cpu().numpy()
        return self.widen(quantiles, np.zeros(len(quantiles), int))

    def widen(self, quantiles: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Apply the calibration to quantiles (B, H, 9)."""
        factors = select_factors(self.facts.calibration, folds, self.config.horizon)
        median = quantiles[..., [MEDIAN]]
        return median + (quantiles - median) * factors[..., None]

    def measure_scale(self, difference: Tensor) -> Tensor:
        """Return the mean absolute seasonal difference in the last patches before the end of each node, (B, N p) ->
        (B, N); at the start of a window, where there are few, it is near that of the series, 1."""
        p, nodes = self.config.patch, self.shape.scale_nodes if self.facts.fixed_linear else self.shape.nodes
        sums = difference.abs().cumsum(1)[:, p - 1 :: p]
        ends = torch.arange(1, sums.shape[1] + 1, device=sums.device) * p
        starts = (ends - p * nodes).clamp(min=self.shape.season)
        before = nn.functional.pad(sums, (nodes, 0))[:, : sums.shape[1]]
        return (sums - before + PRIOR_STEPS) / ((ends - starts).clamp(min=0) + PRIOR_STEPS)


@dataclass(frozen=True)
class Refitted:
    """A model that has seen the held-out ends too, as far as its linear path goes: for what follows the data."""

    model: Forecaster

    @property
    def shape(self) -> WindowShape:
        return self.model.shape

    @property
    def facts(self) -> SeriesFacts:
        return self.model.facts

    def predict_quantiles(self, batch: Batch) -> np.ndarray:
        return self.model.predict_quantiles(batch, refitted=True)


@torch.no_grad()
def start_linear(model: Forecaster) -> None:
    """Fit the linear path, and let the quantiles start as those of its errors."""
    config = model.config
    dataset = transform_dataset(load_dataset(config), model.facts, config.horizon)
    lengths = [len(series.values) for series in dataset.table.series]
    fits = [
        fit_linear(dataset.table, ends, model.shape, model.lags, QUANTILES)
        for ends in (dataset.cuts(config.horizon), lengths)
    ]
    start = np.tile(NORMAL_QUANTILES, (config.horizon, 1)) if fits[0].quantiles is None else fits[0].quantiles
    values = {"base": fits[0].weight, "refitted_base": fits[1].weight, "start": start}
    for name, value in values.items():
        model.get_buffer(name).copy_(torch.from_numpy(value))
    model.head.weight.zero_()
    model.head.bias.copy_(model.get_buffer("start").flatten())


INPUTS = ("values", "calendar", "past_covariates", "future_covariates")


def call_model(model: Forecaster, batch: dict[str, Tensor], refitted: bool = False) -> Tensor:
    return model(*(batch.get(name) for name in INPUTS), refitted=refitted).float()


def pinball(quantiles: Tensor, labels: Tensor) -> Tensor:
    """Return twice the pinball loss, which is the absolute error for the median: (..., 9), (...) -> (..., 9)"""
    error = labels[..., None] - quantiles
    levels = torch.tensor(QUANTILES, device=labels.device)
    return 2 * torch.maximum(levels * error, (levels - 1) * error)


def select_origins(model: Forecaster, batch: dict[str, Tensor], refitted: bool = False) -> tuple[Tensor, Tensor]:
    """Return the sorted quantiles (B, H, 9) after the last node of each window, and the labels (B, H)."""
    rows = torch.arange(len(batch["node"]), device=batch["node"].device)
    return call_model(model, batch, refitted)[rows, batch["node"]].sort(-1).values, batch["labels"][rows, batch["node"]]
