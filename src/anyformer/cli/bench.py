"""anyformer bench: how fast this machine trains, generates and tokenizes."""

import json
from dataclasses import dataclass
from typing import Annotated

from .flags import DeviceFlag, JsonFlag
from .terminal import print_status, show_progress


@dataclass(frozen=True)
class Command:
    """Measure how fast this machine trains, generates and tokenizes, next to what
    its matrix products and its memory allow. Takes well under a minute."""

    device: DeviceFlag = "auto"
    quick: Annotated[bool, "Spend a quarter of the time on each figure, which makes them rougher."] = False
    json: JsonFlag = False


def run(options: Command) -> None:
    from rich.console import Console

    from ..labs import benchmark
    from ..training.device import resolve_device

    device = str(resolve_device(options.device))
    print_status("measuring ...")
    with show_progress():
        facts = benchmark.measure(device, benchmark.SECONDS / 4 if options.quick else benchmark.SECONDS)
    if options.json:
        print(json.dumps(facts))
    else:
        Console().print(benchmark.describe(facts))
