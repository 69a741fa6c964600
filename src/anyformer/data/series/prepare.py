"""What a model of series must know of the data it was trained on: season, transform, scale of the features, and an
example."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ...errors import InputError
from ...events import report_notice
from .batches import FeatureScale, WindowShape, measure_features
from .datasets import SeriesDataset, infer_season
from .read import Series, SeriesTable
from .times import Frequency

Transform = Literal["none", "auto"]
MIN_GROWTH = 1.5  # ratio of the levels of a series below which logarithms change nothing


@dataclass(frozen=True)
class SeriesFacts:
    """What is stored with a model."""

    season: int
    scale: FeatureScale
    example: dict[str, Any]
    transform: Transform = "none"
    fixed_linear: bool = False
    """The linear path is fitted in closed form and not trained."""
    calibration: list[list[float]] = field(default_factory=list)
    """Factors of the bands at each step: for other data, for the first half and for the second half of the validation
    origins; none before a model is calibrated."""


def measure_facts(
    dataset: SeriesDataset, season: str, transform: Transform, patch: int, nodes: int, horizon: int
) -> SeriesFacts:
    """Measure the facts on the part before the held-out ends. `season` is "auto" or a number. Raises InputError."""
    check_lengths(dataset, patch, horizon)
    check_movement(dataset)
    longest = patch * nodes
    steps = str(infer_season(dataset, horizon, longest)) if season == "auto" else season
    if not (steps.isdecimal() and len(steps) < 9 and 1 <= int(steps) <= longest):
        raise InputError(
            f"season is '{season}'; expected auto or a number of steps up to {longest:,}, the longest past that is "
            f"read (patch {patch} * model.context {nodes})"
        )
    shape = WindowShape(patch, nodes, horizon, int(steps))
    example = make_example(dataset.table, shape)
    return SeriesFacts(int(steps), measure_features(dataset, horizon), example, transform, True)


def transform_table(table: SeriesTable, cuts: Sequence[int], facts: SeriesFacts) -> SeriesTable:
    """Return the table with logarithms of the series that grow by shares rather than by amounts, as far as their values
    before the cuts show."""
    if facts.transform == "none":
        return table
    series = [
        replace(s, values=np.log(s.values), is_log=True) if grows_by_shares(s.values, cut, facts.season) else s
        for s, cut in zip(table.series, cuts, strict=True)
    ]
    return replace(table, series=tuple(series))


def grows_by_shares(values: np.ndarray, cut: int, season: int) -> bool:
    """Whether a series is positive, and its movements vary less between parts of its past in shares of the level than
    as they are (Guerrero's criterion, of two powers)."""
    size, past = max(season, 8), values[:cut]
    count = len(past) // size
    if count < 3 or values.min() <= 0:
        return False
    parts = past[len(past) - count * size :].reshape(count, size)
    levels, moves = parts.mean(1), np.abs(np.diff(parts)).mean(1)
    shares = moves / levels
    if levels.max() < MIN_GROWTH * levels.min() or moves.min() == 0:
        return False
    return bool(shares.std() / shares.mean() < moves.std() / moves.mean())


def restore_values(values: np.ndarray, is_log: bool) -> np.ndarray:
    """Return values in the units of the data."""
    return np.exp(np.minimum(values, 700.0)) if is_log else values


def check_lengths(dataset: SeriesDataset, patch: int, horizon: int) -> None:
    """Raise InputError if a series is too short to learn from its past and to test the horizon on its end."""
    needed = horizon + patch + 1
    short = [series for series in dataset.table.series if len(series.values) < needed]
    if not short:
        return
    series = min(short, key=lambda series: len(series.values))
    n, count = len(series.values), f" and {len(short) - 1} others" if len(short) > 1 else ""
    limit = n - patch - 1
    advice = f"--horizon {max(1, min(limit, n // 4))} would do" if limit > 0 else "leave it out"
    raise InputError(
        f"data '{dataset.name}': the series '{series.name}'{count}: a history of {n} values is too short for a "
        f"horizon of {horizon} and patches of {patch}, which need {needed}: {advice}"
    )


def check_movement(dataset: SeriesDataset) -> None:
    """Raise InputError if no series ever changes; name those that do not."""
    still = [series for series in dataset.table.series if np.ptp(series.values) == 0]
    if not still:
        return
    names = f"'{still[0].name}'" + (f" and {len(still) - 1} others" if len(still) > 1 else "")
    if len(still) == len(dataset.table.series):
        raise InputError(
            f"data '{dataset.name}': the series {names}: every value is {still[0].values[0]:g}; "
            "there is nothing to learn from a constant"
        )
    report_notice(f"data '{dataset.name}': constant: {names}; --target names the columns to forecast")


def make_example(table: SeriesTable, shape: WindowShape) -> dict[str, Any]:
    """Return the end of the first series as plain values; its last `horizon` values are the truth of an example."""
    series = table.series[0]
    first = max(0, len(series.values) - shape.horizon - max(shape.length, 2 * shape.season))
    times = table.times(series, first, 1)
    return {
        "name": series.name,
        "values": series.values[first:].tolist(),
        "past_covariates": series.past_covariates[first:].tolist(),
        "future_covariates": series.future_covariates[first : len(series.values)].tolist(),
        "start": None if times is None else int(times[0]),
        "frequency": asdict(table.frequency),
        "zone": table.zone,
    }


def read_example(facts: SeriesFacts, truth: int, horizon: int) -> tuple[SeriesTable, np.ndarray]:
    """Return a table with the example's past, and what followed, (truth,). What is known ahead reaches to the horizon:
    its last row is repeated where the example ends."""
    example = facts.example
    values = np.array(example["values"], float)
    past_covariates, future_covariates = (
        np.array(example[name], float).reshape(len(values), -1) for name in ("past_covariates", "future_covariates")
    )
    future_covariates = np.concatenate(
        [future_covariates, np.repeat(future_covariates[-1:], max(0, horizon - truth), 0)]
    )
    series = Series(example["name"], values[:-truth], past_covariates[:-truth], future_covariates, example["start"])
    return SeriesTable((series,), Frequency(**example["frequency"]), example["zone"]), values[-truth:]
