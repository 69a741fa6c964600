"""anyformer doctor: what this machine can do."""

import json
from dataclasses import dataclass
from typing import Annotated

from .flags import JsonFlag
from .terminal import print_status


@dataclass(frozen=True)
class Command:
    """Measure this machine: devices, number formats, threads, GFLOP/s, GB/s, and
    which optional packages are installed."""

    deep: Annotated[
        bool, "Read all of the cache too, and remove what is damaged: it is made again when it is needed."
    ] = False
    json: JsonFlag = False


def run(options: Command) -> None:
    from rich.console import Console

    from ..report import doctor

    print_status("measuring ...")
    facts = doctor.examine()
    if options.deep:
        print_status("reading the cache ...")
        facts["cache"] = doctor.examine_cache()
    if options.json:
        print(json.dumps(facts))
    else:
        Console().print(doctor.describe(facts))
