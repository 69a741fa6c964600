"""anyformer train: a recipe by its name or for some data, its config as flags, and where and how long to train."""

import dataclasses
import difflib
import inspect
import itertools
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from .. import recipe as recipes
from .. import recipe_loading
from ..data.io.checks import read_json
from ..data.io.sources import combine_sources
from ..errors import InputError
from ..parsing import check_path, check_range, parse_dataclass, to_json
from ..processes import get_world_size
from ..training.config import MAX_MINUTES, LoRAConfig
from .flags import HELP, REPEATABLE, Flag, JsonFlag, format_help, list_flags, make_options, read_flags
from .terminal import print_masked, print_status, show_progress

MAX_FOLDS, MAX_PROCESSES = 100, 1024
DATA = ("data",)  # the path of the field that names the data

if TYPE_CHECKING:
    from ..trained_model import Model
    from ..training.job import TrainingJob

PROG = "anyformer train"
SHORT_FLAGS = {f"--train.{name}": f"--{name}" for name in ("steps", "seed", "device", "dtype", "compile")}
BASIC_FLAGS = (
    "--data", "--preset", "--minutes", "--steps", "--out", "--resume", "--init", "--tokenizer", "--train.batch",
    "--train.lr", "--model.context", "--seed", "--device", "--dtype", "--dry-run", "--yes", "--json",
)  # fmt: skip
# Of some recipes only.
ABILITY_FLAGS = {"--print-schema": recipes.SupportsSchema, "--show-mask": recipes.SupportsLossMask}


@dataclass(frozen=True)
class Options:
    """The flags of every training, besides those of the recipe's config."""

    preset: Annotated[str | None, "Where the defaults come from."] = None
    minutes: float | None = None
    """Train for this time, everything included; with --resume, so many more minutes. Without a preset or a flag of
    model or train, recipes with several sizes train the one with the lowest predicted loss."""
    out: Annotated[Path | None, "The run directory. Default: a new one below runs/."] = None
    resume: Annotated[bool, "Continue the run in --out, or start it if there is none yet."] = False
    seeds: int | None = None
    """Train the same config with the seeds 1 to this one, into OUT-seed-1 ..., and print the mean and the standard
    deviation of the final metrics. With --minutes each run takes as long; --resume continues the series."""
    folds: int | None = None
    """Cross-validation: train on all but each of so many parts of the rows in turn, into OUT-fold-1 ..., and print the
    mean and the standard deviation of the final metrics, also into OUT/result.json. With --minutes each fold takes as
    long, so that 5 folds take 5 times the minutes."""
    processes: int = 1
    """Train in so many processes of this machine, each with a GPU of its own if there are some; they start again by
    themselves if one is killed. Several machines: torchrun -m anyformer train ..."""
    compare: bool = False
    """Train another kind of model beside on the same split (of tables gradient boosting, which needs scikit-learn), and
    say at the end which was better; with --folds, on how many of them."""
    init: Annotated[Path | None, "Start from this run, public checkpoint or owner/name of the hub (fine-tuning)."] = (
        None
    )
    lora: LoRAConfig = field(default_factory=LoRAConfig)  # adapters on the model of --init (2106.09685)
    track: Annotated[tuple[str, ...], REPEATABLE] = ()
    """Send the records to tensorboard, wandb, mlflow or trackio too; give the flag again for several."""
    dry_run: Annotated[bool, "Print what training would take (parameters, FLOPs, memory, shapes), and stop."] = False
    print_schema: Annotated[bool, "Print the schema of a table, and stop."] = False
    show_mask: Annotated[bool, "Print examples of the data, trained tokens in color, and stop."] = False
    print_config: Annotated[bool, "Print the resolved config, and stop."] = False
    yes: Annotated[bool, "Start without asking: with an inferred schema, or --minutes that are too few."] = False
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "minutes", above=0, at_most=MAX_MINUTES)
        check_range(self, "seeds", at_least=2, at_most=1000)
        check_range(self, "folds", at_least=2, at_most=MAX_FOLDS)
        check_range(self, "processes", at_least=1, at_most=MAX_PROCESSES)


def run(arguments: list[str]) -> int:
    started_at = time.monotonic()
    if not arguments or arguments[0].startswith("-"):
        return print_usage(arguments)
    source, *words = arguments
    has_preset = "--preset" in [word.split("=", 1)[0] for word in words]
    if is_data(source):
        source, words = choose_recipe(source, words)
    command = TrainCommand(load_recipe(source), words, f"{PROG} {shlex.quote(source)}")
    if HELP & set(words):
        print(command.format_help(show_all="--help-all" in words))
        return 0
    options, overrides = command.read()
    names = ("preset", "minutes", "yes", "out", "resume", "init", "track", "compare")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"lora": dataclasses.asdict(options.lora), "command": shlex.join(["anyformer", "train", *arguments])}
    settings["is_preset_free"] = not has_preset
    is_several = options.seeds is not None or options.folds is not None
    is_shown = options.print_config or options.print_schema or options.dry_run or options.show_mask
    if is_several and not is_shown:
        from .train_several import train_several

        return train_several(command, options, overrides, settings, started_at)
    job = command.resolve(overrides, settings)
    if options.print_config:
        print(json.dumps({"recipe": job.recipe_name, "preset": job.preset, "config": to_json(job.config)}, indent=2))
    elif options.print_schema:
        print(read_schema(job), end="")
    elif options.show_mask:
        print_masked(mask_examples(job))
    elif options.dry_run:
        dry_run(job, options.json, options.processes)
    else:
        job = shift_budget(job, started_at + (0.0 if job.is_resumed else confirm_schema(job, options.yes)))
        if options.processes > 1 and get_world_size() == 1:
            from .launch import check_start, launch

            check_start(job, options.processes)
            del job  # with the model of --init, which the processes load themselves
            return launch([source, *drop_flag(words, "--processes"), "--yes"], options.processes)
        return train(job, command.prog, options.json)
    return 0


def print_usage(arguments: list[str]) -> int:
    """Print how the verb is used. Raises InputError if a flag stands where the recipe should."""
    names = ", ".join(recipe_loading.list_recipes())
    if arguments and arguments[0] not in HELP:
        raise InputError(f"{PROG} needs data or a recipe first: a file or a folder, or one of {names}")
    print(f"usage: {PROG} PATH [--recipe R] [--target COLUMN] [--minutes M] [--out DIR] ...")
    print(f"       {PROG} URL|SET|OWNER/NAME ...        a file elsewhere, a named set, a data set on the hub")
    print(f"       {PROG} RECIPE [--data D] [--preset P] [--minutes M] [--out DIR] ...\n")
    print(textwrap.fill(f"recipes: {names}; or one of your own: ./my_recipe.py, mypackage.my_recipe", 80))
    print(f"\n{PROG} RECIPE --help lists the flags of a recipe.")
    return 0 if arguments else 2


def is_data(source: str) -> bool:
    """Whether the first word names data, not a recipe."""
    from ..data.io.remote import is_remote
    from ..data.registry import GENERATED, SETS

    check_path(source, "the recipe or data")
    path = Path(source).expanduser()
    if source in recipe_loading.list_recipes() or is_recipe_file(source):
        return False
    return path.exists() or source in (*SETS, *GENERATED) or is_remote(source)


def is_recipe_file(source: str) -> bool:
    return source.endswith(".py") or is_recipe(Path(source).expanduser())


def load_recipe(source: str) -> recipes.Recipe:
    """Load a recipe; a word that names none may have been meant for data. Raises InputError."""
    try:
        return recipe_loading.load_recipe(source)
    except InputError as error:
        if is_python_path(source) or is_recipe_file(source) or Path(f"{source}.py").is_file():
            raise
        raise explain_unknown(source, error) from None


def is_python_path(source: str) -> bool:
    """Whether a word may be a Python path, such as mypackage.my_recipe; my_data.csv is none."""
    from ..data.io.hub import LOCAL_FILE

    return "." in source and "/" not in source and not LOCAL_FILE.fullmatch(source)


def explain_unknown(source: str, error: InputError) -> InputError:
    """Return the error for a word that is neither a recipe nor data: as it is, if the word is near a recipe's name."""
    from ..data.registry import GENERATED, SETS

    if "/" in source:
        return InputError(f"there is no file or folder {source} (looked in {Path.cwd()})")
    names = [*recipe_loading.list_recipes(), *SETS, *GENERATED, *(path.name for path in Path().iterdir())]
    nearest = difflib.get_close_matches(source, names, n=1)
    if nearest and nearest[0] in recipe_loading.list_recipes():
        return error
    hint = f"did you mean '{nearest[0]}'?" if nearest else "anyformer list shows the recipes and named data sets"
    order = "a recipe, a file or folder here, a named data set or owner/name on the hub"
    return InputError(f"'{source}' is none of {order}: {hint}")


def is_recipe(path: Path) -> bool:
    """Whether a folder is a package that may be a recipe."""
    file = path / "__init__.py"
    return file.is_file() and "PRESETS" in file.read_text("utf-8", errors="replace")


def choose_recipe(path: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the recipe for some data, and the flags for them before those that were given. Raises InputError."""
    from ..detection import detect_recipe

    words, names = list(words), []
    while "--recipe" in words:
        place = words.index("--recipe")
        names = words[place + 1 : place + 2]
        del words[place : place + 2]
        if not names:
            raise InputError(f"--recipe needs a value: one of {', '.join(recipe_loading.list_recipes())}")
    target = next((value for word, value in itertools.pairwise([*words, ""]) if word == "--target"), "")
    target = next((word.partition("=")[2] for word in words if word.startswith("--target=")), target)
    with show_progress():
        detection = detect_recipe(path, names[0] if names else None, target)
    print_status(detection.describe())
    if not (names or detection.is_sure or {"--yes", *HELP} & set(words)):
        choices = " or ".join((detection.recipe, *detection.alternatives))
        if not detection.alternatives:
            raise InputError(f"{path} fits that badly: --recipe {choices} reads it so in spite of it")
        if not confirm(f"Train {detection.recipe} on this?"):
            raise InputError(f"{path} can be read in several ways: choose with --recipe {choices}")
    fields = detection.fields | ({"preset": detection.preset} if detection.preset else {})
    chosen = {word.split("=", 1)[0] for word in words}
    flags = {f"--{name.replace('_', '-')}": value for name, value in fields.items()}
    return detection.recipe, [f"{flag}={value}" for flag, value in flags.items() if flag not in chosen] + words


def confirm(question: str) -> bool:
    """Ask on a terminal; without one, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty() and get_world_size() == 1):
        return False
    print_status(f"{question} [Y/n]")
    return input().strip().lower() in ("", "y", "yes")


class TrainCommand:
    """The flags of a recipe, and their values in the words of the command line."""

    kind: ClassVar[Any] = Options
    short_flags: ClassVar[Mapping[str, str]] = SHORT_FLAGS
    basic_flags: ClassVar[Sequence[str]] = BASIC_FLAGS

    def __init__(self, recipe: recipes.Recipe, words: Sequence[str], prog: str):
        self.recipe, self.words, self.prog = recipe, words, prog
        pairs = itertools.pairwise(part for word in words for part in word.split("=", 1))
        self.preset = next(
            (value for flag, value in pairs if flag == "--preset"), recipe_loading.default_preset(recipe)
        )
        config = recipe_loading.get_preset(recipe, self.preset)
        options = list_flags(self.kind, self.kind(preset=self.preset))
        self.options = [flag for flag in options if not flag.is_positional]
        taken = {*self.short_flags.values(), *(flag.name for flag in self.options)}
        self.fields: list[Flag] = []
        for flag in list_flags(type(config), config, taken=taken):
            short = (self.short_flags[flag.name],) if flag.name in self.short_flags else ()
            count = "repeated" if flag.path == DATA else flag.count  # several sources
            self.fields.append(dataclasses.replace(flag, aliases=flag.aliases + short, count=count))

    def read(self) -> tuple[Options, dict[str, Any]]:
        """Return the options, and the config fields that were given, nested. Raises InputError."""
        values = read_flags([*self.options, *self.fields], self.words, self.prog)
        options, overrides = (nest(flags, values) for flags in (self.options, self.fields))
        if "lora" in options:
            options["lora"] = parse_dataclass(LoRAConfig, options["lora"], "--lora")
        if "minutes" in options and "--train.steps" in values:
            raise InputError("--steps and --minutes both say how long: give one of them")
        check_several(options, "--train.seed" in values)
        if options.get("processes", 1) > 1 and not {"out", "dry_run"} & set(options):
            raise InputError("--processes needs a run directory that all know: --out DIR")
        if options.get("resume") and "out" not in options:
            raise InputError(f"--resume needs --out RUN: {newest_run()}")
        return make_options(Options, options), overrides

    def resolve(self, overrides: dict[str, Any], settings: dict[str, Any]) -> "TrainingJob":
        """Resolve a job. Raises InputError that names flags."""
        from .. import api

        try:
            with show_progress():
                return api.resolve_job(self.recipe, overrides=overrides, **settings)
        except InputError as error:
            raise InputError(self.name_flags(str(error))) from None

    def name_flags(self, message: str) -> str:
        """Name the flag in a message about a config field: "train.steps is 0" -> "--steps is 0"."""
        path, space, text = message.partition(" ")
        names = {".".join(flag.path): flag.name for flag in (*self.fields, *self.options)}
        typed = [(flag, alias) for flag in self.fields for alias in flag.aliases if alias in self.words]
        names |= {".".join(flag.path): alias for flag, alias in typed}
        return f"{names.get(path, path)}{space}{text}"

    def format_help(self, show_all: bool) -> str:
        """The help: the basic flags, and the others too or only their names."""
        short = self.short_flags
        flags = [dataclasses.replace(flag, name=short[flag.name]) for flag in self.fields if flag.name in short]
        presets = f"Where the defaults come from: {', '.join(self.recipe.PRESETS)}."
        flags += [dataclasses.replace(flag, help=presets) if flag.name == "--preset" else flag for flag in self.options]
        flags += self.fields
        own = [name for name, ability in ABILITY_FLAGS.items() if isinstance(self.recipe, ability)]
        names = (*self.basic_flags, *(own if self.kind is Options else ()))
        basic = [flag for name in names for flag in flags if flag.name == name]
        others = [flag for flag in flags if flag not in basic]
        about = inspect.getdoc(self.recipe) or ""
        if show_all:
            return format_help(self.prog, about, basic + others)
        groups = itertools.groupby(others, lambda flag: flag.name.partition(".")[0] if "." in flag.name else "")
        lines = [" ".join(flag.name for flag in group) for _, group in groups]
        text = textwrap.indent("\n".join(textwrap.fill(line, 78, break_on_hyphens=False) for line in lines), "  ")
        return format_help(self.prog, about, basic, f"more flags, explained by {self.prog} --help-all:\n{text}")


def drop_flag(words: Sequence[str], name: str) -> list[str]:
    """Return the words of a command line without a flag and its value."""
    place = next((i for i, word in enumerate(words) if word.split("=", 1)[0] == name), len(words))
    return [*words[:place], *words[place + (1 if "=" in "".join(words[place : place + 1]) else 2) :]]


def nest(flags: Iterable[Flag], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of these flags by their paths: {"--model.dim": 8} -> {"model": {"dim": 8}}; several sources of
    data as one text."""
    nested: dict[str, Any] = {}
    for flag in flags:
        if flag.name in values:
            inner = nested
            for name in flag.path[:-1]:
                inner = inner.setdefault(name, {})
            value = values[flag.name]
            inner[flag.path[-1]] = combine_sources(value) if flag.path == DATA else value
    return nested


def check_several(options: dict[str, Any], has_seed: bool) -> None:
    """Raise InputError if --seeds, --folds and --seed exclude each other."""
    if "seeds" in options and "folds" in options:
        raise InputError("--seeds and --folds both train several runs: give one of them")
    if "processes" in options and ("seeds" in options or "folds" in options):
        raise InputError("--processes trains one run in several processes: leave --seeds and --folds out")
    if "seeds" in options and has_seed:
        raise InputError("--seeds N trains the seeds 1 to N: leave --seed out")


def newest_run() -> str:
    """Point to the newest run."""
    runs = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return f"the newest is --out {shlex.quote(str(runs[-1].parent))}" if runs else "there is none below runs/ yet"


# --- schemas of tables ---


def read_schema(job: "TrainingJob") -> str:
    """Return the schema that applies to the data, as TOML. Raises InputError for a recipe without one."""
    if not isinstance(job.recipe, recipes.SupportsSchema):
        names = recipe_loading.recipes_with(recipes.SupportsSchema)
        raise InputError(f"--print-schema is for recipes of tables ({names}), not for '{job.recipe_name}'")
    with show_progress():
        return job.recipe.read_schema(job.config).to_toml()


def confirm_schema(job: "TrainingJob", yes: bool) -> float:
    """Show an inferred schema, and ask on a terminal whether it is right. Raises InputError if the answer is no.

    Returns:
        The seconds that the answer took, which do not count as training.
    """
    if not isinstance(job.recipe, recipes.SupportsSchema):
        return 0.0
    with show_progress():
        schema = job.recipe.infer_schema(job.config)
    if schema is None:
        return 0.0
    print_status(f"{schema.to_toml()}\nThis schema was inferred from the data. To correct it:")
    print_status("  --print-schema > my.toml writes it, --schema my.toml uses it\n")
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty() and get_world_size() == 1):
        return 0.0
    asked_at = time.monotonic()
    if not confirm("Train on this?"):
        raise InputError("not trained: correct the schema (--print-schema > my.toml, then --schema my.toml)")
    return time.monotonic() - asked_at


def mask_examples(job: "TrainingJob") -> list[recipes.MaskedExample]:
    """Return examples and what is trained in them. Raises InputError for a recipe that trains everything."""
    if not isinstance(job.recipe, recipes.SupportsLossMask):
        names = recipe_loading.recipes_with(recipes.SupportsLossMask)
        raise InputError(f"--show-mask is for the recipes {names}, not for '{job.recipe_name}'")
    with show_progress():
        return job.recipe.mask_examples(job.config)


# --- training ---


def shift_budget(job: "TrainingJob", started_at: float) -> "TrainingJob":
    """Let the minutes count from another moment."""
    budget = job.budget and dataclasses.replace(job.budget, started_at=started_at)
    return dataclasses.replace(job, budget=budget)


def dry_run(job: "TrainingJob", as_json: bool, processes: int) -> None:
    """Print what a training in so many processes would take."""
    from .. import api
    from ..training.estimate import estimate, format_estimate
    from ..training.job import apply_budget

    with show_progress():
        job = apply_budget(shift_budget(job, time.monotonic()))
        facts = estimate(job.recipe, job.config, processes) | ({"plan": job.plan} if job.plan else {})
    if as_json:
        print(json.dumps(facts))
        return
    print(format_estimate(f"{job.recipe_name}, not trained: this is what it would take", facts))
    if job.plan:
        print(f"  {'chosen for':<11} {api.describe_plan(job.plan, job.config)}")
    print(f"  {'export':<11} {api.describe_exports(job, explain=True)}")


def train(job: "TrainingJob", prog: str, as_json: bool) -> int:
    """Train, and print the result. Returns the exit code."""
    trained = train_to_end(job, f"{prog} --out {shlex.quote(str(job.run.path))} --resume")
    if trained is None:
        return 1
    model, shown = trained
    if model is not None:
        print_result(job, model, shown.get("val_loss"), as_json)
    return 0


def train_to_end(job: "TrainingJob", go_on: str) -> "tuple[Model | None, dict[str, Any]] | None":
    """Train with a progress bar. Returns the model (the first of several processes has it) and the last values shown;
    None if it was stopped, after printing the command to go on with."""
    from .. import api

    try:
        with api.show_training() as (start, update, shown), show_progress():
            return api.train_job(job, start, update), shown
    except api.Stopped as stopped:
        print_status(f"{stopped}. Go on with: {go_on}")
        return None


def describe_seconds(result: dict[str, Any], config: Any) -> str:
    """Say how long a training took, beside the time that was asked for, and whether it stopped early."""
    took = f"trained in {result['seconds']:.0f} s"
    took += f" of the {result['minutes'] * 60:.0f} s of --minutes" if "minutes" in result else ""
    train, best = config.train, result.get("best_step", result["step"])
    is_early = train.patience and result["step"] - best >= train.patience * train.eval_every
    why = f"the last {train.patience} validations were no better than that of step {best}"
    return f"{took}; stopped early at step {result['step']}: {why} (--train.patience 0 goes on)" if is_early else took


def describe_comparison(result: dict[str, Any]) -> list[str]:
    """Say which was better, this model or the best of those that --compare trained beside it."""
    if not (facts := result.get("comparison")):
        return []
    metric, peer = facts["metric"].replace("_", " "), facts["peer"]
    values = f"{metric} {facts['value']:.4g} of this model, {facts['peer_value']:.4g} of {peer}, on the same split"
    verdicts = {"this model": f"this model was better than {peer}", peer: f"{peer} was better: use it for these data"}
    return [f"{verdicts.get(facts['winner'], f'this model and {peer} were equal')} ({values})"]


def print_result(job: "TrainingJob", model: "Model", last_val_loss: float | None, as_json: bool) -> None:
    """Print an answer of the model, its validation loss and where everything is."""
    from ..answer_text import format_prediction
    from ..report.html import describe_baselines, describe_metrics, describe_overfitting, describe_sources

    run, result = job.run.path, read_json(job.run.path / "result.json")
    if as_json:
        print(json.dumps({"run": str(run)} | result))
        return
    if answer := format_prediction(model.predict({})):
        print("\n".join(answer) + "\n")
    train = model.config.train
    split = "the whole split" if train.final_every == 1 else f"one batch in {train.final_every} of the split"
    lines = [f"validation loss {result['val_loss']:.4f} over {split}, best checkpoint (step {model.step})"]
    lines += [
        *describe_metrics(result),
        *describe_baselines(result),
        *describe_overfitting(result),
        *describe_comparison(result),
        *describe_sources(result),
    ]
    if last_val_loss is not None:
        batches = f"{train.eval_batches} batches of it" if train.eval_batches > 1 else "one batch of it"
        lines.append(f"while training, val {last_val_loss:.3f} at the last step was measured on {batches}")
    lines += [describe_seconds(result, model.config), f"run     {run}", f"report  {run / 'report.html'}"]
    recipe = ""
    if job.recipe_name not in recipe_loading.list_recipes():
        recipe = f" --recipe {shlex.quote(inspect.getfile(cast(Any, job.recipe)))}"
    verb, what = "ask     anyformer predict", "INPUT"
    if isinstance(model.recipe, recipes.SupportsStream):
        verb, what = "sample  anyformer sample", "--prompt TEXT"
    print_status("\n".join([*lines, f"{verb} {shlex.quote(str(run))} {what}{recipe}"]))
