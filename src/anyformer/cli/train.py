"""anyformer train RECIPE: the flags of the preset's config, and where, how long and whether to train."""

import argparse
import json
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .. import recipe as recipes
from ..errors import InputError
from ..training.config import LoRA
from .parse import parse, say
from .terminal import busy

PROG = "anyformer train"
MINUTES = (
    "Instead of steps: all of the training within this time, measured on this machine first; of the size that promises "
    "most, where the recipe knows of sizes and neither a preset nor a flag of model or train is given."
)
SHORT = ("steps", "seed", "device", "dtype", "compile")  # --steps is --train.steps


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in ("-h", "--help"):
            raise InputError(f"{PROG} needs a recipe first: {', '.join(recipes.names())}")
        print(f"usage: {PROG} RECIPE [--data D] [--preset P] [--minutes M] [--out DIR] ...\n")
        print(f"recipes: {', '.join(recipes.names())}\n\n{PROG} RECIPE --help lists every flag of a recipe.")
        return 0 if arguments else 2
    began, name, rest = time.monotonic(), arguments[0], arguments[1:]
    early = glance(rest)
    module = recipes.load(name)
    from .. import api
    from ..training.run_directory import Run

    if early.resume and early.out is None:
        raise InputError(f"--resume needs --out RUN: {newest_run()}")
    stored = Run(early.out) if early.resume else None
    preset, config = api.starting_point(module, name, early.preset, stored, early.init)
    asked = parse(questions(module, preset, config), rest, f"{PROG} {name}")
    config = replace(asked.config, train=shortcuts(asked))
    if asked.print_config:
        print(json.dumps({"recipe": name, "preset": preset, "config": recipes.to_json(config)}, indent=2))
        return 0
    if asked.print_schema:
        print(schema_of(name, module, config), end="")
        return 0
    if asked.minutes is not None and asked.steps is not None:
        raise InputError("--steps and --minutes both say how long: give one of them")
    sizes = early.init is None and api.undecided(module, early.preset, config)
    if asked.dry_run:
        return dry_run(name, module, config, asked, api.budget_of(asked.minutes, time.monotonic(), sizes))
    if not asked.resume:
        began += approve(module, config, asked.yes)
    budget = api.budget_of(asked.minutes, began, sizes)
    command = shlex.join(["anyformer", "train", *arguments])
    return train(name, preset, config, asked, {"budget": budget, "command": command})


def glance(arguments: list[str]) -> argparse.Namespace:
    """The flags that decide which defaults the others have."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise InputError(f"{error}") from None


def newest_run() -> str:
    found = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return f"the newest is --out {found[-1].parent}" if found else "there is none below runs/ yet"


def questions(module: recipes.Recipe, preset: str, config: Any) -> type:
    """The flags of this recipe: a config's own, with the preset's values as defaults, and those of every training."""
    flags: list[tuple[str, Any, Any, str]] = [
        ("preset", str, preset, "Where the defaults come from: " + ", ".join(module.PRESETS)),
        ("steps", int | None, None, "Short for --train.steps."),
        ("minutes", float | None, None, MINUTES),
        ("out", Path | None, None, "The run directory. Default: a new one below runs/."),
        ("resume", bool, False, "Go on with the run in --out (or begin it, if there is none yet)."),
        ("init", Path | None, None, "Begin from this run or public checkpoint: fine-tuning."),
        ("lora", LoRA, LoRA(), "Train small adapters on the model of --init, which stays as it is (2106.09685)."),
        ("seed", int | None, None, "Short for --train.seed."),
        ("device", str | None, None, "Short for --train.device."),
        ("dtype", Literal["auto", "float32", "bfloat16"] | None, None, "Short for --train.dtype."),
        ("compile", bool, False, "Short for --train.compile."),
        ("dry_run", bool, False, "Say what it would take (parameters, FLOPs, memory, shapes) and train nothing."),
        ("print_schema", bool, False, "Print the schema of a table (recipes that have one) and train nothing."),
        ("yes", bool, False, "A schema that was inferred is right: do not ask."),
        ("print_config", bool, False, "Print the resolved config and train nothing."),
        ("json", bool, False, "One JSON object on stdout at the end, and nothing else there."),
    ]
    fields = [(n, Annotated[kind, tyro.conf.arg(help=text)], field(default=value)) for n, kind, value, text in flags]
    annotated: Any = Annotated  # a type known only now
    inner = ("config", annotated[type(config), tyro.conf.arg(name="")], field(default_factory=lambda: config))
    whole = make_dataclass("Command", [*fields, inner], frozen=True)
    whole.__doc__ = (getattr(module, "__doc__", None) or "").strip()
    return whole


def schema_of(name: str, module: Any, config: Any) -> str:
    """What the recipe takes the data for, as TOML. Raises InputError where it has no such thing."""
    if not hasattr(module, "schema_of"):
        raise InputError(f"--print-schema is for tables, and the recipe '{name}' takes none: multimodal does")
    with busy():
        return module.schema_of(config).toml()


def approve(module: Any, config: Any, yes: bool) -> float:
    """A schema that was inferred is shown, and whoever sits at a terminal is asked. Returns for how many seconds: they
    are not the training's. Raises InputError for a no."""
    with busy():
        found = module.inferred(config) if hasattr(module, "inferred") else None
    if found is None:
        return 0.0
    say(f"{found.toml()}\nThis is what the data seem to hold. To correct it:")
    say("  --print-schema > my.toml writes it out, --schema my.toml gives it back\n")
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        began = time.monotonic()
        say("Train on this? [Y/n]")
        if input().strip().lower() not in ("", "y", "yes"):
            raise InputError("not trained: correct the schema (--print-schema > my.toml, then --schema my.toml)")
        return time.monotonic() - began
    return 0.0


def shortcuts(asked: Any) -> Any:
    given = {
        name: getattr(asked, name)
        for name in SHORT
        if getattr(asked, name) is not None and getattr(asked, name) is not False
    }
    try:
        return replace(asked.config.train, **given)
    except ValueError as error:
        raise InputError(f"--{error}") from None


def dry_run(name: str, module: recipes.Recipe, config: Any, asked: Any, budget: Any) -> int:
    from .. import api
    from ..training.estimate import describe, estimate

    with busy():
        found: dict[str, Any] = {}
        if budget is not None:
            config, found = api.planned(module, config, budget)
        facts = estimate(module, config) | found
    print(json.dumps(facts) if asked.json else describe(f"{name}, not trained: this is what it would take", facts))
    if found and not asked.json:
        print(f"  {'chosen for':<11} {why(found['plan'], config)}")
    return 0


def train(name: str, preset: str, config: Any, asked: Any, more: dict[str, Any]) -> int:
    from .. import api
    from ..report.progress import Progress
    from ..training.run_directory import Run, Stopped

    with ExitStack() as stack:
        view: list[Progress] = []
        begun: list[Run] = []

        def on_start(run: Run, config: Any, state: Any) -> None:
            begun.append(run)
            size = sum(parameter.numel() for parameter in state.model.parameters())
            where = next(state.model.parameters()).device
            rest = f" from step {state.step}" if state.step else ""
            say(f"{name} · {preset} · {size:,} parameters on {where} · {run.path}{rest}")
            if not rest and (found := run.config().get("plan")):
                say(why(found, config))
            for remark in remarks(next(recipes.load(name).batches(config, "train", None))[1]):
                say(remark)
            total = config.train.steps
            view.append(stack.enter_context(Progress(total)))

        try:
            with busy():
                run = None if asked.out is None else Run(asked.out)
                model = api.run_config(
                    name,
                    preset,
                    config,
                    run=run,
                    resume=asked.resume,
                    init=asked.init,
                    lora=asked.lora,
                    on_start=on_start,
                    on_record=lambda record: view[0].update(record),
                    **more,
                )
        except Stopped as stopped:
            stack.close()
            say(f"{stopped}. Go on with: anyformer train {name} --out {shlex.quote(str(begun[0].path))} --resume")
            return 1
    return finish(begun[0], model, asked.json)


def why(plan: dict[str, Any], config: Any) -> str:
    """The size that was chosen, and what to expect."""
    model, c, (low, high) = config.model, config.train, plan["expects"]
    shape = f"{model.n_layer} layers of {model.dim} channels, context {model.context}"
    time = f"{plan['minutes']:g} minutes here: {shape}, {c.steps:,} steps of {c.batch} rows"
    return f"{time} (of {len(plan['sizes'])} sizes tried); expect a validation loss from {low:.2f} to {high:.2f}"


def remarks(place: recipes.Place) -> list[str]:
    """What was done to the data on request, counted: nothing goes missing in silence."""
    done = {"skipped": "of the data left out, which cannot be used", "cut": "cut to the context"}
    return [f"{place[name]:,} {what}" for name, what in done.items() if place.get(name)]


def finish(run: Any, model: Any, as_json: bool) -> int:
    result = json.loads((run.path / "result.json").read_text())
    if as_json:
        print(json.dumps({"run": str(run.path)} | result))
        return 0
    print("\n".join(recipes.spoken(model.predict({}))) + "\n")
    part = f"one batch in {every} of the split" if (every := model.config.train.final_every) > 1 else "the whole split"
    say(f"validation loss {result['val_loss']:.4f} over {part} (step {model.step}, {result['seconds']:.0f} s)")
    say(f"run     {run.path}")
    say(f"report  {run.path / 'report.html'}")
    if hasattr(model.recipe, "stream"):
        say(f"sample  anyformer sample {run.path} --prompt TEXT")
    else:
        say(f"ask     anyformer predict {run.path} INPUT")
    return 0
