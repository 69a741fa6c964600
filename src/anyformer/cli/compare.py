"""anyformer compare RUN RUN ...: scores, configs and loss curves of several runs."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from ..errors import InputError
from .flags import POSITIONAL, JsonFlag
from .terminal import format_columns, print_status

RUNS = Path("runs")  # where names of runs are looked for


@dataclass(frozen=True)
class Command:
    """Compare runs: their scores, and the fields of the config that differ. With
    --out also their loss curves, on one page that works offline.

    Runs that differ in nothing but the seed are summarized: mean, standard
    deviation and a 95 % interval."""

    runs: Annotated[tuple[str, ...], POSITIONAL, "Run directories, or names of runs below runs/."] = ()
    out: Annotated[Path | None, "Write an HTML page to this file."] = None
    json: JsonFlag = False


def run(options: Command) -> None:
    from ..report.compare import compare_runs, format_differences, format_scores, render_comparison
    from ..report.runs import find_run
    from ..training.run_directory import atomic_write, report_write_errors

    if len(options.runs) < 2:
        raise InputError("compare needs two runs or more: anyformer runs lists them")
    facts = compare_runs([find_run(name, RUNS) for name in options.runs])
    if options.out is not None:
        with report_write_errors(str(options.out)):
            atomic_write(options.out, render_comparison(facts))
    if options.json:
        print(json.dumps(to_json(facts) | {"out": options.out and str(options.out)}, ensure_ascii=False))
        return
    scores, differences = format_scores(facts), format_differences(facts)
    print(format_columns(scores) + "\n* the best value")
    print("\n" + (format_columns(differences) if len(differences) > 1 else "the configs are the same"))
    for warning in facts["warnings"]:
        print_status(f"note: {warning}")
    if options.out is not None:
        print_status(f"page  {shlex.quote(str(options.out))}")


def to_json(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts as plain values."""
    groups = [
        group | {"scores": {name: asdict(sample) for name, sample in group["scores"].items()}}
        for group in facts["groups"]
    ]
    return facts | {"groups": groups}
