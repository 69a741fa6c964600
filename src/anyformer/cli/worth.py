"""anyformer worth RUN: what each field of a row is worth to a trained model."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import InputError
from .parse import parse, say
from .terminal import busy


@dataclass(frozen=True)
class Command:
    """How well a model of rows answers without each field, with it alone, and with its values taken from other rows, on
    rows it was not trained on. Writes worth.json and a picture, worth.svg, into the run."""

    run: tyro.conf.Positional[Path]
    """A run directory (its best checkpoint), or a checkpoint."""
    data: str | None = None
    """Other data than the run's own: all of it is used, since none of it was trained on."""
    shuffles: int = 3
    """How often the values of a field are shuffled: the mean is told."""
    seed: int = 0
    """Of the shuffling."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer worth")
    if asked.shuffles < 1:
        raise InputError(f"--shuffles is {asked.shuffles}; it must be at least 1")
    from .. import api
    from ..labs import field_importance as worth

    with busy():
        model = api.load(asked.run, asked.device)
        found = worth.measure(model, asked.data, asked.shuffles, asked.seed)
    paths = worth.write_worth(asked.run, found)
    if asked.json:
        print(json.dumps({"run": str(asked.run), "step": model.step} | found, ensure_ascii=False))
        return 0
    print("\n".join(table(found)))
    say(f"picture  {shlex.quote(str(paths[1]))}")
    return 0


def table(found: dict[str, Any]) -> list[str]:
    """What is worth most first."""
    wide = max(len(name) for name in (*found["fields"], "all fields"))
    lines = [f"{found['score']} over {found['rows']:,} rows", ""]
    lines += [f"{'':<{wide}}  {'without':>8} {'only':>8} {'shuffled':>8} {'worth':>8}"]
    for name, one in sorted(found["fields"].items(), key=lambda pair: -pair[1]["worth"]):
        cells = " ".join(f"{one[key]:8.4f}" for key in ("without", "only", "shuffled", "worth"))
        lines.append(f"{name:<{wide}}  {cells}")
    return [*lines, "", f"{'all fields':<{wide}}  {found['all']:8.4f}", f"{'none':<{wide}}  {found['none']:8.4f}"]
