"""The report of a run: one HTML page that works offline.

    write_report(Path("runs/plays"))   # -> runs/plays/report.html

Missing files and keys are left out. Everything in a run is untrusted text: the template escapes it, and only our own
SVG passes as markup.
"""

import math
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import recipe as recipes
from .chart import PALETTE, Mark, Series, line_chart
from .curves import Curve, group_metrics, is_number, is_validation, read_curves, read_lines, strip_split, total_seconds
from .figures import read_figures
from .run_files import (
    as_mapping,
    find_key,
    last_checkpoint,
    list_checkpoints,
    read_mapping,
    read_model_size,
    read_plan,
    read_samples,
    read_schema,
)

COUNTERS = {"step", "tokens", "seconds"}  # shown as numbers, not as charts
METRIC_NAMES = {"lr": "learning rate", "grad_norm": "gradient norm", "tokens_per_second": "tokens per second"}
TOKEN_NAMES = {"char": "character", "byte": "byte"}

Curves = dict[str, Curve]


def write_report(run: Path) -> Path:
    """Write RUN/report.html atomically and return its path.

    Reads config.json, metrics.jsonl, timings.jsonl, samples.txt, figures.json, worth.json, result.json and checkpoints/
    where they exist.

    Raises:
        FileNotFoundError: If `run` is not a directory.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no run directory at {run}")
    path, temporary = run / "report.html", run / f".report.html.{os.getpid()}"
    try:
        temporary.write_text(render_report(run), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render_template(name: str, **values: Any) -> str:
    """Render a template of this folder; all text is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    return Environment(loader=loader, **options).get_template(name).render(palette=Markup(PALETTE), **values)


def render_report(run: Path) -> str:
    """Return the page as text."""
    setup, result = read_mapping(run / "config.json"), read_mapping(run / "result.json")
    curves, timings = (read_curves(read_lines(run / name)) for name in ("metrics.jsonl", "timings.jsonl"))
    curves |= {name: curve for name, curve in timings.items() if name not in curves}  # validating steps are not timed
    if "step" not in curves or result.get("step") != curves["step"].last[1]:
        result = {}  # of before the run was continued
    recipe, data = setup.get("recipe") or "a run", as_mapping(setup.get("config")).get("data")
    parameters, vocab_size = read_model_size(run, setup)
    large, small = draw_charts(curves, choose_reference(result, curves, vocab_size), find_key(setup, "eval_batches"))
    checkpoints = list_checkpoints(run)
    return render_template(
        "report.html.j2",
        title=f"{recipe} on {data}" if data else str(recipe),
        origin=describe_origin(setup),
        verdict=describe_baselines(result),
        numbers=summarize_numbers(setup, curves, result, parameters),
        warnings=list_warnings(curves),
        large=[Markup(svg) for svg in large],
        small=[Markup(svg) for svg in small],
        samples=read_samples(run / "samples.txt"),
        figures=read_figures(run),
        schema=read_schema(last_checkpoint(run)),
        plan=read_plan(setup),
        groups=group_config(setup),
        checkpoints=[c | {"size": f"{format_count(c['size'], units='kMGT')}B"} for c in checkpoints],
        commands=list_commands(run, setup.get("recipe")),
        command=setup.get("command"),
    )


def describe_origin(setup: Mapping[str, Any]) -> list[str]:
    """Return the line below the title: preset, seed, versions."""
    facts = [f"{key} {setup[key]}" for key in ("preset", "seed") if setup.get(key) is not None]
    return facts + [f"{name} {version}" for name, version in as_mapping(setup.get("versions")).items()]


# --- numbers ---


def describe_baselines(result: Mapping[str, Any]) -> list[str]:
    """Say how good a result is: "Better than both baselines: loss 1.49 (guessing evenly 4.17, letter frequencies
    3.31)." One sentence for each metric with baselines."""
    sentences = []
    for metric, baselines in as_mapping(result.get("baselines")).items():
        value = result.get(f"val_{metric}")
        numbers = {str(name): x for name, x in as_mapping(baselines).items() if is_number(x)}
        if not is_number(value) or not numbers:
            continue
        sign = -1 if metric.endswith(("loss", "rmse")) else 1
        better = [name for name, x in numbers.items() if sign * (value - x) > 0]
        worse = [name for name in numbers if name not in better]
        verdict = f"No better than {' or '.join(worse)}" if worse else f"Better than {' and '.join(better)}"
        values = ", ".join(f"{name} {x:.3g}" for name, x in numbers.items())
        sentences.append(f"{verdict}: {format_metric(metric)} {value:.3g} ({values}).")
    return sentences


def summarize_numbers(
    setup: Mapping[str, Any], curves: Curves, result: Mapping[str, Any], parameters: int | None
) -> list[tuple[str, str, str]]:
    """Return the run in a handful of numbers: (value, name, note)."""
    steps = curves["step"].last[1] if "step" in curves else None
    numbers = list(_summarize_loss(setup, curves, result))
    shown = {"loss", *COUNTERS, *(name for _, name, _ in numbers)}
    for key, curve in curves.items():
        if is_validation(key) and strip_split(key) not in shown and curve.buckets:
            final = result.get(key)
            value, note = (final, describe_split(setup, result)) if is_number(final) else (curve.last[1], "at the end")
            numbers.append((f"{value:.4g}", "validation " + format_metric(strip_split(key)), note))
    numbers += [(format_count(parameters), "parameters", f"{parameters:,}")] if parameters else []
    numbers += [(f"{steps:,.0f}", "steps", "")] if steps is not None else []
    tokens = curves["tokens"].last[1] if "tokens" in curves else None
    seconds = total_seconds(curves["seconds"]) if "seconds" in curves else None
    numbers += [(format_count(tokens), "tokens seen", "")] if tokens else []
    numbers += [(format_duration(seconds), "wall time", "")] if seconds else []
    numbers += [(format_count(tokens / seconds), "tokens per second", "on average")] if tokens and seconds else []
    return numbers


def describe_split(setup: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Say what the final evaluation covered."""
    every = find_key(setup, "final_every")
    is_part = isinstance(every, int) and every > 1
    count = next((f" ({result[f'val_{name}']:,} {name})" for name in ("rows", "texts") if f"val_{name}" in result), "")
    return (f"over every {every}th batch of the split" if is_part else "over the whole split") + count


def _summarize_loss(
    setup: Mapping[str, Any], curves: Curves, result: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
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
    is_of_tokens = "val_accuracy" not in curves
    if tokenizer and is_of_tokens and loss < 30:
        yield f"{math.exp(loss):.4g}", "perplexity", f"per {TOKEN_NAMES.get(str(tokenizer), 'token')}"


def list_warnings(curves: Curves) -> list[str]:
    """Name the steps whose values were not finite."""
    return [
        f"{format_metric(key)} was not finite at step {', '.join(f'{step:,.0f}' for step in curve.nonfinite_steps)}"
        for key, curve in curves.items()
        if curve.nonfinite_steps
    ]


# --- charts ---


Reference = tuple[float, str] | None


def choose_reference(result: Mapping[str, Any], curves: Curves, vocab_size: int | None) -> Reference:
    """Return (loss, label) of the weakest baseline, or of an even guess over the vocabulary."""
    baselines = as_mapping(as_mapping(result.get("baselines")).get("loss"))
    losses = [(x, str(name)) for name, x in baselines.items() if is_number(x)]
    if not losses and vocab_size and vocab_size > 1 and "val_accuracy" not in curves:
        losses = [(math.log(vocab_size), "guessing evenly")]
    return max((x, f"{name}: {x:.3f}") for x, name in losses) if losses else None


def draw_charts(curves: Curves, reference: Reference, eval_batches: Any) -> tuple[list[str], list[str]]:
    """Return (the loss in two widths, for desktop and phone; one small chart for each other group of metrics).

    Args:
        curves: All curves.
        reference: A dashed line in the chart of the loss.
        eval_batches: How many batches the validation curve was measured on.
    """
    groups = group_metrics(key for key, curve in curves.items() if key not in COUNTERS and curve.buckets)
    main = "loss" if "loss" in groups else next((name for name, keys in groups.items() if is_validation(keys[0])), None)
    reference = reference if main == "loss" else None
    validation = f"validation ({eval_batches} batches)" if is_number(eval_batches) else "validation"
    sizes = ((760, 380), (380, 320)) if main else ()
    large = [_draw_chart(str(main), groups[str(main)], curves, *size, reference, validation) for size in sizes]
    groups = {name: keys for name, keys in groups.items() if any(len(set(curves[key].points()[0])) > 1 for key in keys)}
    small = [_draw_chart(name, keys, curves, 360, 190) for name, keys in groups.items() if name != main]
    return large, small


def _draw_chart(
    name: str,
    keys: list[str],
    curves: Curves,
    width: int,
    height: int,
    reference: Reference = None,
    validation: str = "validation",
) -> str:
    series, mark = [], None
    for index, key in enumerate(sorted(keys, key=is_validation)):
        curve, color = curves[key], 1 if is_validation(key) else (0, 2, 3, 4)[index % 4]
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
            mark = Mark(step, best, f"best {best:.4f} · step {step:,.0f}", color)
    values = sorted(y for line in series for y in line.y)
    # a single spike would flatten everything else on a linear scale
    log = values[0] > 0 and values[-1] > 50 * values[len(values) // 2]
    heading = width < 380 or len(keys) == 1
    title, zero = series[-1].name if len(keys) == 1 else format_metric(name), name == "tokens_per_second" and not log
    x_range = (0, max(curve.last[0] for curve in curves.values()))
    options: dict[str, Any] = {
        "width": width,
        "height": height,
        "heading": heading,
        "log": log,
        "zero": zero,
        "x_range": x_range,
    }
    return line_chart(series, title=title, mark=mark, reference=reference, standalone=False, **options)


# --- words ---


def group_config(setup: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration as tables: (name, rows). Nested dicts become tables with dotted names."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []

    def walk(name: str, tree: Mapping[str, Any]) -> None:
        rows = [(str(key), format_value(value)) for key, value in tree.items() if not isinstance(value, dict)]
        if rows:
            groups.append((name, rows))
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(f"{name}.{key}", value)

    top = {key: value for key, value in setup.items() if key not in ("command", "config", "plan")}
    walk("config", as_mapping(setup.get("config")))
    walk("run", {key: value for key, value in top.items() if not isinstance(value, dict)})
    for key, value in top.items():
        walk(str(key), as_mapping(value))
    return groups


def list_commands(run: Path, recipe: Any) -> list[tuple[str, str]]:
    """Return the next commands: (what it does, the line for a shell)."""
    path = shlex.quote(str(run))
    is_own = recipe in recipes.list_recipes()
    can_stream = is_own and isinstance(recipes.load_recipe(recipe), recipes.SupportsStream)
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
