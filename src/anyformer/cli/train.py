"""anyformer train RECIPE: flags of the recipe's config, and where, how long and whether to train."""

import dataclasses
import inspect
import itertools
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import recipe as recipes
from ..errors import InputError
from ..parsing import parse_dataclass, to_json
from ..training.config import LoRAConfig
from .flags import HELP, Flag, JsonFlag, format_help, list_flags, print_status, read_flags
from .terminal import show_progress

if TYPE_CHECKING:
    from ..api import TrainingDisplay
    from ..trained_model import Model
    from ..training.job import TrainingJob

PROG = "anyformer train"
SHORT_NAMES = ("steps", "seed", "device", "dtype", "compile")  # --steps is --train.steps
BASIC_FLAGS = (
    "--data", "--preset", "--minutes", "--steps", "--out", "--resume", "--init", "--seed", "--device", "--dry-run",
    "--json",
)  # fmt: skip
SCHEMA_FLAGS = ("--print-schema", "--yes")  # of recipes that read tables


@dataclass(frozen=True)
class Options:
    """The flags of every training, besides those of the recipe's config."""

    preset: str | None = None
    """Where the defaults come from."""
    minutes: float | None = None
    """Train as many steps as fit into this time, measured first. Without a preset or a flag of model or train, recipes
    with several sizes train the one with the lowest predicted loss."""
    out: Path | None = None
    """The run directory. Default: a new one below runs/."""
    resume: bool = False
    """Continue the run in --out, or start it if there is none yet."""
    init: Path | None = None
    """Start from this run or public checkpoint (fine-tuning)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Adapters on the model of --init, which stays as it is (2106.09685)."""
    dry_run: bool = False
    """Print what training would take (parameters, FLOPs, memory, shapes), and stop."""
    print_schema: bool = False
    """Print the schema of a table, and stop."""
    print_config: bool = False
    """Print the resolved config, and stop."""
    yes: bool = False
    """Accept an inferred schema without asking."""
    json: JsonFlag = False


def run(arguments: list[str]) -> int:
    started_at = time.monotonic()
    if not arguments or arguments[0].startswith("-"):
        return print_usage(arguments)
    source, words = arguments[0], arguments[1:]
    command = TrainCommand(recipes.load_recipe(source), words, f"{PROG} {shlex.quote(source)}")
    if HELP & set(words):
        print(command.format_help(show_all="--help-all" in words))
        return 0
    options, overrides = command.read()
    from .. import api

    try:
        job = api.resolve_job(
            command.recipe,
            options.preset,
            overrides,
            minutes=options.minutes,
            out=options.out,
            resume=options.resume,
            init=options.init,
            lora=dataclasses.asdict(options.lora),
            command=shlex.join(["anyformer", "train", *arguments]),
        )
    except InputError as error:
        raise InputError(command.name_flags(str(error))) from None
    if options.print_config:
        print(json.dumps({"recipe": job.recipe_name, "preset": job.preset, "config": to_json(job.config)}, indent=2))
        return 0
    if options.print_schema:
        print(read_schema(job), end="")
        return 0
    if options.dry_run:
        return dry_run(job, options.json)
    if not job.is_resumed:
        seconds = confirm_schema(job, options.yes)
        job = shift_budget(job, started_at + seconds)
    return train(job, f"{PROG} {shlex.quote(source)}", options.json)


def print_usage(arguments: list[str]) -> int:
    """Print how the verb is used. Raises InputError if a flag stands where the recipe should."""
    names = ", ".join(recipes.list_recipes())
    if arguments and arguments[0] not in HELP:
        raise InputError(f"{PROG} needs a recipe first: {names}")
    print(f"usage: {PROG} RECIPE [--data D] [--preset P] [--minutes M] [--out DIR] ...\n")
    print(textwrap.fill(f"recipes: {names}; or one of your own: ./forecast.py, mypackage.forecast", 80))
    print(f"\n{PROG} RECIPE --help lists the flags of a recipe.")
    return 0 if arguments else 2


class TrainCommand:
    """The flags of a recipe, and what the words of the command line make of them."""

    def __init__(self, recipe: recipes.Recipe, words: Sequence[str], prog: str):
        self.recipe, self.words, self.prog = recipe, words, prog
        preset = next((word for flag, word in itertools.pairwise(words) if flag == "--preset"), None)
        preset = next((word[9:] for word in words if word.startswith("--preset=")), preset)
        self.preset = recipes.default_preset(recipe) if preset is None else preset
        config = recipes.get_preset(recipe, self.preset)
        self.options = list(list_flags(Options))
        taken = [flag.name for flag in self.options] + [f"--{name}" for name in SHORT_NAMES]
        self.fields = list(list_flags(type(config), config, taken=taken))
        by_path = {flag.path: flag for flag in self.fields}
        self.aliases = {f"--{name}": by_path["train", name] for name in SHORT_NAMES}

    def read(self) -> tuple[Options, dict[str, Any]]:
        """Return the options, and the config fields that were given, nested. Raises InputError."""
        values = read_flags([*self.options, *self.fields], self.words, self.prog, self.aliases)
        options: dict[str, Any] = nest((flag.path, values[flag.name]) for flag in self.options if flag.name in values)
        if "lora" in options:
            options["lora"] = parse_dataclass(LoRAConfig, options["lora"], "--lora")
        overrides = nest((flag.path, values[flag.name]) for flag in self.fields if flag.name in values)
        if "minutes" in options and "--train.steps" in values:
            raise InputError("--steps and --minutes both say how long: give one of them")
        if options.get("resume") and "out" not in options:
            raise InputError(f"--resume needs --out RUN: {newest_run()}")
        return Options(**options), overrides

    def name_flags(self, message: str) -> str:
        """Name the flag in a message about a config field: "train.steps is 0" -> "--steps is 0"."""
        word, space, text = message.partition(" ")
        names = {".".join(flag.path): flag.name for flag in (*self.fields, *self.options)}
        if word not in names:
            return message
        aliases = [alias for alias, flag in self.aliases.items() if flag.name == names[word] and alias in self.words]
        return f"{aliases[0] if aliases else names[word]}{space}{text}"

    def format_help(self, show_all: bool) -> str:
        """The help: a basic group with the other flags' names, or all flags."""
        flags = [dataclasses.replace(flag, name=alias) for alias, flag in self.aliases.items()]
        flags += [self.describe_preset(flag) if flag.name == "--preset" else flag for flag in self.options]
        flags += self.fields
        names = BASIC_FLAGS + (SCHEMA_FLAGS if isinstance(self.recipe, recipes.SupportsSchema) else ())
        basic = [flag for name in names for flag in flags if flag.name == name]
        others = [flag for flag in flags if flag not in basic]
        about = inspect.getdoc(self.recipe) or ""
        if show_all:
            return format_help(self.prog, about, basic + others)
        groups = itertools.groupby(others, lambda flag: flag.name.partition(".")[0] if "." in flag.name else "")
        lines = [" ".join(flag.name for flag in group) for _, group in groups]
        text = textwrap.indent("\n".join(textwrap.fill(line, 78, break_on_hyphens=False) for line in lines), "  ")
        return format_help(self.prog, about, basic, f"more flags, explained by {self.prog} --help-all:\n{text}")

    def describe_preset(self, flag: Flag) -> Flag:
        """The flag --preset, with the names of the presets."""
        text = f"Where the defaults come from: {', '.join(self.recipe.PRESETS)}."
        return dataclasses.replace(flag, help=text, default=self.preset)


def nest(values: Any) -> dict[str, Any]:
    """(("model", "dim"), 8) -> {"model": {"dim": 8}}."""
    nested: dict[str, Any] = {}
    for path, value in values:
        inner = nested
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return nested


def newest_run() -> str:
    """Point to the newest run."""
    runs = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return f"the newest is --out {shlex.quote(str(runs[-1].parent))}" if runs else "there is none below runs/ yet"


# --- schemas of tables ---


def read_schema(job: "TrainingJob") -> str:
    """Return the schema that applies to the data, as TOML. Raises InputError for a recipe without one."""
    if not isinstance(job.recipe, recipes.SupportsSchema):
        names = recipes.recipes_with(recipes.SupportsSchema)
        raise InputError(f"--print-schema is for recipes of tables ({names}), not for '{job.recipe_name}'")
    with show_progress():
        return job.recipe.read_schema(job.config).to_toml()


def confirm_schema(job: "TrainingJob", yes: bool) -> float:
    """Show an inferred schema, and ask on a terminal whether it is right.

    Returns:
        The seconds that the answer took, which do not count as training.

    Raises:
        InputError: If the answer is no.
    """
    if not isinstance(job.recipe, recipes.SupportsSchema):
        return 0.0
    with show_progress():
        schema = job.recipe.infer_schema(job.config)
    if schema is None:
        return 0.0
    print_status(f"{schema.to_toml()}\nThis schema was inferred from the data. To correct it:")
    print_status("  --print-schema > my.toml writes it, --schema my.toml uses it\n")
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return 0.0
    asked_at = time.monotonic()
    print_status("Train on this? [Y/n]")
    if input().strip().lower() not in ("", "y", "yes"):
        raise InputError("not trained: correct the schema (--print-schema > my.toml, then --schema my.toml)")
    return time.monotonic() - asked_at


# --- training ---


def shift_budget(job: "TrainingJob", started_at: float) -> "TrainingJob":
    """Let the minutes count from another moment."""
    if job.budget is None:
        return job
    return dataclasses.replace(job, budget=dataclasses.replace(job.budget, started_at=started_at))


def dry_run(job: "TrainingJob", as_json: bool) -> int:
    """Print what a training would take."""
    from .. import api
    from ..training.estimate import estimate, format_estimate
    from ..training.job import apply_budget

    with show_progress():
        job = apply_budget(shift_budget(job, time.monotonic()))
        facts = estimate(job.recipe, job.config) | ({"plan": job.plan} if job.plan else {})
    if as_json:
        print(json.dumps(facts))
        return 0
    print(format_estimate(f"{job.recipe_name}, not trained: this is what it would take", facts))
    if job.plan:
        print(f"  {'chosen for':<11} {api.describe_plan(job.plan, job.config)}")
    print(f"  {'export':<11} {api.describe_exports(job, explain=True)}")
    return 0


def train(job: "TrainingJob", prog: str, as_json: bool) -> int:
    """Train, and print the result."""
    from .. import api

    with api.TrainingDisplay() as display:
        try:
            with show_progress():
                model = api.train_job(job, display.start, display.update)
        except api.Stopped as stopped:
            display.close()
            print_status(f"{stopped}. Go on with: {prog} --out {shlex.quote(str(job.run.path))} --resume")
            return 1
    print_result(job, model, display, as_json)
    return 0


def print_result(job: "TrainingJob", model: "Model", display: "TrainingDisplay", as_json: bool) -> None:
    """Print an answer of the model, its validation loss and where everything is."""
    from ..report.html import describe_baselines

    run, result = job.run.path, json.loads((job.run.path / "result.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({"run": str(run)} | result))
        return
    print("\n".join(recipes.format_prediction(model.predict({}))) + "\n")
    train = model.config.train
    split = "the whole split" if train.final_every == 1 else f"one batch in {train.final_every} of the split"
    print_status(f"validation loss {result['val_loss']:.4f} over {split}, best checkpoint (step {model.step})")
    for sentence in describe_baselines(result):
        print_status(sentence)
    if display.last_val_loss is not None:
        batches = f"{train.eval_batches} batches of it" if train.eval_batches > 1 else "one batch of it"
        print_status(f"while training, val {display.last_val_loss:.3f} at the last step was measured on {batches}")
    print_status(f"trained in {result['seconds']:.0f} s")
    print_status(f"run     {run}")
    print_status(f"report  {run / 'report.html'}")
    path, recipe = shlex.quote(str(run)), recipe_argument(job)
    if isinstance(model.recipe, recipes.SupportsStream):
        print_status(f"sample  anyformer sample {path} --prompt TEXT{recipe}")
    else:
        print_status(f"ask     anyformer predict {path} INPUT{recipe}")


def recipe_argument(job: "TrainingJob") -> str:
    """The flag --recipe that a run of an outside recipe needs."""
    if job.recipe_name in recipes.list_recipes():
        return ""
    return f" --recipe {shlex.quote(inspect.getfile(cast(Any, job.recipe)))}"
