"""The report of a run: one HTML page that works offline.

    write_report(Path("runs/plays"))   # -> runs/plays/report.html

Missing files and keys are left out. Everything in a run is untrusted text: the template escapes it, and only our own
SVG passes as markup.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import recipe as recipes
from .. import recipe_loading
from ..training.checkpoints import list_checkpoints
from ..training.run_directory import atomic_write
from .chart import PALETTE, Mark, Series, line_chart
from .curves import (
    Curve,
    group_metrics,
    is_lower_better,
    is_number,
    is_validation,
    read_curves,
    read_lines,
    strip_split,
    total_seconds,
)  # fmt: skip
from .figures import read_figures
from .run_files import as_mapping, find_key, read_content, read_model_size, read_plan, read_samples, read_schema

COUNTERS = {"step", "tokens", "seconds"}  # shown as numbers, not as charts
OVERFIT_MARGIN = 0.02  # share by which the validation loss must have risen again, as it is measured on a few batches
METRIC_NAMES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
    "coverage_80": "coverage of the 80 % band",
}
TOKEN_NAMES = {"char": "character", "byte": "byte"}

Curves = dict[str, Curve]
Tree = Mapping[str, Any]
Number = tuple[str, str, str]  # value, name, note
Reference = tuple[float, str] | None


def write_report(run: Path) -> Path:
    """Write RUN/report.html atomically and return its path. Raises FileNotFoundError if `run` is not a directory."""
    if not run.is_dir():
        raise FileNotFoundError(f"no run directory at {run}")
    atomic_write(run / "report.html", render_report(run))
    return run / "report.html"


def render_template(name: str, **values: Any) -> str:
    """Render a template of this folder; all text is escaped."""
    return template_environment().get_template(name).render(palette=Markup(PALETTE), **values)


@cache
def template_environment() -> Environment:
    """Return what compiles a template once, however many pages are written."""
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, **options)


def render_report(run: Path) -> str:
    """Return the page as text."""
    setup, result = read_content(run / "config.json"), read_content(run / "result.json")
    curves = read_metrics(run)
    if "step" not in curves or result.get("step") != curves["step"].last[1]:
        result = {}  # of before the run was continued
    recipe, data = setup.get("recipe") or "a run", as_mapping(setup.get("config")).get("data")
    checkpoints = list_checkpoints(run / "checkpoints")
    last = checkpoints[-1] if checkpoints else run
    parameters, vocab_size = read_model_size(last)
    large, small = draw_charts(curves, choose_reference(result, curves, vocab_size), find_key(setup, "eval_batches"))
    origin = {key: setup[key] for key in ("preset", "seed") if setup.get(key) is not None}
    return render_template(
        "report.html.j2",
        title=f"{recipe} on {data}" if data else str(recipe),
        origin=[f"{name} {value}" for name, value in (origin | as_mapping(setup.get("versions"))).items()],
        verdict=[*describe_baselines(result), *describe_overfitting(result), *describe_sources(result)],
        numbers=list(summarize_numbers(setup, curves, result, parameters)),
        warnings=[describe_gaps(key, curve.nonfinite_steps) for key, curve in curves.items() if curve.nonfinite_steps],
        large=large,
        small=small,
        samples=read_samples(run / "samples.txt"),
        figures=read_figures(run),
        schema=read_schema(last),
        plan=read_plan(setup),
        groups=group_config(setup),
        checkpoints=describe_checkpoints(checkpoints),
        commands=list_commands(run, setup.get("recipe")),
        command=setup.get("command"),
    )


def read_metrics(run: Path) -> Curves:
    """Return the curves of a run's metrics and of its speed."""
    curves, timings = (read_curves(read_lines(run / name)) for name in ("metrics.jsonl", "timings.jsonl"))
    return curves | {name: curve for name, curve in timings.items() if name not in curves}  # some steps are not timed


# --- numbers ---


def describe_baselines(result: Tree) -> list[str]:
    """Say how good a result is, in one sentence for each metric with baselines: "Better than guessing evenly and letter
    frequencies: loss 1.49 (guessing evenly 4.17, letter frequencies 3.31)." """
    sentences = []
    for metric, baselines in as_mapping(result.get("baselines")).items():
        value = result.get(f"val_{metric}")
        numbers = {str(name): x for name, x in as_mapping(baselines).items() if is_number(x)}
        if not is_number(value) or not numbers:
            continue
        sign = -1 if is_lower_better(metric) else 1
        leads = {name: sign * (value - x) for name, x in numbers.items()}
        verdict = f"Better than {' and '.join(name for name, lead in leads.items() if lead > 0)}"
        if min(leads.values()) < 0:
            verdict = f"No better than {' or '.join(name for name, lead in leads.items() if lead <= 0)}"
        elif min(leads.values()) == 0:
            equal = f"Equal to {' and '.join(name for name, lead in leads.items() if lead == 0)}"
            verdict = f"{equal}, b{verdict[1:]}" if max(leads.values()) > 0 else equal
        values = ", ".join(f"{name} {x:.3g}" for name, x in numbers.items())
        sentences.append(f"{verdict}: {format_metric(metric)} {value:.3g} ({values}).")
    return sentences


def describe_metrics(result: Tree) -> list[str]:
    """Name the metrics of a result that no other line tells: "accuracy 0.912, macro f1 0.908"."""
    others = {"val_loss", *(f"val_{metric}" for metric in as_mapping(result.get("baselines")))}
    metrics = {k: x for k, x in result.items() if isinstance(x, float) and is_validation(k) and k not in others}
    return [", ".join(f"{format_metric(strip_split(k))} {x:.4g}" for k, x in metrics.items())] if metrics else []


def describe_overfitting(result: Tree) -> list[str]:
    """Say whether the validation loss rose again after its best step."""
    losses = as_mapping(result.get("validations"))
    values = [result.get("step"), result.get("best_step"), losses.get("best"), losses.get("last")]
    if not all(map(is_number, values)):
        return []
    step, best_step, best, last = (float(str(value)) for value in values)
    if best_step == step or last <= best + OVERFIT_MARGIN * abs(best):
        return []
    rise = f"validation loss was best at step {best_step:,.0f} ({best:.3g}) and {last:.3g} at step {step:,.0f}"
    return [f"Overfits: {rise}. The best checkpoint is kept; fewer steps, more data or dropout may do better."]


def describe_sources(result: Tree) -> list[str]:
    """Say how much of a training each source of a mixture gave, and how often its tokens were seen."""
    sources = {name: as_mapping(facts) for name, facts in as_mapping(result.get("sources")).items()}
    texts = [
        f"{name} {facts['share']:.1%} of the rows, seen {facts['epochs']:.3g} times"
        for name, facts in sources.items()
        if is_number(facts.get("share")) and is_number(facts.get("epochs"))
    ]
    return [f"Sources: {'; '.join(texts)}."] if texts else []


def summarize_numbers(setup: Tree, curves: Curves, result: Tree, parameters: int | None) -> Iterator[Number]:
    """Yield the run in a handful of numbers."""
    yield from (losses := list(summarize_loss(setup, curves, result)))
    shown = {"loss", *COUNTERS, *(name for _, name, _ in losses)}
    lasts = {key: curve.last[1] for key, curve in curves.items() if curve.buckets}
    finals = {key: value for key, value in result.items() if key in lasts or isinstance(value, float)}
    for key, value in (lasts | finals).items():
        if is_validation(key) and strip_split(key) not in shown and is_number(value):
            note = describe_split(setup, result) if key in finals else "at the end"
            yield f"{value:.4g}", "validation " + format_metric(strip_split(key)), note
    if parameters:
        yield format_count(parameters), "parameters", f"{parameters:,}"
    if "step" in curves:
        yield f"{curves['step'].last[1]:,.0f}", "steps", ""
    tokens = curves["tokens"].last[1] if "tokens" in curves else None
    seconds = total_seconds(curves["seconds"]) if "seconds" in curves else None
    if tokens:
        yield format_count(tokens), "tokens seen", ""
    if seconds:
        yield format_duration(seconds), "wall time", ""
    if tokens and seconds:
        yield format_count(tokens / seconds), "tokens per second", "on average"


def describe_split(setup: Tree, result: Tree) -> str:
    """Say what the final evaluation covered."""
    every = find_key(setup, "final_every")
    is_part = isinstance(every, int) and every > 1
    count = next((f" ({result[f'val_{name}']:,} {name})" for name in ("rows", "texts") if f"val_{name}" in result), "")
    return (f"over every {every}th batch of the split" if is_part else "over the whole split") + count


def summarize_loss(setup: Tree, curves: Curves, result: Tree) -> Iterator[Number]:
    """Yield the best loss that was measured, and its perplexity."""
    if is_number(loss := result.get("val_loss")):
        step = result.get("best_step", result["step"])
        low, high = (find_key(as_mapping(setup.get("plan")), "expects") or [None, None])[:2]
        band = f", predicted {low:.2f} to {high:.2f}" if is_number(low) and is_number(high) else ""
        yield f"{loss:.4f}", "validation loss", f"{describe_split(setup, result)}, at step {step:,}{band}"
    elif "val_loss" in curves and curves["val_loss"].buckets:
        step, loss = curves["val_loss"].lowest()
        last = curves["val_loss"].last[1]
        yield f"{loss:.4f}", "best validation loss", f"step {step:,.0f}; at the end {last:.4f}"
    elif "loss" in curves and curves["loss"].buckets:
        loss = curves["loss"].smooth()[1][-1]
        yield f"{loss:.4f}", "training loss", "smoothed, at the end"
    else:
        return
    # exp(loss) is a perplexity only where tokens are predicted
    tokenizer = find_key(setup, "tokenizer")
    if tokenizer and "val_accuracy" not in curves and loss < 30:
        yield f"{math.exp(loss):.4g}", "perplexity", f"per {TOKEN_NAMES.get(str(tokenizer), 'token')}"


def describe_gaps(key: str, steps: Sequence[float]) -> str:
    return f"{format_metric(key)} was not finite at step {', '.join(f'{step:,.0f}' for step in steps)}"


# --- charts ---


def choose_reference(result: Tree, curves: Curves, vocab_size: int | None) -> Reference:
    """Return (loss, label) of the weakest baseline, or of an even guess over the vocabulary."""
    baselines = as_mapping(as_mapping(result.get("baselines")).get("loss"))
    losses = [(x, str(name)) for name, x in baselines.items() if is_number(x)]
    if not losses and vocab_size and vocab_size > 1 and "val_accuracy" not in curves:
        losses = [(math.log(vocab_size), "guessing evenly")]
    return max((x, f"{name}: {x:.3f}") for x, name in losses) if losses else None


def draw_charts(
    curves: Curves, reference: Reference, eval_batches: Any, standalone: bool = False
) -> tuple[list[Markup], list[Markup]]:
    """Return (the loss in two widths, for desktop and phone; one small chart for each other group of metrics).

    The validation curve was measured on `eval_batches` batches. `standalone`: each chart of the loss is a file.
    """
    groups = group_metrics(key for key, curve in curves.items() if key not in COUNTERS and curve.buckets)
    main = "loss" if "loss" in groups else next((name for name, keys in groups.items() if is_validation(keys[0])), "")
    reference = reference if main == "loss" else None
    validation = f"validation ({eval_batches} batches)" if is_number(eval_batches) else "validation"
    sizes = ((760, 380), (380, 320)) if main else ()
    large = [_draw_chart(main, groups[main], curves, size, reference, validation, standalone) for size in sizes]
    groups = {name: keys for name, keys in groups.items() if any(len(set(curves[key].points()[0])) > 1 for key in keys)}
    small = [_draw_chart(name, keys, curves, (360, 190)) for name, keys in groups.items() if name != main]
    return large, small


def _draw_chart(
    name: str,
    keys: list[str],
    curves: Curves,
    size: tuple[int, int],
    reference: Reference = None,
    validation: str = "validation",
    standalone: bool = False,
) -> Markup:
    series, mark = [], None
    for index, key in enumerate(sorted(keys, key=is_validation)):
        curve, color = curves[key], choose_color(name, keys, key, index)
        label = validation if is_validation(key) else "training"
        is_plain = key in (name, f"val_{name}", f"train_{name}") and len(keys) > 1
        label = label if is_plain else format_metric(key.replace("val_", "validation ", 1))
        is_smoothed = curve.is_noisy() and not is_validation(key)
        if is_smoothed:
            series.append(Series(label, *curve.points(), color=color, faint=True))
        points = curve.smooth() if is_smoothed else curve.points()
        series.append(Series(label, *points, color=color, dots=len(points[0]) <= 60 and is_validation(key)))
        if key == "val_loss" and name == "loss":
            step, best = curve.lowest()
            mark = Mark(step, best, f"best {best:.4f} · step {step:,.0f}")
    values = sorted(y for line in series for y in line.y)
    # a single spike would flatten everything else on a linear scale
    log = values[0] > 0 and values[-1] > 50 * values[len(values) // 2]
    options: dict[str, Any] = {"width": size[0], "height": size[1], "log": log, "mark": mark, "reference": reference}
    options |= {"heading": size[0] < 380 or len(keys) == 1, "zero": name == "tokens_per_second" and not log}
    x_range = (0, max(curve.last[0] for curve in curves.values()))
    title = series[-1].name if len(keys) == 1 else format_metric(name)
    return line_chart(series, title=title, x_range=x_range, standalone=standalone, **options)


def choose_color(name: str, keys: list[str], key: str, index: int) -> int:
    """Return the color of a curve: 1 of validation, and others where several metrics of it share the chart."""
    if not is_validation(key):
        return (0, 2, 3, 4)[index % 4]
    return 1 if key == f"val_{name}" or sum(map(is_validation, keys)) == 1 else (2, 3, 4)[index % 3]


# --- words ---


def group_config(setup: Tree) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration as tables: (name, rows). Nested dicts become tables with dotted names."""

    def walk(name: str, tree: Tree) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        rows = [(str(key), format_value(value)) for key, value in tree.items() if not isinstance(value, dict)]
        if rows:
            yield name, rows
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from walk(f"{name}.{key}".removeprefix("run."), value)

    run = {key: value for key, value in setup.items() if key not in ("command", "config", "plan")}
    return [*walk("config", as_mapping(setup.get("config"))), *walk("run", run)]


def describe_checkpoints(checkpoints: Sequence[Path]) -> list[tuple[str, str, str]]:
    """Return (name, "best" or "", size) of each checkpoint."""
    best = as_mapping(read_content(checkpoints[-1] / "state.json").get("best")).get("step") if checkpoints else None
    rows = []
    for folder in checkpoints:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        mark = "best" if folder.name == f"step-{best}" else ""
        rows.append((folder.name, mark, f"{format_count(size, units='kMGT')}B"))
    return rows


def list_commands(run: Path, recipe: Any) -> list[tuple[str, str]]:
    """Return the next commands: (what it does, the line for a shell)."""
    path = shlex.quote(str(run))
    is_own = recipe in recipe_loading.list_recipes()
    can_stream = is_own and isinstance(recipe_loading.load_recipe(recipe), recipes.SupportsStream)
    use = ("generate", f"anyformer sample {path}") if can_stream else ("predict", f"anyformer predict {path}")
    resume = ("train on", f"anyformer train {shlex.quote(str(recipe))} --out {path} --resume")
    return [use, ("evaluate", f"anyformer eval {path}"), *([resume] if recipe else [])]


def format_metric(key: str) -> str:
    return METRIC_NAMES.get(key, key.replace("_", " "))


def format_value(value: object) -> str:
    """Format a value of the configuration: 1,000,000 · 0.0006 · none · a, b, c."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(format_value(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def format_count(value: float, units: str = "kMBT") -> str:
    """Format a count in three digits: 812 · 10.8 k · 3.2 M · 1.5 B."""
    power = 0
    while abs(value) >= 999.5 and power < len(units):
        value, power = value / 1000, power + 1
    return f"{value:.3g} {units[power - 1] if power else ''}"


def format_duration(seconds: float) -> str:
    """Format a time: 42 s · 3 min 12 s · 5 h 07 min."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {remainder:02d} s" if minutes else f"{seconds:.3g} s"
