"""A run in a notebook: it draws itself, and its curves are data and figures that one can go on with.

run = anyformer.open_run("runs/mine")
run                          # a table and the loss curve
run.history()["val_loss"]    # (steps, values)
run.plot()                   # a matplotlib Figure
"""

import base64
import html
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, suggest
from ..training.run_directory import RunDirectory
from .curves import Curve
from .figures import MALFORMED
from .html import draw_charts, read_metrics
from .plots import plot_curves, plot_figure
from .run_files import read_content
from .runs import RunSummary, is_run, summarize_run

COUNTERS = ("step", "tokens")


class Run:
    """A run directory, as it was when this was created. Raises InputError if there is no run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not is_run(RunDirectory(self.path)):
            raise InputError(f"there is no run at {path}: expected a folder with the config.json of a run")

    @cached_property
    def summary(self) -> RunSummary:
        """What it is, how good, and whether a process trains it now."""
        return summarize_run(RunDirectory(self.path), self.path.parent)

    @cached_property
    def curves(self) -> dict[str, Curve]:
        return read_metrics(self.path)

    def history(self) -> dict[str, tuple[list[float], list[float]]]:
        """Return (steps, values) of every metric; of very long runs the extremes of each stretch."""
        return {name: curve.points() for name, curve in self.curves.items() if name not in COUNTERS and curve.buckets}

    def plot(self, *metrics: str, axes: Any = None) -> Any:
        """Plot metrics, by default the training and the validation loss, and return the matplotlib Figure.

        Args:
            axes: Axes of an existing figure to draw into.
        """
        names = metrics or [name for name in ("loss", "val_loss") if name in self.history()]
        return plot_curves({name: self.find_curve(name) for name in names}, axes)

    def plot_figures(self) -> list[Any]:
        """Return a matplotlib Figure for each figure of the recipe: a confusion matrix, attention, forecasts."""
        drawn = []
        for figure in read_content(self.path / "figures.json", list):
            try:
                drawn.append(plot_figure(figure))
            except MALFORMED:
                continue
        return drawn

    def find_curve(self, metric: str) -> Curve:
        if metric not in self.history():
            raise InputError(f"{self.path} has no metric '{metric}': {suggest(metric, self.history())}")
        return self.curves[metric]

    def draw_loss(self) -> str:
        """Return the loss curve as an <img> of SVG, whose style is its own; "" without a step."""
        charts, _ = draw_charts(self.curves, None, None, standalone=True) if self.curves else ([], [])
        if not charts:
            return ""
        data = base64.b64encode(str(charts[0]).encode()).decode()
        return f'<img alt="loss" style="max-width:760px;width:100%" src="data:image/svg+xml;base64,{data}">'

    def describe(self) -> dict[str, Any]:
        """Return a few facts, for a person."""
        s = self.summary
        facts = {"recipe": f"{s.recipe} · {s.preset}", "data": s.data, "steps": s.step, "minutes": s.minutes}
        if s.score is not None:
            facts[f"validation {s.metric.replace('_', ' ')}"] = round(s.score, 4)
        return facts | {"state": f"running: {s.holder}" if s.holder else s.state}

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.describe().items())
        return f"<Run {self.path}: {facts}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.describe().items()
        )
        return f"<table>{rows}</table>{self.draw_loss()}"


def open_run(path: str | Path) -> Run:
    """Open a run directory to look at: its curves and figures. Raises InputError if there is no run."""
    return Run(path)


def plot_runs(runs: Sequence[Run | str | Path], metric: str = "val_loss", axes: Any = None) -> Any:
    """Plot a metric of several runs and return the matplotlib Figure. Raises InputError if one has no such metric."""
    if not runs:
        raise InputError("there are no runs to plot: give one or more")
    curves: dict[str, Curve] = {}
    for run in runs:
        run = run if isinstance(run, Run) else Run(run)
        curves[str(run.path)] = run.find_curve(metric)
    figure = plot_curves({shorten_path(name, curves): curve for name, curve in curves.items()}, axes)
    (axes or figure.axes[0]).set_ylabel(metric)
    return figure


def shorten_path(path: str, paths: Collection[str]) -> str:
    """Return the last part of a path where it is the only one of that name."""
    names = [Path(other).name for other in paths]
    return Path(path).name if names.count(Path(path).name) == 1 else path
