"""anyformer doctor: what this machine can do."""

import json
from dataclasses import dataclass

from .flags import JsonFlag
from .terminal import print_status


@dataclass(frozen=True)
class Command:
    """Measure this machine: devices, number formats, threads, GFLOP/s, GB/s, and
    which optional packages are installed."""

    json: JsonFlag = False


def run(options: Command) -> None:
    from rich.console import Console

    from ..report import doctor

    print_status("measuring ...")
    facts = doctor.examine()
    if options.json:
        print(json.dumps(facts))
    else:
        Console().print(doctor.describe(facts))
