"""anyformer lab NAME: run an experiment of the lecture, and write its report.

What a lab is, and how to add one: `anyformer.labs.lab`.
"""

import importlib
import inspect
import itertools
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from ..errors import InputError, suggest
from .flags import HELP, POSITIONAL, format_help, list_flags, parse_arguments
from .terminal import print_status, show_progress

if TYPE_CHECKING:
    from ..labs.lab import Lab

PROG = "anyformer lab"
LABS: dict[str, str] = {
    "in-context": "regressions learned within the forward pass",
    "notes": "facts in a million tokens, and sums, by a model that writes notes",
    "recall": "a text that a model looks things up in, without training",
}


@dataclass(frozen=True)
class Command:
    """Run an experiment of the lecture, and write its report, metrics and facts
    into a folder. Without a name, list the labs; NAME --help shows its flags."""

    name: Annotated[str, POSITIONAL, "A lab; then its flags."] = ""


def run(words: list[str]) -> int:
    if not words or words[0] in HELP:
        print(
            format_help(PROG, inspect.getdoc(Command) or "", list(list_flags(Command)), list_labs())
            if words
            else list_labs()
        )
        return 0
    name, *arguments = words
    lab = load_lab(name)
    run_verb(name, lab, parse_arguments(lab.Settings, arguments, f"{PROG} {name}"))
    return 0


def load_lab(name: str) -> "Lab":
    """Import the module of a lab. Raises InputError if there is none of this name."""
    if name not in LABS:
        raise InputError(f"there is no lab '{name}': {suggest(name, LABS)}")
    return cast("Lab", importlib.import_module(f"anyformer.labs.{name.replace('-', '_')}"))


def list_labs() -> str:
    return "\n".join(f"  {name:<8} {text}" for name, text in LABS.items())


def run_verb(name: str, lab: "Lab", settings: Any) -> None:
    from ..labs.lab import run_lab

    free = (path for i in itertools.count(1) if not (path := Path("runs") / f"lab-{name}-{i}").exists())
    out = settings.out or next(free)
    with show_progress():
        result = run_lab(lab, settings, out, print_record)
    if settings.json:
        print(json.dumps({"out": str(out)} | dict(result.facts), ensure_ascii=False))
        return
    print("\n".join(result.summary))
    print_status(f"report  {shlex.quote(str(out / 'report.html'))}")


def print_record(record: dict[str, Any]) -> None:
    """Print a record of a lab in one line."""
    values = {k: f"{value:.4g}" if isinstance(value, float) else value for k, value in record.items()}
    print_status("  ".join(f"{k.replace('_', ' ')} {value}" for k, value in values.items()))
