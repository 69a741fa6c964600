"""Runs side by side: their scores, the fields of the config that differ, their loss curves.

    facts = compare_runs([RunDirectory(Path("runs/a")), RunDirectory(Path("runs/b"))])
    page = render_comparison(facts)   # one HTML page that works offline

Runs that differ in nothing but the seed form a group, whose scores have a mean and a 95 % interval.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..parsing import flatten_values
from ..training.run_directory import RunDirectory
from .chart import N_COLORS, Series, line_chart
from .curves import is_lower_better, is_number, read_curves, read_lines
from .html import format_metric, format_value, render_template
from .run_files import as_mapping
from .runs import RunSummary, read_result, summarize_run

SEED = "train.seed"
HIDDEN = ("train.device", "train.compile")  # fields of the machine
COUNTS = ("step", "best_step", "seconds", "minutes", "baselines", "skipped")  # of result.json: no scores
TOKEN_FIELDS = ("tokenizer", "vocab_size", "vocab")  # a loss per token depends on them


@dataclass(frozen=True)
class SampleSummary:
    """Values of one metric over several seeds or folds."""

    values: tuple[float, ...]
    mean: float
    std: float | None
    """Standard deviation of the sample; None of a single value."""
    interval: tuple[float, float] | None
    """95 % confidence interval of the mean (Student's t)."""

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.std is None else f" ± {self.std:.4f}")


def summarize_scores(rows: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> dict[str, SampleSummary]:
    """Summarize each metric over the rows that have it."""
    samples = {name: [scores[name] for scores in rows if name in scores] for name in metrics}
    return {name: summarize_values(values, is_lower_better(name)) for name, values in samples.items() if values}


def summarize_values(values: Sequence[float], is_loss: bool = False) -> SampleSummary:
    """Summarize values over seeds or folds; the interval of losses and errors none of which is negative ends at 0.
    Raises statistics.StatisticsError if there is none."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return SampleSummary(tuple(values), mean, None, None)
    std = statistics.stdev(values)
    half = student_t(len(values) - 1) * std / math.sqrt(len(values))
    low = max(0.0, mean - half) if is_loss and min(values) >= 0 else mean - half
    return SampleSummary(tuple(values), mean, std, (low, mean + half))


def student_t(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution: a table, and the expansion around the normal quantile
    (Abramowitz and Stegun, 26.7.5) beyond it."""
    table = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
    if freedom <= len(table):
        return table[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


# --- facts ---


def compare_runs(runs: Sequence[RunDirectory]) -> dict[str, Any]:
    """Compare runs. Returns plain values: {"runs", "metrics", "groups", "differences", "warnings"}; "groups" has one
    entry for the runs that differ in nothing but the seed. Raises InputError if one is not a run, or named twice."""
    paths = [run.path.resolve() for run in runs]
    if twice := next((run.path for i, run in enumerate(runs) if paths[i] in paths[:i]), None):
        raise InputError(f"{twice} is named twice: name different runs")
    folder = common_folder([run.path for run in runs])
    rows = [describe_run(run, folder) for run in runs]
    fields = [dict(flatten_values(row.pop("setup"))) for row in rows]
    differences = find_differences(fields)
    groups = group_by_config(rows, fields)
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    for group in groups:
        group["scores"] = summarize_scores([rows[i]["scores"] for i in group["runs"]], metrics)
    names = [row["name"] for row in rows]
    return {
        "runs": rows,
        "metrics": metrics,
        "groups": groups,
        "differences": {name: dict(zip(names, values)) for name, values in differences.items()},
        "warnings": list(find_warnings(rows, differences)),
    }


def common_folder(paths: Sequence[Path]) -> Path:
    """Return the folder below which names of runs stay different."""
    parents = {path.parent for path in paths}
    return parents.pop() if len(parents) == 1 else Path(".")


def describe_run(run: RunDirectory, folder: Path) -> dict[str, Any]:
    """Return what a run is, its scores and its loss curve."""
    summary, setup, result = summarize_run(run, folder), run.read_config(), read_result(run.path)
    scores = {
        name.removeprefix("val_"): float(value)
        for name, value in result.items()
        if name not in COUNTS and isinstance(value, float) and math.isfinite(value)
    }
    if not result and summary.score is not None:
        scores = {summary.metric: summary.score}
    setup = {name: setup.get(name) for name in ("recipe", "preset", "config", "init", "lora")}
    setup |= as_mapping(setup.pop("config"))
    baselines = as_mapping(result.get("baselines"))
    return {
        **describe_summary(summary),
        "scores": scores,
        "baselines": baselines,
        "curve": read_loss(run.path),
        "setup": setup,
    }


def describe_summary(summary: RunSummary) -> dict[str, Any]:
    values = summary.to_json()
    names = ("name", "path", "recipe", "preset", "data", "step", "minutes", "size", "state", "changed_at")
    return {name: values[name] for name in names}


def read_loss(run: Path) -> dict[str, Any]:
    """Return the curve of the validation loss, or that of the training loss if none was measured."""
    curves = read_curves(read_lines(run / "metrics.jsonl"))
    if "val_loss" in curves and curves["val_loss"].buckets:
        steps, losses = curves["val_loss"].points()
        return {"name": "validation loss", "steps": steps, "values": losses}
    steps, losses = curves["loss"].smooth() if "loss" in curves and curves["loss"].buckets else ([], [])
    return {"name": "training loss", "steps": steps, "values": losses}


def find_differences(fields: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each field that is not the same in all runs; None where a run has no such field."""
    names = dict.fromkeys(name for values in fields for name in values if name not in HIDDEN)
    rows = {name: [values.get(name) for values in fields] for name in names}
    return {name: values for name, values in rows.items() if len({json.dumps(value) for value in values}) > 1}


def group_by_config(rows: Sequence[Mapping[str, Any]], fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group runs that differ in nothing but the seed: [{"name", "runs": indices, "seeds"}]."""
    groups: dict[str, dict[str, Any]] = {}
    for i, (row, values) in enumerate(zip(rows, fields, strict=True)):
        key = json.dumps({name: value for name, value in values.items() if name not in (SEED, *HIDDEN)}, sort_keys=True)
        group = groups.setdefault(key, {"name": row["name"], "runs": [], "seeds": []})
        group["runs"].append(i)
        group["seeds"].append(values.get(SEED))
    for group in groups.values():
        if len(group["runs"]) > 1:
            group["name"] = f"{strip_seed(group['name'])} ({len(group['runs'])} seeds)"
    return list(groups.values())


def strip_seed(name: str) -> str:
    """ "plays-seed-1" -> "plays": the names that `train --seeds` gives."""
    stem, separator, number = name.rpartition("-seed-")
    return stem if separator and number.isdigit() else name


def find_warnings(rows: Sequence[Mapping[str, Any]], differences: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Say why scores may not be comparable."""
    if "recipe" in differences or "data" in differences:
        names = " and ".join(name for name in ("recipe", "data") if name in differences)
        yield f"the runs differ in {names}: scores of different tasks or data cannot be compared"
    if tokens := [name for name in differences if name.rpartition(".")[2] in TOKEN_FIELDS]:
        yield f"the runs differ in {', '.join(tokens)}: a loss per token cannot be compared, bits per byte can"
    if unfinished := [row["name"] for row in rows if row["state"] != "finished"]:
        yield f"not finished, best validation so far: {', '.join(unfinished)}"


# --- tables and the page ---


def format_scores(facts: Mapping[str, Any], mark: Callable[[str], str] = "{}*".format) -> list[list[str]]:
    """Return the scores as rows of cells, the first row the heading: one row for each group, the best value of each
    metric marked; with means, deviations and intervals over seeds."""
    groups, metrics = facts["groups"], facts["metrics"]
    best = {name: choose_best(groups, name) for name in metrics}
    rows = [["run", *(format_metric(name) for name in metrics), "steps", "minutes"]]
    for i, group in enumerate(groups):
        members = [facts["runs"][j] for j in group["runs"]]
        cells = []
        for name in metrics:
            sample = group["scores"].get(name)
            text = "" if sample is None else format_sample(sample)
            cells.append(mark(text) if best[name] == i else text)
        minutes = f"{statistics.fmean(member['minutes'] for member in members):.1f}"
        rows.append([group["name"], *cells, f"{members[0]['step']:,}", minutes])
    return rows


def format_sample(sample: SampleSummary) -> str:
    if sample.interval is None:
        return str(sample)
    return f"{sample} [{sample.interval[0]:.4f}, {sample.interval[1]:.4f}]"


def choose_best(groups: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    """Return the index of the group with the best mean of a metric; None if there is nothing to choose from."""
    means = {i: group["scores"][metric].mean for i, group in enumerate(groups) if metric in group["scores"]}
    if len(means) < 2:
        return None
    return (min if is_lower_better(metric) else max)(means, key=lambda i: means[i])


def format_differences(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return the fields that differ as rows of cells, the first row the heading."""
    names = [row["name"] for row in facts["runs"]]
    rows = [[name, *map(format_value, values.values())] for name, values in facts["differences"].items()]
    return [["field", *names], *rows]


def draw_losses(facts: Mapping[str, Any]) -> str:
    """Draw the loss curves of all runs in one chart, of several seeds the mean and pale lines; "" if there is none."""
    series: list[Series] = []
    for color, group in enumerate(facts["groups"]):
        curves = [facts["runs"][i]["curve"] for i in group["runs"] if facts["runs"][i]["curve"]["steps"]]
        is_single = len(curves) == 1
        for curve in curves:
            is_dotted = is_single and len(curve["steps"]) <= 60
            line = Series(group["name"], curve["steps"], curve["values"], color, faint=not is_single, dots=is_dotted)
            series.append(line)
        if len(curves) > 1:
            points = [dict(zip(curve["steps"], curve["values"])) for curve in curves]
            steps = sorted(set.intersection(*map(set, points)))
            means = [statistics.fmean(values[step] for values in points) for step in steps]
            series.append(Series(group["name"], steps, means, color, dots=len(steps) <= 60))
    steps = [step for line in series for step in line.x]
    options: dict[str, Any] = {"title": "Loss", "height": 380, "legend": False, "standalone": False}
    return line_chart(series, x_range=(0, max(steps)), **options) if steps else ""


def render_comparison(facts: Mapping[str, Any]) -> str:
    """Render the facts as an HTML page."""
    names = sorted({row["curve"]["name"] for row in facts["runs"] if row["curve"]["steps"]}, reverse=True)
    return render_template(
        "compare.html.j2",
        title=" and ".join(group["name"] for group in facts["groups"]) if len(facts["groups"]) < 4 else "Comparison",
        warnings=facts["warnings"],
        scores=format_scores(facts, mark="★ {}".format),
        has_seeds=any(len(group["runs"]) > 1 for group in facts["groups"]),
        losses=draw_losses(facts),
        legend=[(group["name"], i % N_COLORS, i >= N_COLORS) for i, group in enumerate(facts["groups"])],
        loss_names=" or ".join(names),
        differences=format_differences(facts),
        runs=facts["runs"],
        baselines=format_baselines(facts),
    )


def format_baselines(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return the trivial baselines of the runs: [metric, name, value]."""
    rows = {
        (str(metric), str(name), f"{value:.4f}")
        for row in facts["runs"]
        for metric, values in row["baselines"].items()
        for name, value in as_mapping(values).items()
        if is_number(value)
    }
    return [[format_metric(metric), name, value] for metric, name, value in sorted(rows)]
