"""A run directory as one offline page: what was trained, how it went, what the model says now, and how to go on.

    write_report(Path("runs/plays"))   # -> runs/plays/report.html

Nothing needs a tidy run: missing files and keys are left out. Everything a run says is untrusted text: the template
escapes it, and only our own SVG passes as markup.
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
from .curves import Curve, elapsed, families, is_number, is_validation, read_curves, read_lines, stem
from .figures import read_figures
from .run_files import built, checkpoints, find, mapping, read_json, read_samples

COUNTERS = {"step", "tokens", "seconds"}  # told as figures; a chart of a straight line says nothing
NAMES = {"lr": "learning rate", "grad_norm": "gradient norm", "tokens_per_second": "tokens per second"}
PER = {"char": "character", "byte": "byte"}

Curves = dict[str, Curve]


def write_report(run: Path) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path.

    Reads config.json, metrics.jsonl, timings.jsonl, samples.txt, figures.json, result.json and checkpoints/ where they
    exist. Raises FileNotFoundError when `run` is not a directory.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no run directory at {run}")
    path, half = run / "report.html", run / f".report.html.{os.getpid()}"
    try:
        half.write_text(render(run), encoding="utf-8")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    return path


def render(run: Path) -> str:
    """The page as text."""
    setup = read_json(run / "config.json")
    curves, speeds = (read_curves(read_lines(run / name)) for name in ("metrics.jsonl", "timings.jsonl"))
    curves |= {name: curve for name, curve in speeds.items() if name not in curves}  # a validating step is not timed
    samples = read_samples(run / "samples.txt")
    config = mapping(setup.get("config"))
    recipe, data = setup.get("recipe") or "a run", config.get("data")
    parameters, vocabulary = built(run, setup)
    big, small = charts(curves, vocabulary)
    result = read_json(run / "result.json")
    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return room.get_template("report.html.j2").render(
        palette=Markup(PALETTE),
        title=f"{recipe} on {data}" if data else str(recipe),
        origin=origin(setup),
        figures=figures(setup, curves, result, parameters),
        warnings=warnings(curves),
        big=[Markup(svg) for svg in big],
        small=[Markup(svg) for svg in small],
        samples=samples,
        drawn=read_figures(run / "figures.json"),
        groups=groups(setup),
        checkpoints=[one | {"size": f"{amount(one['size'], units='kMGT')}B"} for one in checkpoints(run)],
        commands=commands(run, setup.get("recipe")),
        started_by=setup.get("command"),
    )


def origin(setup: Mapping[str, Any]) -> list[str]:
    """The line below the title: preset, seed, versions."""
    facts = [f"{key} {setup[key]}" for key in ("preset", "seed") if setup.get(key) is not None]
    return facts + [f"{name} {version}" for name, version in mapping(setup.get("versions")).items()]


def figures(
    setup: Mapping[str, Any], curves: Curves, result: Mapping[str, Any], parameters: int | None
) -> list[tuple[str, str, str]]:
    """The run in a handful of numbers: (value, what it is, a remark)."""
    steps = curves["step"].last[1] if "step" in curves else None
    if result.get("step") != steps:
        result = {}  # it was trained on since
    found = list(_loss_figures(setup, curves, result))
    told = {"loss", *COUNTERS, *(name for _, name, _ in found)}
    for key, curve in curves.items():
        if is_validation(key) and stem(key) not in told and curve.buckets:
            exact = result.get(key)
            value, note = (exact, judged(setup)) if is_number(exact) else (curve.last[1], "at the end")
            found.append((f"{value:.4g}", "validation " + _name(stem(key)), note))
    found += [(amount(parameters), "parameters", f"{parameters:,}")] if parameters else []
    found += [(f"{steps:,.0f}", "steps", "")] if steps is not None else []
    tokens = curves["tokens"].last[1] if "tokens" in curves else None
    seconds = elapsed(curves["seconds"]) if "seconds" in curves else None
    found += [(amount(tokens), "tokens seen", "")] if tokens else []
    found += [(duration(seconds), "wall time", "")] if seconds else []
    found += [(amount(tokens / seconds), "tokens per second", "on average")] if tokens and seconds else []
    return found


def judged(setup: Mapping[str, Any]) -> str:
    """What the validation at the end went over."""
    every = find(setup, "final_every")
    return (
        f"over every {every}th batch of the split" if isinstance(every, int) and every > 1 else "over the whole split"
    )


def _loss_figures(
    setup: Mapping[str, Any], curves: Curves, result: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    if is_number(loss := result.get("val_loss")):
        step = result.get("best_step", result["step"])
        low, high = (find(mapping(setup.get("plan")), "expects") or [None, None])[:2]
        band = f", expected {low:.2f} to {high:.2f}" if is_number(low) and is_number(high) else ""
        yield f"{loss:.4f}", "validation loss", f"{judged(setup)}, at step {step:,}{band}"
    elif "val_loss" in curves and curves["val_loss"].buckets:
        step, loss = curves["val_loss"].lowest()
        end = curves["val_loss"].last[1]
        yield f"{loss:.4f}", "best validation loss", f"step {step:,.0f}; at the end {end:.4f}"
    elif "loss" in curves and curves["loss"].buckets:
        loss = curves["loss"].smooth()[1][-1]
        yield f"{loss:.4f}", "training loss", "smoothed, at the end"
    else:
        return
    # a loss is the logarithm of a perplexity only where words, characters or bytes are being guessed
    tokenizer = find(setup, "tokenizer")
    if tokenizer and loss < 30:
        yield f"{math.exp(loss):.4g}", "perplexity", f"per {PER.get(str(tokenizer), 'token')}"


def warnings(curves: Curves) -> list[str]:
    """What a person should not overlook: values that were not numbers."""
    return [
        f"{_name(key)} was not finite at step {', '.join(f'{step:,.0f}' for step in curve.broken)}"
        for key, curve in curves.items()
        if curve.broken
    ]


def charts(curves: Curves, vocabulary: int | None) -> tuple[list[str], list[str]]:
    """(the loss twice: wide for a desk, narrow for a phone; one small chart for every other family)."""
    shown = families(key for key, curve in curves.items() if key not in COUNTERS and curve.buckets)
    main = "loss" if "loss" in shown else next((name for name, keys in shown.items() if is_validation(keys[0])), None)
    guess = None
    if main == "loss" and vocabulary and vocabulary > 1:
        guess = (math.log(vocabulary), f"guessing evenly: ln {vocabulary:,} = {math.log(vocabulary):.3f}")
    sizes = ((760, 380), (380, 320)) if main else ()
    big = [_chart(str(main), shown[str(main)], curves, *size, guess) for size in sizes]
    small = [_chart(name, keys, curves, 360, 190) for name, keys in shown.items() if name != main]
    return big, small


def _chart(name: str, keys: list[str], curves: Curves, width: int, height: int, reference=None) -> str:
    series, mark = [], None
    for slot, key in enumerate(sorted(keys, key=is_validation)):
        curve, colour = curves[key], _colour(key, slot)
        label = "validation" if is_validation(key) else "training"
        label = label if key in (name, f"val_{name}", f"train_{name}") and len(keys) > 1 else _name(key)
        noisy = curve.is_noisy() and not is_validation(key)
        if noisy:
            series.append(Series(label, *curve.points(), colour=colour, faint=True))
        points = curve.smooth() if noisy else curve.points()
        few = len(points[0]) <= 60
        series.append(Series(label, *points, colour=colour, dots=few and is_validation(key)))
        if key == "val_loss" and name == "loss":
            step, best = curve.lowest()
            mark = Mark(step, best, f"best {best:.4f} · step {step:,.0f}", colour)
    values = sorted(y for one in series for y in one.y)
    # one spike of a hundred times the usual would press everything else flat
    log = values[0] > 0 and values[-1] > 50 * values[len(values) // 2]
    title, zero = _name(name), name == "tokens_per_second"
    heading = width < 380 or len(keys) == 1
    return line_chart(
        series, title=title, width=width, height=height, heading=heading, log=log, zero=zero and not log,
        x_range=(0, max(curve.last[0] for curve in curves.values())), mark=mark, reference=reference, standalone=False,
    )  # fmt: skip


def _colour(key: str, slot: int) -> int:
    return 1 if is_validation(key) else (0, 2, 3, 4)[slot % 4]


def _name(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def groups(setup: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration as tables: (name of the group, its rows). Nested dicts become groups with dotted names."""
    found: list[tuple[str, list[tuple[str, str]]]] = []

    def walk(name: str, tree: Mapping[str, Any]) -> None:
        rows = [(str(key), written(value)) for key, value in tree.items() if not isinstance(value, dict)]
        if rows:
            found.append((name, rows))
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(f"{name}.{key}", value)

    top = {key: value for key, value in setup.items() if key not in ("command", "config")}
    walk("config", mapping(setup.get("config")))
    walk("run", {key: value for key, value in top.items() if not isinstance(value, dict)})
    for key, value in top.items():
        walk(str(key), mapping(value))
    return found


def written(value: object) -> str:
    """A value of the configuration for reading: 1,000,000 · 0.0006 · none · a, b, c."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(written(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def commands(run: Path, recipe: Any) -> list[tuple[str, str]]:
    """How to go on: (what it does, a line for the shell)."""
    place = shlex.quote(str(run))
    speaks = recipe in recipes.list_recipes() and hasattr(recipes.load_recipe(recipe), "stream")
    use = ("let it write", f"anyformer sample {place}") if speaks else ("ask it", f"anyformer predict {place}")
    again = [("train on", f"anyformer train {shlex.quote(str(recipe))} --out {place} --resume")] if recipe else []
    return [use, ("measure it", f"anyformer eval {place}"), *again]


def amount(value: float, units: str = "kMBT") -> str:
    """A count in three digits: 812 · 10.8 k · 3.2 M · 1.5 B."""
    power = 0
    while abs(value) >= 999.5 and power < len(units):
        value, power = value / 1000, power + 1
    return f"{value:.3g} {units[power - 1] if power else ''}"


def duration(seconds: float) -> str:
    """A time for reading: 42 s · 3 min 12 s · 5 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"
