"""anyformer runs: what was trained; and remove, prune and open runs."""

import json
import os
import shlex
import shutil
import sys
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ..data.io.sources import describe_data
from ..errors import InputError
from ..report.runs import RunSummary, find_run, find_runs, list_runs, measure_folder, name_run, summarize_run
from ..training.run_directory import RunDirectory, report_write_errors
from .flags import POSITIONAL, JsonFlag
from .terminal import format_columns, print_status

DEFAULT_FOLDER = Path("runs")


@dataclass(frozen=True)
class Command:
    """List the runs below a folder, newest first; or remove, prune or open some.

    anyformer runs [FOLDER]        a table: score, baseline, minutes, size, state
    anyformer runs rm NAME ...     remove runs; none that is being trained
    anyformer runs prune [NAME ..] remove checkpoints but the best and the last
    anyformer runs open NAME       open the report in the browser"""

    words: Annotated[
        tuple[str, ...], POSITIONAL, "A folder (default: runs); or rm, prune, open and names of runs."
    ] = ()
    folder: Annotated[Path, "With rm, prune and open: where the names are looked for."] = DEFAULT_FOLDER
    yes: Annotated[bool, "With rm: remove without asking."] = False
    dry_run: Annotated[bool, "With rm and prune: only say what would be removed."] = False
    json: JsonFlag = False


def run(options: Command) -> None:
    action, *names = options.words or ("",)
    if action not in ACTIONS:
        return print_runs(Path(action or options.folder), names, options.json)
    facts, lines = ACTIONS[action](names, options)
    print(json.dumps(facts) if options.json else "\n".join(lines))


# --- the table ---


def print_runs(folder: Path, superfluous: Sequence[str], as_json: bool) -> None:
    if superfluous:
        raise InputError(f"runs lists one folder, and '{superfluous[0]}' is a second: runs rm, prune, open take names")
    if not folder.is_dir() and folder != DEFAULT_FOLDER:
        raise InputError(f"there is no folder {folder}: name one that holds runs")
    summaries = list_runs(folder)
    if as_json:
        print(json.dumps({"folder": str(folder), "runs": [summary.to_json() for summary in summaries]}))
    elif not summaries:
        print(f"no runs below {folder}; anyformer train makes one")
    else:
        print(format_runs(summaries))


def format_runs(summaries: Sequence[RunSummary]) -> str:
    heading = ["run", "recipe", "data", "steps", "score", "baseline", "min", "size", "changed", "state"]
    return format_columns([heading, *map(format_run, summaries)], right=(3, 6, 7))


def format_run(summary: RunSummary) -> list[str]:
    """Return the cells of a run's row."""
    is_whole = summary.steps in (None, summary.step)
    score = "" if summary.score is None else f"{summary.metric.replace('_', ' ')} {summary.score:.4g}"
    baseline = f"{summary.baseline[1]:.4g} {summary.baseline[0]}" if summary.baseline else ""
    return [
        summary.name,
        f"{summary.recipe} · {summary.preset}",
        describe_data(summary.data),
        f"{summary.step:,}" if is_whole else f"{summary.step:,}/{summary.steps:,}",
        score + (" so far" if score and summary.state != "finished" else ""),
        baseline,
        f"{summary.minutes:.1f}",
        format_size(summary.size),
        summary.changed_at[:16].replace("T", " "),
        f"running: {summary.holder}" if summary.holder else summary.state,
    ]


def format_size(size: int) -> str:
    """Format a number of bytes: 812 B · 10.8 kB · 3.2 MB."""
    value, power = float(size), 0
    while value >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


# --- rm ---


def remove_runs(names: Sequence[str], options: Command) -> tuple[dict[str, Any], list[str]]:
    """Remove runs after asking. Raises InputError before anything is removed, if any of them cannot be."""
    if not names:
        raise InputError("runs rm needs the name of a run: anyformer runs lists them")
    runs = list(dict.fromkeys(find_run(name, options.folder) for name in names))
    for directory in runs:
        check_removable(directory)
    summaries = [summarize_run(directory, options.folder) for directory in runs]
    size = sum(summary.size for summary in summaries)
    facts = {"removed": [str(directory.path) for directory in runs], "bytes": size, "dry_run": options.dry_run}
    lines = [f"{summary.path}  {format_size(summary.size)}" for summary in summaries]
    if options.dry_run:
        return facts, [*lines, f"would free {format_size(size)}"]
    if not options.yes:
        confirm("\n".join(lines), f"Remove {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {format_size(size)}?")
    for directory in runs:
        remove_run(directory)
    return facts, [*lines, f"freed {format_size(size)}"]


def check_removable(run: RunDirectory) -> None:
    """Raise InputError if a run is being trained, is a link, or holds other runs."""
    if holder := run.find_holder():
        raise InputError(f"{run.path} is being trained by {holder}: stop it first")
    if run.path.is_symlink():
        raise InputError(f"{run.path} is a link to {run.path.resolve()}: remove it yourself")
    if inner := next(find_runs(run.path), None):
        raise InputError(f"{run.path} holds another run, {inner.path}: move that away first")


def remove_run(run: RunDirectory) -> None:
    """Rename, then delete: a kill during the deletion must not leave half a run. Raises InputError."""
    doomed = run.path.with_name(f".{run.path.name}.{os.getpid()}.old")
    with report_write_errors(f"to {run.path}"):
        with run.lock():
            os.replace(run.path, doomed)
        shutil.rmtree(doomed)


def confirm(text: str, question: str) -> None:
    """Ask on the terminal. Raises InputError if the answer is no, or nobody can answer."""
    if not is_terminal():
        raise InputError(f"{question} Nobody can answer here: add --yes")
    print_status(f"{text}\n{question} [y/N]")
    if input().strip().lower() not in ("y", "yes"):
        raise InputError("nothing was removed")


def is_terminal() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


# --- prune ---


def prune_runs(names: Sequence[str], options: Command) -> tuple[dict[str, Any], list[str]]:
    """Remove the checkpoints that are neither the best nor the last ones; runs that are being trained are left out."""
    runs = [find_run(name, options.folder) for name in names] or list(find_runs(options.folder))
    freed: dict[str, int] = {}
    for directory in runs:
        name = name_run(directory.path, options.folder)
        if not directory.checkpoints.is_dir():
            continue
        try:
            if holder := directory.find_holder():
                raise InputError(f"{directory.path} is being trained by {holder}")
            with nullcontext() if options.dry_run else directory.lock(), report_write_errors(f"to {directory.path}"):
                freed[name] = prune_run(directory, options.dry_run)
        except InputError as error:
            print_status(f"left as it is: {error}")
    size = sum(freed.values())
    lines = [f"{name}  {format_size(count)}" for name, count in freed.items() if count]
    facts = {"runs": freed, "bytes": size, "dry_run": options.dry_run}
    return facts, [*lines, f"{'would free' if options.dry_run else 'freed'} {format_size(size)}"]


def prune_run(run: RunDirectory, dry_run: bool) -> int:
    """Prune one run and return the bytes. An unfinished run keeps the last checkpoints that it will average."""
    from ..training import checkpoints

    train = run.read_config()["config"].get("train")
    average = train.get("average") if isinstance(train, dict) else 1
    is_finished = summarize_run(run).state == "finished"
    keep_last = 1 if is_finished or not isinstance(average, int) else max(1, average)
    paths = checkpoints.list_superfluous(run.checkpoints, keep_last)
    mean = run.checkpoints / checkpoints.AVERAGE_DIR
    if mean.is_dir() and checkpoints.find_best(run.checkpoints) != mean:
        paths.append(mean)
    size = sum(measure_folder(path)[0] for path in paths)
    for path in () if dry_run else paths:
        checkpoints.remove_directory(path)
    return size


# --- open ---


def open_run(names: Sequence[str], options: Command) -> tuple[dict[str, Any], list[str]]:
    """Open the report of a run in the browser, or print its path where there is no display."""
    if len(names) != 1:
        raise InputError("runs open needs the name of one run: anyformer runs lists them")
    directory = find_run(names[0], options.folder)
    report = directory.path / "report.html"
    if not report.is_file() or directory.find_holder():
        from ..report.html import write_report

        write_report(directory.path)
    is_open = has_display() and webbrowser.open(report.resolve().as_uri())
    return {"report": str(report), "opened": is_open}, [f"report  {shlex.quote(str(report))}"]


def has_display() -> bool:
    """Whether a browser can show a window: on Linux there must be a display, or a browser of the terminal would
    start."""
    if sys.platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


ACTIONS: dict[str, Callable[[Sequence[str], Command], tuple[dict[str, Any], list[str]]]] = {
    "rm": remove_runs,
    "prune": prune_runs,
    "open": open_run,
}
