"""The configuration of `forecast`, and what it reads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...data.io.checks import load_json
from ...data.series.datasets import SeriesDataset, load_series
from ...data.series.prepare import (
    SeriesFacts,
    Transform,
    measure_facts,
    transform_table,
)
from ...data.series.read import Columns, SeriesTable, read_series
from ...data.tables.read import Table
from ...inference.forecasting import (
    MAX_HORIZON,
)
from ...model import TransformerConfig
from ...parsing import check_range, check_types, parse_dataclass, path_field
from ...training.config import TrainConfig


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
    transform: Transform = "none"
    """auto: logarithms of the series that grow by shares and not by amounts; none: the values as they are."""
    patch: int = 8
    """Values of a node."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Its context is the longest past, in patches."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "horizon", at_least=1, at_most=MAX_HORIZON)
        check_range(self, "patch", at_least=1, at_most=MAX_HORIZON)


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def select_columns(config: Config) -> Columns:
    return Columns(*(split_names(text) for text in (config.target, config.past_covariates, config.future_covariates)))


def load_dataset(config: Config, data: str | None = None) -> SeriesDataset:
    return load_series(config.data if data is None else data, select_columns(config), config.gaps)


def read_rows(config: Config, rows: list[dict[str, Any]]) -> SeriesTable:
    """Read the series of a request's rows."""
    table = Table(lambda: ((f"input, row {i}", row) for i, row in enumerate(rows)), Path(), "", self_contained=True)
    return read_series(table, "input", select_columns(config), config.gaps)


def load_facts(config: Config) -> SeriesFacts:
    """Read what a trained model knows of its data, or measure it on the part before the held-out ends."""
    if config.season.endswith(".json"):
        return parse_dataclass(SeriesFacts, load_json(config.season, "season"), f"season '{config.season}'")
    dataset, shape = load_dataset(config), (config.patch, config.model.context, config.horizon)
    return measure_facts(dataset, config.season, config.transform, *shape)


def transform_dataset(dataset: SeriesDataset, facts: SeriesFacts, horizon: int) -> SeriesDataset:
    return replace(dataset, table=transform_table(dataset.table, dataset.cuts(horizon), facts))


def example_input(config: Config, facts: SeriesFacts) -> Any:
    """Return the example of a trained model as the input of a request: its numbers, or rows where the model reads other
    columns too; of several targets, each has the values of the one that is known."""
    values, n = facts.example["values"], len(facts.example["values"]) - config.horizon
    past, future = split_names(config.past_covariates), split_names(config.future_covariates)
    if not past and not future:
        return values[:n]
    rows: list[dict[str, Any]] = []
    for i, value in enumerate(values):
        row = dict.fromkeys(split_names(config.target) or ("value",), value) if i < n else {}
        row |= dict(zip(past, facts.example["past_covariates"][i])) if i < n else {}
        rows.append(row | dict(zip(future, facts.example["future_covariates"][i])))
    return rows[: None if future else n]
