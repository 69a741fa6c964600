"""anyformer doctor: what this machine can do."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from .parse import parse, say


@dataclass(frozen=True)
class Command:
    """Devices, number formats, threads, measured GFLOP/s and GB/s, optional parts: what to expect of this machine."""

    json: Annotated[bool, tyro.conf.arg(help="One JSON object on stdout, and nothing else there.")] = False


def run(arguments: list[str]) -> int:
    asked = parse(Command, arguments, "anyformer doctor")
    from rich.console import Console

    from ..report.doctor import describe, examine

    say("measuring ...")
    facts = examine()
    if asked.json:
        print(json.dumps(facts))
    else:
        Console().print(describe(facts))
    return 0
