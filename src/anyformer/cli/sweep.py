"""anyformer sweep: search for a better config, and train it."""

import dataclasses
import inspect
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from .. import recipe_loading
from ..errors import InputError
from ..parsing import check_range, flatten_values, to_json
from ..training.config import MAX_MINUTES, MAX_STEPS
from .flags import HELP, POSITIONAL, JsonFlag, format_help, list_flags, make_options, read_flags
from .terminal import format_columns, print_status, show_progress
from .train import BASIC_FLAGS, SHORT_FLAGS, TrainCommand, choose_recipe, is_data, nest

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..sweep.engine import Sweep
    from ..sweep.state import SweepState, Trial
    from ..training.job import RecordCallback, TrainingJob

PROG = "anyformer sweep"
LINE_WIDTH, LINE_SECONDS = 100, 0.2  # of the line that shows a training on a terminal


@dataclass(frozen=True)
class Command:
    """Try other configs around the default one: learning rate, weight decay,
    dropout, and what the recipe adds; by the clock also batch and size.
    Many short trainings, of which the best third goes on three times as
    long; the best config is then trained anew for the other half of the
    time, into OUT/best.

    Fields that are set by a flag stay as they are. Trial 0 is the default
    config, and the comparison with it is on data that did not choose."""

    source: Annotated[str, POSITIONAL, "A recipe, or your data; then the flags of its training."] = ""
    minutes: Annotated[float | None, "The time of the whole sweep."] = None
    steps: Annotated[int | None, "Instead: steps of all trainings together. Exactly repeatable and resumable."] = None
    trials: Annotated[int | None, "How many configs. Default: as many as can be judged, up to 27."] = None
    sampler: Annotated[
        Literal["random", "tpe"] | None, "How they are chosen; tpe (Optuna) learns from earlier ones. Default: random."
    ] = None
    check: Annotated[bool, "Also train the default config as long as the whole sweep, and compare."] = False
    preset: Annotated[str | None, "Where the defaults come from."] = None
    out: Annotated[Path | None, "The folder of the sweep. Default: a new one below runs/."] = None
    resume: Annotated[bool, "Continue the sweep in --out, or start it if there is none yet."] = False
    yes: Annotated[bool, "Start without asking, where data can be read in several ways."] = False
    json: JsonFlag = False

    def __post_init__(self) -> None:
        check_range(self, "minutes", above=0, at_most=MAX_MINUTES)
        check_range(self, "steps", at_least=1, at_most=MAX_STEPS)
        check_range(self, "trials", at_least=1, at_most=10_000)


class SweepCommand(TrainCommand):
    """The flags of a recipe and of a sweep."""

    kind: ClassVar[Any] = Command
    short_flags: ClassVar[Mapping[str, str]] = {n: flag for n, flag in SHORT_FLAGS.items() if n != "--train.steps"}
    basic_flags: ClassVar[Sequence[str]] = (
        *("--minutes", "--steps", "--trials", "--sampler", "--check"),
        *(name for name in BASIC_FLAGS if name not in ("--minutes", "--steps", "--init", "--dry-run")),
    )

    def read(self) -> tuple[Any, dict[str, Any]]:
        """Return the options, and the config fields that were given, nested. Raises InputError."""
        values = read_flags([*self.options, *self.fields], self.words, self.prog)
        options, overrides = (nest(flags, values) for flags in (self.options, self.fields))
        if "--train.steps" in values:
            raise InputError("--train.steps is chosen for each trial: --steps is the total of all of them")
        if "minutes" in options and "steps" in options:
            raise InputError("--steps and --minutes both say how long: give one of them")
        if options.get("resume") and "out" not in options:
            raise InputError("--resume needs --out FOLDER: the folder of a sweep")
        return make_options(Command, options), overrides


def run(arguments: list[str]) -> int:
    started_at = time.monotonic()
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in HELP:
            raise InputError(f"{PROG} needs data or a recipe first: a file or a folder, or a recipe's name")
        print(format_help(PROG, inspect.getdoc(Command) or "", list(list_flags(Command))))
        return 0 if arguments else 2
    source, *words = arguments
    if is_data(source):
        source, words = choose_recipe(source, words)
    command = SweepCommand(recipe_loading.load_recipe(source), words, f"{PROG} {shlex.quote(source)}")
    if HELP & set(words):
        print(command.format_help(show_all="--help-all" in words))
        return 0
    options, overrides = command.read()
    return run_sweep(command, options, overrides, shlex.join(["anyformer", "sweep", *arguments]), started_at)


def run_sweep(command: SweepCommand, options: Command, overrides: dict[str, Any], typed: str, started_at: float) -> int:
    """Begin or continue a sweep, and print its result. Returns the exit code."""
    from .. import api
    from ..sweep.engine import Sweep
    from ..training.run_directory import RunDirectory

    with show_progress():
        job, folder, state = resolve_sweep(command, options, overrides, typed, started_at)
        train = TrainWords(command.recipe, command.prog.replace("sweep", "train", 1), job.preset, state.unit)
        show = ShowSweep(state.unit)
        sweep = Sweep(job, folder, state, show, train.describe, options.check, started_at)
        with RunDirectory(folder).lock():
            try:
                sweep.run()
            except (api.Stopped, KeyboardInterrupt) as stopped:
                go_on = f"{command.prog} --out {shlex.quote(str(folder))} --resume"
                text = "interrupted" if isinstance(stopped, KeyboardInterrupt) else str(stopped)
                print_status(f"{text}. Go on with: {go_on}{' --check' if options.check else ''}")
                return 1
    facts = describe_sweep(sweep)
    print(json.dumps(facts, ensure_ascii=False) if options.json else "\n".join(format_sweep(sweep, facts)))
    return 0


# --- from flags to a sweep ---


def resolve_sweep(
    command: SweepCommand, options: Command, overrides: dict[str, Any], typed: str, started_at: float
) -> "tuple[TrainingJob, Path, SweepState]":
    """Return the job of the default config, the folder, and the state that the sweep starts or continues from. Raises
    InputError."""
    from ..sweep.state import FILE, read_state

    if options.out is not None and (options.out / FILE).is_file():
        if not options.resume:
            raise InputError(f"{options.out} already holds a sweep: continue it with --resume, or choose another --out")
        state = read_state(options.out)
        return resume_sweep(command, options, overrides, state), options.out, state
    return begin_sweep(command, options, overrides, typed, started_at)


def begin_sweep(
    command: SweepCommand, options: Command, overrides: dict[str, Any], typed: str, started_at: float
) -> "tuple[TrainingJob, Path, SweepState]":
    from ..resolve_job import choose_run
    from ..sweep.schedule import SEARCH_SHARE, check_total
    from ..sweep.state import SweepState
    from ..training import budget as budgets
    from ..training.run_directory import RunDirectory

    if options.minutes is None and options.steps is None:
        raise InputError(f"{PROG} needs --minutes, the time of the whole sweep, or --steps")
    unit, total = ("seconds", options.minutes * 60) if options.minutes is not None else ("steps", options.steps or 0)
    if options.trials is not None:
        check_total(total, unit, options.trials)
    minutes = None if options.minutes is None else options.minutes * (1 - SEARCH_SHARE)
    job = command.resolve(overrides, {"preset": options.preset, "minutes": minutes, "yes": True, "command": typed})
    folder = choose_run(f"sweep-{job.recipe_name}", job.config).path if options.out is None else options.out
    RunDirectory(folder).require_unused()
    if has_law := job.budget is not None and job.budget.choose_size:
        budget = dataclasses.replace(job.budget, started_at=started_at)
        (config, _), _ = budgets.choose_size(job.recipe, job.config, budget)
        job = dataclasses.replace(job, config=config)
    state = SweepState(
        recipe=job.recipe_name,
        preset=job.preset,
        config=to_json(job.config),
        unit=unit,
        total=total,
        n_trials=options.trials or 0,
        sampler=options.sampler or "random",
        fixed=tuple(name for name, _ in flatten_values(overrides)),
        vary_size=not has_law,
        command=typed,
    )
    return dataclasses.replace(job, budget=None), folder, state


def resume_sweep(
    command: SweepCommand, options: Command, overrides: dict[str, Any], state: "SweepState"
) -> "TrainingJob":
    """Return the job of a stored sweep. Raises InputError if the flags ask for another sweep than that."""
    from ..resolve_job import merge_overrides, resolve_paths
    from ..training.job import TrainingJob
    from ..training.run_directory import RunDirectory

    name = recipe_loading.recipe_name(command.recipe)
    if state.recipe != name:
        raise InputError(f"{options.out} is a sweep of recipe '{state.recipe}', not '{name}'")
    begun: dict[str, Any] = {"trials": state.n_trials, "preset": state.preset, "sampler": state.sampler}
    begun |= {"minutes": round(state.total / 60, 9)} if state.unit == "seconds" else {"steps": int(state.total)}
    for flag in ("minutes", "steps", "trials", "preset", "sampler"):
        value = getattr(options, flag)
        if value is not None and value != begun.get(flag):
            hint = f"with --{flag} {begun[flag]}, not {value}" if flag in begun else f"without --{flag}"
            raise InputError(f"{options.out} was begun {hint}: leave it out, or start a new sweep")
    config = recipe_loading.parse_config(command.recipe, state.config, "sweep.json")
    changed = resolve_paths(recipe_loading.parse_config(command.recipe, merge_overrides(state.config, overrides), ""))
    if changed != config:
        raise InputError(f"{options.out} was begun with another config: leave its flags out, or start a new sweep")
    run = RunDirectory((options.out or Path()) / "best")
    return TrainingJob(recipe=command.recipe, preset=state.preset, config=config, run=run)


class TrainWords:
    """Command lines of `anyformer train` for a config."""

    def __init__(self, recipe: "Recipe", prog: str, preset: str, unit: str):
        self.unit, self.prog, self.preset, self.default = unit, prog, preset, recipe_loading.get_preset(recipe, preset)
        self.flags = TrainCommand(recipe, ["--preset", preset], prog).fields

    def describe(self, config: Any, amount: float, out: Path) -> str:
        """Return the command that trains a config for so many seconds, or for the steps in it."""
        values, defaults = (dict(flatten_values(to_json(c))) for c in (config, self.default))
        is_timed = self.unit == "seconds"
        words = [self.prog, "--preset", shlex.quote(self.preset)]
        for flag in self.flags:
            name = ".".join(flag.path)
            if values[name] != defaults[name] and not (is_timed and name == "train.steps"):
                value = values[name]
                texts = value if isinstance(value, list) else [value]
                words += [flag.name, *(shlex.quote(str(text)) for text in texts)] if flag.count == "many" else [
                    f"{flag.name}={shlex.quote(str(value))}"
                ]  # fmt: skip
        words += ["--minutes", f"{amount / 60:.4g}"] if is_timed else []
        return " ".join([*words, "--out", shlex.quote(str(out))])


# --- what a person sees ---


class ShowSweep:
    """Lines on stderr; on a terminal also the training that runs."""

    def __init__(self, unit: str):
        self.unit = unit

    def start_trial(self, trial: "Trial", rung: int, run: Path) -> "RecordCallback":
        return self.show_records(f"rung {rung + 1} · {trial.name}")

    def end_trial(self, trial: "Trial", rung: int) -> None:
        name = f"{trial.name} (default)" if trial.number == 0 else trial.name
        outcome = f"cannot be trained: {trial.error}" if trial.error else f"loss {trial.loss:.4f}"
        self.print_line(f"rung {rung + 1} · {name} · {outcome} · {format_values(trial.values)}")

    def start_final(self, trial: "Trial", name: str, amount: float) -> "RecordCallback":
        self.print_line(f"{name}: the config of {trial.name}, from the start for {format_amount(amount, self.unit)}")
        return self.show_records(name)

    def print_line(self, text: str) -> None:
        clear = f"\r{'':<{LINE_WIDTH}}\r" if sys.stderr.isatty() else ""
        print_status(clear + text)

    def show_records(self, title: str) -> "RecordCallback":
        is_terminal, due = sys.stderr.isatty(), 0.0

        def show(record: dict[str, Any]) -> None:
            nonlocal due
            if is_terminal and (now := time.monotonic()) >= due:
                due = now + LINE_SECONDS
                text = f"{title} · step {record['step']:,} · loss {record['loss']:.3f}"
                print(f"\r{text[:LINE_WIDTH]:<{LINE_WIDTH}}", end="", file=sys.stderr, flush=True)

        return show


def format_amount(amount: float, unit: str) -> str:
    return f"{amount:.0f} s" if unit == "seconds" else f"{amount:,.0f} steps"


def format_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{shorten(name)} {format_value(value)}" for name, value in values.items())


def format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shorten(name: str) -> str:
    """Return the last part of a field's name: "encoder.dropout,decoder.dropout" -> "dropout"."""
    return name.split(",")[0].rpartition(".")[2]


def describe_sweep(sweep: "Sweep") -> dict[str, Any]:
    """Return the result as plain values."""
    state, final = sweep.state, sweep.state.final
    trials = [
        {"number": trial.number, "run": str(sweep.folder / trial.name), "values": trial.values}
        | {"losses": [result.loss for result in trial.results]}
        | {"step": trial.results[-1].step if trial.results else 0, "error": trial.error or None}
        for trial in state.trials
    ]
    name, number, amount = "best", final["winner"], final["amount"]
    if state.is_default_best:
        name, number, amount = "default", 0, state.total
    return {
        "folder": str(sweep.folder),
        "seconds": state.seconds,
        "trials": trials,
        "best": {"trial": number, "values": state.trials[number].values}
        | {"run": str(sweep.folder / name), "amount": amount, "unit": state.unit},
        "held_out": {"data": sweep.parts[1].about, **final["held_out"]},
        "verdict": describe_verdict(state),
        "command": final["commands"][name],
    }


def describe_verdict(state: "SweepState") -> list[str]:
    """Say whether the best config beats the default one on data that did not choose."""
    final, losses = state.final, {name: metrics["loss"] for name, metrics in state.final["held_out"].items()}
    chosen, default = state.trials[final.get("chosen", final["winner"])].name, state.trials[0].name
    if len(state.trials) == 1:
        lines = ["the time allowed no other config: best is the default config"]
    elif chosen == default:
        lines = ["no config that was tried beats the default one: best is the default config"]
    elif default in losses:
        word = "beats" if losses[chosen] < losses[default] else "does not beat"
        values = f"loss {losses[chosen]:.4f} beside {losses[default]:.4f}"
        lines = [f"trained equally long, {chosen} {word} the default config: {values}"]
        lines[0] += ": best is the default config" if final["winner"] == 0 else ""
    else:
        lines = [f"the default config cannot be trained: {state.trials[0].error}"]
    total = format_amount(state.total, state.unit)
    if "default" not in losses:
        return [*lines, f"at equal total, {total}, it was not compared: --resume --check trains the default config too"]
    values = f"loss {losses['best']:.4f} beside {losses['default']:.4f}"
    if state.is_default_best:
        text = f"the sweep does not beat the default config: {values}: use the default config, trained for {total}"
    else:
        text = f"the sweep beats the default config: {values}"
    return [*lines, f"at equal total, {total}, {text}"]


def format_sweep(sweep: "Sweep", facts: dict[str, Any]) -> list[str]:
    """Return the lines for a person: the trials, the best first, and what came of it."""
    state = sweep.state
    heading = ["trial", *map(shorten, sweep.space), "rungs", "steps", "loss"]
    rows = []
    for trial in sorted(state.trials, key=lambda trial: (bool(trial.error), -len(trial.results), trial.loss)):
        name = f"{trial.number} default" if trial.number == 0 else str(trial.number)
        name += " *" if trial.number == facts["best"]["trial"] else ""
        outcome = "failed" if trial.error else f"{trial.loss:.4f}"
        steps = f"{trial.results[-1].step:,}" if trial.results else ""
        cells = [format_value(trial.values[field]) for field in sweep.space]
        rows.append([name, *cells, str(len(trial.results)), steps, outcome])
    lines = [format_columns([heading, *rows], right=range(1, len(heading))), ""]
    lines.append(f"on {facts['held_out']['data']}:")
    lines += [f"  {line}" for line in facts["verdict"]]
    for name, metrics in state.final["held_out"].items():
        values = [f"{key.replace('_', ' ')} {value:.4f}" for key, value in metrics.items() if isinstance(value, float)]
        lines.append(f"  {name:<10} {', '.join(values)}")
    lines += ["", f"took       {state.seconds:.0f} s", f"best       {facts['best']['run']}"]
    return [*lines, f"reproduce  {facts['command']}"]
