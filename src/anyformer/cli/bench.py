"""anyformer bench: what this machine reaches."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from .parse import parse, say
from .terminal import busy


@dataclass(frozen=True)
class Command:
    """How fast this machine trains, answers and tokenizes, beside what its matrix products and its memory allow; all
    of it measured, in well under a minute."""

    device: str = "auto"
    """auto, cpu, cuda, mps."""
    quick: bool = False
    """A quarter of the time for each figure, which makes them rougher."""
    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer bench")
    from rich.console import Console

    from ..labs import benchmark as bench
    from ..report.benchmark import describe
    from ..training.device import device

    where = str(device(asked.device))
    say("measuring ...")
    with busy():
        found = bench.measure(where, bench.SECONDS / 4 if asked.quick else bench.SECONDS)
    if asked.json:
        print(json.dumps(found))
    else:
        Console().print(describe(found))
    return 0
