"""What a lab is: an experiment of the lecture that trains its own models, measures them and writes one report.

`anyformer lab NAME` runs the module `labs/NAME.py`, which `cli/lab.py` names in LABS with one line about it. The module
defines two names:

    Settings               a frozen dataclass below `LabSettings`. Its fields are the flags, with their docstrings as
                           help; its own docstring is the help of the lab. `__post_init__` checks ranges.
    run(settings, log)     makes the data, trains, measures, and returns a `LabResult`. `log(record)` writes a line of
                           metrics.jsonl and shows it on stderr. `settings.out` is the folder: models may lie in it.

The folder --out then holds metrics.jsonl, lab.json (settings and facts) and report.html, which works offline.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..parsing import check_range
from ..recipe import Figure
from ..report.figures import draw_figure
from ..report.html import render_template
from ..training.config import MAX_SEED
from ..training.run_directory import atomic_write, require_unused_folder

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """The flags of every lab."""

    out: Path | None = None
    """Where to write. Default: a new folder below runs/."""
    seed: int = 1
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    json: bool = False
    """Print one JSON object on stdout, and nothing else."""

    def __post_init__(self) -> None:
        check_range(self, "seed", at_least=0, at_most=MAX_SEED)


@dataclass(frozen=True)
class LabTable:
    """A table of the report. The first column is text, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class LabResult:
    """What a lab found."""

    title: str
    summary: Sequence[str]
    """Sentences at the head of the report."""
    tables: Sequence[LabTable] = ()
    figures: Sequence[Figure] = ()
    texts: Sequence[tuple[str, str]] = ()
    """Examples, each with its heading."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """All numbers, as JSON."""


class Lab(Protocol):
    """The module of a lab."""

    Settings: type[LabSettings]

    def run(self, settings: Any, log: Log) -> LabResult: ...


def run_lab(lab: Lab, settings: LabSettings, out: Path, show: Log = lambda record: None) -> LabResult:
    """Run a lab and write its folder. `show` is called with every record. Raises InputError if the folder is not
    empty."""
    require_unused_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as file:

        def log(record: dict[str, Any]) -> None:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            show(record)

        result = lab.run(replace(settings, out=out), log)
    facts = {"settings": list_settings(settings), **result.facts}
    atomic_write(out / "lab.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    atomic_write(out / "report.html", render_lab(result, settings))
    return result


def list_settings(settings: LabSettings) -> dict[str, Any]:
    """Return the settings that decide the result."""
    values = {name: value for name, value in asdict(settings).items() if name not in ("out", "json")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def render_lab(result: LabResult, settings: LabSettings) -> str:
    """Render the report as an HTML page."""
    figures = [markup for figure in result.figures if (markup := draw_figure(figure)) is not None]
    return render_template("lab.html.j2", result=result, figures=figures, origin=list_settings(settings))
